"""Excel: cells as a person sees them, error cells and stray cells as bad rows, blank rows as none."""

from __future__ import annotations

import datetime as dt
import zipfile
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from rowmill.errors import InvalidInput
from rowmill.row import BadRow
from rowmill.sources import excel_file
from tests.unit.sources_helpers import assert_resumes, only_bad, read, rows, source


def write(tmp_path: Path, table: list[list[Any]], formats: dict[str, str] | None = None) -> Path:
    path = tmp_path / "t.xlsx"
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in table:
        sheet.append(row)
    for place, number_format in (formats or {}).items():
        sheet[place].number_format = number_format
    book.create_sheet("second").append(["not", "read"])
    book.save(path)
    return path


def test_cells_in_their_json_form(tmp_path: Path) -> None:
    when = dt.datetime(2024, 2, 29, 12, 30)
    path = write(
        tmp_path,
        [
            ["int", "float", "text", "yes", "none", "date", "time", "midnight", "formula", "span"],
            [
                42,
                1.5,
                "007",
                True,
                None,
                dt.date(2024, 2, 29),
                when,
                dt.datetime(2024, 2, 29),
                "=1+1",
                dt.timedelta(hours=30),
            ],
            [3.0, 1e300, "#DIV/0! said a person", False],
        ],
        {"H2": "yyyy-mm-dd hh:mm"},
    )
    opened = source(path)
    first, second = rows(opened)
    assert first == {
        "int": 42,
        "float": 1.5,
        "text": "007",
        "yes": True,
        "none": None,
        "date": "2024-02-29",
        "time": "2024-02-29T12:30:00",
        "midnight": "2024-02-29T00:00:00",
        "formula": None,
        "span": "PT108000S" if first["span"] == "PT108000S" else "P1DT21600S",
    }
    assert isinstance(first["int"], int)
    assert (second["int"], type(second["int"]), second["float"]) == (3, int, 1e300)
    assert second["text"] == "#DIV/0! said a person"
    assert second["span"] is None
    assert opened.columns() == tuple(first)


def test_blank_rows_are_no_rows_and_names_may_be_numbers(tmp_path: Path) -> None:
    path = write(tmp_path, [[], ["id", 2024, None], [1, "a"], [None, None], [], [2, "b"], [None]])
    opened = source(path)
    assert opened.columns() == ("id", "2024")
    assert rows(opened) == [{"id": 1, "2024": "a"}, {"id": 2, "2024": "b"}]


def test_error_cells_and_stray_cells_fail_alone(tmp_path: Path) -> None:
    path = write(tmp_path, [["a", "b"], [1, 2], ["#DIV/0!", 3], [4, 5, None, "secret"], [6, 7]])
    one, error, stray, last = rows(source(path))
    assert (one, last) == ({"a": 1, "b": 2}, {"a": 6, "b": 7})
    assert error.message == "row 3 of the sheet: cell 'A3' holds an error; correct it"
    assert "cell 'D4' lies beyond the header's 2 columns" in stray.message
    assert (error.error_class, stray.error_class) == ("BadRow", "BadRow")
    assert "secret" not in stray.message


def test_a_date_beyond_the_calendar_is_a_bad_row(tmp_path: Path) -> None:
    path = write(tmp_path, [["a"], [1e10], [2]], {"A2": "yyyy-mm-dd"})
    assert only_bad(source(path)).seq == 1


def test_resumes_by_skipping_and_limits(tmp_path: Path) -> None:
    path = write(tmp_path, [["n"], *([i] if i % 7 else ["#N/A"] for i in range(1, 1301))])
    opened = source(path)
    assert len(rows(opened)) == 1300
    assert_resumes(opened, max_rows=400)
    assert len(rows(source(path, limit=600))) == 600


def test_a_wrong_note_of_the_sheets_size_cuts_nothing_off(tmp_path: Path) -> None:
    path = write(tmp_path, [["a", "b"], [1, 2], [3, 4]])
    other = tmp_path / "other.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w") as new:
        for item in old.infolist():
            data = old.read(item)
            if item.filename == "xl/worksheets/sheet1.xml":
                assert b'<dimension ref="A1:B3"' in data
                data = data.replace(b'<dimension ref="A1:B3"', b'<dimension ref="A1:A1"')
            new.writestr(item, data)
    assert rows(source(other)) == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"a,b\n1,2\n", "no .xlsx workbook"),
        (b"\xd0\xcf\x11\xe0" + b"\0" * 600, "an old .xls or an encrypted workbook"),
        (b"PK\x03\x04 and no more", "no .xlsx workbook"),
    ],
)
def test_what_is_no_workbook_is_one_clear_error(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "t.xlsx"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        source(path)
    assert says in str(caught.value)
    assert caught.value.where == str(path)


def test_truncated_damaged_and_other_zips(tmp_path: Path) -> None:
    path = write(tmp_path, [["a"], *[[f"text {i}"] for i in range(2000)]])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InvalidInput, match="a truncated one"):
        source(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "hello")
    with pytest.raises(InvalidInput, match="the workbook is damaged"):
        source(path)
    path.write_bytes(whole)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("xl/worksheets/sheet1.xml")
    middle = info.header_offset + info.compress_size // 2
    path.write_bytes(whole[:middle] + b"\xff" * 40 + whole[middle + 40 :])
    with pytest.raises(InvalidInput, match="the workbook is damaged"):
        read(source(path))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ([], "the first sheet is empty"),
        ([["a", "b", "a"], [1, 2, 3]], "names 'a' more than once"),
        ([["a", None, "c"], [1, 2, 3]], "names no column at position 2"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(tmp_path: Path, table: list[list[Any]], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        source(write(tmp_path, table))
    assert says in str(caught.value)


def write_shared(tmp_path: Path, texts: list[str]) -> Path:
    """A workbook as Excel writes it, with its texts in a table beside the sheet (openpyxl writes them in place)."""
    path = write(tmp_path, [["a"], *[["@@"] for _ in texts]])
    shared = tmp_path / "shared.xlsx"
    namespace = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    part = "application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    cells = "".join(f'<row r="{i}"><c r="A{i}" t="s"><v>{i - 1}</v></c></row>' for i in range(1, len(texts) + 2))
    items = "".join(f"<si><t>{text}</t></si>" for text in ["a", *texts])
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(shared, "w") as new:
        for item in old.infolist():
            data = old.read(item).decode()
            if item.filename == "xl/worksheets/sheet1.xml":
                data = f'<worksheet xmlns="{namespace}"><sheetData>{cells}</sheetData></worksheet>'
            if item.filename == "[Content_Types].xml":
                data = data.replace(
                    "</Types>", f'<Override PartName="/xl/sharedStrings.xml" ContentType="{part}"/></Types>'
                )
            new.writestr(item, data)
        new.writestr("xl/sharedStrings.xml", f'<sst xmlns="{namespace}">{items}</sst>')
    return shared


def test_texts_that_the_sheet_shares(tmp_path: Path) -> None:
    assert rows(source(write_shared(tmp_path, ["x", "ü", "x"]))) == [{"a": "x"}, {"a": "ü"}, {"a": "x"}]


def test_more_text_than_fits_into_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(excel_file, "MAX_SHARED_TEXT_BYTES", 200)
    with pytest.raises(InvalidInput, match="save it as CSV"):
        source(write_shared(tmp_path, ["x" * 200]))


def test_headers_with_nothing_below(tmp_path: Path) -> None:
    opened = source(write(tmp_path, [["a", "b"]]))
    assert read(opened) == []
    assert not any(isinstance(row, BadRow) for row in rows(opened))
