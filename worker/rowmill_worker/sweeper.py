"""What dead workers left behind is given to everybody, within seconds. One sweeper a run, elected by a lock.

A consumer is believed dead only when three things agree: its heartbeat in Redis is stale, nobody holds its liveness
lock in Postgres, and our own session is old enough to judge (after a restart of Postgres everybody's lock is free for
a moment). A paused or partitioned worker that wakes up again does no harm: its commits meet the primary key.

A row that ran alone in a worker that died is convicted: it ends Failed with reason PoisonRow, here.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession, Work
from rowmill.ledger.keys import sweeper_key
from rowmill.outcome import Outcome
from rowmill.row import Entry
from rowmill.window import EpochOver, WorkWindow

SWEEP_SECONDS = 0.5
ELECT_SECONDS = 1.0
JUDGING_AGE_SECONDS = 2.0
"""How old our session must be before a free liveness lock means death."""


class Sweeper:
    """Runs until cancelled. `convict` turns a poison row into its outcome in the ledger."""

    def __init__(
        self,
        *,
        run: int,
        locks: LockSession,
        work: Work,
        window: Callable[[], WorkWindow | None],
        convict: Callable[[int, Entry], Outcome],
        swept: Callable[[str, int, list[int]], None],
        generation: Callable[[], int],
        rng: random.Random,
    ) -> None:
        self._key = sweeper_key(run)
        self._locks = locks
        self._work = work
        self._window = window
        self._convict = convict
        self._swept = swept
        self._generation = generation
        self._rng = rng
        self._elected_in = 0

    @property
    def elected(self) -> bool:
        """The lock is held for as long as the session that took it lives."""
        return self._locks.is_open and self._elected_in == self._locks.number

    async def run(self) -> None:
        while True:
            try:
                if not self.elected:
                    await self._stand()
                window = self._window()
                if self.elected and window is not None and self._locks.age > JUDGING_AGE_SECONDS:
                    await self._sweep(window)
            except (StoreUnavailable, EpochOver):
                pass  # the reader and the keeper tell and recover; we only try again
            pause = SWEEP_SECONDS if self.elected else ELECT_SECONDS
            await asyncio.sleep(pause * self._rng.uniform(0.8, 1.2))

    async def _stand(self) -> None:
        if self._locks.is_open:
            number = self._locks.number
            if await self._locks.try_lock(self._key) and number == self._locks.number:
                self._elected_in = number

    async def _sweep(self, window: WorkWindow) -> None:
        silent = await window.silent_consumers()
        if not silent:
            return
        for consumer in await self._work.silent(silent):
            for shard in range(window.shards):
                found = await window.sweep(shard, consumer)
                for seq in found.convicted:
                    await self._close_case(window, shard, seq)
                if found.scheduled or found.convicted:
                    self._swept(consumer, found.scheduled, found.convicted)

    async def _close_case(self, window: WorkWindow, shard: int, seq: int) -> None:
        payload = await window.payload(shard, seq)
        outcome = self._convict(shard, Entry(seq, payload or b"{}"))
        await self._work.commit([outcome], generation=self._generation())
        await window.finish(shard, [seq])
