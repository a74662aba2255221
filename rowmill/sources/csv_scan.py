"""Where a CSV record ends, told without holding the record: exactly as the csv module would read it.

The dialect is the csv module's default but for the delimiter: quotes double inside quotes, text after a closing
quote belongs to the cell, a quote inside an unquoted cell is a character, and CR, LF or CRLF end a record outside
quotes. States: at a cell's start → in plain text | in quotes → perhaps after the quotes → … → the record's end.
"""

from __future__ import annotations

import re
from enum import Enum

_QUOTE = ord('"')
_CR = ord("\r")
_LF = ord("\n")


class _State(Enum):
    CELL = "at the start of a cell"
    PLAIN = "in unquoted text"
    QUOTED = "in quotes"
    QUOTE = "after a quote in quotes"
    CR = "after a CR that ends the record, with LF perhaps to come"


class RecordScanner:
    """Finds the end of one record after the other, over pieces of any size."""

    def __init__(self, delimiter: str) -> None:
        stop = re.escape(delimiter.encode())
        self._stops = re.compile(b"[\r\n" + stop + b"]")
        # As many whole cells, each with its delimiter, as there are; possessive, so that nothing is tried twice.
        self._cells = re.compile(
            b'(?:(?:"[^"]*+(?:""[^"]*+)*+"[^%b\r\n]*+|[^"%b\r\n][^%b\r\n]*+)?+%b)*+' % (stop, stop, stop, stop)
        )
        self._state = _State.CELL

    @property
    def in_quotes(self) -> bool:
        """Whether a quoted cell is open where the data ended."""
        return self._state is _State.QUOTED

    def reset(self) -> None:
        """Forget what was fed: the next byte begins a record."""
        self._state = _State.CELL

    def feed(self, data: bytes, begin: int = 0) -> int:
        """The index after the record's line end, or -1 when it does not end in `data` (then feed what follows)."""
        state, at, size = self._state, begin, len(data)
        end = data.find(b"\n", at) + 1 if state is _State.CELL else 0
        if end and data.find(b'"', at, end) < 0:
            # Most records: one line without quotes, where no CR but that of a CRLF ends it before.
            cr = data.find(b"\r", at, end - 1)
            if cr < 0 or cr == end - 2:
                return end
        while at < size:
            if state is _State.CELL and (cells := self._cells.match(data, at)) and cells.end() > at:
                at = cells.end()
                continue
            if state is _State.QUOTED:
                at = data.find(b'"', at) + 1
                if not at:
                    break
                state = _State.QUOTE
                continue
            byte = data[at]
            if state is _State.CR:
                self._state = _State.CELL
                return at + 1 if byte == _LF else at
            if byte == _QUOTE and state in (_State.QUOTE, _State.CELL):
                state = _State.QUOTED
                at += 1
                continue
            stop = self._stops.search(data, at)
            if stop is None:
                state = _State.PLAIN
                break
            at = stop.end()
            byte = data[at - 1]
            if byte == _LF:
                self._state = _State.CELL
                return at
            state = _State.CR if byte == _CR else _State.CELL
        self._state = state
        return -1


def line_ends(data: bytes) -> int:
    """How many lines end in `data` (CR, LF and CRLF each end one)."""
    ends = data.count(b"\n")
    if b"\r" in data:
        ends += data.count(b"\r") - data.count(b"\r\n")
    return ends


def likely_cut(buffer: bytes) -> int:
    """The index after the last line end that is outside quotes, if quotes come in pairs; 0 where none is found.

    A guess that costs next to nothing; only parsing up to it tells whether it holds.
    """
    end = _after_line_end(buffer, len(buffer))
    odd = buffer.count(b'"', 0, end) % 2
    for _ in range(8):
        if not end or not odd:
            return end
        before = _after_line_end(buffer, buffer.rfind(b'"', 0, end))
        odd = (odd + buffer.count(b'"', before, end)) % 2
        end = before
    return 0


def _after_line_end(buffer: bytes, until: int) -> int:
    """The index after the last line end before `until`; a CR at the very end is none yet, LF may follow."""
    lf = buffer.rfind(b"\n", 0, until)
    cr = buffer.rfind(b"\r", lf + 1, min(until, len(buffer) - 1))
    return max(lf, cr) + 1
