"""What is told of a run while it goes: counts and rates, never a row's content."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from rowmill.limits import LimitsTold
from rowmill.spend import NOTHING_SPENT, Pause, Spend


class Phase(StrEnum):
    """For people. Machines read conditions, which are derived from this."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """How many rows (failed, in this generation) ended with this class, and one of them."""

    error_class: str
    count: int
    example_row: int


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A snapshot. `total` is None until the source has been read to its end; rates are rows a minute. `started_at` and
    `ended_at` are the ledger's, in seconds since the epoch, None where it has none (yet); so is `dropped_at`, since
    when outcomes are kept no more. `spend` is over all generations, `source_rows` the rows of the whole source where
    `source.limit` lets fewer in; `pause` is why the run stands still though nobody suspended it."""

    phase: Phase = Phase.PENDING
    message: str = ""
    generation: int = 0
    epoch: int = 0
    total: int | None = None
    fed: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    retried: int = 0
    deduplicated: int = 0
    rows_per_minute: float = 0.0
    seconds_left: float | None = None
    workers_desired: int = 0
    workers_ready: int = 0
    errors: list[ErrorCount] = field(default_factory=list)
    started_at: float | None = None
    ended_at: float | None = None
    dropped_at: float | None = None
    spend: Spend = NOTHING_SPENT
    source_rows: int | None = None
    pause: Pause | None = None
    limits: LimitsTold | None = None
    """Of its limits group, as it was last seen while rows ran; None without one."""

    @property
    def projected(self) -> Spend | None:
        """What all rows would use, as those that are done did: of a canary, all of the source. None while nothing is
        known of either."""
        rows = self.source_rows or self.total
        if rows is None or not self.spend.requests or not 0 < self.done < rows:
            return None
        return self.spend.for_rows(self.done, rows)

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.deduplicated


def when_dropped(dropped_at: float) -> str:
    """When (seconds since the epoch) and why outcomes were dropped: words that follow on `the results of this run`."""
    minute = datetime.fromtimestamp(dropped_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"were dropped on {minute}, after spec.resultsRetentionSeconds"
