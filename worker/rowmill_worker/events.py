"""What happens in a worker, told to its metrics and its log. Rows are logged when they fail, and then sampled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from rowmill.errors import StoreUnavailable
from rowmill.outcome import State
from rowmill.spend import Shortage
from rowmill.telemetry.logging import FailureSampler, Logger
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill.window import GroupLimits
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.held import HeldRow

AWAY_AGAIN_SECONDS = 10.0
"""A store that stays away is told of this often."""


class Events:
    """One worker's voice. Every method is cheap; those of the common path are called with whole blocks."""

    def __init__(
        self,
        *,
        metrics: WorkerMetrics,
        log: Logger,
        request_id: Callable[[HeldRow], str],
        now: Callable[[], float],
    ) -> None:
        self._metrics = metrics
        self._log = log
        self._request_id = request_id
        self._now = now
        self._sampler = FailureSampler(clock=now)
        self._away_told = float("-inf")

    def was_read(self, first_time: int, redelivered: int) -> None:
        self._metrics.read(first_time, redelivered=redelivered)

    def claimed(self, seconds: float) -> None:
        self._metrics.claimed(seconds)

    def committed(self, rows: Sequence[HeldRow]) -> None:
        """Rows whose outcome is in the ledger now."""
        metrics = self._metrics
        states: Counter[State] = Counter()
        classes: Counter[str] = Counter()
        now = self._now()
        metrics.rows_took([now - row.started for row in rows if row.started])
        sent = 0
        for row in rows:
            outcome = row.outcome
            assert outcome is not None
            states[outcome.state] += 1
            if outcome.state is State.SUCCEEDED:
                sent += row.started > 0
            elif outcome.state is State.FAILED:
                classes[outcome.error_class or "Error"] += 1
                self._tell_failure(row, outcome.error_class or "Error", outcome.error_message or "")
        for state, count in states.items():
            metrics.ended(state, count)
        if sent:
            metrics.attempted(None, sent)
        if classes:
            metrics.failed(classes)

    def _tell_failure(self, row: HeldRow, error_class: str, message: str) -> None:
        left_out = self._sampler.admit(error_class)
        if left_out is not None:
            self._log.warning(
                "row failed",
                row=row.seq,
                request_id=self._request_id(row),
                attempts=row.attempts,
                error_class=error_class,
                message=message,
                left_out=left_out,
            )

    def group_committed(self, rows: int, seconds: float) -> None:
        self._metrics.committed(rows, seconds)

    def attempt_failed(self, row: HeldRow, error: RowError) -> None:
        self._metrics.attempted(error.error_class)

    def retried(self, row: HeldRow, error: RowError, delay: float) -> None:
        self._metrics.retried(error.error_class)
        left_out = self._sampler.admit("retry " + error.error_class)
        if left_out is not None:
            self._log.info(
                "row will be tried again",
                row=row.seq,
                request_id=self._request_id(row),
                attempts=row.attempts,
                delay_seconds=round(delay, 3),
                error_class=error.error_class,
                message=error.message,
                left_out=left_out,
            )

    def handed_back(self, rows: Sequence[HeldRow], why: str) -> None:
        self._metrics.handed_back(len(rows))
        self._log.info("rows handed back", rows=len(rows), first_row=rows[0].seq, why=why)

    def storm(self, error_class: str, message: str) -> None:
        self._log.error(
            "the endpoint refuses every call; no more rows are sent", error_class=error_class, message=message
        )

    def bug(self, row: HeldRow, error: BaseException) -> None:
        self._log.error("the executor failed", row=row.seq, request_id=self._request_id(row), exc_info=error)

    def refused(self, row: HeldRow, reason: str) -> None:
        self._log.warning("the ledger refused a row's values", row=row.seq, reason=reason)

    def swept(self, consumer: str, scheduled: int, convicted: Sequence[int]) -> None:
        self._metrics.orphans(scheduled)
        self._log.warning(
            "a worker died; its rows are scheduled again", dead=consumer, rows=scheduled, poison_rows=list(convicted)
        )

    def budget_short(self, shortage: Shortage) -> None:
        """The next call may need more than the run's budget leaves, and nothing under way makes room for it."""
        self._log.warning(
            "the budget is used up; nothing more is sent",
            what=shortage.what,
            need=str(shortage.need),
            left=str(shortage.left),
        )

    def limits_told(self, group: str, own: GroupLimits, held: GroupLimits, others: Sequence[str]) -> None:
        """The limits of the group that hold, and the jobs that set other ones than this job."""
        if others and held != own:
            self._log.warning(
                "the lowest limits of the group hold, and they are not this job's; set the same in every job of it",
                group=group,
                own=own._asdict(),
                held=held._asdict(),
                jobs=list(others),
            )
        elif others:
            self._log.warning(
                "other jobs of the group set higher limits; the lowest hold, which are this job's",
                group=group,
                held=held._asdict(),
                jobs=list(others),
            )
        else:
            self._log.info("limits of the group", group=group, held=held._asdict())

    def session_lost(self) -> None:
        self._log.info("opening the lock session")

    def store_away(self, error: StoreUnavailable) -> None:
        now = self._now()
        if now - self._away_told >= AWAY_AGAIN_SECONDS:
            self._away_told = now
            self._log.warning("a store is away; waiting", reason=str(error))
