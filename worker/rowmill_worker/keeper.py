"""Keeps the lock session open, its share of locks in step with others', and the heartbeat fresh.

When the session is lost every waiting row goes back to the window (its claim died with the session) and nothing new
starts until a session is open again; rows that run go on, and their locks are taken again as far as nobody else has
them by then.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession
from rowmill.window import WorkWindow
from rowmill_worker.dispatcher import Dispatcher
from rowmill_worker.held import HeldRow
from rowmill_worker.quota import LockQuota

LOOK_SECONDS = 0.1
RETRY_SECONDS = (0.1, 2.0)
HEARTBEAT_EVERY_SECONDS = 0.5


class SessionKeeper:
    """Runs until cancelled. `give_back` releases rows whose claim is gone; `lost` is told once of each session that has
    to be opened, `away` of each try that failed."""

    def __init__(
        self,
        *,
        locks: LockSession,
        quota: LockQuota,
        dispatcher: Dispatcher,
        give_back: Callable[[list[HeldRow]], None],
        lost: Callable[[], None],
        away: Callable[[StoreUnavailable], None],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._locks = locks
        self._quota = quota
        self._dispatcher = dispatcher
        self._give_back = give_back
        self._lost = lost
        self._away = away
        self._told = -1
        self._now = now
        self._rng = rng

    async def run(self) -> None:
        delay = RETRY_SECONDS[0]
        while True:
            try:
                if not self._locks.is_open:
                    await self._reopen()
                    delay = RETRY_SECONDS[0]
                elif self._quota.due:
                    await self._quota.look()  # the session is seen to live by that
                await asyncio.sleep(LOOK_SECONDS)
            except StoreUnavailable as error:
                self._away(error)
                await asyncio.sleep(delay * self._rng.uniform(0.5, 1.0))
                delay = min(delay * 2, RETRY_SECONDS[1])

    async def _reopen(self) -> None:
        if self._told != self._locks.number:
            self._told = self._locks.number
            self._lost()
        waiting = self._dispatcher.withdraw()
        for row in waiting:
            row.delay = 0.0
        self._give_back(waiting)
        await self._locks.open()
        await self._relock(self._dispatcher.running)
        await self._quota.look()
        self._dispatcher.pump()

    async def _relock(self, running: list[HeldRow]) -> None:
        """Lock what runs again. A row that ended meanwhile must not keep the lock that we just took for it."""
        if not running:
            return
        rows = set(await self._locks.relock([row.seq for row in running]))
        # Without its key's lock the next row that asks for the key would be executed beside this one.
        keyed = [(row, row.key_lock) for row in running if row.key_lock is not None and row.seq in rows]
        locked = await self._locks.lock_keys([key for _, key in keyed]) if keyed else []
        ended = []
        for row in running:
            if row.seq not in rows:
                continue
            if row.releasing:
                ended.append(row.seq)
            else:
                row.session = self._locks.number
        ended_keys = []
        for (row, key), ours in zip(keyed, locked, strict=True):
            if not ours:
                row.key_lock = None
            elif row.releasing:
                ended_keys.append(key)
        if ended_keys:
            await self._locks.release_keys(ended_keys)
        if ended:
            await self._locks.release(ended)


async def keep_heartbeat(pulse: WorkWindow) -> None:
    """Say that we live, every half second, until cancelled. Redis away: try again."""
    while True:
        try:
            await pulse.heartbeat()
        except StoreUnavailable:
            pass
        await asyncio.sleep(HEARTBEAT_EVERY_SECONDS)
