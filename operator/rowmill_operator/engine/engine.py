"""The engine: drives one run from its manifest to its end, through whatever dies on the way.

    take the lead → read the ledger's record → check what must not change → open the source → epoch after epoch → end

It may be killed anywhere and started again: everything that it decides by is in the ledger. One mechanism, *feed the
rows that have no outcome in this generation*, serves the start, the restart, the wiped Redis, the lost commit and the
retry. When a store is away it waits and begins again from the top.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rowmill.errors import FrozenChanged, PlaceUnavailable, StateInUse, StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import (
    FeedPosition,
    Leadership,
    Ledger,
    RangeCounts,
    RunRecord,
    Superseded,
    results_dropped,
)
from rowmill.ledger.budget import locks_needed
from rowmill.row import Position
from rowmill.spec import BatchJob, frozen_changes, frozen_part, slot_bounds
from rowmill.spend import Budget, Pause, Reason
from rowmill.status import Phase, RunStatus
from rowmill.tasks import set_within
from rowmill.telemetry.logging import Logger
from rowmill.telemetry.metrics import EngineMetrics
from rowmill.window import FeedWindow, Window, WindowLost
from rowmill_operator.engine.autoscaler import Autoscaler, Scaling
from rowmill_operator.engine.conductor import Conductor, Rules, Tools, Verdict
from rowmill_operator.engine.feeder import FeedState, WindowBounds
from rowmill_operator.engine.gaps import take_census
from rowmill_operator.engine.lifecycle import (
    FailureRule,
    ended,
    limit_changes,
    limit_lowered,
    message_of_dropped,
    reopens,
    window_trusted,
)
from rowmill_operator.engine.limits_watch import limits_watch
from rowmill_operator.engine.pauses import goes_on, still
from rowmill_operator.engine.ports import Fleet, StatusSink
from rowmill_operator.engine.progress import RateMeter
from rowmill_operator.engine.run_source import RunSource, SourcePlaces

RETRY_SECONDS = (0.2, 5.0)
PLACE_RETRY_SECONDS = (1.0, 30.0)
"""Between attempts to have a source that is away: its server is somebody else's, and many jobs may ask it."""
LEAD_SECONDS = 30.0
"""How long a lost leadership is waited for: our own last session may linger on the server for a while."""


class Engine:
    """Drives one run. `places` is where its source may be found. `fetchers` are the threads that sources are fetched
    in: a slow server must not hold up other runs' feeding where `threads` are shared (default: `threads`).
    `output_pending`: the results are written elsewhere by somebody who calls `Runs.output_written` then; they are not
    dropped before. `resumed_at`: when somebody last asked to go on though calls were refused (seconds since the epoch).
    """

    def __init__(
        self,
        *,
        job: BatchJob,
        identity: RunIdentity,
        ledger: Ledger,
        window: Window,
        fleet: Fleet,
        sink: StatusSink,
        places: SourcePlaces,
        log: Logger,
        metrics: EngineMetrics | None = None,
        threads: ThreadPool | None = None,
        fetchers: ThreadPool | None = None,
        output_pending: bool = False,
        resumed_at: float | None = None,
        bounds: WindowBounds | None = None,
        now: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._job = job
        self._identity = identity
        self._ledger = ledger
        self._window = window
        self._fleet = fleet
        self._sink = sink
        self._log = log.bind(job=str(identity))
        self._metrics = metrics
        self._own_threads = ThreadPoolExecutor(2, thread_name_prefix="source") if threads is None else None
        self._threads: ThreadPool = threads or self._own_threads  # type: ignore[assignment]
        self._source = RunSource(job, places=places, threads=self._threads, fetchers=fetchers or self._threads)
        self._output_pending = output_pending
        self._resumed_at = resumed_at
        self._tries: int | None = None
        self._now = now
        self._wall = wall
        spec = job.spec
        self._row_limit = spec.source.limit
        self._meter = RateMeter()
        self._limits = limits_watch(spec, identity, window=window, now=now)
        self._scaler = Autoscaler(
            Scaling(
                min_replicas=spec.workers.min_replicas,
                max_replicas=spec.workers.max_replicas,
                rows_per_worker=spec.workers.rows_per_worker,
                target_seconds=spec.completion_target_seconds,
            )
        )
        self._bounds = bounds or WindowBounds()
        self._status = RunStatus()

    async def run(self, *, stop: asyncio.Event) -> RunStatus:
        """Drive the run until it ends or `stop` is set; returns its last status.

        Raises FrozenChanged (the manifest does not fit the run), ResultsDropped (it asks for more of one whose results
        are gone), InvalidInput (its source does not fit), SourceChanged, StateInUse (another engine drives it),
        Superseded. Stores that are away are waited for, and a source whose place is.
        """
        delay, place_delay = RETRY_SECONDS[0], PLACE_RETRY_SECONDS[0]
        lead_since: float | None = None
        try:
            while not stop.is_set():
                began = self._now()
                try:
                    return await self._drive(stop)
                except (StoreUnavailable, WindowLost) as error:
                    lead_since = self._now()
                    if lead_since - began > RETRY_SECONDS[1]:
                        delay = RETRY_SECONDS[0]
                    self._log.warning("a store is away; waiting", reason=str(error))
                    await self._report(replace(self._status, message=f"waiting: {error}"))
                except PlaceUnavailable as error:
                    lead_since = self._now()
                    if stop.is_set():
                        break
                    wait = max(place_delay, error.retry_after or 0.0)
                    place_delay = min(place_delay * 2, PLACE_RETRY_SECONDS[1])
                    self._log.warning("the source is away; waiting", reason=str(error), wait_seconds=wait)
                    await self._report(replace(self._status, message=f"waiting for the source: {error}"))
                    await set_within(stop, wait)
                    continue
                except StateInUse:
                    if lead_since is None or self._now() - lead_since > LEAD_SECONDS:
                        raise
                await set_within(stop, delay)
                delay = min(delay * 2, RETRY_SECONDS[1])
            return self._status
        finally:
            self._source.close()
            if self._own_threads is not None:
                self._own_threads.shutdown(wait=False)

    async def _report(self, status: RunStatus) -> None:
        self._status = status
        await self._sink.report(status)

    async def _drive(self, stop: asyncio.Event) -> RunStatus:
        record = await self._ledger.runs.ensure(
            self._identity,
            frozen=frozen_part(self._job.spec),
            shards=self._job.spec.shards,
            row_limit=self._row_limit,
        )
        leadership = self._ledger.leadership
        await leadership.take(record.id)
        try:
            record = await self._ledger.runs.take_over(record.id)
            record = await self._kept(await self._agree(record))
            window = self._window.feed(token=record.token, shards=record.shards)
            if ended(record.phase) and not self._reopens(record):
                return await self._already_ended(record, window)
            if self._job.spec.suspend:
                return await self._suspend(record)
            record, pause = await self._unpaused(record)
            if pause is not None:
                return await self._paused(record, pause)
            return await self._go(record, window, leadership, stop)
        except Superseded as error:
            now = await self._ledger.runs.find(self._identity)
            if now is not None and now.term <= record.term:
                # Nobody took over: a failover lost what we wrote last. What it still knows is the truth now.
                raise StoreUnavailable("the ledger went back in time; this run goes on from what it knows") from error
            raise
        finally:
            await self._ledger.shares.leave(record.id)
            with contextlib.suppress(StoreUnavailable):
                await leadership.release(record.id)

    async def _agree(self, record: RunRecord) -> RunRecord:
        """See that the manifest is the one that this run began with; before anything was fed it may be another."""
        where = f"BatchJob {self._identity.namespace}/{self._identity.name}"
        frozen = frozen_part(self._job.spec)
        problems = frozen_changes(dict(record.frozen), frozen)
        if problems and record.epoch == 0:
            return await self._ledger.runs.restate(record, frozen=frozen, shards=self._job.spec.shards)
        if problems:
            raise FrozenChanged(where, problems)
        if limit_lowered(record, self._row_limit):
            before = "no limit" if record.row_limit is None else str(record.row_limit)
            raise FrozenChanged.one(
                where,
                "spec.source.limit",
                f"{self._row_limit} is less than this run has begun with ({before}); raise it, or change spec.runId",
            )
        return record

    async def _kept(self, record: RunRecord) -> RunRecord:
        """Have the ledger keep the results for as long as the manifest says; a run that is dropped stays as it is."""
        if record.dropped_at is not None:
            if self._reopens(record):
                raised = self._job.spec.retry_generation > record.generation
                raise results_dropped(record, "spec.retryGeneration" if raised else "spec.source.limit")
            return record
        wanted = (self._job.spec.results_retention_seconds, self._output_pending)
        if (record.retention_seconds, record.output_pending) == wanted:
            return record
        return await self._ledger.runs.keep_results(record, seconds=wanted[0], output_pending=wanted[1])

    async def _unpaused(self, record: RunRecord) -> tuple[RunRecord, Pause | None]:
        """The run with its budget as the manifest has it now, and why it stands still all the same."""
        spending, budget = self._ledger.spending, self._budget()
        if record.budget != budget:
            record = await spending.bound(record, budget)
        if (pause := record.pause) is None:
            return record, None
        spent = (await spending.of(record)).spent
        asked = self._wall() if self._job.spec.retry_generation > record.generation else self._resumed_at
        if not goes_on(pause, spent=spent, budget=budget, wall=self._wall(), resumed_at=asked):
            return record, still(pause, budget=budget)
        self._tries = pause.tries if pause.reason is Reason.REFUSED else None
        return await spending.pause(record, None), None

    async def _paused(self, record: RunRecord, pause: Pause) -> RunStatus:
        """Stand still: the ledger knows why before the workers go."""
        if record.pause != pause:
            record = await self._ledger.spending.pause(record, pause)
        await self._fleet.scale(0)
        counts = await self._ledger.runs.progress(record)
        await self._report(await self._final(record, Phase.SUSPENDED, pause.message, counts))
        return self._status

    def _budget(self) -> Budget | None:
        budget = self._job.spec.budget
        return None if budget is None else Budget(budget.requests, budget.tokens, budget.cost)

    def _reopens(self, record: RunRecord) -> bool:
        return reopens(record, retry_generation=self._job.spec.retry_generation, row_limit=self._row_limit)

    async def _already_ended(self, record: RunRecord, window: FeedWindow) -> RunStatus:
        """The ledger knows the end of this run: nothing is read, nothing is called."""
        await window.close(record.epoch)
        await self._fleet.scale(0)
        status = await self._final(record, record.phase, record.message, record.counts)
        if (at := record.dropped_at) is not None:
            said = message_of_dropped(record.phase, record.message, failed=status.failed, dropped_at=at)
            status = replace(status, message=said, dropped_at=at)
        await self._report(status)
        return self._status

    async def _suspend(self, record: RunRecord) -> RunStatus:
        await self._fleet.scale(0)
        counts = await self._ledger.runs.progress(record)
        if record.pause is not None:
            record = await self._ledger.spending.pause(record, None)
        if record.phase is not Phase.SUSPENDED:
            await self._ledger.runs.save_phase(record, Phase.SUSPENDED, "spec.suspend is true")
        message = "suspended: set spec.suspend to false to go on; finished rows are kept"
        await self._report(await self._final(record, Phase.SUSPENDED, message, counts))
        return self._status

    async def _final(self, record: RunRecord, phase: Phase, message: str, counts: RangeCounts | None) -> RunStatus:
        counts = counts or await self._ledger.runs.progress(record)
        return replace(
            self._status,
            phase=phase,
            message=message,
            generation=record.generation,
            epoch=record.epoch,
            total=record.total,
            fed=record.total or self._status.fed,
            queued=0,
            running=0,
            succeeded=counts.succeeded,
            failed=counts.failed,
            deduplicated=counts.deduplicated,
            retried=counts.retried,
            seconds_left=None,
            workers_desired=0,
            workers_ready=0,
            started_at=record.started_at,
            ended_at=record.finished_at if phase is record.phase else None,
            errors=await self._ledger.runs.error_counts(record),
            spend=(await self._ledger.spending.of(record)).spent,
            source_rows=record.source_rows,
            pause=record.pause,
        )

    async def _go(
        self, record: RunRecord, window: FeedWindow, leadership: Leadership, stop: asyncio.Event
    ) -> RunStatus:
        source = await self._source.open(record, runs=self._ledger.runs, stop=stop)
        generation = max(record.generation, self._job.spec.retry_generation)
        if limit_changes(record, self._row_limit):
            record = await self._ledger.runs.raise_limit(record, self._row_limit)
            resumable = False
        else:
            resumable = generation == record.generation and record.epoch > 0 and record.phase is not Phase.FAILED
        state = await self._resumed(record, window) if resumable else None
        if state is None:
            record, state = await self._begin_epoch(record, window, generation=generation, first=1)
        elif record.phase is not Phase.RUNNING:
            await self._ledger.runs.save_phase(record, Phase.RUNNING)
        rules = self._rules()
        while True:
            conductor = Conductor(
                record=record,
                source=source,
                state=state,
                skip_closed=record.epoch > 1 or record.generation > 0,
                leadership=leadership,
                rules=rules,
                tools=self._tools(window),
                scaler=self._scaler,
                meter=self._meter,
                status=self._status,
                tries=self._tries,
            )
            try:
                verdict = await conductor.conduct(stop)
            finally:
                self._status = conductor.status
                self._tries = conductor.tries
                record = replace(record, source_rows=self._status.source_rows)
            if verdict.phase is None:
                self._log.warning("a new epoch", reason=verdict.message, epoch=record.epoch + 1)
                if self._metrics is not None:
                    self._metrics.gap_found(str(self._identity), verdict.missing)
                record, state = await self._begin_epoch(record, window, generation=generation, first=verdict.first_gap)
            elif ended(verdict.phase):
                return await self._end(record, window, verdict)
            elif verdict.pause is not None:
                self._log.warning("the run stands still", reason=verdict.message)
                return await self._paused(record, verdict.pause)
            else:
                return self._status

    def _rules(self) -> Rules:
        """What the manifest says."""
        spec = self._job.spec
        policy = spec.failure_policy
        return Rules(
            failure=FailureRule(policy.max_failed_percent, policy.min_processed_rows) if policy else None,
            deadline_seconds=spec.active_deadline_seconds,
            bounds=self._bounds,
            locks_a_worker=locks_needed(concurrency=slot_bounds(spec, {})[1], locks_a_row=2 if spec.dedupe else 1),
            budget=self._budget(),
            projects=spec.source.limit is not None,
        )

    def _tools(self, window: FeedWindow) -> Tools:
        return Tools(
            runs=self._ledger.runs,
            window=window,
            shares=self._ledger.shares,
            spending=self._ledger.spending,
            fleet=self._fleet,
            sink=self._sink,
            threads=self._threads,
            now=self._now,
            wall=self._wall,
            fed=self._fed,
            told=self._told,
            limits=self._limits,
        )

    def _told(self, status: RunStatus, size: int) -> None:
        if self._metrics is not None:
            run = str(self._identity)
            self._metrics.window(run, rows=status.queued + status.running, size=size)
            self._metrics.workers_desired(run, status.workers_desired)
            if status.total is not None:
                self._metrics.backlog(run, max(0, status.total - status.done))

    def _fed(self, rows: int, size: int, seconds: float) -> None:
        if self._metrics is not None:
            self._metrics.fed(str(self._identity), rows=rows, size=size, seconds=seconds)

    async def _resumed(self, record: RunRecord, window: FeedWindow) -> FeedState | None:
        """Go on with the epoch that is open, if the window holds all that was fed in it."""
        looks = await window.look(record.epoch)
        saved = FeedPosition.from_json(record.feed_position) if record.feed_position else None
        last_seqs = saved.last_seqs if saved else [0] * record.shards
        if not window_trusted(looks, epoch=record.epoch, last_seqs=last_seqs):
            return None
        position = saved.position if saved else Position()
        return FeedState([look.last_seq for look in looks], position)

    async def _begin_epoch(
        self, record: RunRecord, window: FeedWindow, *, generation: int, first: int
    ) -> tuple[RunRecord, FeedState]:
        # A ledger that went back in time (a failover) may know fewer epochs than Redis has seen.
        newest = max(record.epoch, *(look.epoch for look in await window.look(record.epoch)))
        record = await self._ledger.runs.begin_epoch(record, generation=generation, epoch=newest + 1)
        await window.open(record.epoch)
        if self._metrics is not None:
            self._metrics.epoch_began(str(self._identity))
        return record, FeedState([0] * record.shards, Position(first))

    async def _end(self, record: RunRecord, window: FeedWindow, verdict: Verdict) -> RunStatus:
        """First the ledger knows, then the window goes, then the workers."""
        assert verdict.phase is not None
        counts = verdict.counts
        if counts is None:
            known = self._status.total
            counts = (await take_census(self._ledger.runs, record, total=known)).counts if known else None
            await self._ledger.runs.save_phase(record, verdict.phase, verdict.message, counts)
        await window.close(record.epoch)
        await self._fleet.scale(0)
        total = self._status.total if record.total is None else record.total
        await self._report(await self._final(replace(record, total=total), verdict.phase, verdict.message, counts))
        await self._ledger.runs.expire_claims()  # last: of many that takes a while
        return self._status
