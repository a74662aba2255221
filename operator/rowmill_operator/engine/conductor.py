"""One epoch of a run: feed it, watch it, scale its workers, tell its status, and say how it ended.

Ends: every row has an outcome (Complete, or Failed by its own policy) · the failure policy or the deadline ends it ·
its budget is used up, or its calls are refused (Suspended) · rows are missing though nothing is on its way, or the
window is not what was left there (a new epoch is needed) · told to stop. A store that is away ends it by
`StoreUnavailable`; the engine comes back to the same epoch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass, replace

from rowmill.errors import StoreUnavailable
from rowmill.ledger import Leadership, RangeCounts, RunRecord, Runs, Shares, Spending, SpendTold
from rowmill.sources import Source
from rowmill.spend import Budget, Pause
from rowmill.status import Phase, RunStatus
from rowmill.tasks import end_tasks, set_within
from rowmill.window import FeedWindow, ShardLook, WindowLost
from rowmill_operator.engine.autoscaler import Autoscaler, Load
from rowmill_operator.engine.counting import WholeCount, count_rows
from rowmill_operator.engine.feeder import Feeder, FeedState, WindowBounds
from rowmill_operator.engine.gaps import End, end_if_whole
from rowmill_operator.engine.lifecycle import FailureRule, over_deadline, window_trusted
from rowmill_operator.engine.limits_watch import LookUp, no_limits
from rowmill_operator.engine.pauses import pause_of
from rowmill_operator.engine.ports import Fleet, StatusSink
from rowmill_operator.engine.progress import RateMeter

TICK_SECONDS = (0.25, 2.0)
"""Between looks. A look may take a tenth of the time at most: an engine among hundreds, or on a busy machine, looks
less often instead of keeping the others from looking at all."""
TICK_SHARE = 0.1
ERRORS_EVERY_SECONDS = 3.0
CENSUS_EVERY_SECONDS = 2.0
SPEND_EVERY_SECONDS = 2.0
"""Between looks at what was used, where there is no budget."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What the manifest says of how a run goes and ends."""

    failure: FailureRule | None
    deadline_seconds: float | None
    bounds: WindowBounds
    locks_a_worker: int
    """Locks of rows that a worker needs; see `rowmill.ledger.budget`."""
    budget: Budget | None = None
    projects: bool = False
    """Whether the rows of the whole source are counted: `source.limit` lets fewer in."""


def _unheard(status: RunStatus, size: int) -> None:
    """Nobody counts."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every epoch of a run works with."""

    runs: Runs
    window: FeedWindow
    shares: Shares
    spending: Spending
    fleet: Fleet
    sink: StatusSink
    threads: ThreadPool
    now: Callable[[], float]
    wall: Callable[[], float]
    fed: Callable[[int, int, float], None]
    told: Callable[[RunStatus, int], None] = _unheard
    """The status of each look, with the bytes that the window holds."""
    limits: LookUp = no_limits


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an epoch ended. `phase` None asks for a new epoch, from row `first_gap` on. With `counts` the end is in the
    ledger already."""

    phase: Phase | None
    message: str = ""
    counts: RangeCounts | None = None
    first_gap: int = 1
    missing: int = 0
    pause: Pause | None = None
    """With phase Suspended: why."""


class Conductor:
    """Conducts one epoch. `meter`, `scaler` and `status` outlive it. `tries` is None, or how often calls were refused
    before and are tried again now: then there is one worker until a row has ended."""

    def __init__(
        self,
        *,
        record: RunRecord,
        source: Source,
        state: FeedState,
        skip_closed: bool,
        leadership: Leadership,
        rules: Rules,
        tools: Tools,
        scaler: Autoscaler,
        meter: RateMeter,
        status: RunStatus,
        tries: int | None = None,
    ) -> None:
        self._record = record
        self._source = source
        self._state = state
        self._leadership = leadership
        self._rules = rules
        self._tools = tools
        self._scaler = scaler
        self._meter = meter
        self.status = replace(
            status,
            phase=Phase.RUNNING,
            message="",
            generation=record.generation,
            epoch=record.epoch,
            started_at=record.started_at,
            ended_at=None,
            source_rows=record.source_rows,
            pause=None,
        )
        self.tries = tries
        """As it was given, and None once a row has ended."""
        self._rows_before: int | None = None
        self._told = SpendTold(status.spend, None, None)
        self._spend_at = 0.0
        self._whole = WholeCount(
            source=source, threads=tools.threads, now=tools.now, known=record.source_rows if rules.projects else 0
        )
        self._total = record.total
        self._errors_at = 0.0
        self._census_at = 0.0
        self._feeder = Feeder(
            source=source,
            record=record,
            runs=tools.runs,
            window=tools.window,
            state=state,
            skip_closed=skip_closed,
            bounds=rules.bounds,
            threads=tools.threads,
            now=tools.now,
            fed=tools.fed,
        )

    async def conduct(self, stop: asyncio.Event) -> Verdict:
        """Until the epoch ends. Raises StoreUnavailable, Superseded, SourceChanged, InvalidInput."""
        feeding = asyncio.create_task(self._feeder.run(), name="feeder")
        counting = asyncio.create_task(self._count(), name="counter")
        projecting = asyncio.create_task(self._whole.run(), name="whole counter")
        try:
            while not stop.is_set():
                began = self._tools.now()
                verdict = await self._tick(feeding, counting)
                if verdict is not None:
                    return verdict
                took = self._tools.now() - began
                await set_within(stop, min(max(took / TICK_SHARE, TICK_SECONDS[0]), TICK_SECONDS[1]))
            return Verdict(self.status.phase, "told to stop")
        except WindowLost as lost:
            return Verdict(None, str(lost))
        finally:
            await end_tasks([feeding, counting, projecting])

    async def _tick(self, feeding: asyncio.Task[int], counting: asyncio.Task[None]) -> Verdict | None:
        if not self._leadership.holds(self._record.id):
            raise StoreUnavailable("the session that holds this run's leadership is lost")
        last_seqs = list(self._state.last_seqs)
        fed = feeding.done()  # before the look: an empty window says nothing of what is appended after it
        looks = await self._tools.window.look(self._record.epoch)
        if not window_trusted(looks, epoch=self._record.epoch, last_seqs=last_seqs):
            raise WindowLost("the window does not hold what was fed: Redis was wiped or went back in time")
        if fed:
            await self._fed(feeding.result())
        if counting.done():
            counting.result()
        counts = await self._tools.runs.progress(self._record)
        await self._look_at_spend(counts)
        await self._tell(looks, counts)
        return await self._judge(fed, looks, counts)

    async def _look_at_spend(self, counts: RangeCounts) -> None:
        """What was used, at each look where that decides something, else now and then."""
        if self._rows_before is None:
            self._rows_before = counts.rows
        elif self.tries is not None and counts.rows > self._rows_before:
            self.tries = None  # calls are taken again
        now = self._tools.now()
        if self._rules.budget is not None or now >= self._spend_at:
            self._spend_at = now + SPEND_EVERY_SECONDS
            self._told = await self._tools.spending.of(self._record)
        if self._record.source_rows is None and self._whole.rows:
            await self._tools.runs.save_source_rows(self._record, self._whole.rows)
            self._record = replace(self._record, source_rows=self._whole.rows)

    async def _fed(self, total: int) -> None:
        if self._record.total != total:
            await self._tools.runs.save_total(self._record, total)
            self._record = replace(self._record, total=total)
        self._total = total

    async def _count(self) -> None:
        """Count the source's rows ahead of feeding, so that progress and time left can be told from the start."""
        if self._total is None:
            self._total = await count_rows(self._source, threads=self._tools.threads, now=self._tools.now)

    async def _tell(self, looks: list[ShardLook], counts: RangeCounts) -> None:
        now = self._tools.now()
        self._meter.add(counts.rows, now=now)
        entries = sum(look.entries for look in looks)
        running = max(0, sum(look.pending - look.scheduled for look in looks))
        open_rows = max(0, self._total - counts.rows) if self._total is not None else None
        ready = await self._tools.fleet.ready()
        load = Load(
            open_rows=open_rows if open_rows is not None else max(1, entries),
            rate_a_worker=self._meter.per_second / ready if ready else 0.0,
            elapsed=self._tools.wall() - (self._record.started_at or self._tools.wall()),
        )
        # Rows that are missing in the end are fed again: until then somebody must be there to finish what is left.
        wanted = max(self._scaler.desired(load, now=now), 1 if entries else 0)
        wanted = self._tools.fleet.wants(wanted)
        if self.tries is not None:
            wanted = min(wanted, 1)  # whoever owns the number: trying costs each worker a handful of calls
        granted = await self._tools.shares.grant(self._record.id, wanted=wanted, needs=self._rules.locks_a_worker)
        desired = ready
        if granted.workers is not None:
            desired = granted.workers
            await self._tools.fleet.scale(desired)
        errors = self.status.errors
        if now >= self._errors_at:
            self._errors_at = now + ERRORS_EVERY_SECONDS
            errors = await self._tools.runs.error_counts(self._record) if counts.failed else []
        self.status = replace(
            self.status,
            message=await self._tools.fleet.failure() or granted.why,
            total=self._total,
            fed=self._state.position.seq - 1,
            queued=entries - running,
            running=running,
            succeeded=counts.succeeded,
            failed=counts.failed,
            retried=counts.retried,
            deduplicated=counts.deduplicated,
            rows_per_minute=60 * self._meter.per_second,
            seconds_left=self._meter.seconds_left(open_rows),
            workers_desired=desired,
            workers_ready=ready,
            errors=errors,
            spend=self._told.spent,
            source_rows=self._record.source_rows,
            limits=await self._tools.limits(),
        )
        self._tools.told(self.status, sum(look.bytes for look in looks))
        await self._tools.sink.report(self.status)

    async def _judge(self, fed: bool, looks: list[ShardLook], counts: RangeCounts) -> Verdict | None:
        rule = self._rules.failure
        if rule and (why := rule.verdict(succeeded=counts.succeeded, failed=counts.failed, at_end=False)):
            return Verdict(Phase.FAILED, why)
        why = over_deadline(
            started_at=self._record.started_at, wall_now=self._tools.wall(), deadline=self._rules.deadline_seconds
        )
        if why:
            return Verdict(Phase.FAILED, why)
        if (verdict := await self._finish(looks, counts) if fed else None) is not None:
            return verdict
        pause = pause_of(
            spent=self._told.spent,
            shortage=self._told.shortage,
            refused=self._told.refused,
            budget=self._rules.budget,
            wall=self._tools.wall(),
            tries=0 if self.tries is None else self.tries + 1,
        )
        return None if pause is None else Verdict(Phase.SUSPENDED, pause.message, pause=pause)

    async def _finish(self, looks: list[ShardLook], counts: RangeCounts) -> Verdict | None:
        """Everything was fed. Complete is what the ledger says row by row; an empty window only asks the question."""
        total = self._record.total
        assert total is not None
        empty = all(look.entries == 0 for look in looks)
        now = self._tools.now()
        if not (empty or (counts.rows >= total and now >= self._census_at)):
            return None
        if counts.rows >= total and self._whole.waits:
            return None  # the end is told with what all rows would use
        self._census_at = now + CENSUS_EVERY_SECONDS
        found = await end_if_whole(self._tools.runs, self._record, total=total, rule=self._rules.failure)
        if isinstance(found, End):
            return Verdict(found.phase, found.message, found.counts)
        if empty and found.first_gap is not None:
            return Verdict(
                None,
                f"{found.missing:,} rows have no outcome though nothing is on its way; they are fed again",
                first_gap=found.first_gap,
                missing=found.missing,
            )
        return None
