"""A run's output in an object store: written in parts while the run goes, exactly what the ledger holds at its end.

    <output.uri>/<runId>/part-000000001-000050000.parquet   rows 1 to 50,000, in the order of the source
                         part-000050001-000100000.parquet   …
                         failures.jsonl                     the rows that failed, once the run has ended
                         _rowmill.json                      what is there and whether it is all: the checkpoint

A part is written when every row of its range has its last outcome of this generation, under a name that its range
decides: writing it again takes the place of what was there. A retry generation writes those parts again that held
failures; a raised limit the last one, under its new name. The ledger is asked little: one open row of each open part is
remembered and looked up by its key; a part is looked at as a whole once, when none is found any more.

Invariant: a checkpoint that says `complete` is written last, and names objects that hold exactly the outcomes of the
ledger. Before anything of a complete output is touched, the checkpoint says that it is not.

Failure at each step, and what it leaves:

    the place is away        nothing new is visible; tried again, ever later, and `problem` says so meanwhile
    it denies us             InvalidInput: `problem` while the run goes, raised by `finish`; tried again slowly
    killed while uploading   no object; the part is written again
    killed before the        objects that the checkpoint does not name, or names with what they held before (it is not
    checkpoint               `complete` then); they are written again, to the same bytes
    killed before deleting   an object of an old name; `finish` lists the folder and deletes what it does not name
    the ledger is away       StoreUnavailable; nothing is visible that was not read to its end
    the ledger went back     (a failover, a restored backup) lost rows run again in a new epoch; there every entry is
                             doubtful, and its print is compared with the ledger before it is believed again
    this machine's disk      the store spools there: PlaceUnavailable, as above
    two writers at once      (a leader that was paused) within a generation they write the same bytes under the same
                             names. The run's term is asked for right before an object is completed and before the
                             checkpoint is written; a checkpoint that another has written since ours is read, not
                             overwritten. What is left is the moment between these questions and the store's answer: at
                             worst an older checkpoint, which the next one of the other writer heals, or an older part
                             of another size, which `finish` notices in the listing.
    another job's folder     InvalidInput: the checkpoint names the run that it belongs to

Outcomes are not dropped before the output is written (`Runs.output_written`). Once they are, nothing is written any
more: `finish` says what the folder holds, and lets everything be, whatever is missing there by then.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass

from rowmill.errors import InvalidInput, PlaceUnavailable, RowmillError, StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import RangeCounts, RangeState, RunRecord, Runs, Superseded
from rowmill.status import Phase
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger
from rowmill_operator.results.book import Book, ForeignCheckpoint
from rowmill_operator.results.checkpoint import Checkpoint, Shape, Trust, renewed, still_true, trust
from rowmill_operator.results.layout import FAILURES_FILE_ROWS, PART_BYTES, PART_ROWS, parts_up_to, written_by_us
from rowmill_operator.results.plan import Plan
from rowmill_operator.results.ports import Folder
from rowmill_operator.results.upload import RacedError, Way, in_thread


@dataclass(frozen=True, slots=True)
class Pace:
    """How often and how much. Seconds, and numbers of parts at a look."""

    look_seconds: float = 5.0
    checkpoint_seconds: float = 30.0
    """Between checkpoints while the run goes: what a kill may cost to write again."""
    retry_seconds: tuple[float, float] = (1.0, 60.0)
    patience_seconds: float = 60.0
    """How long `finish` tries by itself before it raises."""
    probes: int = 200
    scans: int = 8


@dataclass(frozen=True, slots=True)
class OutputSummary:
    """What is written: `parts` are objects, `rows` are in them, `failures` are rows in the files of failures."""

    uri: str
    parts: int
    rows: int
    failures: int
    complete: bool
    reason: str


class PartsWriter:
    """Writes one run's output. `run` while the run goes, then `finish`; never two of them at once.

    `threads` takes the blocking calls of the folder, `slots` bounds the parts that are written at once over all
    writers that share it. `problem` says why nothing is written just now, for people, or None.
    """

    def __init__(
        self,
        *,
        identity: RunIdentity,
        runs: Runs,
        folder: Folder,
        shape: Shape,
        log: Logger,
        threads: ThreadPool,
        slots: asyncio.Semaphore | None = None,
        part_rows: int = PART_ROWS,
        part_bytes: int = PART_BYTES,
        failures_rows: int = FAILURES_FILE_ROWS,
        pace: Pace | None = None,
        now: Callable[[], float] = time.monotonic,
        nonce: Callable[[], str] = lambda: secrets.token_hex(8),
    ) -> None:
        self._identity = identity
        self._runs = runs
        self._folder = folder
        self._shape = shape
        self._log = log.bind(job=str(identity), output=folder.uri)
        self._threads = threads
        self._slots = slots or asyncio.Semaphore(1)
        self._way = Way(runs, folder, threads, part_bytes, failures_rows)
        self._book = Book(
            identity=identity,
            runs=runs,
            folder=folder,
            shape=shape,
            part_rows=part_rows,
            threads=threads,
            log=self._log,
            now=now,
            nonce=nonce,
        )
        self._pace = pace or Pace()
        self._now = now
        self._turn = asyncio.Lock()
        self._plan: Plan | None = None
        self._dropped = False
        self._last_summary = OutputSummary(folder.uri, 0, 0, 0, complete=False, reason="")
        self.problem: str | None = None

    @property
    def summary(self) -> OutputSummary:
        """What is written so far."""
        state = self._book.state
        if state is None:
            return self._last_summary
        self._last_summary = OutputSummary(
            self._folder.uri,
            sum(len(part.sizes) for part in state.parts.values()),
            state.rows,
            state.failed,
            state.complete,
            state.reason,
        )
        return self._last_summary

    async def run(self, stop: asyncio.Event) -> None:
        """Write parts as they become whole, until `stop`. Never raises for what is away or denied: see `problem`."""
        looking = asyncio.create_task(self._look_again_and_again(), name="parts")
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({looking, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if looking.done():
                looking.result()
        finally:
            await end_tasks([looking, stopping])

    async def _look_again_and_again(self) -> None:
        first, longest = self._pace.retry_seconds
        delay = first
        while True:
            wait = self._pace.look_seconds
            try:
                await self.look()
                self.problem, delay = None, first
            except (PlaceUnavailable, StoreUnavailable) as error:
                self._tell(error)
                asked = error.retry_after if isinstance(error, PlaceUnavailable) else None
                wait, delay = max(delay, min(asked or 0.0, longest)), min(delay * 2, longest)
            except InvalidInput as error:
                self._tell(error)
                wait = longest
            except (Superseded, ForeignCheckpoint, RacedError) as error:
                self._log.info("the output is looked at again", reason=str(error))
            await asyncio.sleep(wait)

    def _tell(self, error: RowmillError) -> None:
        if self.problem != str(error):
            self._log.warning("the output cannot be written now", reason=str(error))
        # A ledger that is away is told by whoever drives the run.
        self.problem = str(error) if isinstance(error, PlaceUnavailable | InvalidInput) else None

    async def look(self) -> None:
        """Write the parts that are whole now, if anything happened since the last look. A few statements."""
        async with self._turn:
            record = await self._runs.find(self._identity)
            if record is None or record.epoch == 0 or record.phase in _ENDED:
                return  # nothing is fed yet, or it is `finish` that knows whether what is there is all
            plan = await self._prepared(record)
            counts = await self._runs.progress(record)
            if plan.more or plan.counts != counts:
                plan.more = await self._write_whole_parts(plan)
                plan.counts = counts
            await self._book.save_if_due(record, self._pace.checkpoint_seconds)

    async def finish(self) -> OutputSummary:
        """Write what is missing of a run that has ended, and the checkpoint; an output that is finished costs one look.
        Of a run whose outcomes were dropped: say what is there.

        Raises InvalidInput (denied, not there, another job's), PlaceUnavailable or StoreUnavailable after `patience`,
        Superseded where the run goes on elsewhere. Call it again then: what was written stays.
        """
        began = self._now()
        delay, longest = self._pace.retry_seconds
        while True:
            try:
                async with self._turn:
                    summary = await self._finish()
                self.problem = None
                return summary
            except InvalidInput as error:
                self._tell(error)
                raise
            except (PlaceUnavailable, StoreUnavailable, ForeignCheckpoint, RacedError) as error:
                self._tell(error)
                if self._dropped or self._now() - began >= self._pace.patience_seconds:
                    if isinstance(error, PlaceUnavailable | StoreUnavailable):
                        raise
                    raise PlaceUnavailable(f"{self._folder.uri}: {error}") from error
            await asyncio.sleep(delay)
            delay = min(delay * 2, longest)

    # What is known, and what is written of it.

    async def _prepared(self, record: RunRecord) -> Plan:
        """The checkpoint, read once, and the plan for this epoch of the run."""
        state = await self._book.open(record)
        plan = self._plan
        if plan is None or not plan.fits(record, state):
            plan = self._plan = Plan(record, state)
        plan.record = record
        await self._book.begin(record)
        return plan

    async def _write_whole_parts(self, plan: Plan) -> bool:
        """Write what is whole; whether there is more to look at than one look takes."""
        frontier = await self._runs.last_seq(plan.record)
        plan.extend(frontier)
        for _ in range(min(self._pace.scans, len(plan.doubtful))):
            await self._review(plan, plan.doubtful[0])
            plan.doubtful.popleft()
        more = bool(plan.doubtful)
        asked = plan.open[: self._pace.probes]
        probes = [plan.witness[index] for index in asked if index in plan.witness]
        closed = await self._runs.closed_of(plan.record, probes) if probes else set()
        scans = self._pace.scans
        for index in asked:
            span = plan.span(index)
            witness = plan.witness.get(index)
            if span.last > frontier:
                continue  # its last row has no outcome yet
            if witness is not None and witness not in closed:
                continue
            if not scans:
                return True
            scans -= 1
            found = await self._runs.open_row(plan.record, max(witness or 0, span.first), span.last)
            if found is not None:
                plan.witness[index] = found
            elif not await self._review(plan, index):
                plan.witness.pop(index, None)  # it was further ahead than its first open row: begin again
                more = True
            else:
                plan.open.remove(index)
        return more

    async def _review(self, plan: Plan, index: int, *, whole: bool = True) -> bool:
        """Compare a part with the ledger, and write it where it differs; with `whole` only when no row is missing.

        Whether it is settled now. One that is not is among the open ones afterwards.
        """
        state, record, span = plan.state, plan.record, plan.span(index)
        part = state.parts.get(index)
        now = await self._runs.range_state(record, *span)
        if part is not None and still_true(part, now, span):
            self._book.keep(index, renewed(part, record, now, span))
        elif now.closed == span.rows or (not whole and now.rows):
            await self._write(plan, index, now)
        elif not whole:
            self._book.keep(index, None)
        settled = trust(state.parts.get(index), span, generation=record.generation, epoch=record.epoch) is Trust.SETTLED
        if not settled and whole:
            plan.reopen(index)
        return settled

    async def _write(self, plan: Plan, index: int, now: RangeState | None = None) -> None:
        """Write a part from what the ledger holds; `now` is that as it was just read."""
        span, waited = plan.span(index), self._slots.locked()
        async with self._slots:
            if now is None or waited:
                now = await self._runs.range_state(plan.record, *span)
            part = await self._way.part(
                plan.record, span, now, shape=self._shape, fence=lambda: self._book.fence(plan.record)
            )
        self._book.keep(index, part)

    # The end.

    async def _finish(self) -> OutputSummary:
        record = await self._runs.find(self._identity)
        if record is None:
            raise RowmillError(
                f"the ledger does not know the run {self._identity}: was its database emptied meanwhile?"
            )
        if record.phase not in _ENDED:
            raise Superseded(f"the run {self._identity} goes on")
        self._dropped = record.dropped_at is not None
        counts = await self._runs.progress(record)
        state = await self._book.open(record)
        if self._dropped:
            return self.summary
        if _is_the_end(state, record, counts):
            if await self._book.is_ours():
                await self._runs.output_written(record)
                return self.summary
            self._book.state = None
            raise ForeignCheckpoint("another writer has written the checkpoint since")
        if state.phase == record.phase and state.epoch == record.epoch:
            self._book.doubt_all()  # it was finished, and the ledger changed all the same
        plan = await self._prepared(record)
        await self._write_missing(plan)
        if record.phase is Phase.COMPLETE:
            await self._check_counts(plan)
        await self._check_objects(plan)
        failed = [part.span for _, part in sorted(state.parts.items()) if part.failed]
        state.failures, state.failure_files = await self._way.failures(
            record, failed, fence=lambda: self._book.fence(record)
        )
        if state.failures != state.failed:
            self._book.doubt_all()
            raise RacedError("rows changed while their failures were read")
        await self._tidy(plan)
        state.phase, state.reason, state.counts = record.phase.value, record.message, counts
        state.complete = record.phase is Phase.COMPLETE
        try:
            await self._book.save(record)
        except BaseException:
            state.complete, state.phase = False, Phase.RUNNING.value
            raise
        await self._runs.output_written(record)
        self._log.info("the output is written", rows=state.rows, parts=len(state.parts), failures=state.failures)
        return self.summary

    async def _write_missing(self, plan: Plan) -> None:
        record, state = plan.record, plan.state
        whole = record.phase is Phase.COMPLETE
        last = record.total if whole and record.total is not None else await self._runs.last_seq(record)
        count = parts_up_to(last, part_rows=state.part_rows)
        for index in [index for index in state.parts if index >= count]:
            self._book.keep(index, None)
        for index in range(count):
            part = state.parts.get(index)
            if trust(part, plan.span(index), generation=record.generation, epoch=record.epoch) is Trust.SETTLED:
                continue
            if not await self._review(plan, index, whole=whole) and whole:
                span = plan.span(index)
                raise RowmillError(
                    f"the run {self._identity} is Complete, but rows of {span.first} to {span.last} have no outcome in "
                    "the ledger: was it restored from a backup? Apply the job with a new runId to run them again"
                )
            await self._book.save_if_due(record, self._pace.checkpoint_seconds)

    async def _check_counts(self, plan: Plan) -> None:
        """What the parts hold must be what the ledger counted at the end, and all rows of the source."""
        counts, parts = plan.record.counts, list(plan.state.parts.values())
        held = tuple(sum(getattr(part, name) for part in parts) for name in ("succeeded", "failed", "deduplicated"))
        if counts is not None and held != (counts.succeeded, counts.failed, counts.deduplicated):
            self._log.warning("the parts are compared with the ledger row by row", held=held, counted=str(counts))
            self._book.doubt_all()
            await self._write_missing(plan)
            held = tuple(sum(getattr(part, name) for part in plan.state.parts.values()) for name in _STATES)
        if sum(held) != plan.record.total:
            raise RowmillError(f"the output of {self._identity} holds {sum(held)} rows of {plan.record.total}")

    async def _check_objects(self, plan: Plan) -> None:
        """Write again what somebody deleted, or what a paused writer put in the place of ours."""
        there = await in_thread(self._threads, self._folder.sizes)
        for index, part in sorted(plan.state.parts.items()):
            if any(there.get(name) != size for name, size in part.objects(self._shape.format).items()):
                self._log.warning("a part is not as it was written; it is written again", first=part.first)
                await self._write(plan, index)

    async def _tidy(self, plan: Plan) -> None:
        """Delete objects of ours that the checkpoint does not name, once it does not name them."""
        there = await in_thread(self._threads, self._folder.sizes)
        named = {*plan.state.objects, *plan.state.files_of_failures}
        unnamed = {name for name in there if written_by_us(name) and name not in named}
        if unnamed:
            await self._book.save(plan.record, unnamed=unnamed)


_ENDED = (Phase.COMPLETE, Phase.FAILED)
_STATES = ("succeeded", "failed", "deduplicated")


def _is_the_end(state: Checkpoint, record: RunRecord, counts: RangeCounts) -> bool:
    """Whether the checkpoint was written for this very end of the run."""
    return (state.phase, state.generation, state.epoch, state.total, state.counts) == (
        record.phase.value,
        record.generation,
        record.epoch,
        record.total,
        counts,
    )
