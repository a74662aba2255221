"""Parquet: row groups are read in small batches; the footer says which group holds a row, so no hint is needed.

Cells keep their type where JSON has it. Where it has not: dates, times and durations become ISO 8601 text, decimals
text, binary base64 text, NaN null; an infinite number makes a bad row. A column of a type that has no form in JSON
is refused before the first row.
"""

from __future__ import annotations

import base64
import datetime as dt
import math
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

from rowmill.row import BadRow, Position
from rowmill.sources.columns import checked_columns
from rowmill.sources.files import SourceFile
from rowmill.sources.payload import BAD_ROW, INVALID_TEXT, payload_of, payloads_of
from rowmill.sources.runs import Run

_BATCH_ROWS = 1000
_BATCH_BYTES = 4_194_304
_READ_BUFFER_BYTES = 1_048_576
_EPOCH = dt.datetime(1970, 1, 1)
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

Convert = Callable[[Any], Any]


class ParquetReader:
    """Runs of rows from a Parquet file. Raises InvalidInput when it is none, truncated, or of types that JSON lacks."""

    kind = "Parquet"

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise file.invalid("Parquet needs pyarrow; install rowmill[operator]") from None
        self._pa = pyarrow
        self._damage = (pyarrow.ArrowException, OSError, ValueError, OverflowError)
        if not file.magic.startswith(b"PAR1"):
            raise file.invalid("this is no Parquet file; correct the path or the format")
        opened = self._opened()
        try:
            schema = opened.schema_arrow
            self.columns: tuple[str, ...] = checked_columns(schema.names, file)
            self._columns = [self._column(field.name, field.type) for field in schema]
            self._group_rows = [opened.metadata.row_group(i).num_rows for i in range(opened.metadata.num_row_groups)]
            total = sum(opened.metadata.row_group(i).total_byte_size for i in range(len(self._group_rows)))
            average = max(1, total // max(1, opened.metadata.num_rows))
            self._batch_rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // average))
        finally:
            opened.close()

    def runs(self, start: Position) -> Iterator[Run]:
        """Runs from the row group that holds `start.seq` to the end of the file."""
        first = 1
        opened = self._opened()
        try:
            for group, rows in enumerate(self._group_rows):
                if first + rows > start.seq:
                    yield from self._group(opened, group, first, start.seq)
                first += rows
        except (self._pa.ArrowException, OSError) as error:
            raise self._damaged(error) from None
        finally:
            opened.close()

    def _opened(self) -> Any:
        from pyarrow import parquet

        self._file.unchanged()
        try:
            return parquet.ParquetFile(
                str(self._file.path), buffer_size=_READ_BUFFER_BYTES, pre_buffer=False, memory_map=False
            )
        except self._damage as error:
            raise self._damaged(error) from None

    def _damaged(self, error: Exception) -> Exception:
        return self._file.invalid(
            f"the Parquet data are truncated or damaged ({type(error).__name__}); fetch or write the file again"
        )

    def _group(self, opened: Any, group: int, first: int, start: int) -> Iterator[Run]:
        end = first + self._group_rows[group]
        batches = opened.iter_batches(batch_size=self._batch_rows, row_groups=[group], use_threads=False)
        for batch in batches:
            rows = batch.num_rows
            if first + rows > start:
                yield self._run(batch, first)
            first += rows
        if first != end:
            # Arrow ends early, without an error, where a file was cut off after it was opened.
            raise self._damaged(EOFError())

    def _run(self, batch: Any, first: int) -> Run:
        try:
            items = payloads_of(self._rows(batch), first, lambda i: f"row {first + i}")
        except (ValueError, OverflowError, self._pa.ArrowException):
            items = [self._alone(batch.slice(i, 1), first + i) for i in range(batch.num_rows)]
        return Run(first, items, False)

    def _alone(self, row: Any, seq: int) -> bytes | BadRow:
        """One row's payload where a neighbour, or it itself, cannot be converted; names the column."""
        cells: dict[str, Any] = {}
        for i, name in enumerate(self.columns):
            try:
                cells[name] = self._cells(row, i)[0]
            except UnicodeDecodeError:
                return BadRow(
                    seq, INVALID_TEXT, f"row {seq}: column {name!r} is not UTF-8; write it as binary or as UTF-8"
                )
            except (ValueError, OverflowError, self._pa.ArrowException):
                return BadRow(
                    seq,
                    BAD_ROW,
                    f"row {seq}: column {name!r} holds a value that has no JSON form (a date beyond the years "
                    "1 to 9999, say); write it as text",
                )
        return payload_of(seq, cells, lambda: f"row {seq}")

    def _rows(self, batch: Any) -> list[dict[str, Any]]:
        cells = [self._cells(batch, i) for i in range(len(self.columns))]
        return [
            dict(zip(names, row, strict=True))
            for names, row in zip(repeat(self.columns), zip(*cells, strict=True), strict=False)
        ]

    def _cells(self, batch: Any, i: int) -> list[Any]:
        storage, convert = self._columns[i]
        column = batch.column(i)
        if isinstance(column, self._pa.ExtensionArray):
            column = column.storage
        if storage is not None:
            column = column.cast(storage)
        values: list[Any] = column.to_pylist()
        return values if convert is None else [None if v is None else convert(v) for v in values]

    def _column(self, name: str, kind: Any) -> tuple[Any, Convert | None]:
        """What to cast a column to first (None: nothing), and what to do to each cell that is not null."""
        if isinstance(kind, self._pa.BaseExtensionType):
            kind = kind.storage_type
        try:
            storage = self._storage(kind)
            return (None if storage == kind else storage), self._convert(kind)
        except TypeError:
            raise self._file.invalid(
                f"column {name!r} has the type {kind}, which has no form in JSON; convert it or leave it out"
            ) from None

    def _storage(self, kind: Any) -> Any:
        """`kind` with integers for times: Python's own times lack nanoseconds."""
        pa, types = self._pa, self._pa.types
        if types.is_timestamp(kind) or types.is_duration(kind):
            return pa.int64()
        if types.is_time(kind):
            return pa.int64() if kind.bit_width == 64 else pa.int32()
        if types.is_dictionary(kind):
            return self._storage(kind.value_type)
        if types.is_struct(kind):
            return pa.struct([f.with_type(self._storage(f.type)) for f in kind])
        if types.is_fixed_size_list(kind):
            return pa.list_(kind.value_field.with_type(self._storage(kind.value_type)), kind.list_size)
        if types.is_large_list(kind):
            return pa.large_list(kind.value_field.with_type(self._storage(kind.value_type)))
        if types.is_list(kind):
            return pa.list_(kind.value_field.with_type(self._storage(kind.value_type)))
        if types.is_map(kind):
            return pa.map_(kind.key_type, self._storage(kind.item_type))
        return kind

    def _convert(self, kind: Any) -> Convert | None:
        """From a cell as Python has it to what JSON has, None for nothing to do. Raises TypeError for no form."""
        types = self._pa.types
        if types.is_null(kind) or types.is_boolean(kind) or types.is_integer(kind):
            return None
        if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
            return None
        if types.is_floating(kind):
            return _number
        if types.is_decimal(kind):
            return lambda v: format(v, "f")
        if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
            return lambda v: base64.b64encode(v).decode()
        if types.is_date(kind):
            return lambda v: v.isoformat()[:10]
        if types.is_timestamp(kind):
            per_second, zone = _PER_SECOND[kind.unit], "" if kind.tz is None else "Z"
            return lambda v: _timestamp(v, per_second) + zone
        if types.is_time(kind):
            per_second = _PER_SECOND[kind.unit]
            return lambda v: _timestamp(v, per_second)[11:]
        if types.is_duration(kind):
            per_second = _PER_SECOND[kind.unit]
            return lambda v: _duration(v, per_second)
        if types.is_dictionary(kind):
            return self._convert(kind.value_type)
        if types.is_struct(kind):
            return _struct({f.name: self._convert(f.type) for f in kind}, len(kind))
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return _list(self._convert(kind.value_type))
        if types.is_map(kind) and types.is_string(kind.key_type):
            return _map(self._convert(kind.item_type))
        raise TypeError(kind)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _timestamp(value: int, per_second: int) -> str:
    """ISO 8601 with as many digits of a second as the unit has and the value needs (0, 3, 6 or 9)."""
    seconds, fraction = divmod(value, per_second)
    text = (_EPOCH + dt.timedelta(seconds=seconds)).isoformat()
    if not fraction:
        return text
    digits = str(fraction * (10**9 // per_second)).zfill(9)
    while digits.endswith("000"):
        digits = digits[:-3]
    return f"{text}.{digits}"


def _duration(value: int, per_second: int) -> str:
    """ISO 8601 in seconds: `PT1.5S`."""
    seconds, fraction = divmod(abs(value), per_second)
    digits = str(fraction * (10**9 // per_second)).zfill(9).rstrip("0")
    return f"{'-' if value < 0 else ''}PT{seconds}{'.' if digits else ''}{digits}S"


def _list(convert: Convert | None) -> Convert | None:
    if convert is None:
        return None
    return lambda values: [None if v is None else convert(v) for v in values]


def _struct(converts: dict[str, Convert | None], width: int) -> Convert | None:
    if len(converts) != width:
        raise TypeError("a struct with a field twice")
    if not any(converts.values()):
        return None
    return lambda value: {
        name: v if v is None or (convert := converts[name]) is None else convert(v) for name, v in value.items()
    }


def _map(convert: Convert | None) -> Convert:
    return lambda pairs: {k: v if v is None or convert is None else convert(v) for k, v in pairs}
