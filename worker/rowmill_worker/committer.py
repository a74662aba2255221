"""Outcomes into the ledger, in groups.

While one group is being written the next one gathers, so groups grow with the load by themselves; when little
comes, the first row waits a few milliseconds for company. A group that Postgres refuses because of a value is
halved until the guilty row stands alone, and that one ends Failed. When Postgres is away the group is tried again
until it is there: what was paid for is committed, and a commit whose reply was lost is safe to repeat.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from itertools import groupby

from rowmill.errors import StoreUnavailable
from rowmill.ledger import REFUSED, KeyEnd, Work
from rowmill.outcome import Outcome, State
from rowmill.spend import Spend
from rowmill.tasks import set_within
from rowmill_worker.held import HeldRow

LINGER_SECONDS = 0.004
GROUP_ENOUGH = 300
GROUP_MAX = 1000
GROUP_BYTES = 8 * 1024 * 1024
"""Results in one statement: both sides hold it whole, and a server refuses one of a gigabyte for good."""
RETRY_SECONDS = (0.1, 5.0)


class Committer:
    """Runs until `close`. Rows given to it must have their `outcome`. `spent` is what all calls of this worker have
    used, told with each group."""

    def __init__(
        self,
        *,
        work: Work,
        keep_keys_seconds: float,
        spent: Callable[[], Spend],
        committed: Callable[[Sequence[HeldRow]], None],
        refused: Callable[[HeldRow, str], None],
        measured: Callable[[int, float], None],
        rng: random.Random,
    ) -> None:
        self._work = work
        self._keep_keys_seconds = keep_keys_seconds
        self._spent = spent
        self._committed = committed
        self._refused = refused
        self._measured = measured
        self._rng = rng
        self._rows: list[HeldRow] = []
        self._wake = asyncio.Event()
        self._enough = asyncio.Event()
        self._closing = False
        self.bytes = 0
        """Of the results that wait here."""
        self.away: str | None = None
        """Why outcomes cannot be written right now, or None."""

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, row: HeldRow) -> None:
        self._rows.append(row)
        self.bytes += _size(row)
        self._wake.set()
        if len(self._rows) >= GROUP_ENOUGH or self.bytes >= GROUP_BYTES:
            self._enough.set()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        self._enough.set()

    async def run(self) -> None:
        while not (self._closing and not self._rows):
            await self._wake.wait()
            self._wake.clear()
            while self._rows:
                if len(self._rows) < GROUP_ENOUGH and self.bytes < GROUP_BYTES and not self._closing:
                    await set_within(self._enough, LINGER_SECONDS)
                group = self._take_group()
                self._enough.clear()
                group.sort(key=lambda row: row.generation)
                for _, rows in groupby(group, key=lambda row: row.generation):
                    await self._commit(list(rows))

    def _take_group(self) -> list[HeldRow]:
        """The rows that came first, bounded in number and in bytes; at least one."""
        if len(self._rows) <= GROUP_MAX and self.bytes <= GROUP_BYTES:
            group, self._rows, self.bytes = self._rows, [], 0
            return group
        count, total = 0, 0
        for row in self._rows[:GROUP_MAX]:
            size = _size(row)
            if count and total + size > GROUP_BYTES:
                break
            count, total = count + 1, total + size
        group, self._rows = self._rows[:count], self._rows[count:]
        self.bytes -= total
        return group

    async def _commit(self, rows: list[HeldRow]) -> None:
        began = time.perf_counter()
        delay = RETRY_SECONDS[0]
        while True:
            try:
                await self._write(rows)
                break
            except StoreUnavailable as error:
                self.away = str(error)
                await asyncio.sleep(delay * self._rng.uniform(0.5, 1.0))
                delay = min(delay * 2, RETRY_SECONDS[1])
            except (*REFUSED, UnicodeEncodeError) as error:
                if len(rows) > 1:
                    middle = len(rows) // 2
                    await self._commit(rows[:middle])
                    await self._commit(rows[middle:])
                    return
                self._convict(rows[0], error)
        self.away = None
        self._measured(len(rows), time.perf_counter() - began)
        self._committed(rows)

    async def _write(self, rows: list[HeldRow]) -> None:
        outcomes = [row.outcome for row in rows if row.outcome is not None]
        keys = [KeyEnd(row.digest, row.seq, row.outcome) for row in rows if row.digest and row.outcome]
        await self._work.commit(
            outcomes,
            generation=rows[0].generation,
            keys=keys,
            keep_seconds=self._keep_keys_seconds,
            spent=self._spent(),
        )

    def _convict(self, row: HeldRow, error: Exception) -> None:
        """The ledger refuses this row's own values: it ends Failed, without them."""
        assert row.outcome is not None
        if row.outcome.error_class == "ResultRefused":
            raise error  # not even the plain outcome is taken: nothing that a row could be blamed for
        reason = f"{type(error).__name__}: {error}"
        row.outcome = Outcome(
            seq=row.seq,
            state=State.FAILED,
            attempts=row.outcome.attempts,
            error_class="ResultRefused",
            error_message="The answer arrived, but the ledger cannot hold it: "
            + reason.encode("ascii", "replace").decode().replace("\x00", "")[:500],
        )
        self._refused(row, reason)


def _size(row: HeldRow) -> int:
    """Of what may be large in an outcome: its characters, close enough to its bytes."""
    outcome = row.outcome
    return len(outcome.result) if outcome is not None and outcome.result is not None else 0
