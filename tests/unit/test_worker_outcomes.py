"""What an attempt brought home becomes an outcome that the ledger takes, or an error that says why not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.outcome import State
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.held import HeldRow
from rowmill_worker.outcomes import (
    MAX_MESSAGE_CHARACTERS,
    MAX_RESULT_BYTES,
    carried_columns,
    failed,
    storable,
    succeeded,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def row(**other: Any) -> HeldRow:
    return HeldRow(7, 0, b"{}", 2, -1, 0, 1, key='"k"', columns='{"a":1}', **other)


@given(JSON)
def test_a_result_is_kept_as_it_is(result: Any) -> None:
    outcome = succeeded(row(), result)
    assert outcome.result is not None
    assert json.loads(outcome.result) == result
    assert (outcome.seq, outcome.state, outcome.attempts) == (7, State.SUCCEEDED, 2)
    assert (outcome.key, outcome.columns, outcome.error_class) == ('"k"', '{"a":1}', None)


def test_the_text_of_an_escape_is_no_nul() -> None:
    assert json.loads(succeeded(row(), {"a": "\\u0000"}).result or "") == {"a": "\\u0000"}


@pytest.mark.parametrize(
    ("result", "error_class"),
    [
        ("a\x00b", "InvalidText"),
        ([{"deep": ["\x00"]}], "InvalidText"),
        ({"a\x00": 1}, "InvalidText"),
        ("\ud800", "InvalidText"),
        ({"\udfff": 1}, "InvalidText"),
        ({1, object()}, "InvalidAnswer"),
        (object(), "InvalidAnswer"),
        ("x" * (MAX_RESULT_BYTES - 1), "ResultTooLarge"),
        ("ü" * (MAX_RESULT_BYTES // 2), "ResultTooLarge"),
    ],
)
def test_what_the_ledger_could_not_hold_fails_the_row_for_good(result: Any, error_class: str) -> None:
    with pytest.raises(RowError) as caught:
        succeeded(row(), result)
    assert (caught.value.error_class, caught.value.retryable, caught.value.spent) == (error_class, False, True)


def test_the_largest_result_is_kept() -> None:
    assert succeeded(row(), "x" * (MAX_RESULT_BYTES - 2)).result is not None


def test_a_circle_is_no_answer() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(RowError) as caught:
        succeeded(row(), circle)
    assert caught.value.error_class == "InvalidAnswer"


@given(st.text(st.characters()))
def test_a_message_is_always_storable(message: str) -> None:
    """Whatever an endpoint says: Postgres takes it."""
    text = failed(row(), "HTTP500", message).error_message
    assert text is not None
    assert "\x00" not in text
    text.encode("utf-8")
    assert len(text) <= MAX_MESSAGE_CHARACTERS


def test_a_long_message_says_that_it_was_cut() -> None:
    assert storable("x" * MAX_MESSAGE_CHARACTERS) == "x" * MAX_MESSAGE_CHARACTERS
    cut = storable("x" * (MAX_MESSAGE_CHARACTERS + 1))
    assert len(cut) == MAX_MESSAGE_CHARACTERS
    assert cut.endswith("…")


def test_carried_columns() -> None:
    assert carried_columns({"a": 1, "b": 2}, ()) is None
    text = carried_columns({"a": "ü", "b": 2}, ("a", "missing"))
    assert text is not None
    assert json.loads(text) == {"a": "ü", "missing": None}
