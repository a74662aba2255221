"""The last stage: rows are unlocked, leave the table, and leave the window or go back into it.

The order is the invariant: committed before unlocked, unlocked before acknowledged. A crash after the commit
redelivers a row that the ledger knows; a crash after the unlock does too. A row that goes back (retry, hand-back)
is unlocked before it is scheduled, so that whoever pops it does not find it locked.

Lost here: nothing. When Redis is away the entries stay pending with us; when it is back they are found unscheduled
(the reader asks), delivered again and found done in the ledger.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession, Work
from rowmill.tasks import set_within
from rowmill.window import EpochOver, Later, WorkWindow
from rowmill_worker.held import HeldRow, HeldRows

MAX_BLOCK = 2000
LINGER_SECONDS = 0.01
"""How long the first row of a block waits for company: one unlock and one acknowledgement for all of them. What is
waited with is recorded already, so that nothing is at stake."""
BLOCK_ENOUGH = 200
KEY_GRACE_SECONDS = 5.0
"""How long after its turn a row that is tried again still comes first for its declared key."""


class Releaser:
    """Runs until `close`; rows given to it are released in blocks, in the order given."""

    def __init__(
        self,
        *,
        locks: LockSession,
        work: Work,
        held: HeldRows,
        window: Callable[[], WorkWindow | None],
        reached: Callable[[str, Sequence[int]], None],
        released: Callable[[Sequence[HeldRow]], None],
    ) -> None:
        self._locks = locks
        self._work = work
        self._held = held
        self._window = window
        self._reached = reached
        self._released = released
        self._rows: list[HeldRow] = []
        self._wake = asyncio.Event()
        self._enough = asyncio.Event()
        self._closing = False

    def add(self, rows: Sequence[HeldRow]) -> None:
        """Release these: with `delay` None the row is done, else it is scheduled after so many seconds."""
        self._rows.extend(rows)
        self._wake.set()
        if len(self._rows) >= BLOCK_ENOUGH:
            self._enough.set()

    async def run(self) -> None:
        while not (self._closing and not self._rows):
            await self._wake.wait()
            self._wake.clear()
            while self._rows:
                if len(self._rows) < BLOCK_ENOUGH and not self._closing:
                    await set_within(self._enough, LINGER_SECONDS)
                self._enough.clear()
                block, self._rows = self._rows[:MAX_BLOCK], self._rows[MAX_BLOCK:]
                await self._release(block)

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._enough.set()

    async def _release(self, rows: list[HeldRow]) -> None:
        await self._reserve_keys(rows)
        await self._unlock(rows)
        # From here on a redelivery is claimed like anybody's row: leaving the table before the window call means
        # that a row which comes back at once is not mistaken for one that we still run.
        self._held.remove(rows)
        self._reached("unlocked", [row.seq for row in rows])
        window = self._window()
        if window is not None:
            await self._leave(window, [row for row in rows if row.epoch == window.epoch])
        self._reached("finished", [row.seq for row in rows])
        self._released(rows)

    async def _reserve_keys(self, rows: list[HeldRow]) -> None:
        """Declared keys of rows that will be tried again stay theirs until a little after their turn."""
        mine = [(row.digest, row.seq, row.delay) for row in rows if row.digest is not None and row.delay is not None]
        if mine:
            try:
                await self._work.extend_keys(
                    [digest for digest, _, _ in mine],
                    [seq for _, seq, _ in mine],
                    [delay + KEY_GRACE_SECONDS for _, _, delay in mine],
                )
            except StoreUnavailable:
                pass  # then whoever asks next may execute the key: once at a time still, by its lock

    async def _unlock(self, rows: list[HeldRow]) -> None:
        number = self._locks.number
        for row in rows:
            row.releasing = True
        keys = [row.key_lock for row in rows if row.key_lock is not None and row.session == number]
        seqs = [row.seq for row in rows if row.session == number]
        try:
            if keys:
                await self._locks.release_keys(keys)
            if seqs:
                await self._locks.release(seqs)
        except StoreUnavailable:
            return  # the session is lost, and its locks with it

    async def _leave(self, window: WorkWindow, rows: list[HeldRow]) -> None:
        done: dict[int, list[int]] = defaultdict(list)
        later: dict[int, list[Later]] = defaultdict(list)
        for row in rows:
            if row.delay is None:
                done[row.shard].append(row.seq)
            else:
                later[row.shard].append(Later(row.seq, row.delay, row.attempts))
        calls = [window.finish_all(done)] if done else []
        calls += [_scheduled(window, shard, entries) for shard, entries in later.items()]
        results = await asyncio.gather(*calls, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, StoreUnavailable | EpochOver):
                raise result


async def _scheduled(window: WorkWindow, shard: int, rows: list[Later]) -> None:
    await window.schedule(shard, rows)
