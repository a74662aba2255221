"""JSONL: one JSON object a line; blank lines are no rows; a key given twice in an object counts by its last value.

Lines are decoded and encoded again, so that the payload is known to be JSON and free of blanks; integers keep
all their digits (up to 4,300), other numbers are doubles. A line that is too long to hold is skipped in bounded
memory. Invariant: each chunk begins at a line, at the checkpoint's offset, and its first row is its seq.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

from rowmill.row import MAX_ROW_BYTES, BadRow, Position
from rowmill.sources.checkpoint import TAIL_BYTES, Checkpoint, resumed
from rowmill.sources.files import READ_BYTES, SourceBytes, SourceFile
from rowmill.sources.payload import BAD_ROW, INVALID_TEXT, lines_of, payload_of, too_large
from rowmill.sources.runs import Run

LINE_BYTES = MAX_ROW_BYTES + 65_536
"""Bytes of a line as it stands in the file that are ever held."""

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_BLANK = b" \t\r\n"


class JsonlReader:
    """Runs of rows from a JSONL file. Raises InvalidInput when it cannot be JSONL in UTF-8."""

    columns = None
    kind = "JSONL"

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        with file.open() as stream:
            head = stream.read_exactly(4)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in head:
            raise file.invalid("this is no UTF-8 text (UTF-16, or binary data); save it as UTF-8")
        begin = 3 if head.startswith(b"\xef\xbb\xbf") else 0
        if not head[begin:]:
            raise file.invalid("the file is empty; it needs at least one line")
        self._origin = Checkpoint(begin, 1, 1, head[:begin][-TAIL_BYTES:])

    def runs(self, start: Position) -> Iterator[Run]:
        """Runs from the checkpoint at or before `start` to the end of the file."""
        file = self._file
        with file.open() as stream:
            at = resumed(start, origin=self._origin, kind=self.kind, file=file, stream=stream)
            buffer = b""
            while piece := stream.read(READ_BYTES):
                buffer += piece
                cut = buffer.rfind(b"\n") + 1
                if cut:
                    run, at = self._run(buffer[:cut], at)
                    buffer = buffer[cut:]
                    yield run
                if len(buffer) > LINE_BYTES:
                    run, buffer, at = self._oversized(buffer, stream, at)
                    yield run
            if buffer:
                run, at = self._run(buffer, at)
                yield run

    def _hint(self, at: Checkpoint) -> dict[str, Any]:
        return at.hint(kind=self.kind, size=self._file.size)

    def _run(self, chunk: bytes, at: Checkpoint) -> tuple[Run, Checkpoint]:
        """The rows of `chunk`, which ends with a line."""
        lines = chunk.split(b"\n")
        if not lines[-1]:
            lines.pop()
        items: list[bytes | BadRow] = []
        clean = True
        payloads = _fast(lines)
        if payloads is not None:
            items += payloads
        else:
            clean = False
            for number, line in enumerate(lines, at.line):
                if line.strip(_BLANK):
                    items.append(_item(line, at.seq + len(items), number))
        after = at.advanced(chunk, len(items), len(lines))
        return Run(at.seq, items, clean, self._hint(at), self._hint(after)), after

    def _oversized(self, buffer: bytes, stream: SourceBytes, at: Checkpoint) -> tuple[Run, bytes, Checkpoint]:
        """Skip the line that begins `buffer` and is too long to hold; the rest, and where it begins."""
        size, after, blank = 0, at, True
        while buffer and (end := buffer.find(b"\n") + 1) == 0:
            size += len(buffer)
            blank = blank and not buffer.strip(_BLANK)
            after = after.advanced(buffer, 0, 0)
            buffer = stream.read(READ_BYTES)
        end = buffer.find(b"\n") + 1
        blank = blank and not buffer[:end].strip(_BLANK)
        size += max(end - 1, 0)
        items = [] if blank else [too_large(at.seq, f"line {at.line}", size)]
        after = after.advanced(buffer[:end], len(items), 1)
        return Run(at.seq, items, False, self._hint(at), self._hint(after)), buffer[end:], after


def _fast(lines: list[bytes]) -> list[bytes] | None:
    """The payloads when every line is a sound object, else None."""
    if max(map(len, lines), default=0) > LINE_BYTES:
        return None
    try:
        rows = list(map(_decode, lines))
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None
    return lines_of(rows)


def _item(line: bytes, seq: int, number: int) -> bytes | BadRow:
    place = f"line {number}"
    if len(line) > LINE_BYTES:
        return too_large(seq, place, len(line))
    try:
        row = _decode(line)
    except UnicodeDecodeError:
        return BadRow(seq, INVALID_TEXT, f"{place}: the line is not UTF-8; save the file as UTF-8")
    except RecursionError:
        return BadRow(seq, BAD_ROW, f"{place}: the row's values are nested too deeply; flatten them")
    except (msgspec.DecodeError, ValueError):
        return _explained(line, seq, place)
    return payload_of(seq, row, lambda: place)


def _explained(line: bytes, seq: int, place: str) -> BadRow:
    """Why the strict decoder refused `line`, found with a lenient one."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return BadRow(
            seq,
            BAD_ROW,
            f"{place}: this is not JSON (at character {error.pos + 1} of the line); each line holds one object",
        )
    except (UnicodeDecodeError, RecursionError, ValueError):
        return BadRow(seq, BAD_ROW, f"{place}: the line cannot be read as JSON; each line holds one object")
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a text", bool: "true or false", type(None): "null"}.get(type(value), "a number")
        return BadRow(seq, BAD_ROW, f"{place}: the line holds {kind} where an object of columns and cells is needed")
    refused = payload_of(seq, value, lambda: place)
    if isinstance(refused, BadRow):
        return refused
    return BadRow(
        seq,
        BAD_ROW,
        f"{place}: NaN, Infinity or a number beyond 1.8e308 is not JSON; write null, or the number as text",
    )
