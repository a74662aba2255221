"""Rows out of the window: which epoch is on, read, admit, recover what was delivered and lost.

States: no turn (the run is not running, or its epoch is being opened) → reading → no turn … → stopped.

After any failure of a store rows may be pending with us that nobody runs: replies that were lost, blocks whose claim
failed. They are found by asking for what is pending with us and unscheduled, and scheduled at once for everyone. The
same question is asked every few seconds besides, because the schedule is only a hint.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Protocol

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession, Turn, Work
from rowmill.status import Phase
from rowmill.tasks import set_within
from rowmill.window import Delivery, EpochOver, Later, WorkWindow
from rowmill.window.work import SMALLEST_TAKE
from rowmill_worker.claimer import ELSEWHERE_SECONDS, Admission, Claimer
from rowmill_worker.held import HeldRow, HeldRows
from rowmill_worker.prefetch import Rate, rows_to_read

IDLE_SECONDS = 0.25
"""How long one wait for new rows blocks: also how late a retry may start that came due meanwhile."""
NO_TURN_SECONDS = 0.25
RECOVER_EVERY_SECONDS = 10.0
RETRY_SECONDS = (0.1, 2.0)


class Pipeline(Protocol):
    """Where admitted rows go, and how full it is there."""

    @property
    def waiting(self) -> int: ...

    def admitted(self, admission: Admission) -> None: ...

    def give_back(self, rows: Sequence[HeldRow]) -> None: ...

    def was_read(self, rows: Sequence[Delivery]) -> None: ...

    def store_away(self, error: StoreUnavailable) -> None: ...


class Reader:
    """One loop. `stop` makes it end after what it is doing; nothing that was delivered is dropped by that."""

    def __init__(
        self,
        *,
        work: Work,
        open_window: Callable[[int, int], WorkWindow],
        locks: LockSession,
        held: HeldRows,
        claimer: Claimer,
        pipeline: Pipeline,
        concurrency: Callable[[], int],
        budget: Callable[[], int],
        rate: Rate,
        room: asyncio.Event,
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._work = work
        self._open_window = open_window
        self._locks = locks
        self._held = held
        self._claimer = claimer
        self._pipeline = pipeline
        self._concurrency = concurrency
        self._budget = budget
        self._rate = rate
        self._room = room
        self._now = now
        self._rng = rng
        self._stop = asyncio.Event()
        self._turn: Turn | None = None
        self._last_generation = 0
        self._recover_at = 0.0
        self._next_shard = 0
        self.asked = 0
        """Rows that were asked for and are not in the table of what is held yet."""
        self.window: WorkWindow | None = None
        """The window of the epoch that is on, or None."""

    @property
    def generation(self) -> int:
        """The generation that rows are committed in now."""
        return self._turn.generation if self._turn else self._last_generation

    def stop(self) -> None:
        self._stop.set()
        self._room.set()

    async def run(self) -> None:
        delay = RETRY_SECONDS[0]
        while not self._stop.is_set():
            try:
                await self._step()
                delay = RETRY_SECONDS[0]
            except EpochOver:
                self._turn = None
                await self._pause(NO_TURN_SECONDS * self._rng.uniform(0.2, 1.0))
            except StoreUnavailable as error:
                self._pipeline.store_away(error)
                self._recover_at = 0.0
                await self._pause(delay * self._rng.uniform(0.5, 1.0))
                delay = min(delay * 2, RETRY_SECONDS[1])

    async def _pause(self, seconds: float) -> None:
        await set_within(self._stop, seconds)

    async def _step(self) -> None:
        window = await self._current_window()
        if window is None or not self._locks.is_open:
            await self._pause(NO_TURN_SECONDS)
            return
        now = self._now()
        if now >= self._recover_at:
            self._recover_at = now + (RECOVER_EVERY_SECONDS if await self._recover(window) else RETRY_SECONDS[1])
        wanted = rows_to_read(
            concurrency=self._concurrency(),
            rows_per_second=self._rate.value,
            waiting=self._pipeline.waiting,
            held=len(self._held),
            held_bytes=self._held.bytes,
            budget=self._budget(),
        )
        if wanted <= 0:
            await self._wait_for_room()
            return
        self.asked = max(wanted, SMALLEST_TAKE)
        try:
            rows = await window.take(wanted)
            if not rows:
                self.asked = 1
                self._next_shard = (self._next_shard + 1) % window.shards
                rows = await window.wait(self._next_shard, IDLE_SECONDS)
            if rows:
                await self._admit(window, rows)
        finally:
            self.asked = 0

    async def _wait_for_room(self) -> None:
        self._room.clear()
        if not self._stop.is_set():
            await set_within(self._room, IDLE_SECONDS)

    async def _current_window(self) -> WorkWindow | None:
        """The window of the turn that is on; asks the ledger only when none is known."""
        if self._turn is None:
            turn = await self._work.turn()
            if turn is None or turn.phase is not Phase.RUNNING or turn.epoch == 0:
                self.window = None
                return None
            if self.window is None or self.window.epoch != turn.epoch:
                self.window = self._open_window(turn.epoch, turn.shards)
                self._recover_at = 0.0
            self._turn = turn
            self._last_generation = turn.generation
        return self.window

    async def _recover(self, window: WorkWindow) -> bool:
        """Rows pending with us that we do not hold and nobody scheduled: lost deliveries. Schedule them.

        False when that failed. Reading goes on then: a Redis that is full takes no schedule, and what frees its memory
        is rows that end.
        """
        try:
            for shard in range(window.shards):
                lost = [seq for seq in await window.unscheduled(shard) if seq not in self._held]
                await window.reschedule_lost(shard, lost)
        except StoreUnavailable as error:
            self._pipeline.store_away(error)
            return False
        return True

    async def _admit(self, window: WorkWindow, rows: list[Delivery]) -> None:
        assert self._turn is not None
        self._pipeline.was_read(rows)
        self.asked = 0  # from here on they are in the table
        new: list[HeldRow] = []
        busy: dict[int, list[Later]] = defaultdict(list)
        for delivery in rows:
            mine = self._held.get(delivery.seq)
            if mine is None:
                new.append(self._held.add(delivery, generation=self._turn.generation, epoch=window.epoch))
            elif mine.epoch != window.epoch:
                # A row of an older epoch that still runs here: its end is in the ledger soon.
                busy[delivery.shard].append(Later(delivery.seq, ELSEWHERE_SECONDS, delivery.attempts))
        if new:
            try:
                self._pipeline.admitted(await self._claimer.claim(new, generation=self._turn.generation))
            except StoreUnavailable:
                self._undo(new)
                raise
        for shard, later in busy.items():
            await window.schedule(shard, later)

    def _undo(self, rows: list[HeldRow]) -> None:
        """A claim that failed half-way: what is locked goes back in good order, the rest is found unscheduled."""
        locked = [row for row in rows if row.session]
        for row in locked:
            row.delay = ELSEWHERE_SECONDS
        self._held.remove(row for row in rows if not row.session)
        self._pipeline.give_back(locked)
