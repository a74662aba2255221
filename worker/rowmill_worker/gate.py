"""The pod's semaphore: how many rows may run at once, and how many do.

`available + processing == limit`, always: both are read from one number. The gate only counts; who waits, waits in
the queue of ready rows, whose oldest is handed back when its time is up.
"""

from __future__ import annotations


class Gate:
    """`limit` slots, at least one. Not thread-safe: it lives on one event loop."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError(f"a gate needs at least one slot, not {limit}")
        self._limit = limit
        self._processing = 0

    @property
    def limit(self) -> int:
        return self._limit

    @property
    def processing(self) -> int:
        return self._processing

    @property
    def available(self) -> int:
        return self._limit - self._processing

    def try_acquire(self) -> bool:
        """Take a slot if one is free."""
        if self._processing >= self._limit:
            return False
        self._processing += 1
        return True

    def release(self) -> None:
        """Give a slot back. Raises RuntimeError when none is taken: a slot given back twice would let one row too
        many run."""
        if self._processing == 0:
            raise RuntimeError("a slot was given back that nobody had taken")
        self._processing -= 1
