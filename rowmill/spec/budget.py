"""What a run may use, and what calls cost."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from rowmill.spec.base import DECIMAL, Finding, Int, Part, sentence


def _decimal(value: Any) -> Any:
    """Money as it is written: a decimal text, or a number taken by its shortest decimal form."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal):
        raise sentence('must be a decimal number such as "0.0025"')
    try:
        exact = Decimal(value if isinstance(value, str) else str(value))
    except ArithmeticError:
        raise sentence('must be a decimal number such as "0.0025"') from None
    if not exact.is_finite() or exact < 0 or exact >= 10**12 or exact != round(exact, 9):
        raise sentence("must be from 0 to 999999999999, with at most 9 digits after the point")
    return exact


def _some(value: Any) -> Any:
    if value is None:
        return None
    exact = _decimal(value)
    if exact <= 0:
        raise sentence("must be more than 0; to let nothing run set spec.suspend to true")
    return exact


_MONEY: Final = WithJsonSchema(
    {
        "anyOf": [{"type": "string", "pattern": DECIMAL, "maxLength": 22}, {"type": "number", "minimum": 0}],
        "x-kubernetes-int-or-string": True,
    }
)
Money = Annotated[Decimal, BeforeValidator(_decimal), _MONEY]
SomeMoney = Annotated[Decimal | None, BeforeValidator(_some), _MONEY]
"""More than nothing, or not given."""
Most = Annotated[Int, Field(ge=1, le=2**53 - 1)]

TOLD_TOKENS: Final = ("openai", "dify")
"""Executors whose endpoints tell the tokens that a call used."""

_NONE: Final = Decimal(0)


class Pricing(Part):
    """What calls cost, in any one currency: what the endpoint says was used, times these."""

    per_call: Money = Field(
        default=_NONE, validate_default=True, description="Of each call that was sent.", examples=["0.002"]
    )
    per_million_input_tokens: Money = Field(
        default=_NONE, validate_default=True, description="Of a million tokens sent to a model.", examples=["0.15"]
    )
    per_million_output_tokens: Money = Field(
        default=_NONE, validate_default=True, description="Of a million tokens that a model wrote.", examples=["0.60"]
    )


class Budget(Part):
    """The most that a run may use over all its generations. A call for which less is left than it may need is not sent;
    when nothing is under way any more the run is suspended (reason BudgetExhausted), and it goes on when the budget is
    raised. Name at least one."""

    requests: Most | None = Field(default=None, description="Calls, also those that failed and were tried again.")
    tokens: Most | None = Field(
        default=None,
        description="Tokens of models, in and out. Only for executors that are told them: openai, dify.",
    )
    cost: SomeMoney = Field(
        default=None, description="Money by spec.pricing, in its currency.", examples=["25", "0.50"]
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        if not any(given.get(name) is not None for name in ("requests", "tokens", "cost")):
            return [((), "names nothing; set at least one of requests, tokens, cost, or leave it out")]
        return []


def check_budget(given: Mapping[str, Any]) -> list[Finding]:
    """Of a whole spec: a budget that could never be used up, whatever is called, is a mistake."""
    budget, executor, pricing = given.get("budget"), given.get("executor"), given.get("pricing")
    if not isinstance(budget, dict):
        return []
    findings: list[Finding] = []
    told = not isinstance(executor, dict) or any(kind in executor for kind in TOLD_TOKENS)
    if budget.get("tokens") is not None and not told:
        findings.append(
            (("budget", "tokens"), "counts nothing, as only openai and dify are told tokens; set budget.requests")
        )
    if budget.get("cost") is not None and not _has_price(pricing, _PRICES if told else _PRICES[:1]):
        which = "a price" if told else "a price of calls (this executor is told no tokens)"
        field = "spec.pricing" if told else "spec.pricing.perCall"
        findings.append((("budget", "cost"), f"counts nothing without {which}; set {field}"))
    return findings


_PRICES: Final = ("perCall", "perMillionInputTokens", "perMillionOutputTokens")


def _has_price(pricing: Any, names: tuple[str, ...]) -> bool:
    """Whether one of these prices is more than 0; what is no price at all is told elsewhere."""
    if not isinstance(pricing, dict):
        return False
    for name in names:
        try:
            if (price := pricing.get(name)) is not None and _decimal(price) > 0:
                return True
        except PydanticCustomError:
            return True
    return False
