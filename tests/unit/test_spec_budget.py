"""What a manifest says of budgets and prices: what is refused and how, what may change, what is told of it."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.spec import executor_digest, frozen_changes, frozen_part, parse_job
from rowmill.spec.job import BatchJob

HTTP = {"http": {"url": "http://h/"}}
OPENAI = {"openai": {"baseUrl": "http://o/v1", "model": "m", "messages": [{"role": "user", "content": "x"}]}}
DIFY = {"dify": {"baseUrl": "http://d/v1", "apiKey": {"env": "K"}}}
PYTHON = {"python": {"function": "a:b"}}
CALL = {"perCall": "0.002"}
TOKENS = {"perMillionOutputTokens": 1}


def job(executor: dict[str, Any] | None = None, **spec: Any) -> BatchJob:
    return parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage"},
            "spec": {"source": {"uri": "a.csv"}, "executor": executor or HTTP, **spec},
        },
        where="t",
    )


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"budget": {}}, "spec.budget: names nothing; set at least one of requests, tokens, cost, or leave it out"),
    ({"budget": {"requests": None, "cost": None}}, "spec.budget: names nothing"),
    ({"budget": {"requests": 0}}, "spec.budget.requests: must be 1 or more, not the number 0"),
    ({"budget": {"requests": -5}}, "spec.budget.requests: must be 1 or more"),
    ({"budget": {"requests": "5"}}, "spec.budget.requests: "),
    ({"budget": {"requests": True}}, "spec.budget.requests: "),
    ({"budget": {"requests": 2**53}}, "spec.budget.requests: "),
    ({"budget": {"tokens": 0}, "executor": OPENAI}, "spec.budget.tokens: must be 1 or more"),
    *(
        (
            {"budget": {"cost": nothing}, "pricing": CALL},
            "spec.budget.cost: must be more than 0; to let nothing run set",
        )
        for nothing in (0, 0.0, "0", "0.000")
    ),
    ({"budget": {"cost": "-1"}, "pricing": CALL}, "spec.budget.cost: must be from 0 to 999999999999"),
    (
        {"budget": {"cost": "0.0000000001"}, "pricing": CALL},
        "spec.budget.cost: must be from 0 to 999999999999, with at",
    ),
    ({"budget": {"cost": 10**12}, "pricing": CALL}, "spec.budget.cost: must be from 0 to 999999999999"),
    ({"budget": {"cost": "5 EUR"}, "pricing": CALL}, "spec.budget.cost: must be a decimal number"),
    ({"budget": {"cost": "NaN"}, "pricing": CALL}, "spec.budget.cost: must be from 0"),
    ({"budget": {"cost": True}, "pricing": CALL}, "spec.budget.cost: must be a decimal number"),
    ({"budget": {"cost": [1]}, "pricing": CALL}, "spec.budget.cost: must be a decimal number"),
    ({"pricing": {"perCall": "-0.1"}}, "spec.pricing.perCall: must be from 0"),
    ({"pricing": {"perCall": "1e-10"}}, "spec.pricing.perCall: must be from 0"),
    ({"pricing": {"currency": "EUR"}}, "spec.pricing.currency: "),
    *(
        (
            {"budget": {"tokens": 5}, "executor": one},
            "spec.budget.tokens: counts nothing, as only openai and dify are told",
        )
        for one in (HTTP, PYTHON)
    ),
    *(
        (
            {"budget": {"cost": 5}, "executor": OPENAI, "pricing": one},
            "spec.budget.cost: counts nothing without a price;",
        )
        for one in (None, {}, {"perCall": 0}, {"perCall": "0.00", "perMillionInputTokens": 0.0})
    ),
    (
        {"budget": {"cost": 5}, "pricing": TOKENS},
        "spec.budget.cost: counts nothing without a price of calls (this executor is told no tokens); set "
        "spec.pricing.perCall",
    ),
]


@pytest.mark.parametrize(("spec", "told"), WRONG)
def test_what_would_never_run_or_never_count_is_refused(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job(**spec)
    assert len(caught.value.problems) == 1, caught.value.lines()
    assert f"t: {told}" in caught.value.lines()[0]


@pytest.mark.parametrize(
    "spec",
    [
        {"budget": {"requests": 1}},
        {"budget": {"requests": 2**53 - 1, "tokens": None}},
        {"budget": {"cost": "0.000000001"}, "pricing": CALL},
        {"budget": {"cost": 0.5}, "pricing": {"perCall": 0.25}},
        {"budget": {"cost": 999_999_999_999}, "pricing": TOKENS, "executor": OPENAI},
        {"budget": {"tokens": 5}, "executor": DIFY},
        {"pricing": {}},
        {"pricing": TOKENS},
        {"mode": "Simulate", "budget": {"requests": 5, "cost": "1"}, "pricing": CALL},
    ],
)
def test_what_is_right_is_taken(spec: dict[str, Any]) -> None:
    job(**spec)


def test_a_price_that_is_none_is_told_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        job(budget={"cost": 5}, pricing={"perCall": "free"})
    assert [problem.path for problem in caught.value.problems] == ["spec.pricing.perCall"]


@given(st.decimals(min_value=Decimal("0.000000001"), max_value=10**12 - 1, places=9))
def test_money_is_taken_to_its_last_digit(amount: Decimal) -> None:
    budget = job(budget={"cost": f"{amount:f}"}, pricing={"perCall": f"{amount:f}"}).spec.budget
    assert budget is not None
    assert budget.cost == amount


@pytest.mark.parametrize("executor", [HTTP, OPENAI, DIFY])
def test_they_may_change_within_a_run_and_make_no_other_call(executor: dict[str, Any]) -> None:
    none = job(executor).spec
    for given_ in (
        {"budget": {"requests": 5}},
        {"budget": {"requests": 6, "cost": 1}, "pricing": CALL},
        {"pricing": {"perCall": "0.003"}},
    ):
        spec = job(executor, **given_).spec
        assert frozen_part(spec) == frozen_part(none)
        assert frozen_changes(frozen_part(none), frozen_part(spec)) == []
        assert executor_digest(spec) == executor_digest(none)
