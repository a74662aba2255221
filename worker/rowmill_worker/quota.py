"""How many rows this worker may hold: each is a lock in a table that all workers on the server share.

States: closed (no row is read) → declared → confirmed → … → closed with the lock session.

No one shares the table out: workers see what each other say of themselves (`rowmill.ledger.declared`) and keep to a
common rule (`rowmill.ledger.budget.share_of_locks`). To take more a worker first declares it, then looks again, and
takes it back if all together it is more than the plan; to give some back it first holds fewer, then declares less. So
what is held is never more than what is declared, and of any two that grow at once at least one sees the other: together
all hold at most the plan.

A worker that starts has nothing. It reads its first row as soon as there is room, as a rule at once: others leave as
much free as one like them takes. Where they have taken more meanwhile they give it back at their next look, in seconds,
because what a worker holds beyond its need is read ahead and soon done.

A session that is lost takes its locks along. What runs goes on and is locked again in the next session, which declares
what the last one did; no row is read before others have been looked at again.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from rowmill.ledger import LockSession
from rowmill.ledger.budget import OWN_LOCKS, Capacity, rows_of_locks, share_of_locks, worker_room
from rowmill.ledger.declared import locks_of_others

LOOK_SECONDS = 5.0
SOON_SECONDS = 0.5
"""Between looks: as a rule, and while there is less than this worker needs."""


class LockQuota:
    """`needs` are the locks that the slots need, `rows_held` how many rows are held or asked for now. `rows` bounds
    them; whoever reads asks it anew each time."""

    def __init__(
        self,
        *,
        locks: LockSession,
        needs: int,
        locks_a_row: int,
        rows_held: Callable[[], int],
        now: Callable[[], float],
        rng: random.Random,
    ) -> None:
        self._locks = locks
        self._needs = needs
        self._locks_a_row = locks_a_row
        self._rows_held = rows_held
        self._now = now
        self._rng = rng
        self._limit = 0
        self._confirmed = 0
        self._next_look = 0.0

    @property
    def rows(self) -> int:
        """Rows that may be held now; 0 while the lock session is not open, or was not looked from yet."""
        if self._confirmed != self._locks.number or not self._locks.is_open:
            return 0
        return rows_of_locks(self._limit, locks_a_row=self._locks_a_row)

    @property
    def due(self) -> bool:
        """Whether it is time to look again."""
        return self._now() >= self._next_look or self._confirmed != self._locks.number

    async def look(self) -> None:
        """See what others need and hold, and take or give back. Raises StoreUnavailable."""
        session = self._locks.number
        capacity, names = await self._locks.others()
        plan = capacity.half.locks
        others = self._needs_of(capacity, names)
        needs = self._capped(capacity, self._needs)
        share = share_of_locks(plan, needs, others)
        limit = min(share, self._free(plan, names))
        may = self._locks.may
        if self._confirmed == session and share >= may > limit:
            limit = may  # others are about to take it back: they see us as we see them
        if limit > may:
            limit = await self._grow(plan, limit)
        self._limit = limit
        if limit < self._locks.may:
            # What is held already ends soon, and is declared until then.
            held = self._rows_held() * self._locks_a_row
            if (less := max(limit, held)) < self._locks.may:
                await self._locks.declare(less)
        self._confirmed = session
        pause = LOOK_SECONDS if limit >= needs and limit == self._locks.may else SOON_SECONDS
        self._next_look = self._now() + pause * self._rng.uniform(0.7, 1.0)

    async def _grow(self, plan: int, limit: int) -> int:
        """Declare `limit`, and see whether nobody else took that room; what may be held now."""
        before = self._locks.may
        await self._locks.declare(limit)
        _, names = await self._locks.others()
        free = self._free(plan, names)
        if limit <= free:
            return limit
        await self._locks.declare(max(before, free))
        return max(before, free)

    def _free(self, plan: int, names: list[str]) -> int:
        """What others leave, this worker's own locks apart."""
        _, used = locks_of_others(names)
        return max(0, plan - used - OWN_LOCKS)

    def _needs_of(self, capacity: Capacity, names: list[str]) -> list[int]:
        needs, _ = locks_of_others(names)
        return [self._capped(capacity, one) for one in needs]

    def _capped(self, capacity: Capacity, needs: int) -> int:
        return worker_room(capacity, needs).locks - OWN_LOCKS
