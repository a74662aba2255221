"""JSONL: objects as they are, each bad line alone, resumable, bounded memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.row import BadRow, Position
from rowmill.sources import jsonl_file
from tests.unit.sources_helpers import assert_resumes, only_bad, read, rows, source


def write(tmp_path: Path, content: str | bytes, name: str = "t.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_values_keep_their_types_and_large_integers_their_digits(tmp_path: Path) -> None:
    lines = ['{"a": 1, "b": "1", "c": [1.5, null, {"d": true}]}', "", '  {"a": 123456789012345678901234567890}\r', " "]
    opened = source(write(tmp_path, "\ufeff" + "\n".join(lines)))
    assert opened.columns() is None
    assert rows(opened) == [
        {"a": 1, "b": "1", "c": [1.5, None, {"d": True}]},
        {"a": 123456789012345678901234567890},
    ]


def test_the_last_of_a_key_given_twice_counts(tmp_path: Path) -> None:
    (block,) = read(source(write(tmp_path, '{"a": 1, "a": 2}')))
    assert block.entries[0].payload == b'{"a":2}'


@pytest.mark.parametrize(
    ("line", "error_class", "says"),
    [
        (b'["secret"]', "BadRow", "the line holds an array where an object"),
        (b'"secret"', "BadRow", "the line holds a text"),
        (b"17", "BadRow", "the line holds a number"),
        (b"true", "BadRow", "the line holds true or false"),
        (b"null", "BadRow", "the line holds null"),
        (b'{"a": secret}', "BadRow", "this is not JSON (at character 7 of the line)"),
        (b'{"a": "secret', "BadRow", "this is not JSON"),
        (b'{"a": 1}{"a": 2}', "BadRow", "this is not JSON (at character 9 of the line)"),
        (b'{"a": NaN}', "BadRow", "NaN, Infinity"),
        (b'{"a": -Infinity}', "BadRow", "column 'a' holds an infinite number"),
        (b'{"a": 1e999}', "BadRow", "column 'a' holds an infinite number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "BadRow", "cannot be read as JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "BadRow", "nested too deeply"),
        (b'{"a": "secret\\u0000"}', "InvalidText", "column 'a' holds a NUL character"),
        (b'{"x": {"y\\u0000": ["secret"]}}', "InvalidText", "column 'x' holds a NUL character"),
        (b'{"a": "\\ud800 secret"}', "InvalidText", "column 'a' holds half of a surrogate pair"),
        (b'{"a\\udc00": "secret"}', "InvalidText", "holds half of a surrogate pair"),
        (b'{"a": "caf\xe9 secret"}', "InvalidText", "the line is not UTF-8"),
        (b'{"a": "\xed\xa0\x80"}', "InvalidText", "the line is not UTF-8"),
    ],
    ids=range(19),
)
def test_a_bad_line_fails_alone_without_its_content(tmp_path: Path, line: bytes, error_class: str, says: str) -> None:
    opened = source(write(tmp_path, b'{"a": 1}\n\n' + line + b'\n{"a": 3}\n'))
    bad = only_bad(opened)
    assert (bad.seq, bad.error_class) == (2, error_class)
    assert bad.message.startswith("line 3: ")
    assert says in bad.message
    assert "secret" not in bad.message
    assert [r for r in rows(opened) if not isinstance(r, BadRow)] == [{"a": 1}, {"a": 3}]
    assert_resumes(opened, max_rows=1)


def test_text_that_only_looks_like_an_escaped_nul_is_fine(tmp_path: Path) -> None:
    assert rows(source(write(tmp_path, '{"a": "\\\\u0000"}'))) == [{"a": "\\u0000"}]


def test_an_object_over_several_lines_is_not_taken_for_one(tmp_path: Path) -> None:
    assert all(isinstance(row, BadRow) for row in rows(source(write(tmp_path, '{"a":\n1}\n'))))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_of_5_mb_fails_alone_in_bounded_memory(tmp_path: Path, end: bytes) -> None:
    huge = b'{"a": "' + b"x" * 5_000_000 + b'"}'
    opened = source(write(tmp_path, b'{"a": 1}\n' + huge + b'\n{"a": 3}\n' + b" " * 3_000_000 + b"\n" + huge + end))
    tracemalloc.start()
    try:
        one, first, three, last = rows(opened)
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()
    assert (one, three) == ({"a": 1}, {"a": 3})
    assert (first.error_class, last.error_class) == ("RowTooLarge", "RowTooLarge")
    assert first.message.startswith("line 2: ")
    assert last.message.startswith("line 5: ")
    assert_resumes(opened, max_rows=1)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "the file is empty"),
        (b"\xef\xbb\xbf", "the file is empty"),
        ('{"a": 1}'.encode("utf-16"), "no UTF-8 text"),
        ('{"a": 1}'.encode("utf-16-be"), "no UTF-8 text"),
        (gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9], "truncated or damaged"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read(source(write(tmp_path, content)))
    assert says in str(caught.value)


VALUE: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
LINE = st.dictionaries(st.text(max_size=4), VALUE, max_size=3).map(json.dumps) | st.sampled_from(
    ["", " ", "[]", "{", "7"]
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    lines=st.lists(LINE, min_size=1, max_size=25),
    piece=st.integers(1, 60),
    held=st.sampled_from([10, jsonl_file.LINE_BYTES]),
    cut=st.integers(1, 5),
)
def test_every_line_as_an_independent_reader_sees_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: list[str], piece: int, held: int, cut: int
) -> None:
    monkeypatch.setattr(jsonl_file, "READ_BYTES", piece)
    monkeypatch.setattr(jsonl_file, "LINE_BYTES", held)
    opened = source(write(tmp_path, "\n".join(lines) + "\n"))
    found = rows(opened, max_rows=cut)
    expected = [line for line in lines if line.strip()]
    assert len(found) == len(expected)
    for line, row in zip(expected, found, strict=True):
        if isinstance(row, BadRow):
            too_long = row.error_class == "RowTooLarge" and len(line) + 1 > held
            assert too_long or line in ("[]", "{", "7") or "\\u0000" in line
        else:
            assert row == json.loads(line)
    assert_resumes(opened, max_rows=cut)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        with path.open("w") as out:
            out.writelines(f'{{"id": {i}, "text": "{"x" * 60}"}}\n' for i in range(count))
        opened = source(path)
        tracemalloc.start()
        try:
            assert sum(len(b.entries) for b in opened.blocks(Position())) == count
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(60_000) < 1.3 * peak(20_000)
