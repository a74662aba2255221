"""What a run has used and may use: calls, tokens, money. Pure, and the same for every part.

Tokens are what the endpoint told; money is calls and tokens times the manifest's prices, exact to nine digits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum
from typing import Any, NamedTuple

NOTHING = Decimal(0)
NANO = Decimal("0.000000001")
MILLION = 1_000_000


class Spend(NamedTuple):
    """What was used: calls that were sent, tokens in and out, money in the manifest's currency."""

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal = NOTHING

    @property
    def tokens(self) -> int:
        """In and out."""
        return self.input_tokens + self.output_tokens

    def plus(self, other: Spend) -> Spend:
        return Spend(
            self.requests + other.requests,
            self.input_tokens + other.input_tokens,
            self.output_tokens + other.output_tokens,
            self.cost + other.cost,
        )

    def for_rows(self, done: int, rows: int) -> Spend:
        """What `rows` rows would use where `done` used this; `done` at least 1. Counts are rounded up."""

        def share(count: int) -> int:
            return -(-count * rows // done)

        cost = exactly(self.cost * rows / done)
        return Spend(share(self.requests), share(self.input_tokens), share(self.output_tokens), cost)


NOTHING_SPENT = Spend()


class Prices(NamedTuple):
    """`spec.pricing`: of a call, and of a million tokens in and out."""

    call: Decimal = NOTHING
    million_input: Decimal = NOTHING
    million_output: Decimal = NOTHING

    def cost(self, *, requests: int, input_tokens: int, output_tokens: int) -> Decimal:
        """Of so much, exact to nine digits."""
        tokens = input_tokens * self.million_input + output_tokens * self.million_output
        return exactly(requests * self.call + tokens / MILLION)


class Budget(NamedTuple):
    """`spec.budget`; None where nothing is said."""

    requests: int | None = None
    tokens: int | None = None
    cost: Decimal | None = None

    def as_json(self) -> str:
        """As the ledger keeps it: money is text, to stay exact."""
        return json.dumps({n: str(v) if isinstance(v, Decimal) else v for n, v in self._asdict().items()})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Budget:
        cost = value.get("cost")
        return cls(value.get("requests"), value.get("tokens"), None if cost is None else Decimal(cost))


class Shortage(NamedTuple):
    """A call was not sent: of `what` (requests, tokens or cost) it may need `need`, and `left` is left."""

    what: str
    need: Decimal
    left: Decimal

    def as_json(self) -> str:
        return json.dumps({"what": self.what, "need": str(self.need), "left": str(self.left)})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Shortage:
        return cls(value["what"], Decimal(value["need"]), Decimal(value["left"]))

    def lasts(self, *, spent: Spend, budget: Budget) -> bool:
        """Whether the call would not be sent under this budget either."""
        limit = getattr(budget, self.what)
        return limit is not None and getattr(spent, self.what) + self.need > limit


class Reason(StrEnum):
    """Why a run stands still though nobody suspended it."""

    BUDGET = "BudgetExhausted"
    REFUSED = "CallsRefused"


class Pause(NamedTuple):
    """A run that stands still since `at` until something changes: `message` says what. Of one whose calls are refused
    `until` is when they are tried again, `tries` how often that was in vain already. Times are seconds since the
    epoch."""

    reason: Reason
    message: str
    at: float
    until: float | None = None
    tries: int = 0
    shortage: Shortage | None = None

    def as_json(self) -> str:
        fields = {**self._asdict(), "shortage": self.shortage and json.loads(self.shortage.as_json())}
        return json.dumps(fields)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Pause:
        shortage = value.get("shortage")
        return cls(
            Reason(value["reason"]),
            value["message"],
            value["at"],
            value.get("until"),
            value.get("tries", 0),
            Shortage.from_json(shortage) if shortage else None,
        )


def exactly(value: Decimal) -> Decimal:
    """To nine digits after the point."""
    return value.quantize(NANO) if value.as_tuple().exponent < -9 else value  # type: ignore[operator]


def money(value: Decimal) -> str:
    """For people: no exponent, and no zeros at the end."""
    return f"{value.normalize():,f}"
