"""Opening: paths, addresses, formats, inline rows; fingerprints; a file that changes; plain errors."""

from __future__ import annotations

import datetime as dt
import gzip
import os
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowmill.errors import InvalidInput, SourceChanged
from rowmill.row import MAX_SEQ, Position
from rowmill.sources import Source, csv_file, open_source
from rowmill.sources.runs import Run, cut
from tests.unit.sources_helpers import assert_resumes, read, rows, source


def inline(table: list[Mapping[str, Any]], limit: int | None = None) -> Source:
    return open_source(uri=None, rows=table, format=None, limit=limit, base=Path(), cache=Path("unused"))


def problem(path: Path | str, **options: Any) -> tuple[str, str]:
    with pytest.raises(InvalidInput) as caught:
        source(path, **options)
    assert caught.value.where == str(path)
    (only,) = caught.value.problems
    return only.path, only.message


# --- places and formats --------------------------------------------------------------------------------------------


def test_paths_are_relative_to_the_base_and_file_addresses_are_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "t%20.csv").write_text("a\n1\n")
    assert rows(source("my data/t%20.csv", base=tmp_path)) == [{"a": "1"}]
    assert rows(source(f"file://{tmp_path}/my%20data/t%2520.csv")) == [{"a": "1"}]
    assert rows(source(str(folder / "t%20.csv"), base=Path("/nowhere"))) == [{"a": "1"}]


@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.csv.gz"])
def test_the_suffix_tells_the_format(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a\n1\n")
    assert rows(source(tmp_path / name)) == [{"a": "1"}]


def test_a_format_given_wins_over_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('{"a": 1}\n')
    assert rows(source(tmp_path / "t.csv", format="JSONL")) == [{"a": 1}]


def test_formats_that_cannot_be_told_or_are_none(tmp_path: Path) -> None:
    (tmp_path / "t.dat").write_text("a\n1\n")
    assert problem(tmp_path / "t.dat")[0] == "spec.source.format"
    assert "one of CSV, JSONL, Parquet, Excel" in problem(tmp_path / "t.dat")[1]
    assert "'csv' is no format" in problem(tmp_path / "t.dat", format="csv")[1]


def test_files_that_cannot_be_read_are_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "dir.csv").mkdir()
    (tmp_path / "a.csv").symlink_to("a.csv")
    (tmp_path / "p.parquet").write_bytes(gzip.compress(b"x"))
    assert "there is no such file" in problem(tmp_path / "absent.csv")[1]
    assert "this is a directory" in problem(tmp_path / "dir.csv")[1]
    assert "cannot be read" in problem(tmp_path / "a.csv")[1]
    assert "only CSV and JSONL are read compressed" in problem(tmp_path / "p.parquet")[1]
    assert "cannot be read" in problem(tmp_path / ("x" * 300 + ".csv"))[1]


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    assert "no regular file" in problem(tmp_path / "pipe.csv")[1]


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("ftp://host/t.csv", "ftp:// is not supported"),
        ("file://otherhost/t.csv", "names no host"),
        ("http:///t.csv", "no valid address"),
        ("http://exa mple/t.csv", "no valid address"),
        ("http://[::1/t.csv", "no valid address"),
    ],
)
def test_addresses_that_cannot_be_used(uri: str, says: str) -> None:
    assert says in problem(uri)[1]


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(InvalidInput) as caught:
        source("https://me:secret@example.invalid/t.csv")
    assert "must not hold a password" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_exactly_one_place_and_a_limit_that_is_one() -> None:
    for uri, table in ((None, None), ("t.csv", [{}])):
        with pytest.raises(InvalidInput, match="exactly one"):
            open_source(uri=uri, rows=table, format=None, limit=None, base=Path(), cache=Path())
    with pytest.raises(InvalidInput, match="at least 1"):
        inline([{"a": 1}], limit=0)


# --- inline rows ---------------------------------------------------------------------------------------------------


def test_inline_rows_as_they_are() -> None:
    opened = inline([{"b": 1, "a": None}, {"c": [1, {"d": "x"}], "a": 2**70}, {"when": dt.date(2024, 2, 29)}])
    assert opened.columns() == ("b", "a", "c", "when")
    assert rows(opened) == [{"b": 1, "a": None}, {"c": [1, {"d": "x"}], "a": 2**70}, {"when": "2024-02-29"}]
    assert_resumes(opened, max_rows=1)
    assert len(rows(inline([{"a": 1}] * 9, limit=4))) == 4
    assert read(inline([])) == []


@pytest.mark.parametrize(
    ("value", "error_class", "says"),
    [
        (float("inf"), "BadRow", "an infinite number"),
        ({"deep": ["\0"]}, "InvalidText", "a NUL character"),
        ("\ud83d", "InvalidText", "half of a surrogate pair"),
        ("x" * 1_048_576, "RowTooLarge", "more than the 1,048,576"),
        (10**5000, "BadRow", "more digits than can be read"),
        (object(), "BadRow", "no JSON form"),
    ],
    ids=["infinite", "nul", "surrogate", "large", "digits", "object"],
)
def test_bad_inline_rows_fail_alone(value: Any, error_class: str, says: str) -> None:
    one, bad, three = rows(inline([{"a": 1}, {"a": value}, {"a": 3}]))
    assert (one, three) == ({"a": 1}, {"a": 3})
    assert (bad.seq, bad.error_class) == (2, error_class)
    assert bad.message.startswith("spec.source.rows[1]: ")
    assert says in bad.message


# --- fingerprints --------------------------------------------------------------------------------------------------


def test_fingerprints_follow_content_and_format_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text("a\n1\n")
    two.write_text("a\n1\n")
    os.utime(two, (1, 1))
    digest = source(one).fingerprint()
    assert digest.startswith("blake2b:")
    assert source(two).fingerprint() == digest
    assert source(one, limit=1).fingerprint() == digest
    (tmp_path / "three.csv.gz").write_bytes(gzip.compress(b"a\n1\n"))
    assert source(tmp_path / "three.csv.gz").fingerprint() == digest
    (tmp_path / "four.tsv").write_text("a\n1\n")
    assert source(tmp_path / "four.tsv").fingerprint() != digest
    assert source(one, format="JSONL").fingerprint() != digest
    (tmp_path / "five.csv").write_text("a\n2\n")
    assert source(tmp_path / "five.csv").fingerprint() != digest


def test_inline_fingerprints() -> None:
    digest = inline([{"a": 1, "b": 2}]).fingerprint()
    assert inline([{"a": 1, "b": 2}], limit=1).fingerprint() == digest
    assert inline([{"b": 2, "a": 1}]).fingerprint() != digest
    assert inline([{"a": 1}, {"b": 2}]).fingerprint() != digest


# --- a file that changes -------------------------------------------------------------------------------------------


def table(tmp_path: Path, suffix: str) -> Path:
    path = tmp_path / f"t.{suffix}"
    if suffix == "csv":
        path.write_text("a\n" + "".join(f"{i}\n" for i in range(200_000)))
    elif suffix == "jsonl":
        path.write_text("".join(f'{{"a": {i}}}\n' for i in range(200_000)))
    elif suffix == "parquet":
        pq.write_table(pa.table({"a": list(range(20_000))}), path, row_group_size=1_000)
    else:
        book = openpyxl.Workbook()
        for row in (["a"], *[[i] for i in range(3_000)]):
            book.worksheets[0].append(row)
        book.save(path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet", "xlsx"])
@pytest.mark.parametrize("change", ["append", "truncate", "touch", "replace", "remove"])
def test_a_change_while_reading_is_noticed(tmp_path: Path, suffix: str, change: str) -> None:
    path = table(tmp_path, suffix)
    opened = source(path)
    blocks = opened.blocks(Position())
    next(blocks)
    if change == "append":
        with path.open("ab") as out:
            out.write(b"more\n")
    elif change == "truncate":
        os.truncate(path, 16)  # what is read next looks damaged
    elif change == "touch":
        os.utime(path, (1, 1))
    elif change == "replace":
        other = tmp_path / "other"
        other.write_bytes(path.read_bytes())
        os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
        os.replace(other, path)
    else:
        path.unlink()
    with pytest.raises(SourceChanged):
        list(blocks)
    with pytest.raises(SourceChanged):
        list(opened.blocks(Position()))
    with pytest.raises(SourceChanged):
        opened.fingerprint()


def test_a_change_after_the_last_byte_was_read_is_noticed_before_the_last_block(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a\n1\n2\n")
    opened = source(path)
    blocks = opened.blocks(Position(), max_rows=1)
    assert next(blocks).first == 1
    os.utime(path, (1, 1))
    with pytest.raises(SourceChanged):
        list(blocks)


def test_no_row_that_was_read_after_a_change_is_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "READ_BYTES", 20)
    path = tmp_path / "t.csv"
    path.write_text("a\n" + "same\n" * 500)
    blocks = source(path).blocks(Position(), max_rows=1)
    next(blocks)
    path.write_text("a\n" + "else\n" * 500)
    handed_out: deque[bytes] = deque()
    with pytest.raises(SourceChanged):
        handed_out.extend(entry.payload for block in blocks for entry in block.entries)
    assert set(handed_out) <= {b'{"a":"same"}'}


def test_a_reader_that_is_left_closes_its_file(tmp_path: Path) -> None:
    opened = source(table(tmp_path, "csv"))

    def held() -> int:
        return sum(os.path.realpath(f"/proc/self/fd/{fd}").endswith("t.csv") for fd in os.listdir("/proc/self/fd"))

    blocks = opened.blocks(Position())
    next(blocks)
    assert held() == 1
    blocks.close()  # type: ignore[attr-defined]
    assert held() == 0
    opened.close()
    opened.close()


# --- cutting -------------------------------------------------------------------------------------------------------


def test_more_rows_than_can_be_numbered_are_refused() -> None:
    runs = [Run(MAX_SEQ - 1, [b"{}", b"{}", b"{}"], True)]
    start = Position(MAX_SEQ - 1)
    bounds = {"max_rows": 10, "max_bytes": 100, "where": "t.csv"}
    with pytest.raises(InvalidInput, match="split it"):
        list(cut(runs, start=start, limit=None, **bounds))  # type: ignore[arg-type]
    (block,) = cut(runs, start=start, limit=MAX_SEQ, **bounds)  # type: ignore[arg-type]
    assert len(block.entries) == 2


def test_rows_that_are_missing_are_never_passed_over() -> None:
    with pytest.raises(RuntimeError, match="rows 1 to 2 are missing"):
        list(cut([Run(3, [b"{}"], True)], start=Position(), limit=None, max_rows=9, max_bytes=9, where="t.csv"))
