"""The pod's semaphore: how many rows may run at once, and how many do.

`available + processing == limit`, always: both are read from one number. The gate only counts; who waits, waits in
the queue of ready rows, whose oldest is handed back when its time is up.

The number may be changed at any time. More slots are there at once; fewer as rows end: until then the limit is what
runs, none is available, and whoever runs rows in a slot asks `is_over` before the next one.
"""

from __future__ import annotations


class Gate:
    """`limit` slots, at least one. Not thread-safe: it lives on one event loop."""

    def __init__(self, limit: int) -> None:
        self._processing = 0
        self.resize(limit)

    def resize(self, limit: int) -> None:
        """From now on `limit` slots. Raises ValueError below one."""
        if limit < 1:
            raise ValueError(f"a gate needs at least one slot, not {limit}")
        self._wanted = limit

    @property
    def wanted(self) -> int:
        """Slots that there are to be."""
        return self._wanted

    @property
    def limit(self) -> int:
        """Slots that there are: those that are wanted, or, while they have just become fewer, those that are taken."""
        return max(self._wanted, self._processing)

    @property
    def is_over(self) -> bool:
        """More slots are taken than are wanted: the next that comes free is not taken again."""
        return self._processing > self._wanted

    @property
    def processing(self) -> int:
        return self._processing

    @property
    def available(self) -> int:
        return self.limit - self._processing

    def try_acquire(self) -> bool:
        """Take a slot if one is free."""
        if self._processing >= self._wanted:
            return False
        self._processing += 1
        return True

    def release(self) -> None:
        """Give a slot back. Raises RuntimeError when none is taken: a slot given back twice would let one row too
        many run."""
        if self._processing == 0:
            raise RuntimeError("a slot was given back that nobody had taken")
        self._processing -= 1
