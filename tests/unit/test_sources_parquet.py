"""Parquet: every type in its JSON form, bad cells alone, damage noticed, row groups as places to go on from."""

from __future__ import annotations

import datetime as dt
import decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowmill.errors import InvalidInput
from rowmill.row import BadRow, Position
from tests.unit.sources_helpers import assert_resumes, by_seq, only_bad, read, rows, source


def write(tmp_path: Path, table: Any, **options: Any) -> Path:
    path = tmp_path / "t.parquet"
    pq.write_table(table, path, **options)
    return path


def cell(tmp_path: Path, values: list[Any], kind: Any) -> list[Any]:
    path = write(tmp_path, pa.table({"c": pa.array(values, type=kind)}))
    return [row if isinstance(row, BadRow) else row["c"] for row in rows(source(path))]


UTC = dt.UTC
WHEN = dt.datetime(2024, 2, 29, 12, 30, 1)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([1, None, -(2**63)], pa.int64(), [1, None, -(2**63)]),
        ([2**64 - 1], pa.uint64(), [2**64 - 1]),
        ([0.5, float("nan"), None], pa.float64(), [0.5, None, None]),
        ([True, None], pa.bool_(), [True, None]),
        (["42", "", None], pa.string(), ["42", "", None]),
        (["a", "b", "a"], pa.dictionary(pa.int32(), pa.string()), ["a", "b", "a"]),
        ([decimal.Decimal("12345678901234567890.10"), None], pa.decimal128(38, 2), ["12345678901234567890.10", None]),
        ([decimal.Decimal("0E-10")], pa.decimal128(38, 10), ["0.0000000000"]),
        ([b"\x00\xff", None], pa.binary(), ["AP8=", None]),
        ([dt.date(2024, 2, 29)], pa.date32(), ["2024-02-29"]),
        ([dt.date(2024, 2, 29)], pa.date64(), ["2024-02-29"]),
        ([WHEN, None], pa.timestamp("s"), ["2024-02-29T12:30:01", None]),
        ([WHEN.replace(microsecond=5000, tzinfo=UTC)], pa.timestamp("ms", tz="UTC"), ["2024-02-29T12:30:01.005Z"]),
        ([1], pa.timestamp("ns"), ["1970-01-01T00:00:00.000000001"]),
        ([-1], pa.timestamp("us"), ["1969-12-31T23:59:59.999999"]),
        ([dt.time(1, 2, 3, 4)], pa.time64("us"), ["01:02:03.000004"]),
        ([dt.time(1, 2, 3)], pa.time32("s"), ["01:02:03"]),
        (
            [dt.timedelta(days=1, milliseconds=500), dt.timedelta(seconds=-1)],
            pa.duration("ms"),
            ["PT86400.5S", "-PT1S"],
        ),
        ([[1, None], [], None], pa.list_(pa.int32()), [[1, None], [], None]),
        ([[WHEN]], pa.list_(pa.timestamp("us")), [["2024-02-29T12:30:01"]]),
        (
            [{"a": WHEN, "b": [{"c": b"x"}]}, None],
            pa.struct([("a", pa.timestamp("ns")), ("b", pa.list_(pa.struct([("c", pa.binary())])))]),
            [{"a": "2024-02-29T12:30:01", "b": [{"c": "eA=="}]}, None],
        ),
        ([[("k", 1), ("l", None)]], pa.map_(pa.string(), pa.int32()), [{"k": 1, "l": None}]),
    ],
)
def test_types_in_their_json_form(tmp_path: Path, values: list[Any], kind: Any, expected: list[Any]) -> None:
    assert cell(tmp_path, values, kind) == expected


@pytest.mark.parametrize(
    ("values", "kind", "error_class", "says"),
    [
        ([1.0, float("inf"), 3.0], pa.float64(), "BadRow", "row 2: column 'c' holds an infinite number"),
        ([[1.0], [float("-inf")], []], pa.list_(pa.float64()), "BadRow", "holds an infinite number"),
        ([0, 2**62, 1], pa.timestamp("ms"), "BadRow", "row 2: column 'c' holds a value that has no JSON form"),
        (["a", "secret\0", "b"], pa.string(), "InvalidText", "row 2: column 'c' holds a NUL"),
        (["a", "x" * 2_000_000, "b"], pa.string(), "RowTooLarge", "row 2: the row takes 2,000,008 bytes"),
    ],
    ids=["infinite", "nested", "year", "nul", "large"],
)
def test_a_bad_cell_fails_its_row_alone(
    tmp_path: Path, values: list[Any], kind: Any, error_class: str, says: str
) -> None:
    opened = source(write(tmp_path, pa.table({"c": pa.array(values, type=kind)})))
    bad = only_bad(opened)
    assert (bad.seq, bad.error_class) == (2, error_class)
    assert says in bad.message
    assert "secret" not in bad.message
    assert len(rows(opened)) == 3


def test_text_that_is_not_utf_8_fails_alone(tmp_path: Path) -> None:
    broken = pa.StringArray.from_buffers(
        3, pa.array([b"a", b"\xff", b"b"]).buffers()[1], pa.array([b"a", b"\xff", b"b"]).buffers()[2]
    )
    one, bad, three = rows(source(write(tmp_path, pa.table({"c": broken}))))
    assert (one, three) == ({"c": "a"}, {"c": "b"})
    assert (bad.error_class, bad.seq) == ("InvalidText", 2)
    assert "column 'c' is not UTF-8" in bad.message


def test_resumes_at_row_groups(tmp_path: Path) -> None:
    table = pa.table({"id": list(range(1, 2501)), "text": [f"row {i}" for i in range(1, 2501)]})
    path = write(tmp_path, table, row_group_size=700)
    opened = source(path)
    assert opened.columns() == ("id", "text")
    assert by_seq(read(opened))[2500] == {"id": 2500, "text": "row 2500"}
    assert_resumes(opened, max_rows=333)
    assert len(rows(source(path, limit=701))) == 701
    assert read(opened, Position(2501)) == []


def test_early_row_groups_are_not_read_on_resuming(tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"id": list(range(5000))}), row_group_size=1000, compression="none")
    with path.open("r+b") as file:
        file.seek(8)
        file.write(b"\xff" * 200)
    opened = source(path)
    assert len(by_seq(read(opened, Position(1001)), first=1001)) == 4000
    with pytest.raises(InvalidInput, match="truncated or damaged"):
        read(opened)


def test_a_table_without_rows(tmp_path: Path) -> None:
    opened = source(write(tmp_path, pa.table({"a": pa.array([], pa.int32())})))
    assert opened.columns() == ("a",)
    assert read(opened) == []


@pytest.mark.parametrize("keep", [5, 200, -1])
def test_a_truncated_file_is_one_clear_error(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path, pa.table({"a": list(range(1000))}))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InvalidInput) as caught:
        source(path)
    assert caught.value.where == str(path)
    assert "truncated or damaged" in str(caught.value)


def test_what_is_no_parquet_is_one_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InvalidInput, match="this is no Parquet file"):
        source(path)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "names 'a' more than once"),
        (pa.table([pa.array([1])], names=[""]), "names no column at position 1"),
        (pa.table({"m": pa.array([[(1, 2)]], pa.map_(pa.int32(), pa.int32()))}), "column 'm' has the type map"),
    ],
)
def test_columns_that_cannot_be_used_are_refused(tmp_path: Path, table: Any, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        source(write(tmp_path, table))
    assert says in str(caught.value)


def test_memory_is_that_of_a_batch_not_of_the_file(tmp_path: Path) -> None:
    """Arrow's own peak, over one large row group of random text (which no encoding makes small)."""
    import random

    texts = random.Random(1)

    def peak(count: int) -> int:
        table = pa.table({"t": [f"{texts.getrandbits(1600):0400x}" for _ in range(count)]})
        path = write(tmp_path, table, row_group_size=count, use_dictionary=False, compression="none")
        del table
        before, most = pa.total_allocated_bytes(), 0
        for _ in source(path).blocks(Position()):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    assert peak(40_000) < 12_000_000
