"""YAML becomes plain values, nothing is guessed, and nothing that a file holds makes reading it costly."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rowmill.spec.yaml_text import MAX_BYTES, NotReadable, plain_scalar, read_yaml

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
).filter(lambda value: value is not None)


@given(value=JSON, ascii_only=st.booleans(), indent=st.none() | st.just(2))
def test_json_is_read_as_it_stands(value: Any, ascii_only: bool, indent: int | None) -> None:
    document = {"value": value}
    read = read_yaml(json.dumps(document, ensure_ascii=ascii_only, indent=indent))
    assert read.value == document
    assert read.findings == []


@given(value=JSON)
def test_yaml_by_another_writer_is_read_alike(value: Any) -> None:
    document = {"value": value}
    # Escapes what YAML does not take raw, as every writer of YAML does.
    text = yaml.safe_dump(document, allow_unicode=True)
    # Not names so long that the writer makes them "complex", nor breaks of YAML 1.1 that it cannot read back itself.
    if "? " not in text and yaml.safe_load(text) == document:
        assert read_yaml(text).value == document


@pytest.mark.parametrize(
    ("plain", "value"),
    [
        *(("true", True), ("False", False), ("null", None), ("~", None), ("", None)),
        *(
            ("0", 0),
            ("-12", -12),
            ("+3", 3),
            ("1.50", 1.5),
            ("1e3", 1000.0),
            (".5", 0.5),
            ("9223372036854775807", 2**63 - 1),
        ),
        *(("2026-01-01", "2026-01-01"), ("12:30:00", "12:30:00"), ("1.2.3", "1.2.3"), ("a", "a"), ("-", "-")),
        *(("10.0.0.1", "10.0.0.1"), ("5s", "5s"), ("1-2", "1-2"), ("nope", "nope"), ("truE", "truE")),
    ],
)
def test_texts_without_quotes(plain: str, value: Any) -> None:
    found, problem = plain_scalar(plain)
    assert problem is None
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "plain",
    [
        *("yes", "No", "ON", "off", "y", "N"),
        *("012", "0x1F", "0o17", "0b1", "1_000", "-010", "00"),
        *(".inf", "-.Inf", ".nan", "1e999"),
        *("9223372036854775808", "9" * 5000),
    ],
)
def test_what_readers_disagree_about_is_told_with_the_way_out(plain: str) -> None:
    document = read_yaml(f"a:\n  b: [1, {plain}]\n")
    (finding,) = document.findings
    assert (finding.place, finding.line) == (("a", "b", 1), 2)
    assert "quote it" in finding.message
    assert read_yaml(f'a: "{plain}"').value == {"a": plain}
    assert read_yaml(f'a: "{plain}"').findings == []


@pytest.mark.parametrize("name", ["on", "yes", "1", "1.5", "true", "null", "~"])
def test_names_must_be_text(name: str) -> None:
    (finding,) = read_yaml(f"x: 1\n{name}: 2\n").findings
    assert finding.line == 2
    assert f'quote it: "{name}"' in finding.message


def test_a_field_given_twice_is_told_with_both_lines() -> None:
    document = read_yaml("a: 1\nb:\n  c: 1\n  d: 2\n  c: 3\n")
    assert document.value == {"a": 1, "b": {"c": 1, "d": 2}}
    assert [(f.place, f.message, f.line) for f in document.findings] == [
        (("b", "c"), "is given twice, first in line 3; remove one", 5)
    ]


def test_lines_of_places() -> None:
    lines = read_yaml("# a comment\na:\n  - b: 1\n\n    c: |\n      text\n").lines
    assert lines[("a", 0, "b")] == 3
    assert lines[("a", 0, "c")] == 5


def test_anchors_and_merge_keys() -> None:
    text = "base: &base {a: 1, b: [x]}\nother: &other {b: 2, c: 3}\nuse: {<<: [*base, *other], a: 9}\nlist: [*base]\n"
    document = read_yaml(text)
    assert document.findings == []
    assert document.value["use"] == {"a": 9, "b": ["x"], "c": 3}
    assert document.value["list"] == [{"a": 1, "b": ["x"]}]
    assert read_yaml("x: {<<: 3}").findings[0].message.startswith("the merge key << takes an alias")


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system ['echo']", "!x a", "!!binary aGk=", "!!set {a}"])
def test_tags_are_refused(tag: str) -> None:
    document = read_yaml(f"a: {tag}\n")
    assert any("tags are not supported" in f.message for f in document.findings)


def test_a_tag_for_text_is_text() -> None:
    assert read_yaml("a: !!str 1").value == {"a": "1"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("---\n", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("a: [1,\n", "line 2, column 1: not YAML"),
        ("a: b: c\n", "line 1, column 5: not YAML"),
        ("a: 1\n\tb: 2\n", "line 2, column 1: not YAML"),
        ("a: 'x\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "line 2: a second document begins here"),
        ("a: *x\n", "line 1: *x is used, but no &x stands before it"),
        ("a: &a [*a]\n", "line 1: *a is used, but no &a stands before it"),
        ("? [a]\n: 1\n", "line 1: the name of a field must be text"),
        ("a: b\nc: \0\n", "line 2: holds the character NUL"),
        ("a: b\nc: \ud800\n", "line 2: holds half of a surrogate pair"),
        ("a: \x07\n", "holds a character that YAML does not allow"),
        ('a: "\\ud800"\n', "not YAML"),
        ("%YAML 9.0\n---\na: 1\n", "not YAML"),
    ],
)
def test_what_is_not_one_yaml_document(text: str, told: str) -> None:
    with pytest.raises(NotReadable) as caught:
        read_yaml(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_escapes_that_cannot_be_stored() -> None:
    (finding,) = read_yaml('a: "x\\0y"\n').findings
    assert finding.place == ("a",)
    assert "NUL" in finding.message


@pytest.mark.parametrize(
    "text",
    [
        "[" * 1_000_000,
        "{a: " * 200_000,
        "- " * 400_000,
        "[" + "1," * 400_000 + "]",
        "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{n}: &{n} [{','.join([f'*{chr(ord(n) - 1)}'] * 9)}]\n" for n in "bcdefghij"),
        "a: &a {x: 1, z: 2}\nb: {<<: [" + "*a," * 90_000 + "]}",
        "x" * (MAX_BYTES + 1),
        "ä" * (MAX_BYTES // 2 + 1),
    ],
    ids=["lists", "mappings", "dashes", "items", "aliases", "merges", "bytes", "characters"],
)
def test_bombs_are_refused_fast(text: str) -> None:
    began = time.thread_time()
    with pytest.raises(NotReadable):
        read_yaml(text)
    assert time.thread_time() - began < 5


def test_json_with_what_yaml_would_take_otherwise() -> None:
    text = "\x7f x\u2028 y \ufeff \U0001f600 \\ud83d\\ude00 \\"
    for ascii_only in (True, False):
        assert read_yaml(json.dumps({"a": text}, ensure_ascii=ascii_only)).value == {"a": text}
