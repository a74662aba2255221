"""From ready to an end: rows get a slot, one attempt, and what follows from it.

States of a row here: ready → running → ended (an outcome, to the committer) | put back (a retry, a hand-back, to the
releaser) | in doubt (`doubt.py`: refused, and perhaps not for its own sake), which ends as one of the two. One task a
taken slot, not one a row: a slot runs rows for as long as there are any.

A row is started only while the lock session that claimed it is open, and not while outcomes cannot be written. A row
that waited for a slot too long is handed back with no attempt spent. A row that runs past its timeout is cancelled by
the watch, whatever its executor does, and its slot returns. A suspect's start is noted first; a row that had started in
two dead workers runs with nothing beside it.

Where permits are needed (`permits.py`) a row that has its slot waits for them, before anything else happens to it:
until then it has not started, no attempt is spent, and its timeout does not run. With adaptive concurrency every call
that was sent tells how long it took, and the gate is moved by what that says.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession
from rowmill.tasks import end_tasks, set_within
from rowmill.window import EpochOver, WorkWindow
from rowmill_worker.adaptive import Adaptive, Verdict
from rowmill_worker.backoff import Retry, RetryPolicy, decide
from rowmill_worker.denials import Denials, Says, says
from rowmill_worker.doubt import Doubt
from rowmill_worker.executors.protocol import Attempt, Executor, RowError, Usage
from rowmill_worker.gate import Gate
from rowmill_worker.held import HeldRow
from rowmill_worker.outcomes import failed, succeeded
from rowmill_worker.permits import CUT_OFF, Pass, Permits

WATCH_SECONDS = 0.25
OVERDUE_GRACE = 1.0
"""Seconds past its timeout until a row is cancelled: an executor has its own, more exact timeout."""
YIELD_EVERY = 64
"""Rows after which a slot that never waits lets others have the loop."""
HAND_BACK_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class CallRules:
    """What the manifest says of calls. `idempotency_key` and `request_id` name a row's call to the endpoint."""

    timeout: float
    acquire_timeout: float
    retry: RetryPolicy
    idempotency_key: Callable[[HeldRow], str]
    request_id: Callable[[HeldRow], str]


@dataclass(frozen=True, slots=True)
class Ends:
    """Where rows go from here."""

    commit: Callable[[HeldRow], None]
    called: Callable[[Usage | None], None]
    """A call that was sent is over, before its row's outcome is written: what it used, where that is told."""
    put_back: Callable[[Sequence[HeldRow]], None]
    retried: Callable[[HeldRow, RowError, float], None]
    attempt_failed: Callable[[HeldRow, RowError], None]
    handed_back: Callable[[Sequence[HeldRow], str], None]
    storm: Callable[[str, str], None]
    """Class and message of the last of many refusals: nothing is sent from here on."""
    bug: Callable[[HeldRow, BaseException], None]
    broken: Callable[[BaseException], None]
    """A slot ended by an error of our own: rows may be stuck, and this worker must not go on."""


class Dispatcher:
    """Runs ready rows. `may_start` is asked before each start. `adaptive` moves the gate; `permits` has a say in each
    call. `cautious`: the first calls may be refused (`denials.py`)."""

    def __init__(
        self,
        *,
        gate: Gate,
        executor: Executor,
        rules: CallRules,
        ends: Ends,
        locks: LockSession,
        window: Callable[[], WorkWindow | None],
        may_start: Callable[[], bool],
        now: Callable[[], float],
        rng: random.Random,
        adaptive: Adaptive | None = None,
        permits: Permits | None = None,
        cautious: bool = True,
    ) -> None:
        self._adaptive = adaptive
        self._permits = permits
        self._denials = Denials[HeldRow](cautious=cautious)
        self._doubt = Doubt(
            denials=self._denials,
            is_ours=self._is_ours,
            commit=ends.commit,
            put_back=ends.put_back,
            handed_back=ends.handed_back,
            storm=ends.storm,
        )
        self._gate = gate
        self._executor = executor
        self._rules = rules
        self._ends = ends
        self._locks = locks
        self._window = window
        self._may_start = may_start
        self._now = now
        self._rng = rng
        self._ready: deque[HeldRow] = deque()
        self._alone: deque[HeldRow] = deque()
        self._running: dict[HeldRow, asyncio.Task[None]] = {}
        self._slots: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._draining = False
        self._one_alone = False
        self.taken = asyncio.Event()
        """Set whenever rows were taken from the queue: there may be room to read more."""

    @property
    def waiting(self) -> int:
        return len(self._ready) + len(self._alone)

    @property
    def running(self) -> list[HeldRow]:
        return list(self._running)

    @property
    def denied(self) -> str | None:
        """Why nothing is sent any more: the credentials are refused, as a sentence; else None."""
        return self._doubt.denied

    def offer(self, rows: Sequence[HeldRow]) -> None:
        """Rows that are ready: claimed by the open session, key settled."""
        now = self._now()
        for row in rows:
            row.ready_since = now
            (self._alone if row.runs_alone else self._ready).append(row)
        self.pump()

    def pump(self) -> None:
        """Start what may start now."""
        if self._draining or self._one_alone or not self._may_start():
            return
        if self._alone:
            if self._gate.processing == 0 and self._denials.admits(0) and self._gate.try_acquire():
                self._one_alone = True  # until its slot ends: out of the queue it is still to have no company
                self._start_slot(self._run_alone())
            return
        about_to_take = len(self._slots) - len(self._running)
        for _ in range(min(self._gate.available, len(self._ready) - about_to_take)):
            if not self._denials.admits(len(self._slots)):
                break
            if self._gate.try_acquire():
                self._start_slot(self._run_slot())

    def _start_slot(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._slots.add(task)
        self._idle.clear()
        task.add_done_callback(self._slot_ended)

    def _slot_ended(self, task: asyncio.Task[None]) -> None:
        self._slots.discard(task)
        self._gate.release()
        if not self._slots:
            self._one_alone = False
            self._idle.set()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._ends.broken(error)
        self.pump()

    async def _run_slot(self) -> None:
        task = _this_task()
        ran = 0
        while self._ready and not self._alone and not self._gate.is_over and self._next_may_start():
            row = self._ready.popleft()
            self.taken.set()
            if self._permits is not None or row.suspect:
                await self._run_prepared(row, task)
            elif self._is_ours(row):
                await self._send(row, task, None)  # nothing is waited for, not even for a moment
            else:
                self._put_back(row, 0.0)
            ran += 1
            if ran % YIELD_EVERY == 0:
                await asyncio.sleep(0)

    async def _run_alone(self) -> None:
        task = _this_task()
        while self._alone and self._next_may_start():
            row = self._alone.popleft()
            self.taken.set()
            await self._run_prepared(row, task)

    def _next_may_start(self) -> bool:
        """Whether the slot that asks may go on with another row."""
        if self._draining or not (self._denials.calm or self._denials.admits(len(self._slots) - 1)):
            return False
        return self._may_start()

    async def _run_prepared(self, row: HeldRow, task: asyncio.Task[None]) -> None:
        """Run a row that has to wait for something first."""
        prepared, may_send = await self._prepare(row, task)
        if not prepared:
            return
        if not self._is_ours(row):
            self._put_back(row, 0.0)  # claimed by a session that is gone (it must be claimed again), or too late
        elif not (self._denials.calm or self._denials.admits(len(self._running))):
            (self._alone if row.runs_alone else self._ready).appendleft(row)  # others were refused while it waited
        else:
            await self._send(row, task, may_send)
            return
        if may_send is not None:
            may_send.unused()

    async def _prepare(self, row: HeldRow, task: asyncio.Task[None]) -> tuple[bool, Pass | None]:
        """What a row waits for before it is sent: leave to send it, and the note of a suspect's start. False when it
        was put back instead."""
        may_send = None
        try:
            if self._permits is not None and (may_send := await self._permitted(self._permits, row)) is None:
                return False, None
            if not row.suspect or await self._note_start(row):
                return True, may_send
        except asyncio.CancelledError:
            task.uncancel()
            self._put_back(row, 0.0)
        if may_send is not None:
            may_send.unused()
        return False, None

    async def _send(self, row: HeldRow, task: asyncio.Task[None], may_send: Pass | None) -> None:
        row.started = self._now()
        row.attempts += 1
        self._running[row] = task
        attempt = Attempt(
            row.seq,
            row.row,
            row.key,
            row.attempts,
            self._rules.idempotency_key(row),
            self._rules.request_id(row),
            self._rules.timeout,
        )
        call = self._adaptive.began(row.started) if self._adaptive is not None else None
        verdict, error = Verdict.NEITHER, None
        try:
            result = await self._executor.execute(attempt)
            row.outcome = succeeded(row, result, attempt.usage)
        except RowError as failure:
            error = failure
            verdict = Verdict.STRAINED if error.retryable and error.spent else Verdict.NEITHER
            self._after(row, error, attempt.usage)
        except asyncio.CancelledError:
            # Ours alone: the watch cancels what is overdue, the drain what outlasts its grace. A late cancel may hit
            # the slot's next row; that one is put back, its attempt counted, as nobody knows whether it was sent.
            task.uncancel()
            if row.overdue:
                verdict = Verdict.STRAINED
                late = f"no answer within timeoutSeconds ({self._rules.timeout:g} s); the call was cancelled"
                error = RowError("Timeout", late, retryable=True)
                self._after(row, error, attempt.usage)
            else:
                error = RowError(CUT_OFF, "this worker stops; the call was cancelled", retryable=True)
                self._put_back(row, 0.0)
        except Exception as bug:
            self._ends.bug(row, bug)
            error = RowError("ExecutorError", f"{type(bug).__name__} in the executor", retryable=True)
            self._after(row, error, attempt.usage)
        else:
            verdict = Verdict.ANSWERED
            self._ends.commit(row)
            if not self._denials.calm:
                self._let_in()
        finally:
            del self._running[row]
            if error is None or error.spent:
                self._ends.called(attempt.usage)
            if self._adaptive is not None and call is not None:
                self._adaptive.ended(call, verdict, self._now())
                self._resize(self._adaptive)
            if may_send is not None:
                if error is not None and not error.spent:
                    may_send.unused()
                else:
                    may_send.over(attempt, error)

    def _is_ours(self, row: HeldRow) -> bool:
        """Whether the claim on a row stands, and rows may still be sent at all."""
        return not self._draining and row.session == self._locks.number and self._locks.is_open

    async def _permitted(self, permits: Permits, row: HeldRow) -> Pass | None:
        """Leave to send a row; None when there is none in time, and then the row was handed back."""
        patience = self._rules.acquire_timeout - (self._now() - row.ready_since)
        may_send = await permits.take(row, within=max(patience, 0.0))
        if may_send is None:
            gone = not self._is_ours(row)
            waited = f"waited longer than {self._rules.acquire_timeout:g} s for {permits.waits_for}"
            self._hand_back([row], 0.0 if gone else HAND_BACK_SECONDS, "it may not start any more" if gone else waited)
        return may_send

    def _resize(self, adaptive: Adaptive) -> None:
        if adaptive.limit != self._gate.wanted:
            self._gate.resize(adaptive.limit)
            self.pump()

    def _after(self, row: HeldRow, error: RowError, usage: Usage | None) -> None:
        """A failed attempt: again later, or the row's outcome."""
        if not error.spent:
            row.attempts -= 1
        else:
            self._ends.attempt_failed(row, error)
        verdict = decide(error, row.attempts, self._rules.retry, rng=self._rng)
        if isinstance(verdict, Retry):
            self._ends.retried(row, error, verdict.delay)
            self._put_back(row, verdict.delay)
        else:
            row.outcome = failed(row, error.error_class, error.message, usage)
            self._end_failed(row, error)

    def _end_failed(self, row: HeldRow, error: RowError) -> None:
        """A row that would be Failed now: is it the row that was refused, or whoever asked?"""
        said = says(error)
        if said is not Says.REFUSED or row.runs_alone:  # held back, one that runs alone would be convicted by our death
            self._ends.commit(row)
            if said is Says.LET_IN and not self._denials.calm:
                self._let_in()
        elif self._draining:
            self._doubt.put_back([row], 0.0)
        else:
            self._doubt.refused(row, error, self._now())

    def _let_in(self) -> None:
        self._doubt.let_in()
        self.pump()

    def _put_back(self, row: HeldRow, delay: float) -> None:
        row.delay = delay
        self._ends.put_back([row])

    async def _note_start(self, row: HeldRow) -> bool:
        window = self._window()
        if window is None or window.epoch != row.epoch:
            self._put_back(row, 0.0)
            return False
        try:
            await window.mark_started(row.shard, [row.seq], alone=row.runs_alone)
        except (StoreUnavailable, EpochOver):
            self._put_back(row, HAND_BACK_SECONDS)
            return False
        return True

    async def watch(self) -> None:
        """Until cancelled: cancel what is overdue, hand back what waited too long, start what may start again."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            now = self._now()
            limit = self._rules.timeout + OVERDUE_GRACE
            for row, task in list(self._running.items()):
                if now - row.started > limit + row.overdue * OVERDUE_GRACE:
                    row.overdue += 1  # and again: an executor, or a library under it, may lose a cancel
                    task.cancel()
            if self._adaptive is not None:
                self._adaptive.tick(now)
                self._resize(self._adaptive)
            sent = len(self._running)
            self._doubt.tick(now, under_way=sent, waiting=self.waiting + len(self._slots) - sent)
            self._hand_back_late(now)
            self.pump()

    def _hand_back_late(self, now: float) -> None:
        late: list[HeldRow] = []
        for queue in (self._ready, self._alone):
            while queue and now - queue[0].ready_since > self._rules.acquire_timeout:
                late.append(queue.popleft())
        why = f"waited longer than {self._rules.acquire_timeout:g} s for a slot"
        self._hand_back(late, HAND_BACK_SECONDS, self.denied or why)

    def _hand_back(self, rows: list[HeldRow], delay: float, why: str) -> None:
        if not rows:
            return
        for row in rows:
            row.delay = delay
        self._ends.handed_back(rows, why)
        self._ends.put_back(rows)
        self.taken.set()

    def withdraw(self) -> list[HeldRow]:
        """Take every waiting row out, and those in doubt. Those that wait for a permit are put back by their slots."""
        if self._permits is not None:
            self._permits.refuse_waiting()
        rows = [*self._ready, *self._alone, *self._doubt.withdraw()]
        self._ready.clear()
        self._alone.clear()
        return rows

    async def drain(self, *, grace: float) -> None:
        """Start nothing more, hand back what waits, let what runs finish; after `grace` seconds cancel it and put
        it back (its attempt counts: the call was sent)."""
        self._draining = True
        self._hand_back(self.withdraw(), 0.0, "this worker stops")
        try:
            async with asyncio.timeout(grace):
                await self._idle.wait()
        except TimeoutError:
            while self._slots:
                for task in set(self._running.values()):
                    task.cancel()
                if self._permits is not None:
                    self._permits.refuse_waiting()
                await set_within(self._idle, OVERDUE_GRACE)  # and again: a cancel may be lost

    async def abandon(self) -> None:
        """End every slot now; rows that ran are put back as far as somebody still takes them. For a worker that breaks
        off: its executor must not be closed under a call."""
        self._draining = True
        await end_tasks(self._slots)
        self._hand_back(self._doubt.withdraw(), 0.0, "this worker breaks off")


def _this_task() -> asyncio.Task[None]:
    """The running slot. Asked once a slot: asking takes longer than the rest of what an empty row costs here."""
    task = asyncio.current_task()
    assert task is not None
    return task
