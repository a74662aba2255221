"""Permission to send, from the books of a limits group: asked for in blocks, waited for by each row.

States of a row here: waiting (it has a slot, and asks) → permitted at a time to come → permitted now → sent → over.
It leaves earlier when its patience is over, when its worker stops or loses its claims: then nothing was sent, and what
it was given goes back.

One loop asks for all of them. A block is what waits at the moment; an ask is never sent while another is under way.
What an answer that was lost had given is never sent. Tokens that were reserved and not used are told with the next ask;
if that fails they are not told again, since they may have arrived: books may only be too full.

Invariant: nothing is sent without a permit, and not later than `SEND_WITHIN_SECONDS` after its time.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from rowmill.errors import StoreUnavailable
from rowmill.limits import GroupLimits
from rowmill.tasks import set_within
from rowmill.window.limits import (
    HEARTBEAT_SECONDS,
    ROWS_ASKED,
    SEND_WITHIN_SECONDS,
    Granted,
    LimitsWindow,
    Permit,
)

GATHER_SECONDS = 0.005
"""How long the first row of a block waits for company."""
RETRY_SECONDS = (0.1, 2.0)


@dataclass(slots=True, eq=False)
class Grant:
    """A permit to send one call, from `due` on (this machine's clock)."""

    permit: Permit
    due: float


@dataclass(slots=True, eq=False)
class _Waiter:
    tokens: int
    future: asyncio.Future[Grant | None]


class Grants:
    """One worker's permits. `told` hears of the limits that hold, and of the jobs that set other ones, whenever that
    changes; `away` of a Redis that cannot be asked."""

    def __init__(
        self,
        *,
        books: LimitsWindow,
        told: Callable[[GroupLimits, list[str]], None],
        away: Callable[[StoreUnavailable], None],
        now: Callable[[], float],
    ) -> None:
        self._books = books
        self._told = told
        self._away = away
        self._now = now
        self._waiting: deque[_Waiter] = deque()
        self._held = 0
        self._refunds: list[tuple[float, int]] = []
        self._unused: list[float] = []
        self._pause = 0.0
        self._wake = asyncio.Event()
        self._limits: GroupLimits | None = None
        self._others: list[str] = []

    @property
    def waiting(self) -> int:
        """Rows that wait for a permit."""
        return len(self._waiting)

    @property
    def held(self) -> int:
        """Permits that count as calls in flight."""
        return self._held

    async def take(self, tokens: int, *, within: float) -> Grant | None:
        """Wait until a call that may cost `tokens` may be sent, at most `within` seconds; None when it may not.

        Whoever got a grant sends at once, and calls `end` or `give_back`, once.
        """
        try:
            async with asyncio.timeout(within):
                while True:
                    grant = await self._wait(tokens)
                    if grant is None or self._now() <= grant.due + SEND_WITHIN_SECONDS:
                        return grant
                    self.give_back(grant)  # this machine was too slow: the next one
        except TimeoutError:
            return None

    async def _wait(self, tokens: int) -> Grant | None:
        waiter = _Waiter(tokens, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._wake.set()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and (grant := waiter.future.result()):
                self.give_back(grant)
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def end(self, grant: Grant, *, used: int | None, pause: float = 0.0) -> None:
        """The call is over. `used` are its tokens where the endpoint told them; `pause` is for how many seconds it
        asked to be left alone."""
        if used is not None and used < grant.permit.tokens:
            self._refunds.append((grant.permit.time, grant.permit.tokens - used))
        self._pause = max(self._pause, pause)
        self._released()

    def give_back(self, grant: Grant) -> None:
        """Nothing was sent."""
        self._refund(grant.permit)
        self._unused.append(grant.permit.time)
        self._released()

    def _refund(self, permit: Permit) -> None:
        if permit.tokens:
            self._refunds.append((permit.time, permit.tokens))

    def _released(self) -> None:
        self._held -= 1
        if self._waiting and self._limits is not None and self._limits.max_in_flight:
            self._wake.set()

    def refuse_waiting(self) -> None:
        """Everybody who waits gets None: this worker stops, or its claims are gone."""
        waiting, self._waiting = self._waiting, deque()
        for waiter in waiting:
            if not waiter.future.done():
                waiter.future.set_result(None)

    async def run(self) -> None:
        """Ask, until cancelled. Raises nothing that Redis does."""
        delay = RETRY_SECONDS[0]
        again = HEARTBEAT_SECONDS
        while True:
            await set_within(self._wake, again)
            await asyncio.sleep(GATHER_SECONDS)
            self._wake.clear()
            try:
                granted = await self._ask()
                again, delay = max(granted.again, GATHER_SECONDS), RETRY_SECONDS[0]
            except StoreUnavailable as error:
                self._away(error)
                await asyncio.sleep(delay)
                again = GATHER_SECONDS
                delay = min(delay * 2, RETRY_SECONDS[1])

    async def _ask(self) -> Granted:
        refunds, self._refunds = self._refunds, []
        unused, self._unused = self._unused, []
        pause, self._pause = self._pause, 0.0
        wants = [waiter.tokens for waiter, _ in zip(self._waiting, range(ROWS_ASKED), strict=False)]
        granted = await self._books.ask(wants, holds=self._held, refunds=refunds, unused=unused, pause=pause)
        self._hand_out(granted, self._now())
        if (granted.limits, granted.others) != (self._limits, self._others):
            self._limits, self._others = granted.limits, granted.others
            self._told(granted.limits, granted.others)
        return granted

    def _hand_out(self, granted: Granted, received: float) -> None:
        """The clock of the server stood at `granted.now` when it answered, so that by now it is later there: nothing is
        sent too early."""
        loop = asyncio.get_running_loop()
        for permit in granted.permits:
            cap = granted.limits.tokens_per_minute
            if not self._waiting or permit.tokens < min(self._waiting[0].tokens, cap):
                self._refund(permit)  # whom it was meant for has gone
                self._unused.append(permit.time)
                continue
            waiter = self._waiting.popleft()
            self._held += 1
            grant = Grant(permit, received + permit.time - granted.now)
            wait = grant.due - self._now()
            if wait <= 0:
                self._give(waiter, grant)
            else:
                loop.call_later(wait, self._give, waiter, grant)

    def _give(self, waiter: _Waiter, grant: Grant) -> None:
        if waiter.future.done():
            self.give_back(grant)  # it waits no more
        else:
            waiter.future.set_result(grant)

    async def leave(self) -> None:
        """Tell the group that this worker sends nothing more."""
        try:
            await self._books.ask([], holds=0, refunds=self._refunds, unused=self._unused, leaves=True)
        except StoreUnavailable:
            return  # it is found silent
