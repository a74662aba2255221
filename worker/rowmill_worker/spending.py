"""What this worker's calls use, told to the ledger; and, where the run has a budget, leave to send them.

States of a row under a budget: has a slot → asks, with the most that its call may use → allowed (that much is reserved)
→ called → settled: what was used is counted, the rest is free again. Unsent it is free at once.

One loop tells and asks for all rows, never twice at a time. What is told are sums, so that a telling which was lost is
made up for by the next (`rowmill.ledger.spend`). Nothing is sent that was not allowed. A call that ends without the
endpoint's word on what it used counts as much as was reserved where it may have been charged: one that was cut off, or
cancelled, or answered without saying. Without a budget there is nothing to ask, and what endpoints tell is counted.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal

from rowmill.errors import StoreUnavailable
from rowmill.ledger import TELL_SECONDS, Allowed, Held, SpendBook, Want
from rowmill.spend import NOTHING_SPENT, Prices, Shortage, Spend
from rowmill.tasks import set_within
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.held import HeldRow
from rowmill_worker.permits import CUT_OFF

GATHER_SECONDS = 0.002
"""How long the first row of a block waits for company."""
ASK_AGAIN_SECONDS = (0.2, 1.0)
"""After a refusal: while calls under way may make room, and when none can."""
RETRY_SECONDS = (0.1, 2.0)
ROWS_ASKED = 256
PERHAPS_CHARGED = frozenset(
    {
        *("Timeout", "ConnectionReset", "ConnectionFailed", "IncompleteAnswer", "ExecutorError", CUT_OFF),
        *("AnswerAborted", "AnswerTooLarge", "InvalidAnswer", "InvalidHTTP", "InvalidJSON", "InvalidText"),
        *("OutputTruncated", "Refused", "ResponseFailed", "ResultTooLarge", "SchemaMismatch", "ToolCalls"),
        *("ModelFailed", "WorkflowFailed", "WorkflowPartial", "WorkflowPaused", "WorkflowStopped"),
    }
)
"""Failures of calls for which the endpoint may have done all the work: nothing came back, or an answer that was no
refusal."""


@dataclass(frozen=True, slots=True)
class SpendRule:
    """`spec.pricing` and whether there is a budget. `tokens`: whether the endpoint tells them."""

    prices: Prices
    bounded: bool = False
    tokens: bool = False


@dataclass(slots=True, eq=False)
class _Waiter:
    want: Want
    future: asyncio.Future[bool]


class Spending:
    """One worker's. `most` tells the tokens that the call of a row may use at most, in and out. `short` is told when no
    call may be sent any more, `away` when the ledger cannot be asked."""

    waits_for = "leave by its budget"

    def __init__(
        self,
        *,
        book: SpendBook,
        rule: SpendRule,
        most: Callable[[HeldRow], tuple[int, int]],
        short: Callable[[Shortage], None],
        away: Callable[[StoreUnavailable], None],
    ) -> None:
        self._book = book
        self._rule = rule
        self._most = most
        self._short = short
        self._away = away
        self._waiting: deque[_Waiter] = deque()
        self._wake = asyncio.Event()
        self._told = NOTHING_SPENT
        self._kept: Held | None = Held()  # what the ledger holds for us; None while nobody knows
        self._refused: str | None = None
        self._was_short = False
        self._book_open = asyncio.Lock()
        self._left = False
        self._requests = 0
        self._inputs = 0
        self._outputs = 0
        self._cost = Decimal(0)
        self._prices = rule.prices if any(rule.prices) else None
        self.held = Held()

    @property
    def used(self) -> Spend:
        """Since this worker began."""
        return Spend(self._requests, self._inputs, self._outputs, self._cost)

    @property
    def waiting(self) -> int:
        """Rows that wait for leave."""
        return len(self._waiting)

    def called(self, usage: Usage | None) -> None:
        """A call that was sent is over, and this is what the endpoint says it used, if it says anything."""
        if usage is not None and not usage.requests:
            return  # nothing was sent: nobody listened, or an earlier call's work was found
        self._requests += 1
        if usage is None or not self._rule.tokens:
            if self._prices is not None:
                self._cost += self._prices.call
            return
        self._inputs += usage.input_tokens
        self._outputs += usage.output_tokens
        if self._prices is not None:
            self._cost += self._prices.cost(
                requests=1, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens
            )

    def refused(self, sentence: str) -> None:
        """The endpoint takes none of this worker's calls: the engine is told why, again and again while this lives. It
        may have forgotten, and a worker that sends nothing must not look like one that works."""
        self._refused = sentence
        self._wake.set()

    async def take(self, row: HeldRow, *, within: float) -> _Leave | None:
        """Wait until the call of a row may be sent, at most `within` seconds."""
        want = self._want(row)
        waiter = _Waiter(want, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._wake.set()
        try:
            async with asyncio.timeout(within):
                allowed = await waiter.future
        except (TimeoutError, asyncio.CancelledError) as ended:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.result():
                self._settle(want)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            if isinstance(ended, TimeoutError):
                return None
            raise
        return _Leave(self, want) if allowed else None

    def refuse_waiting(self) -> None:
        """Every row that waits now gets none: this worker stops, or its claims are gone."""
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.future.done():
                waiter.future.set_result(False)

    def _want(self, row: HeldRow) -> Want:
        rule = self._rule
        inputs, outputs = self._most(row) if rule.tokens else (0, 0)
        cost = rule.prices.cost(requests=1, input_tokens=inputs, output_tokens=outputs)
        return Want(inputs + outputs, cost)

    def _over(self, want: Want, attempt: Attempt, error: RowError | None) -> None:
        """A call that had leave is over. Where nobody says what it used, it may have been all that was reserved."""
        usage = attempt.usage
        known = usage is not None and (not usage.requests or usage.input_tokens or usage.output_tokens)
        if self._rule.tokens and not known and (error is None or error.error_class in PERHAPS_CHARGED):
            self._inputs += want.tokens
            self._cost += want.cost - self._rule.prices.call
        self._settle(want)

    def _settle(self, want: Want) -> None:
        self.held = self.held.plus(want, times=-1)
        if self._waiting:
            self._wake.set()

    async def run(self) -> None:
        """Tell and ask, until cancelled. Raises nothing that Postgres does."""
        delay = RETRY_SECONDS[0]
        again = TELL_SECONDS
        while True:
            await set_within(self._wake, again)
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            if self._left or not (self._waiting or self.held.requests or self._refused or self._untold):
                again = TELL_SECONDS
                continue
            try:
                again = self._next(await self._tell())
                delay = RETRY_SECONDS[0]
            except StoreUnavailable as error:
                self._away(error)
                await asyncio.sleep(delay)
                again = GATHER_SECONDS
                delay = min(delay * 2, RETRY_SECONDS[1])

    async def _tell(self) -> Allowed:
        async with self._book_open:
            return Allowed(0) if self._left else await self._tell_now()

    async def _tell_now(self) -> Allowed:
        asked = [waiter for waiter, _ in zip(self._waiting, range(ROWS_ASKED), strict=False)]
        used, kept, refused = self.used, self.held, self._refused
        self._kept = None
        allowed = await self._book.tell(used=used, held=kept, wants=[waiter.want for waiter in asked], refused=refused)
        for waiter in asked[: allowed.calls]:
            kept = kept.plus(waiter.want)
        self._told, self._kept = used, kept
        for waiter in asked[: allowed.calls]:
            # Who gave up meanwhile never had it; the next telling says so.
            if not waiter.future.done():
                self._waiting.remove(waiter)
                self.held = self.held.plus(waiter.want)
                waiter.future.set_result(True)
        return allowed

    @property
    def _untold(self) -> bool:
        """Whether the ledger has yet to learn something, and be it that leave which it gave was not taken."""
        return self.used != self._told or self.held != self._kept

    def _next(self, allowed: Allowed) -> float:
        """Seconds until there is something to tell again, unless somebody has something before."""
        if allowed.for_good and allowed.shortage is not None and not self._was_short:
            self._short(allowed.shortage)
        self._was_short = allowed.for_good
        if allowed.shortage is not None:
            return ASK_AGAIN_SECONDS[allowed.for_good]
        return 0.0 if self._waiting else TELL_SECONDS

    async def leave(self) -> None:
        """Tell what is left to tell, and nothing after that: it would count twice."""
        try:
            async with self._book_open:
                self._left = True
                if self._untold:
                    await self._book.tell(used=self.used, held=self.held)
                await self._book.leave()
        except StoreUnavailable as error:
            self._away(error)  # what was used is known with the outcomes; what is held counts as used before long


class _Leave:
    """See `rowmill_worker.permits.Pass`."""

    __slots__ = ("_spending", "_want")

    def __init__(self, spending: Spending, want: Want) -> None:
        self._spending = spending
        self._want = want

    def over(self, attempt: Attempt, error: RowError | None) -> None:
        self._spending._over(self._want, attempt, error)

    def unused(self) -> None:
        self._spending._settle(self._want)
