"""What bounds a worker's calls besides its slots, wired together by the manifest: its limits group, its budget,
adaptive concurrency; and what counts what they use.

A row asks for leave by the budget before it asks the limits group: a permit of the group goes stale within a second, a
reservation does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from rowmill.ledger import SpendBook
from rowmill.window import GroupLimits, Window
from rowmill_worker.adaptive import Adaptive
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Attempt, Executor
from rowmill_worker.grants import Grants
from rowmill_worker.held import HeldRow
from rowmill_worker.permits import AllOf, GroupPermits, Permits
from rowmill_worker.spending import Spending, SpendRule

UNKNOWN_TOKENS = 2048
"""Besides the bytes of its row: tokens of a call whose executor cannot tell. What was not used is given back."""


@dataclass(frozen=True, slots=True)
class LimitsRule:
    """`spec.limits`, resolved. A group is its namespace's; `job` is how others of it are told of this one."""

    installation: str
    namespace: str
    group: str
    job: str
    limits: GroupLimits
    priority: int


@dataclass(frozen=True, slots=True)
class FlowRules:
    """What the manifest says. `adaptive` are the fewest and the most slots, where they tune themselves, and `slots` the
    first number; `timeout` bounds a call, in seconds."""

    slots: int
    timeout: float
    spend: SpendRule
    adaptive: tuple[int, int] | None = None
    limits: LimitsRule | None = None


class Flow:
    """One worker's. `consumer` is how it is known to its limits group."""

    def __init__(
        self,
        rules: FlowRules,
        *,
        consumer: str,
        book: SpendBook,
        window: Window,
        executor: Executor,
        events: Events,
        now: Callable[[], float],
    ) -> None:
        self._rules = rules
        self._executor = executor
        self._grants = _grants(rules, consumer=consumer, window=window, events=events, now=now)
        self.adaptive = None
        if rules.adaptive is not None:
            fewest, most = rules.adaptive
            self.adaptive = Adaptive(minimum=fewest, maximum=most, start=rules.slots, now=now(), wall=time.time())
        self.spending = Spending(
            book=book, rule=rules.spend, most=self.most_tokens, short=events.budget_short, away=events.store_away
        )
        self.permits = self._permits(now)

    def _permits(self, now: Callable[[], float]) -> Permits | None:
        """Whom a row asks; None where nobody has a say."""
        parts: list[Permits] = [self.spending] if self._rules.spend.bounded else []
        if self._grants is not None:
            parts.append(GroupPermits(self._grants, tokens=lambda row: sum(self.most_tokens(row))))
        return None if not parts else parts[0] if len(parts) == 1 else AllOf(*parts, now=now)

    def most_tokens(self, row: HeldRow) -> tuple[int, int]:
        """What a call of this row may use at most, in and out: what its executor says, or a guess by its size."""
        estimate = getattr(self._executor, "estimate", None)
        if estimate is None:
            return len(row.payload), UNKNOWN_TOKENS
        attempt = Attempt(row.seq, row.row, row.key, row.attempts + 1, "", "", self._rules.timeout)
        inputs, outputs = estimate(attempt)
        return max(0, inputs), max(0, outputs)

    @property
    def waiting(self) -> int:
        """Rows in a slot that wait for leave by the budget, or for a permit of the limits group."""
        return self.spending.waiting + (0 if self._grants is None else self._grants.waiting)

    def loops(self) -> list[tuple[str, Coroutine[Any, Any, None]]]:
        """What runs beside the rows, by name."""
        loops = [("spending", self.spending.run())]
        if self._grants is not None:
            loops.append(("grants", self._grants.run()))
        return loops

    async def leave(self) -> None:
        """This worker calls no more."""
        if self._grants is not None:
            await self._grants.leave()
        await self.spending.leave()


def _grants(
    rules: FlowRules, *, consumer: str, window: Window, events: Events, now: Callable[[], float]
) -> Grants | None:
    if (rule := rules.limits) is None:
        return None

    def told(limits: GroupLimits, others: list[str]) -> None:
        events.limits_told(rule.group, rule.limits, limits, others)

    books = window.limits(
        installation=rule.installation,
        namespace=rule.namespace,
        group=rule.group,
        worker=consumer,
        job=rule.job,
        limits=rule.limits,
        priority=rule.priority,
        timeout=rules.timeout,
    )
    return Grants(books=books, told=told, away=events.store_away, now=now)
