"""What a run needs next. Pure decisions over what was read; the engine carries them out.

Phases: Pending → Running ⇄ Suspended → Complete | Failed. Complete and Failed end a generation; a raised
`retryGeneration` or a raised `source.limit` opens the run again. Suspended is what the manifest asks for, or what a
used-up budget or refused calls bring about (`pauses.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from rowmill.ledger import RunRecord
from rowmill.status import Phase, when_dropped
from rowmill.window import ShardLook


@dataclass(frozen=True, slots=True)
class FailureRule:
    """`spec.failurePolicy`: fail when more than `max_failed_percent` of at least `min_processed` rows failed."""

    max_failed_percent: float
    min_processed: int

    def verdict(self, *, succeeded: int, failed: int, at_end: bool) -> str | None:
        """Why the run fails, or None. At its end the percentage is exact, and `min_processed` no longer matters."""
        processed = succeeded + failed
        if not processed or (processed < self.min_processed and not at_end):
            return None
        percent = 100.0 * failed / processed
        if percent <= self.max_failed_percent:
            return None
        return (
            f"{failed:,} of {processed:,} rows failed ({percent:.1f} %), failurePolicy.maxFailedPercent allows "
            f"{self.max_failed_percent:g} %. Look at the failed rows, mend the cause, then raise spec.retryGeneration"
        )


def over_deadline(*, started_at: float | None, wall_now: float, deadline: float | None) -> str | None:
    """Why the run fails by `activeDeadlineSeconds`, or None."""
    if deadline is None or started_at is None or wall_now - started_at <= deadline:
        return None
    return (
        f"the run took longer than activeDeadlineSeconds ({deadline:g} s). "
        "Raise it together with spec.retryGeneration to run the rows that are left"
    )


def reopens(record: RunRecord, *, retry_generation: int, row_limit: int | None) -> bool:
    """Whether a run that has ended goes on: more rows are asked for, or the failed ones again."""
    return retry_generation > record.generation or limit_raised(record, row_limit)


def message_of_dropped(phase: Phase, message: str, *, failed: int, dropped_at: float) -> str:
    """What is said of a run that is over, and whose results were dropped: `message` is why it failed, if it did."""
    gone = f"the results {when_dropped(dropped_at)}"
    if gone in message:
        return message
    if phase is Phase.FAILED:
        return f"{message}; but {gone}: change spec.runId instead"
    failures = f"{failed:,} failed; {gone}: change spec.runId to run again" if failed else f"none failed; {gone}"
    return f"every row had an outcome, {failures}"


def limit_raised(record: RunRecord, row_limit: int | None) -> bool:
    """Whether `source.limit` now lets more rows in than the run has known so far."""
    if record.row_limit is None:
        return False
    return row_limit is None or row_limit > record.row_limit


def limit_changes(record: RunRecord, row_limit: int | None) -> bool:
    """Whether the ledger has to learn another `source.limit`: a raised one, or any before something was fed."""
    return limit_raised(record, row_limit) or (record.epoch == 0 and row_limit != record.row_limit)


def limit_lowered(record: RunRecord, row_limit: int | None) -> bool:
    """Whether `source.limit` now lets fewer rows in: refused, as some of them may have been paid for."""
    return record.epoch > 0 and row_limit is not None and (record.row_limit is None or row_limit < record.row_limit)


def window_trusted(looks: list[ShardLook], *, epoch: int, last_seqs: list[int]) -> bool:
    """Whether every shard is in this epoch and has all that was appended to it."""
    return len(looks) == len(last_seqs) and all(
        look.epoch == epoch and look.last_seq >= last for look, last in zip(looks, last_seqs, strict=True)
    )


def ended(phase: Phase) -> bool:
    return phase in (Phase.COMPLETE, Phase.FAILED)
