"""JMESPath: what is found, and what is told when an expression is wrong or does not fit."""

from __future__ import annotations

from typing import Any

import jmespath
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.templating import TemplateError, compile_query

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=10,
)


@given(value=VALUES, chain=st.lists(NAMES, min_size=1, max_size=4))
def test_a_chain_of_fields_finds_what_the_library_finds(value: Any, chain: list[str]) -> None:
    expression = ".".join(chain)
    assert compile_query(expression, path="p").search(value) == jmespath.search(expression, value)


@given(
    value=VALUES,
    expression=st.sampled_from(
        ["a[0].b", "*.a", "a[?b].c", "{x: a, y: b.c}", "[a, b]", "a || b", "a[-1]", "@", "keys(@)"]
    ),
)
def test_any_other_expression_too(value: Any, expression: str) -> None:
    try:
        expected = jmespath.search(expression, value)
    except jmespath.exceptions.JMESPathError:
        with pytest.raises(TemplateError):
            compile_query(expression, path="p").search(value)
        return
    assert compile_query(expression, path="p").search(value) == expected


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("", "is empty; leave it out"),
        ("a.", "ends too early"),
        ("a[?", "ends too early"),
        ("a b", '"b" is out of place at character 3'),
        ("#", "at character 1"),
        ("'abc", "Unclosed"),
        ("lenght(a)", 'no function "lenght"; did you mean "length"?'),
        ("length(a, b)", "takes 1 arguments, not 2"),
        ("a[?nope(b)]", 'no function "nope"'),
        ("(" * 3000 + "a", ""),
        ("a" * 5000, "longer than 4,096"),
    ],
)
def test_a_wrong_expression_is_found_when_compiling(expression: str, told: str) -> None:
    with pytest.raises(TemplateError, match=r"^spec\.result: ") as caught:
        compile_query(expression, path="spec.result")
    assert told in caught.value.message


@pytest.mark.parametrize("expression", ["length(a)", "sum(b)", "sort(c)", "a[::0]", "join('', b)", "max_by(c, &x)"])
def test_an_answer_that_does_not_fit_is_not_quoted(expression: str) -> None:
    answer = {"a": 5150, "b": ["s3cret", 5150], "c": [{"x": "s3cret"}, {"x": 5150}]}
    with pytest.raises(TemplateError) as caught:
        compile_query(expression, path="p").search(answer | {"a": [5150] if "::" in expression else 5150})
    assert "s3cret" not in str(caught.value)
    assert "5150" not in str(caught.value)


@pytest.mark.parametrize(
    "expression",
    [
        "@ | " + " | ".join(["[@, @][]"] * 60),
        "{s: join('', ['x','x'])} | " + " | ".join(["{s: join('', [s, s])}"] * 60),
        " | ".join(["[@, @]"] * 10 + ["@[][][][][][][][][][]"] * 4 + ["[@, @][]"] * 60),
    ],
)
def test_an_expression_that_doubles_is_ended(expression: str) -> None:
    with pytest.raises(TemplateError, match="works through more than"):
        compile_query(expression, path="p").search({"a": 1})
