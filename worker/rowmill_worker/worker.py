"""One worker: its parts, how they are wired, how it starts and how it stops.

    window → reader → claimer → dispatcher → executor → committer → releaser → window
                         (locks, ledger)                 (ledger)    (locks)

States: starting (stores, lock session, executor) → working → draining → gone. Draining stops reading, hands back what
waits, lets what runs finish, commits it, unlocks it, acknowledges it, and forgets the consumer. A worker that is killed
instead leaves its rows pending and its locks free: the sweeper of another gives them to everybody.

A part that ends by an error of our own ends the worker at once (exit code 1): rows that might be stuck in it are
orphans then, which is a state that heals.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rowmill.errors import StoreUnavailable
from rowmill.ledger import Ledger, RunRecord
from rowmill.ledger.budget import locks_needed
from rowmill.outcome import Outcome
from rowmill.row import Entry
from rowmill.tasks import end_tasks
from rowmill.window import Delivery, EpochOver, Window, WorkWindow
from rowmill_worker.claimer import Admission, Claimer, DedupeRule, RowReader
from rowmill_worker.committer import Committer
from rowmill_worker.dispatcher import CallRules, Dispatcher, Ends
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.flow import Flow, FlowRules, LimitsRule
from rowmill_worker.gate import Gate
from rowmill_worker.held import HeldRow, HeldRows
from rowmill_worker.keeper import SessionKeeper, keep_heartbeat
from rowmill_worker.outcomes import failed
from rowmill_worker.prefetch import Rate
from rowmill_worker.quota import LockQuota
from rowmill_worker.reader import Reader
from rowmill_worker.release import Releaser
from rowmill_worker.spending import SpendRule
from rowmill_worker.sweeper import Sweeper

BACKLOG_MAX = 5000
BACKLOG_BYTES = 64 * 1024 * 1024
"""Outcomes waiting to be written, and the bytes of their results, past which no row is started."""


@dataclass(frozen=True, slots=True)
class Job:
    """What a worker needs of the manifest, resolved. `keep_keys_seconds` is `dedupe.ttlSeconds`."""

    concurrency: int
    rules: CallRules
    rows: RowReader
    spend: SpendRule
    adaptive: tuple[int, int] | None = None
    """The fewest and the most slots, where they tune themselves; `concurrency` is the first number."""
    limits: LimitsRule | None = None
    dedupe: DedupeRule | None = None
    keep_keys_seconds: float = 0.0
    cautious: bool = True
    """Calls go to somebody who may refuse the credentials: a few are sent first."""

    @property
    def most_slots(self) -> int:
        """Slots that there may come to be."""
        return self.concurrency if self.adaptive is None else self.adaptive[1]

    @property
    def locks_a_row(self) -> int:
        """Advisory locks that a row needs: its own and, where keys are declared, that of its key."""
        return 1 if self.dedupe is None else 2


def _nothing(stage: str, seqs: Sequence[int]) -> None:
    """Stages are told to nobody."""


class Worker:
    """`reached` is told of every stage that rows pass
    (claimed, committed, unlocked, finished): tests stop a worker exactly there."""

    def __init__(
        self,
        *,
        record: RunRecord,
        job: Job,
        consumer: str,
        ledger: Ledger,
        window: Window,
        executor: Executor,
        events: Events,
        rng: random.Random,
        now: Callable[[], float] = time.monotonic,
        reached: Callable[[str, Sequence[int]], None] = _nothing,
    ) -> None:
        self.gate = Gate(job.concurrency)
        self.held = HeldRows()
        self.executor = executor
        self._record = record
        self._job = job
        self._consumer = consumer
        self._window = window
        self._events = events
        self._now = now
        self._reached = reached
        self._rate = Rate()
        needs = locks_needed(concurrency=job.most_slots, locks_a_row=job.locks_a_row)
        self._locks = ledger.lock_session(record, consumer=consumer, needs=needs)
        self._work = ledger.work(record, worker=consumer)
        self._failure: BaseException | None = None
        self._stop = asyncio.Event()
        self._releaser = Releaser(
            locks=self._locks,
            work=self._work,
            held=self.held,
            window=self._current_window,
            reached=reached,
            released=self._released,
        )
        self._flow = Flow(
            FlowRules(job.concurrency, job.rules.timeout, job.spend, job.adaptive, job.limits),
            consumer=consumer,
            book=ledger.spend_book(record, worker=consumer),
            window=window,
            executor=executor,
            events=events,
            now=now,
        )
        self._committer = Committer(
            work=self._work,
            keep_keys_seconds=job.keep_keys_seconds,
            spent=lambda: self._flow.spending.used,
            committed=self._committed,
            refused=events.refused,
            measured=events.group_committed,
            rng=rng,
        )
        self._dispatcher = Dispatcher(
            gate=self.gate,
            executor=executor,
            rules=job.rules,
            ends=Ends(
                commit=self._committer.add,
                called=self._flow.spending.called,
                put_back=self._releaser.add,
                retried=events.retried,
                attempt_failed=events.attempt_failed,
                handed_back=events.handed_back,
                storm=self._storm,
                bug=events.bug,
                broken=self._break,
            ),
            locks=self._locks,
            window=self._current_window,
            may_start=self._may_start,
            now=now,
            rng=rng,
            adaptive=self._flow.adaptive,
            permits=self._flow.permits,
            cautious=job.cautious,
        )
        self._quota = LockQuota(
            locks=self._locks,
            needs=needs,
            locks_a_row=job.locks_a_row,
            rows_held=lambda: len(self.held) + self._reader.asked,
            now=now,
            rng=rng,
        )
        self._reader = Reader(
            work=self._work,
            open_window=self._open_window,
            locks=self._locks,
            held=self.held,
            claimer=Claimer(
                locks=self._locks, work=self._work, held=self.held, reader=job.rows, dedupe=job.dedupe, rng=rng
            ),
            pipeline=self,
            concurrency=lambda: self.gate.limit,
            budget=lambda: self._quota.rows,
            rate=self._rate,
            room=self._dispatcher.taken,
            now=now,
            rng=rng,
        )
        self._keeper = SessionKeeper(
            locks=self._locks,
            quota=self._quota,
            dispatcher=self._dispatcher,
            give_back=self._releaser.add,
            lost=events.session_lost,
            away=events.store_away,
            now=now,
            rng=rng,
        )
        self._sweeper = Sweeper(
            run=record.id,
            locks=self._locks,
            work=self._work,
            window=self._current_window,
            convict=self._convict,
            swept=events.swept,
            generation=lambda: self._reader.generation,
            rng=rng,
        )

    # What the parts tell each other.

    def _open_window(self, epoch: int, shards: int) -> WorkWindow:
        return self._window.work(token=self._record.token, shards=shards, epoch=epoch, consumer=self._consumer)

    def _current_window(self) -> WorkWindow | None:
        return self._reader.window

    def _may_start(self) -> bool:
        committer = self._committer
        if len(committer) >= BACKLOG_MAX or committer.bytes >= BACKLOG_BYTES:
            return False
        return self._locks.is_open and committer.away is None

    @property
    def waiting(self) -> int:
        return self._dispatcher.waiting

    def was_read(self, rows: Sequence[Delivery]) -> None:
        again = sum(1 for row in rows if row.deaths >= 0 or row.attempts)
        self._events.was_read(len(rows) - again, again)

    def admitted(self, admission: Admission) -> None:
        self._reached("claimed", [row.seq for row in admission.ready])
        if admission.release:
            self._releaser.add(admission.release)
        for row in admission.decided:
            self._committer.add(row)
        self._dispatcher.offer(admission.ready)

    def give_back(self, rows: Sequence[HeldRow]) -> None:
        self._releaser.add(rows)

    def store_away(self, error: StoreUnavailable) -> None:
        self._events.store_away(error)

    def _committed(self, rows: Sequence[HeldRow]) -> None:
        self._reached("committed", [row.seq for row in rows])
        self._rate.add(len(rows), self._now())
        self._events.committed(rows)
        for row in rows:
            row.outcome = None  # recorded: a slow Redis must not keep results in memory
        self._releaser.add(rows)
        self._dispatcher.pump()

    def _released(self, rows: Sequence[HeldRow]) -> None:
        self._dispatcher.taken.set()

    def _convict(self, shard: int, entry: Entry) -> Outcome:
        """The outcome of a row that ran alone in a worker when that died."""
        row = HeldRow(entry.seq, shard, entry.payload, 1, 2, self._reader.generation, 0)
        with contextlib.suppress(ValueError):
            self._job.rows.read(row)
        return failed(
            row,
            "PoisonRow",
            "several workers died while they ran this row, the last one with nothing beside it; it is not tried again. "
            "Look at the workers' last log lines (out of memory? a crash in a native library?) and at the row itself",
        )

    def _storm(self, error_class: str, message: str) -> None:
        """The endpoint takes none of our calls: the engine, which pauses the run, finds it in the ledger."""
        self._events.storm(error_class, message)
        if self.denied is not None:
            self._flow.spending.refused(self.denied)

    def _break(self, error: BaseException) -> None:
        self._failure = self._failure or error
        self._stop.set()

    # Its life.

    def not_ready(self) -> str | None:
        """What is missing until rows can be executed, or None."""
        if not self._locks.is_open:
            return "no lock session in Postgres"
        if self._committer.away is not None:
            return f"outcomes cannot be written: {self._committer.away}"
        return self.denied

    def numbers(self) -> dict[str, Any]:
        """How busy this worker is; see `rowmill_worker.health`."""
        return {
            "max_concurrent": self.gate.limit,
            "available_slots": self.gate.available,
            "processing_count": self.gate.processing,
            "active_sessions": self.executor.active_sessions,
            "waiting": self._dispatcher.waiting,
        }

    @property
    def denied(self) -> str | None:
        """Why this worker sends no more rows: the endpoint refuses the credentials, as a sentence with the
        class of the last refusal; None while it sends."""
        return self._dispatcher.denied

    @property
    def running(self) -> int:
        return len(self._dispatcher.running)

    @property
    def permits_waiting(self) -> int:
        """Rows in a slot that wait for leave by the budget, or for a permit of the limits group."""
        return self._flow.waiting

    @property
    def locks_held(self) -> int:
        number = self._locks.number
        return sum(1 for row in self.held.all() if row.session == number)

    async def run(self, stop: asyncio.Event, *, grace: float) -> None:
        """Work until `stop` is set, then drain; what runs gets `grace` seconds. Raises what broke a part."""
        pulse = self._open_window(0, 0)
        beating = self._guarded("heartbeat", keep_heartbeat(pulse))
        background = [
            beating,
            self._guarded("keeper", self._keeper.run()),
            self._guarded("watch", self._dispatcher.watch()),
            self._guarded("sweeper", self._sweeper.run()),
        ]
        background += [self._guarded(name, loop) for name, loop in self._flow.loops()]
        committing = self._guarded("committer", self._committer.run())
        releasing = self._guarded("releaser", self._releaser.run())
        reading = self._guarded("reader", self._reader.run())
        waiters = [asyncio.create_task(stop.wait()), asyncio.create_task(self._stop.wait())]
        try:
            await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            if self._failure is None:
                self._reader.stop()
                await reading
                await self._dispatcher.drain(grace=grace)
                self._committer.close()
                await committing
                self._releaser.close()
                await releasing
                await self._flow.leave()
                await self._leave(pulse, beating)
        finally:
            await end_tasks([*waiters, *background, committing, releasing, reading])
            await self._dispatcher.abandon()
            await self._locks.close()
        if self._failure is not None:
            raise self._failure

    def _guarded(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A part of ours as a task; its failure is the worker's."""
        task = asyncio.create_task(work, name=name)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self._break(error)

        task.add_done_callback(ended)
        return task

    async def _leave(self, pulse: WorkWindow, beating: asyncio.Task[None]) -> None:
        window = self._current_window()
        with contextlib.suppress(StoreUnavailable, EpochOver):
            if window is not None:
                await window.leave()
            await end_tasks([beating])  # before its last beat is taken back
            await pulse.stop_heartbeat()
