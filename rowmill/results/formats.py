"""Outcomes written for people and programs: JSONL, CSV or Parquet, in the order of the source.

JSONL, one object a line, `seq` ascending from 1; these keys are always there:

    {"seq": 1, "key": …, "state": "Succeeded", "attempts": 1, "result": …, "error": null}
    {"seq": 2, "key": …, "state": "Failed", "attempts": 5, "result": null, "error": {"class": "…", "message": "…"}}

`columns` (an object) is added where the manifest's `output.columns` carries columns over, `duplicateOf` (the winner, as
`namespace/name/runId#seq`) where the state is Deduplicated.

CSV and Parquet have the columns `seq, key, state, attempts, result, error_class, error_message, duplicate_of` and then
those of `output.columns`, by their own names (`source_NAME` where one is named like a column of ours). A text
stands as it is, any other value as JSON, null as nothing (CSV) or null (Parquet). Parquet types: `seq` int64,
`attempts` int32, all others string. Where a job's results are vectors (`rowmill.results.vectors`), Parquet's `result`
is a list of float or double, and a column `result_json` after it holds what is no vector; one of them at most is set.

Written page by page, and the same outcomes give the same bytes however they were cut into pages.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

from rowmill.outcome import Outcome
from rowmill.results.vectors import OTHER_RESULTS, VectorColumn, Vectors

SUFFIXES: Final = {"JSONL": ".jsonl", "CSV": ".csv", "Parquet": ".parquet"}
_FIXED: Final = ("seq", "key", "state", "attempts", "result", "error_class", "error_message", "duplicate_of")
ROW_GROUP_BYTES = 16 * 1024 * 1024
ROW_GROUP_ROWS = 100_000
"""A row group of Parquet is closed at so many bytes or rows, whichever comes first: so much is held in memory."""


class Sink(Protocol):
    """What takes the bytes."""

    def write(self, data: bytes, /) -> Any: ...


class OutcomeWriter(Protocol):
    """Writes outcomes to a file that somebody else opened and closes."""

    def write(self, page: Sequence[Outcome]) -> None: ...

    def close(self) -> None:
        """Write what is still held back; the file is complete then."""

    def abandon(self) -> None:
        """Let go of the file, whose content nobody will read."""


def outcome_writer(
    format: str, file: Sink, columns: Sequence[str] = (), *, vectors: Vectors | None = None
) -> OutcomeWriter:
    """A writer of `JSONL`, `CSV` or `Parquet` to a binary `file`. `columns` are the names that `output.columns` carries
    over, `vectors` is the type of the job's results where they are vectors: Parquet has lists of numbers then."""
    if format == "Parquet":
        return _Parquet(file, columns, vectors)
    return _JsonLines(file) if format == "JSONL" else _Csv(file, columns)


def json_line(outcome: Outcome) -> str:
    """One line of JSONL, without the line's end."""
    error = "null"
    if outcome.error_class is not None:
        error = json.dumps({"class": outcome.error_class, "message": outcome.error_message or ""}, ensure_ascii=True)
    parts = [
        f'{{"seq": {outcome.seq}, "key": {_one_line(outcome.key)}, "state": "{outcome.state.label}", ',
        f'"attempts": {outcome.attempts}, "result": {_one_line(outcome.result)}, "error": {error}',
    ]
    if outcome.duplicate_of is not None:
        parts.append(f', "duplicateOf": {json.dumps(outcome.duplicate_of)}')
    if outcome.columns is not None:
        parts.append(f', "columns": {_one_line(outcome.columns)}')
    return "".join(parts) + "}"


def column_names(columns: Sequence[str], *, vectors: Vectors | None = None) -> list[str]:
    """The header of CSV and Parquet: ours first, then the source's, each name once."""
    names = list(_FIXED)
    if vectors is not None:
        names.insert(_FIXED.index("result") + 1, OTHER_RESULTS)
    for column in columns:
        name = column
        while name in names:
            name = f"source_{name}"
        names.append(name)
    return names


def cells(outcome: Outcome, columns: Sequence[str]) -> list[Any]:
    """One row of CSV or Parquet, in the order of `column_names`."""
    return _cells(outcome, columns, [_cell(outcome.result)])


def _cells(outcome: Outcome, columns: Sequence[str], result: list[Any]) -> list[Any]:
    carried = json.loads(outcome.columns) if outcome.columns is not None else {}
    return [
        outcome.seq,
        _cell(outcome.key),
        outcome.state.label,
        outcome.attempts,
        *result,
        outcome.error_class,
        None if outcome.error_message is None else _encodable(outcome.error_message),
        outcome.duplicate_of,
        *(_text(carried.get(column)) for column in columns),
    ]


class _JsonLines:
    def __init__(self, file: Sink) -> None:
        self._file = file

    def write(self, page: Sequence[Outcome]) -> None:
        text = "".join([json_line(outcome) + "\n" for outcome in page])
        self._file.write(text.encode("utf-8", "backslashreplace"))

    def close(self) -> None:
        pass

    def abandon(self) -> None:
        pass


class _Csv:
    def __init__(self, file: Sink, columns: Sequence[str]) -> None:
        self._file = file
        self._columns = columns
        self._lines: list[str] = []
        self._writer = csv.writer(_Appender(self._lines.append), lineterminator="\n")
        self._writer.writerow(column_names(columns))

    def write(self, page: Sequence[Outcome]) -> None:
        self._writer.writerows(cells(outcome, self._columns) for outcome in page)
        self._file.write("".join(self._lines).encode("utf-8"))
        self._lines.clear()

    def close(self) -> None:
        self.write(())

    def abandon(self) -> None:
        pass


class _Appender:
    """What csv takes for a file."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write = write


class _Parquet:
    """Row groups are closed at a number of rows or bytes, whichever comes first, so that memory stays bounded."""

    def __init__(self, file: Sink, columns: Sequence[str], vectors: Vectors | None) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._pa = pa
        self._columns = columns
        self._vectors = VectorColumn(vectors) if vectors is not None else None
        types = {"seq": pa.int64(), "attempts": pa.int32()}
        if vectors is not None:
            types["result"] = pa.list_(pa.float32() if vectors == "Float32" else pa.float64())
        names = column_names(columns, vectors=vectors)
        self._schema = pa.schema(
            [
                pa.field(name, types.get(name, pa.string()), nullable=name not in ("seq", "state", "attempts"))
                for name in names
            ]
        )
        self._writer = pq.ParquetWriter(_Binary(file), self._schema, compression="zstd")
        self._rows: list[list[Any]] = []
        self._bytes = 0

    def write(self, page: Sequence[Outcome]) -> None:
        for outcome in page:
            self._rows.append(self._cells(outcome))
            self._bytes += 100 + sum(len(text) for text in (outcome.result, outcome.columns, outcome.key) if text)
            if len(self._rows) >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
                self._flush()

    def close(self) -> None:
        if self._rows:
            self._flush()
        self._writer.close()

    def abandon(self) -> None:
        # Else it would try again when it is collected, on a closed file.
        with contextlib.suppress(Exception):
            self._writer.close()

    def _cells(self, outcome: Outcome) -> list[Any]:
        if self._vectors is None:
            return cells(outcome, self._columns)
        is_vector = self._vectors.append(outcome.result)
        return _cells(outcome, self._columns, [None, None if is_vector else _json_cell(outcome.result)])

    def _flush(self) -> None:
        arrays = [
            self._vectors.take(self._pa)
            if self._vectors is not None and field.name == "result"
            else self._pa.array(values, type=field.type)
            for values, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))
        self._rows.clear()
        self._bytes = 0


class _Binary:
    """What Parquet's writer takes for a file: it never closes what it was given."""

    closed = False

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._position = 0

    def write(self, data: Any) -> int:
        self._sink.write(bytes(data))
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        return self._position

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _one_line(text: str | None) -> str:
    """A JSON text on one line: a line's end in JSON can only be blank space between tokens."""
    if text is None:
        return "null"
    return text.replace("\r", " ").replace("\n", " ") if "\n" in text or "\r" in text else text


def _cell(text: str | None) -> str | None:
    """A JSON text as a cell: a text as it is, anything else as JSON."""
    if text is None:
        return None
    return _text(json.loads(text)) if text.lstrip()[:1] in ('"', "n") else _one_line(text)


def _json_cell(text: str | None) -> str | None:
    """A JSON text as it is, but for null."""
    return None if text is None or text.strip() == "null" else _one_line(text)


def _text(value: Any) -> str | None:
    if value is None:
        return None
    return _encodable(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _encodable(text: str) -> str:
    # Half of a surrogate pair is legal in JSON, but no Unicode text: it is shown as its escape.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
