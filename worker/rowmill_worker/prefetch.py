"""How many rows to read ahead: enough to keep the slots busy over a read and a claim, never more than can soon run."""

from __future__ import annotations

MAX_ROWS = 2000
"""Rows that wait at most; the budget of locks may allow fewer."""
MAX_BYTES = 64 * 1024 * 1024
AHEAD_SECONDS = 0.5
LARGE_READ = 500
"""Rows past which a larger read is no cheaper a row."""


def rows_to_read(
    *, concurrency: int, rows_per_second: float, waiting: int, held: int, held_bytes: int, budget: int
) -> int:
    """Rows to ask for now; 0 when enough are at hand.

    Slow rows: as many waiting as there are slots. Fast rows: what runs in half a second. Bounded in rows
    and, by the mean size of what is held, in bytes; `budget` bounds all rows held, waiting or not (each is a lock).
    """
    target = min(MAX_ROWS, max(concurrency, int(rows_per_second * AHEAD_SECONDS)), budget)
    room = min(target - waiting, budget - held)
    # A read of a few rows costs as much as one of fifty, and so does its claim: wait until it is worth it. Of fast rows
    # half may go before: what is left still keeps all slots busy. Not where locks are short, which are late to be free.
    plenty = target >= 2 * concurrency and budget >= 4 * target
    least = min(target // 2, LARGE_READ) if plenty else target // 4
    if room < max(1, least) or held_bytes >= MAX_BYTES:
        return 0
    # Of large rows a few are worth it: what bounds them must not leave slots without any.
    if held:
        mean = max(1, held_bytes // held)
        room = min(room, max(1, (MAX_BYTES - held_bytes) // mean))
    return room


class Rate:
    """Rows a second, smoothed over about a second; fed in blocks."""

    def __init__(self) -> None:
        self._value = 0.0
        self._count = 0
        self._since: float | None = None

    def add(self, rows: int, now: float) -> None:
        if self._since is None:
            self._since = now
        self._count += rows
        elapsed = now - self._since
        if elapsed >= 0.1:
            weight = min(1.0, elapsed / 1.0)
            self._value += (self._count / elapsed - self._value) * max(weight, 0.3)
            self._count, self._since = 0, now

    @property
    def value(self) -> float:
        return self._value
