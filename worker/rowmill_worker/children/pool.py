"""Children that calls are spread over, each started when it is wanted and again when it has died.

A seat is a place for one child: empty → starting → taken by calls. A child that runs calls side by side takes any
number; any other one at a time. A call that is to be *alone* waits until a seat is empty of others, and keeps others
out meanwhile: what it does to its child then is its own doing.

Starting is a task of its own, which outlives those who wait for it: a model that loads for minutes is not begun anew
for every row that runs out of time. After a death the next start waits a little, longer each time until a call
succeeds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger
from rowmill_worker.children.child import Child, ChildFailed, ChildUnusable

BACKOFF_SECONDS: Final = (0.1, 5.0)
"""Before the second start after a death without success in between, and at most."""


class _Seat:
    def __init__(self) -> None:
        self.child: Child | None = None
        self.starting: asyncio.Task[Child] | None = None
        self.users = 0
        self.alone = False
        self.deaths = 0


class Pool:
    """At most `size` children, made by `start`. `sleep` waits for so many seconds."""

    def __init__(
        self,
        *,
        start: Callable[[], Awaitable[Child]],
        size: int,
        log: Logger,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._start = start
        self._log = log
        self._sleep = sleep
        self._seats = [_Seat() for _ in range(size)]
        self._waiters: list[asyncio.Future[None]] = []
        self._alone_waiting = 0
        self._concurrent = False
        self._closed = False

    async def open(self) -> Child:
        """Start the first child. Raises ChildUnusable and ChildFailed."""
        child = self._seats[0].child = await self._start()
        self._concurrent = child.concurrent
        return child

    @property
    def size(self) -> int:
        return len(self._seats)

    def resize(self, size: int) -> None:
        """How many there may be, from 1; before the first call."""
        del self._seats[size:]
        self._seats += [_Seat() for _ in range(size - len(self._seats))]

    @property
    def busy(self) -> int:
        """Calls that have a seat."""
        return sum(seat.users for seat in self._seats)

    @asynccontextmanager
    async def seat(self, *, alone: bool = False) -> AsyncIterator[Child]:
        """A child that can be called, for the length of the block. Raises ChildUnusable and ChildFailed.

        Leave the block by an exception where the call failed: only a success ends the waiting between starts.
        """
        seat = await self._take(alone=alone)
        try:
            child = await self._child_of(seat)
            yield child
            if child.alive:
                seat.deaths = 0
        finally:
            seat.users -= 1
            seat.alone = False
            self._wake()

    async def _take(self, *, alone: bool) -> _Seat:
        self._alone_waiting += alone
        try:
            while (seat := self._free(alone=alone)) is None:
                waiter = asyncio.get_running_loop().create_future()
                self._waiters.append(waiter)
                try:
                    await waiter
                finally:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)
        finally:
            self._alone_waiting -= alone
            if alone:
                self._wake()
        seat.users += 1
        seat.alone = alone
        return seat

    def _free(self, *, alone: bool) -> _Seat | None:
        side_by_side = self._concurrent and not alone and not self._alone_waiting
        able = [seat for seat in self._seats if seat.users == 0 or (side_by_side and not seat.alone)]
        if self._alone_waiting and not alone:
            able = able[self._alone_waiting :]
        # A child that is there before one that would have to be started, then the one with the least to do.
        return min(able, key=lambda seat: (seat.users > 0, seat.child is None, seat.users), default=None)

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _child_of(self, seat: _Seat) -> Child:
        if seat.child is not None and seat.child.alive:
            return seat.child
        if seat.starting is None:
            if seat.child is not None:
                seat.deaths += 1
            seat.child = None
            seat.starting = asyncio.create_task(self._started(seat))
            seat.starting.add_done_callback(lambda task: None if task.cancelled() else task.exception())
        return await asyncio.shield(seat.starting)

    async def _started(self, seat: _Seat) -> Child:
        first, most = BACKOFF_SECONDS
        try:
            if seat.deaths > 1:
                await self._sleep(min(most, first * 2.0 ** min(seat.deaths - 2, 60)))
            seat.child = await self._start()
            return seat.child
        except (ChildUnusable, ChildFailed) as error:
            seat.deaths += 1
            self._log.error("a process could not be started", reason=str(error))
            raise
        finally:
            seat.starting = None

    async def close(self) -> None:
        """End every child; waits at most five seconds for each."""
        await end_tasks([seat.starting for seat in self._seats if seat.starting is not None])
        await asyncio.gather(*(seat.child.end() for seat in self._seats if seat.child is not None))
