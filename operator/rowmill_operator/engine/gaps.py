"""The gap check: a run is finished when the ledger holds an outcome for every row of the source, and not before.

The ledger is counted in ranges, so that a job of any size needs the same memory and no statement runs for long. The
counts that come out of it are exact, and are what the finished run reports.
"""

from __future__ import annotations

from dataclasses import dataclass

from rowmill.ledger import RangeCounts, RunRecord, Runs
from rowmill.status import Phase
from rowmill_operator.engine.lifecycle import FailureRule

RANGE_ROWS = 100_000


@dataclass(frozen=True, slots=True)
class Census:
    """`first_gap` is the number of a row at or before the first one without outcome; None when there is none."""

    counts: RangeCounts
    missing: int
    first_gap: int | None


async def take_census(runs: Runs, record: RunRecord, *, total: int) -> Census:
    """Count the effective outcomes of rows 1..`total`."""
    counts = RangeCounts()
    first_gap = None
    for first in range(1, total + 1, RANGE_ROWS):
        last = min(first + RANGE_ROWS - 1, total)
        part = await runs.count_range(record, first, last)
        if first_gap is None and part.rows < last - first + 1:
            first_gap = first
        counts += part
    return Census(counts, total - counts.rows, first_gap)


@dataclass(frozen=True, slots=True)
class End:
    """How a run ended, as the ledger has it now."""

    phase: Phase
    message: str
    counts: RangeCounts


async def end_if_whole(runs: Runs, record: RunRecord, *, total: int, rule: FailureRule | None) -> End | Census:
    """Count the rows and, if none is missing, record how the run ended; else what is missing.

    Both happen in one session of the ledger: had a failover lost an outcome in between, the session would be gone, and
    the run would not be called finished on the word of a server that is no more.
    """
    async with runs.in_one_session() as session:
        census = await take_census(session, record, total=total)
        if census.first_gap is not None:
            return census
        counts = census.counts
        why = rule.verdict(succeeded=counts.succeeded, failed=counts.failed, at_end=True) if rule else None
        phase = Phase.FAILED if why else Phase.COMPLETE
        await session.save_phase(record, phase, why or "", counts)
        return End(phase, why or "", counts)
