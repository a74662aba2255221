"""CSV: the same rows as the csv module sees, whatever the text; bad rows alone; resumable; bounded memory."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.row import MAX_ROW_BYTES, BadRow, Position
from rowmill.sources import csv_file
from rowmill.sources.csv_scan import RecordScanner
from tests.unit.sources_helpers import assert_resumes, by_seq, only_bad, read, rows, source


def write(tmp_path: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_stay_strings_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffid,text\n42,\n\n007,"a ""b"",\r\nc"\r\n\r\n1.0, x \n')
    opened = source(path)
    assert opened.columns() == ("id", "text")
    assert rows(opened) == [
        {"id": "42", "text": ""},
        {"id": "007", "text": 'a "b",\r\nc'},
        {"id": "1.0", "text": " x "},
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("last", [True, False])
def test_every_line_end_with_or_without_the_last(tmp_path: Path, end: str, last: bool) -> None:
    path = write(tmp_path, end.join(["a,b", "1,2", '3,"4"']) + (end if last else ""))
    assert rows(source(path)) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_a_header_alone_is_a_table_of_no_rows(tmp_path: Path) -> None:
    opened = source(write(tmp_path, "a,b\n"))
    assert opened.columns() == ("a", "b")
    assert read(opened) == []


def test_tabs_in_a_tsv_and_gzip_by_content(tmp_path: Path) -> None:
    assert rows(source(write(tmp_path, "a\tb\n1,5\t2\n", "t.tsv"))) == [{"a": "1,5", "b": "2"}]
    packed = write(tmp_path, gzip.compress(b"a,b\n1,2\n"), "t.csv.gz")
    assert rows(source(packed)) == [{"a": "1", "b": "2"}]
    assert_resumes(source(packed), max_rows=1)


def test_names_that_need_escapes_in_json(tmp_path: Path) -> None:
    path = write(tmp_path, '"a ""b""",back\\slash,"ta\tb",ü name\n1,2,3,4\n5,6\n')
    first, second = rows(source(path))
    assert first == {'a "b"': "1", "back\\slash": "2", "ta\tb": "3", "ü name": "4"}
    assert second.error_class == "BadRow"


# --- against the csv module itself -------------------------------------------------------------------------------

TRICKY = st.lists(
    st.sampled_from(['"', '""', ",", "\n", "\r\n", "\r", "a", "é", " ", "x,y\n", '"q\n"', "\\"]), max_size=60
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    body=TRICKY.map("".join),
    piece=st.integers(1, 40),
    rows_at_once=st.integers(1, 3),
    held=st.sampled_from([8, 20, csv_file.RECORD_BYTES]),
)
def test_the_same_rows_as_the_csv_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, piece: int, rows_at_once: int, held: int
) -> None:
    monkeypatch.setattr(csv_file, "READ_BYTES", piece)
    monkeypatch.setattr(csv_file, "RECORD_BYTES", held)
    path = write(tmp_path, "a,b\n" + body)
    records = [r for r in csv.reader(io.StringIO(body, newline="")) if r]
    scanner = RecordScanner(",")
    at = 0
    while (end := scanner.feed(body.encode(), at)) >= 0:
        scanner.reset()
        at = end
    scanner.reset()
    open_quote = scanner.feed(body.encode(), at) < 0 and scanner.in_quotes
    found = rows(source(path), max_rows=rows_at_once)
    assert len(found) == len(records)
    for i, (record, row) in enumerate(zip(records, found, strict=True)):
        if isinstance(row, BadRow) and row.error_class == "RowTooLarge":
            assert sum(len(cell.encode()) for cell in record) * 2 + len(record) * 3 > held
        elif len(record) == 2 and not (open_quote and i == len(records) - 1):
            assert row == dict(zip(("a", "b"), record, strict=True))
        else:
            assert isinstance(row, BadRow)
    assert_resumes(source(path), max_rows=rows_at_once)


CELL = st.text(st.sampled_from('ab,"\n\ré '), max_size=12)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    table=st.lists(st.tuples(CELL, CELL), max_size=40),
    piece=st.integers(1, 200),
    cut=st.integers(1, 7),
    size=st.integers(1, 400),
)
def test_any_cut_gives_exactly_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: list[tuple[str, str]], piece: int, cut: int, size: int
) -> None:
    monkeypatch.setattr(csv_file, "READ_BYTES", piece)
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerow(("a", "b"))
    writer.writerows(table)
    opened = source(write(tmp_path, out.getvalue()))
    assert rows(opened) == [{"a": a, "b": b} for a, b in table]
    assert_resumes(opened, max_rows=cut, max_bytes=size)


# --- bad rows ------------------------------------------------------------------------------------------------------


def test_ragged_rows_fail_alone_and_say_where(tmp_path: Path) -> None:
    path = write(tmp_path, 'a,b\n1,2\n"multi\nline",3\n4\n5,6,7\n8,9\n')
    one, two, few, many, last = rows(source(path))
    assert (one, two, last) == ({"a": "1", "b": "2"}, {"a": "multi\nline", "b": "3"}, {"a": "8", "b": "9"})
    assert few == BadRow(3, "BadRow", few.message)
    assert "line 5: the row has 1 cells where the header has 2" in few.message
    assert "line 6: the row has 3 cells where the header has 2" in many.message


@pytest.mark.parametrize(
    ("row", "error_class", "says"),
    [
        (b"caf\xe9 au lait,x", "InvalidText", "line 3: column 'a' is not UTF-8 (byte 4 of the row); save"),
        (b"x,\xed\xa0\x80secret", "InvalidText", "line 3: column 'b' is not UTF-8"),
        (b"secret\x00,x", "InvalidText", "line 3: column 'a' holds a NUL character"),
        (b'"never closed,x', "BadRow", "line 3: a quote in this row is never closed"),
    ],
)
def test_bad_text_fails_alone_without_its_content(tmp_path: Path, row: bytes, error_class: str, says: str) -> None:
    opened = source(write(tmp_path, b"a,b\n1,2\n" + row + b"\n3,4\n"))
    bad = only_bad(opened)
    assert (bad.seq, bad.error_class) == (2, error_class)
    assert says in bad.message
    assert "secret" not in bad.message
    good = [r for r in rows(opened) if not isinstance(r, BadRow)]
    assert good == [{"a": "1", "b": "2"}] + ([] if error_class == "BadRow" else [{"a": "3", "b": "4"}])
    assert_resumes(opened, max_rows=1)


def test_text_that_only_looks_like_an_escaped_nul_is_fine(tmp_path: Path) -> None:
    assert rows(source(write(tmp_path, "a\n\\u0000\n"))) == [{"a": "\\u0000"}]


def test_a_row_of_5_mb_fails_alone(tmp_path: Path) -> None:
    huge = b"x" * 5_000_000
    body = b"1,2\n" + b'"' + huge + b'\n\n,,"",\n",' + b"y\n3,4\n" + huge + b",z\n5,6\n"
    opened = source(write(tmp_path, b"a,b\n" + body))
    one, quoted, three, plain, five = rows(opened)
    assert (one, three, five) == ({"a": "1", "b": "2"}, {"a": "3", "b": "4"}, {"a": "5", "b": "6"})
    assert quoted.error_class == plain.error_class == "RowTooLarge"
    assert "line 3" in quoted.message
    assert "line 8: the row takes 5,000,003 bytes, more than the 1,048,576" in plain.message
    assert_resumes(opened, max_rows=1)


def test_the_largest_row_passes_and_one_byte_more_does_not(tmp_path: Path) -> None:
    frame = len('{"a":""}')
    fits, over = "x" * (MAX_ROW_BYTES - frame), "x" * (MAX_ROW_BYTES - frame + 1)
    good, bad, after = rows(source(write(tmp_path, f"a\n{fits}\n{over}\nz\n")))
    assert good == {"a": fits}
    assert bad.error_class == "RowTooLarge"
    assert after == {"a": "z"}


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_what_is_too_large_does_not_depend_on_how_the_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(csv_file, "READ_BYTES", piece)
    monkeypatch.setattr(csv_file, "RECORD_BYTES", 12)
    body = 'a\nfits\n"is \r\n\r\ntoo large\r\n"\r\n\n\ntoo large as well\n\x00\n'
    messages = [r.message.split(";")[0] for r in rows(source(write(tmp_path, body))) if isinstance(r, BadRow)]
    assert messages == [
        "line 3: the row takes 22 bytes, more than the 1,048,576 that a row may have",
        "line 9: the row takes 18 bytes, more than the 1,048,576 that a row may have",
        "line 10: column 'a' holds a NUL character, which cannot be stored",
    ]


def test_a_quote_that_is_never_closed_in_a_large_file(tmp_path: Path) -> None:
    opened = source(write(tmp_path, 'a,b\n1,2\n"3,4\n' + "5,6\n" * 500_000))
    bad = only_bad(opened)
    assert (bad.seq, bad.error_class) == (2, "RowTooLarge")
    assert "a quote in it is never closed" in bad.message


def test_a_record_of_endless_cells_is_not_held(tmp_path: Path) -> None:
    path = write(tmp_path, b"a,b\n" + b'"x\n",' * 2_000_000 + b"\n1,2\n")
    opened = source(path)
    tracemalloc.start()
    try:
        bad, good = rows(opened)
        assert tracemalloc.get_traced_memory()[1] < 12_000_000
    finally:
        tracemalloc.stop()
    assert bad.error_class == "RowTooLarge"
    assert good == {"a": "1", "b": "2"}


# --- bad files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "holds no header"),
        (b"\n\r\n\n", "holds no header"),
        (b"a,b,a\n1,2,3\n", "names 'a' more than once"),
        (b"a,,c\n1,2,3\n", "names no column at position 2 of 3"),
        (b"a,b, \n1,2,3\n", "names no column at position 3 of 3"),
        (b"a,stra\xdfe\n1,2\n", "line 1: byte 7 of the file is not UTF-8; save the file as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "UTF-16; save it as UTF-8"),
        ("a,b\n1,2\n".encode("utf-16-le"), "NUL bytes"),
        (b'a,"b\n1,2\n', "a quote that is never closed"),
        (b"PK\x03\x04rest", "Excel or zip"),
        (gzip.compress(b"a,b\n" + b"1,2\n" * 99, mtime=0)[:-9], "truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(InvalidInput) as caught:
        read(source(path))
    assert caught.value.where == str(path)
    assert caught.value.problems[0].path == "spec.source.uri"
    assert says in caught.value.problems[0].message


def test_a_header_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="the header has more than"):
        source(write(tmp_path, b"x" * 3_000_000))


# --- resuming and memory -------------------------------------------------------------------------------------------


def test_hints_skip_the_bytes_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "a,b\n" + "".join(f"{i},row {i}\n" for i in range(1, 100_001)))
    opened = source(path)
    blocks = read(opened)
    seen: list[int] = []
    parsed = csv_file.CsvReader._parsed
    monkeypatch.setattr(
        csv_file.CsvReader, "_parsed", lambda self, chunk: (seen.append(len(chunk)), parsed(self, chunk))[1]
    )
    end = blocks[-3].end
    assert by_seq(read(opened, end), first=end.seq)[100_000] == {"a": "100000", "b": "row 100000"}
    assert sum(seen) < 2 * csv_file.READ_BYTES


def test_a_hint_that_does_not_fit_is_noticed(tmp_path: Path) -> None:
    content = "a,b\n" + "".join(f"{i},row {i}\n" for i in range(1, 50_001))
    opened = source(write(tmp_path, content))
    end = read(opened)[40].end
    good = by_seq(read(opened, end), first=end.seq)
    assert good[end.seq] == {"a": str(end.seq), "b": f"row {end.seq}"}
    hint = dict(end.hint)
    wrong = [
        hint | {"offset": hint["offset"] + 1},
        hint | {"seq": hint["seq"] - 1},
        hint | {"line": 1},
        hint | {"check": "0"},
        hint | {"offset": 2**62},
        hint | {"offset": -1},
        hint | {"offset": "1"},
        hint | {"seq": True},
        {"group": 3},
    ]
    for bad in wrong:
        assert by_seq(read(opened, Position(end.seq, bad)), first=end.seq) == good
    # The same size and the same numbers, but other rows before the offset.
    other = source(write(tmp_path, content.replace("row", "ROW"), "other.csv"))
    assert by_seq(read(other, end), first=end.seq)[end.seq] == {"a": str(end.seq), "b": f"ROW {end.seq}"}
    # A hint behind the row that is asked for would lose rows.
    assert by_seq(read(opened, Position(1, hint)))[1] == {"a": "1", "b": "row 1"}


def test_limit_and_bounds(tmp_path: Path) -> None:
    path = write(tmp_path, "a\n" + "".join(f"{i}\n" for i in range(1, 2501)))
    blocks = read(source(path))
    assert [len(b.entries) for b in blocks] == [1000, 1000, 500]
    capped = source(path, limit=1200)
    assert [len(b.entries) for b in read(capped)] == [1000, 200]
    assert read(capped, Position(1201)) == []
    assert capped.fingerprint() == source(path).fingerprint()
    small = read(source(path), max_bytes=100)
    by_seq(small)
    assert max(sum(len(e.payload) for e in b.entries) for b in small) <= 100
    assert all(len(b.entries) == 1 for b in read(source(path, limit=5), max_bytes=1))


def test_long_names_over_short_rows_stay_bounded(tmp_path: Path) -> None:
    names = ["n" * 20_000 + str(i) for i in range(4)]
    path = write(tmp_path, ",".join(names) + "\n" + ",,,\n" * 5_000)
    opened = source(path)
    tracemalloc.start()
    try:
        assert sum(len(b.entries) for b in opened.blocks(Position())) == 5_000
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("cell", ["plain text of a row", '"quoted, ""text""\nof a row"'])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, cell: str) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.csv"
        with path.open("w", newline="") as out:
            out.write("id,text,more\n")
            out.writelines(f"{i},{cell},{'y' * 40}\n" for i in range(count))
        opened = source(path)
        tracemalloc.start()
        try:
            assert sum(len(b.entries) for b in opened.blocks(Position())) == count
            opened.fingerprint()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.3 * peak(20_000)
