"""When a batch goes: a state machine of rows that wait. Pure; the clock (seconds, never going back) is passed in.

A batch goes

- when `max_size` rows wait, at once;
- when `min_size` rows wait and the oldest has waited `max_wait` (0 is at once);
- in any case when the oldest has waited `max_wait + hard_timeout`;

and never before one of these holds. Its rows are the oldest, in the order in which they came, `max_size` at most. A row
that is to be alone is a batch of its own, due at once; such rows and the others take turns.

The invariant: every row that was added is taken exactly once, or discarded; none is dropped. At most `queue_size` rows
wait; past that `add` says so, and the row stays with the caller.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rowmill.spec.executors.microbatch import Microbatch as MicrobatchSpec

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRules:
    """Sizes in rows, from 1; times in seconds, from 0. Raises ValueError where they do not go together."""

    max_size: int
    min_size: int = 1
    max_wait: float = 0.0
    hard_timeout: float = 0.0
    queue_size: int

    def __post_init__(self) -> None:
        if not 1 <= self.min_size <= self.max_size <= self.queue_size or self.max_wait < 0 or self.hard_timeout < 0:
            raise ValueError("1 <= min_size <= max_size <= queue_size, and no time is below 0")

    @classmethod
    def of(cls, spec: MicrobatchSpec) -> BatchRules:
        """What a manifest's `batching` says."""
        return cls(
            max_size=spec.max_size,
            min_size=spec.min_size,
            max_wait=spec.max_wait_milliseconds / 1000,
            hard_timeout=spec.hard_timeout_milliseconds / 1000,
            queue_size=spec.effective_queue_size,
        )


class QueueFull(Exception):
    """`queue_size` rows wait already."""


class Microbatch(Generic[T]):
    """The rows that wait. Not thread-safe: it lives on one event loop."""

    def __init__(self, rules: BatchRules) -> None:
        self.rules = rules
        # By the time of their coming, the oldest first: a dict gives up any of them in no time.
        self._waiting: dict[T, float] = {}
        self._alone: dict[T, float] = {}
        self._alone_was_last = False

    def __len__(self) -> int:
        return len(self._waiting) + len(self._alone)

    def add(self, row: T, *, now: float, alone: bool = False) -> None:
        """Let a row wait; with `alone` it goes with no other. Raises QueueFull, and ValueError for one that waits."""
        if row in self._waiting or row in self._alone:
            raise ValueError("the row waits already")
        if len(self) >= self.rules.queue_size:
            raise QueueFull
        (self._alone if alone else self._waiting)[row] = now

    def discard(self, row: T) -> bool:
        """Take a row out that nobody waits for any more; whether it was there."""
        return self._waiting.pop(row, None) is not None or self._alone.pop(row, None) is not None

    def due(self) -> float | None:
        """When the next batch goes (a time that may have passed), or None where nothing waits."""
        times = [self._due_together(), next(iter(self._alone.values()), None)]
        return min((time for time in times if time is not None), default=None)

    def _due_together(self) -> float | None:
        if not self._waiting:
            return None
        rules, count = self.rules, len(self._waiting)
        oldest = next(iter(self._waiting.values()))
        if count >= rules.max_size:
            return oldest
        wait = rules.max_wait if count >= rules.min_size else rules.max_wait + rules.hard_timeout
        return oldest + wait

    def take(self, now: float) -> list[T]:
        """The batch that is to go now; empty where none is."""
        due = self._due_together()
        together = due is not None and due <= now
        if self._alone and not (together and self._alone_was_last):
            self._alone_was_last = True
            row = next(iter(self._alone))
            del self._alone[row]
            return [row]
        self._alone_was_last = False
        if not together:
            return []
        batch = [row for row, _ in zip(self._waiting, range(self.rules.max_size), strict=False)]
        for row in batch:
            del self._waiting[row]
        return batch

    def clear(self) -> list[T]:
        """Take every row out, the oldest first of each kind."""
        rows = [*self._alone, *self._waiting]
        self._alone.clear()
        self._waiting.clear()
        return rows
