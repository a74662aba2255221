"""Excel (.xlsx): the first sheet, its first row that is not blank as the header; rows without any value are no rows.

The zip directory at the end of the file tells truncation at once. The sheet is streamed; the table of shared
texts, which the format keeps beside it, is held in memory and therefore bounded. Resuming skips from the start:
compressed XML has no place to go on from.
"""

from __future__ import annotations

import datetime as dt
import re
import warnings
import zipfile
from collections.abc import Iterator
from typing import Any

from rowmill.errors import InvalidInput
from rowmill.row import BadRow, Position
from rowmill.sources.columns import checked_columns
from rowmill.sources.files import SourceFile
from rowmill.sources.payload import BAD_ROW, payload_of, shown_names
from rowmill.sources.runs import Run

MAX_SHARED_TEXT_BYTES = 268_435_456
"""Bytes of shared texts, unpacked, up to which a workbook is read; openpyxl holds them all."""

_RUN_ROWS = 500
_EXACT = 2**53
_SHEET_ROWS = 1_048_576
_FORMAT_TEXT = re.compile(r'"[^"]*"|\[[^\]]*\]|\\.')


class ExcelReader:
    """Runs of rows from an .xlsx file. Raises InvalidInput when it is none, truncated, or without a usable header."""

    kind = "Excel"

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        try:
            import openpyxl  # noqa: F401
        except ImportError:
            raise file.invalid("Excel needs openpyxl; install rowmill[operator]") from None
        # What it finds odd about a workbook is nothing a user of the values can act on.
        warnings.filterwarnings("ignore", category=UserWarning, module="openpyxl")
        if file.magic.startswith(b"\xd0\xcf\x11\xe0"):
            raise file.invalid("this is an old .xls or an encrypted workbook; save it as .xlsx without a password")
        self._check_zip()
        for _, cells in self._rows():
            names = [_name(cell) for cell in cells]
            while names and not names[-1]:
                names.pop()
            self.columns: tuple[str, ...] = checked_columns(names, file)
            return
        raise file.invalid("the first sheet is empty; its first row names the columns")

    def runs(self, start: Position) -> Iterator[Run]:
        """Runs from the first row on; what lies before `start` is parsed and dropped."""
        seq, items = 1, list[bytes | BadRow]()
        rows = self._rows()
        next(rows)
        for number, cells in rows:
            due = seq + len(items) >= start.seq
            items.append(self._item(cells, seq + len(items), number) if due else b"")
            if len(items) == _RUN_ROWS:
                yield Run(seq, items, False)
                seq, items = seq + len(items), []
        yield Run(seq, items, False)

    def _check_zip(self) -> None:
        try:
            with zipfile.ZipFile(self._file.path) as archive:
                sizes = {info.filename: info.file_size for info in archive.infolist()}
        except (zipfile.BadZipFile, OSError, ValueError):
            raise self._file.invalid("this is no .xlsx workbook, or a truncated one; save or fetch it again") from None
        if sizes.get("xl/sharedStrings.xml", 0) > MAX_SHARED_TEXT_BYTES:
            raise self._file.invalid(
                f"the workbook holds more than {MAX_SHARED_TEXT_BYTES:,} bytes of text; save it as CSV"
            )

    def _rows(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """The sheet's rows that hold any value, each with the number that Excel shows."""
        import openpyxl

        self._file.unchanged()
        workbook = None
        try:
            stream = open(self._file.path, "rb")  # noqa: SIM115 - openpyxl reads on from it, by its content
        except OSError as error:
            raise self._file.invalid(f"the file cannot be read: {error.strerror}") from None
        try:
            workbook = openpyxl.load_workbook(stream, read_only=True, data_only=True, keep_links=False)
            if not workbook.worksheets:
                raise self._file.invalid("the workbook has no sheet of cells")
            sheet: Any = workbook.worksheets[0]
            sheet.reset_dimensions()  # what the file says of its size is often wrong, and would cut rows off
            for number, cells in enumerate(sheet.iter_rows(), 1):
                if number > _SHEET_ROWS:
                    raise self._file.invalid("the sheet has row numbers that Excel does not have; save it again")
                if any(cell.value is not None for cell in cells):
                    yield number, cells
        except InvalidInput:
            raise
        except Exception as error:  # openpyxl lets through whatever its parsers raise
            raise self._file.invalid(
                f"the workbook is damaged ({type(error).__name__}); open it in Excel and save it again"
            ) from None
        finally:
            if workbook is not None:
                workbook.close()
            stream.close()

    def _item(self, cells: tuple[Any, ...], seq: int, number: int) -> bytes | BadRow:
        """A row's payload, or why it has none. Cells that a row lacks at its end are null."""
        width = len(self.columns)
        beyond = [cell.coordinate for cell in cells[width:] if cell.value is not None]
        if beyond:
            return BadRow(
                seq,
                BAD_ROW,
                f"row {number} of the sheet: cell {shown_names(beyond)} lies beyond the header's {width} columns; "
                "name the column or clear the cell",
            )
        errors = [cell.coordinate for cell in cells if cell.data_type == "e" and cell.value is not None]
        if errors:
            return BadRow(
                seq, BAD_ROW, f"row {number} of the sheet: cell {shown_names(errors)} holds an error; correct it"
            )
        row: dict[str, Any] = dict.fromkeys(self.columns)
        for name, cell in zip(self.columns, cells, strict=False):
            row[name] = _value(cell)
        return payload_of(seq, row, lambda: f"row {number} of the sheet")


def _name(cell: Any) -> str:
    value = _value(cell)
    return "" if value is None else str(value)


def _value(cell: Any) -> Any:
    """A cell as JSON has it; what stays a time or a duration becomes ISO 8601 on encoding."""
    value = cell.value
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return int(value)
    if isinstance(value, dt.datetime) and not _shows_time(cell.number_format) and value.time() == dt.time():
        return value.date().isoformat()
    if isinstance(value, dt.datetime | dt.date | dt.time):
        return value.isoformat()
    return value


def _shows_time(number_format: str) -> bool:
    return any(letter in "hHsS" for letter in _FORMAT_TEXT.sub("", number_format))
