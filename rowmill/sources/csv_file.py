"""CSV: cells are strings, the first record names the columns, blank lines are no rows.

Two ways through a chunk of bytes that begins where a record begins:

* fast: up to the last line end that seems to be outside quotes, all records at once, in C. Holds only when every
  record fits the columns, the text is UTF-8 and a sentinel record put behind the chunk comes back by itself, which
  proves that the chunk ended where a record ended.
* slow: whenever anything of that does not hold, record by record, each ending as a payload or as a BadRow.

Both see a record as the csv module does, so a chunk that takes the slow way yields the same good rows.
A record beyond RECORD_BYTES is never held: its end is looked for in bounded memory and the row is RowTooLarge.
Invariant: each chunk begins at a record, at the checkpoint's offset, and its first row is the checkpoint's seq.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from functools import partial
from itertools import starmap
from typing import Any

import msgspec

from rowmill.row import MAX_ROW_BYTES, BadRow, Position
from rowmill.sources.checkpoint import TAIL_BYTES, Checkpoint, resumed
from rowmill.sources.columns import checked_columns
from rowmill.sources.csv_scan import RecordScanner, likely_cut, line_ends
from rowmill.sources.files import READ_BYTES, SourceBytes, SourceFile
from rowmill.sources.payload import BAD_ROW, INVALID_TEXT, lines_of, payload_of, shown_names, too_large
from rowmill.sources.runs import Run

RECORD_BYTES = MAX_ROW_BYTES + 65_536
"""Bytes of a record as it stands in the file that are ever held: the largest payload, and slack for quotes."""

_ENCODED_BYTES = 4_194_304  # of payloads at once: long column names can blow a small chunk up
_OTHER_FORMATS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"PK\x03\x04": "Excel or zip", b"PAR1": "Parquet"}


class CsvReader:
    """Runs of rows from a CSV file. Raises InvalidInput when its header cannot be used."""

    def __init__(self, file: SourceFile, *, delimiter: str) -> None:
        # The csv module's limit is one for the process and below our largest cell; it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), 2 * RECORD_BYTES))
        self._file = file
        self._delimiter = delimiter
        self.kind = f"CSV{delimiter}"
        self.columns, self._origin = self._header()
        self._row_of = _row_maker(self.columns)
        self._sentinel_line = '""' + delimiter * (len(self.columns) - 1) + "\n"
        self._sentinel = self._row_of(*[""] * len(self.columns))
        names = sum(len(msgspec.json.encode(name)) + 4 for name in self.columns)
        self._rows_at_once = max(1, _ENCODED_BYTES // names)

    def runs(self, start: Position) -> Iterator[Run]:
        """Runs from the checkpoint at or before `start` to the end of the file."""
        file = self._file
        with file.open() as stream:
            at = resumed(start, origin=self._origin, kind=self.kind, file=file, stream=stream)
            buffer, final = b"", False
            while not final or buffer:
                piece = b"" if final else stream.read(READ_BYTES)
                final = final or not piece
                buffer += piece
                if not buffer:
                    break
                cut = len(buffer) if final else likely_cut(buffer)
                # A chunk this long may hold a record too long to hold: the slow way always tells, the fast one not.
                rows = self._parsed(buffer[:cut]) if 0 < cut <= RECORD_BYTES else None
                if rows is not None:
                    chunk, buffer = buffer[:cut], buffer[cut:]
                    after = at.advanced(chunk, len(rows), line_ends(chunk))
                    if after.seq > start.seq:
                        yield from self._fast(rows, chunk, at, after)
                    at = after
                    continue
                if not final and not cut and len(buffer) <= RECORD_BYTES:
                    continue
                done, after = 0, at
                for step in self._slow(buffer, at, final):
                    run, done, after = step
                    yield run
                buffer, at = buffer[done:], after
                if final:
                    buffer = b""
                elif len(buffer) > RECORD_BYTES:
                    run, buffer, at = self._oversized(buffer, stream, at)
                    yield run

    def _hint(self, at: Checkpoint) -> dict[str, Any]:
        return at.hint(kind=self.kind, size=self._file.size)

    def _parsed(self, chunk: bytes) -> list[Any] | None:
        """All rows of `chunk`, or None when anything in it needs a closer look."""
        try:
            text = chunk.decode()
        except UnicodeDecodeError:
            return None
        if not text.endswith(("\n", "\r")):
            text += "\n"
        if '"' in text or "\r" in text:
            lines: Any = io.StringIO(text + self._sentinel_line, newline="")
        else:
            lines = text.split("\n")
            lines[-1] = self._sentinel_line
        try:
            rows = list(starmap(self._row_of, filter(None, csv.reader(lines, delimiter=self._delimiter))))
        except (TypeError, ValueError, csv.Error):
            return None
        return rows if rows and rows.pop() == self._sentinel else None

    def _fast(self, rows: list[Any], chunk: bytes, at: Checkpoint, after: Checkpoint) -> Iterator[Run]:
        """Runs of the `rows` of `chunk`; a group that shows a sign of trouble makes the whole chunk go slow."""
        begin, end = self._hint(at), self._hint(after)
        step = self._rows_at_once
        for i in range(0, len(rows), step):
            group = rows[i : i + step]
            payloads = lines_of(group)
            last = i + step >= len(rows)
            if payloads is not None:
                yield Run(at.seq + i, payloads, True, begin, end if last else begin)
                continue
            for run, _, _ in self._slow(chunk, at, True):
                if run.seq + len(run.items) > at.seq + i:
                    yield run
            return

    def _slow(self, buffer: bytes, at: Checkpoint, final: bool) -> Iterator[tuple[Run, int, Checkpoint]]:
        """Record by record: runs, each with the index in `buffer` and the checkpoint after it.

        What is left behind the last index is a record that `buffer` does not end.
        """
        scanner = RecordScanner(self._delimiter)
        done = run_begin = 0
        items: list[bytes | BadRow] = []
        filled = 0
        line = at.line
        while done < len(buffer):
            scanner.reset()
            end = scanner.feed(buffer, done)
            if end < 0:
                if not final:
                    break
                end = len(buffer)
            record = buffer[done:end]
            lines = line_ends(record)
            item = self._item(record, at.seq + len(items), line, open_quote=scanner.in_quotes)
            done, line = end, line + lines
            if item is not None:
                items.append(item)
                filled += len(item) if isinstance(item, bytes) else 200
            if filled > _ENCODED_BYTES:
                after = at.advanced(buffer[run_begin:done], len(items), line - at.line)
                yield Run(at.seq, items, False, self._hint(at), self._hint(after)), done, after
                at, run_begin, items, filled = after, done, [], 0
        after = at.advanced(buffer[run_begin:done], len(items), line - at.line)
        yield Run(at.seq, items, False, self._hint(at), self._hint(after)), done, after

    def _item(self, record: bytes, seq: int, line: int, *, open_quote: bool) -> bytes | BadRow | None:
        """A record's payload, or why it has none; None for a blank line."""
        place = f"line {line}"
        if len(record) > RECORD_BYTES:
            return too_large(seq, place, len(record), note=_UNCLOSED if open_quote else "")
        if open_quote:
            return _never_closed(seq, line, line_ends(record))
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            dubious = self._cells(record.decode(errors="surrogateescape")) or []
            broken = [name for name, cell in zip(self.columns, dubious, strict=False) if _undecodable(cell)]
            return BadRow(
                seq,
                INVALID_TEXT,
                f"{place}: column {shown_names(broken) or 'beyond the header'} is not UTF-8 "
                f"(byte {error.start + 1} of the row); save the file as UTF-8",
            )
        cells = self._cells(text)
        if cells is None:
            return BadRow(seq, BAD_ROW, f"{place}: this row cannot be read as CSV; check its quotes")
        if not cells:
            return None
        if len(cells) != len(self.columns):
            return BadRow(
                seq,
                BAD_ROW,
                f"{place}: the row has {len(cells)} cells where the header has {len(self.columns)}; "
                "quote cells that hold the delimiter, and give every column a cell",
            )
        return payload_of(seq, dict(zip(self.columns, cells, strict=True)), lambda: place)

    def _cells(self, record: str) -> list[str] | None:
        try:
            return next(csv.reader(io.StringIO(record, newline=""), delimiter=self._delimiter), [])
        except csv.Error:
            return None

    def _oversized(self, buffer: bytes, stream: SourceBytes, at: Checkpoint) -> tuple[Run, bytes, Checkpoint]:
        """Skip the record that begins `buffer` and is too large to hold; the rest, and where it begins."""
        scanner = RecordScanner(self._delimiter)
        size, after = 0, at
        while (end := scanner.feed(buffer)) < 0:
            size += len(buffer)
            after = after.advanced(buffer, 0, _further_line_ends(after, buffer))
            buffer = stream.read(READ_BYTES)
            if not buffer:
                break
        end = max(end, 0)
        size += end
        after = after.advanced(buffer[:end], 1, _further_line_ends(after, buffer[:end]))
        note = _UNCLOSED if scanner.in_quotes else ""
        bad = too_large(at.seq, f"line {at.line}", size, note=note)
        return Run(at.seq, [bad], False, self._hint(at), self._hint(after)), buffer[end:], after

    def _header(self) -> tuple[tuple[str, ...], Checkpoint]:
        """The columns and the checkpoint of the first row."""
        file, scanner = self._file, RecordScanner(self._delimiter)
        with file.open() as stream:
            head = stream.read_exactly(RECORD_BYTES)
        for magic, name in _OTHER_FORMATS.items():
            if head.startswith(magic):
                raise file.invalid(f"this is no UTF-8 text but {name}; save it as UTF-8, or correct the format")
        begin, line = (3 if head.startswith(b"\xef\xbb\xbf") else 0), 1
        while begin < len(head):
            scanner.reset()
            end = scanner.feed(head, begin)
            if end < 0 and len(head) >= RECORD_BYTES:
                raise file.invalid(f"line {line}: the header has more than {RECORD_BYTES:,} bytes; is this CSV?")
            if scanner.in_quotes:
                raise file.invalid(f"line {line}: the header has a quote that is never closed; close it")
            end = len(head) if end < 0 else end
            cells = self._cells(self._header_text(head[begin:end], begin, line))
            line += line_ends(head[begin:end])
            if cells:
                tail = head[max(0, end - TAIL_BYTES) : end]
                return checked_columns(cells, file), Checkpoint(end, 1, line, tail)
            begin = end
        raise file.invalid("the file holds no header; its first line names the columns")

    def _header_text(self, record: bytes, offset: int, line: int) -> str:
        try:
            text = record.decode()
        except UnicodeDecodeError as error:
            at = offset + error.start
            raise self._file.invalid(
                f"line {line}: byte {at + 1} of the file is not UTF-8; save the file as UTF-8"
            ) from None
        if "\0" in text:
            raise self._file.invalid(
                f"line {line}: the header holds NUL bytes, so this is no UTF-8 text; save the file as UTF-8"
            )
        return text


def _further_line_ends(at: Checkpoint, piece: bytes) -> int:
    """Line ends in `piece`, but for the LF of a CRLF whose CR was the last byte before."""
    return line_ends(piece) - (at.tail.endswith(b"\r") and piece.startswith(b"\n"))


_UNCLOSED = ", because a quote in it is never closed"


def _row_maker(columns: tuple[str, ...]) -> Callable[..., Any]:
    """What makes cells a thing that encodes as an object, and raises TypeError or ValueError for another number.

    A msgspec Struct takes half the time of a dict; names that it cannot carry get the dict.
    """
    fields = {f"c{i}": name for i, name in enumerate(columns)}
    try:
        return msgspec.defstruct("CsvRow", [(f, str) for f in fields], rename=fields, gc=False)
    except ValueError:
        return partial(_dict_row, columns)


def _dict_row(columns: tuple[str, ...], *cells: str) -> dict[str, str]:
    return dict(zip(columns, cells, strict=True))


def _undecodable(cell: str) -> bool:
    return any("\udc80" <= c <= "\udcff" for c in cell)


def _never_closed(seq: int, line: int, lines: int) -> BadRow:
    return BadRow(
        seq,
        BAD_ROW,
        f"line {line}: a quote in this row is never closed, so that the rest of the file ({lines} lines) "
        "belongs to it; close the quote, or double a quote that is part of the text",
    )
