"""Rows gathered into batches: a thin shell of asyncio around `rowmill_worker.microbatch`, which says when a batch goes.

States of a row here: waiting → running → resolved (a result, a failure, or handed back). Whoever submitted it waits all
the while, and leaves by any of these ways:

- its batch ran: its own result, or its own failure;
- its batch failed as a whole: it is halved and run again until the row at fault is alone, so that it fails alone;
- time ran out. While it waited: handed back. In a batch of several: nobody knows who held it up, so all are handed back
  with no attempt spent, and each runs alone the next time; alone: it failed;
- it was cancelled: it leaves the queue, or its result is dropped; a batch that nobody waits for any more is ended;
- the batcher stops: handed back.

The invariant: a submitted row's future is resolved whatever happens to the batch, its task or the batcher. There is one
timer for the next batch, set only while rows wait and a batch may run, so that an idle batcher wakes up for nothing.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Final, Generic, TypeVar

from rowmill.telemetry.batches import BatchMetrics
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.microbatch import BatchRules, Microbatch, QueueFull

T = TypeVar("T")
R = TypeVar("R")

STOP_SECONDS: Final = 5.0
MAX_SUSPECTS: Final = 10_000
"""Rows remembered as having been in a batch that ran out of time."""

FULL_AGAIN_SECONDS: Final = 1.0
_FAIR_SHARE: Final = 0.5  # of its time that a row alone must have had before it is blamed for a timeout

Process = Callable[[list[T]], Awaitable[Sequence[R | RowError]]]
"""Runs a batch: a result or a failure for each row, in their order. A RowError that it raises with `spent` False is of
none of the rows' making and goes to all of them; any other exception is somebody's fault. It must end soon when it is
cancelled, and leave nothing of the batch running."""


class _Row(Generic[T, R]):
    __slots__ = ("batch", "future", "item", "key", "timeout", "timer")

    def __init__(self, item: T, key: Hashable, timeout: float, future: asyncio.Future[R]) -> None:
        self.item, self.key, self.timeout, self.future = item, key, timeout, future
        self.batch: _Batch[T, R] | None = None
        self.timer: asyncio.TimerHandle | None = None


class _Batch(Generic[T, R]):
    __slots__ = ("began", "rows", "running", "task")

    def __init__(self, rows: list[_Row[T, R]]) -> None:
        self.rows = rows
        self.running: list[_Row[T, R]] = []
        self.began = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> bool:
        return any(not row.future.done() for row in self.rows)


class Batcher(Generic[T, R]):
    """Gathers what is submitted, and runs at most `parallel` batches at once through `process`."""

    def __init__(
        self,
        *,
        rules: BatchRules,
        process: Process[T, R],
        parallel: int = 1,
        metrics: BatchMetrics | None = None,
    ) -> None:
        self._process = process
        self._parallel = parallel
        self._metrics = metrics
        self._queue: Microbatch[_Row[T, R]] = Microbatch(rules)
        self._batches: set[_Batch[T, R]] = set()
        self._suspects: OrderedDict[Hashable, None] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False
        if metrics is not None:
            metrics.watch(lambda: len(self._queue))

    @property
    def waiting(self) -> int:
        """Rows that wait for a batch to go."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Rows in batches that run."""
        return sum(not row.future.done() for batch in self._batches for row in batch.rows)

    async def submit(self, item: T, *, key: Hashable, timeout: float) -> R:
        """Let a row go with the next batch; returns its result. Raises RowError, within `timeout` seconds.

        `key` tells the row apart from others, also when it comes again.
        """
        if self._stopped:
            raise _stopping()
        loop = asyncio.get_running_loop()
        row: _Row[T, R] = _Row(item, key, timeout, loop.create_future())
        try:
            self._queue.add(row, now=loop.time(), alone=key in self._suspects)
        except QueueFull:
            raise RowError(
                "BatchQueueFull",
                f"{len(self._queue):,} rows wait for a batch already; the row is handed back. Lower "
                "spec.concurrency.perWorker or raise batching.queueSize",
                retryable=True,
                retry_after=FULL_AGAIN_SECONDS,
                spent=False,
            ) from None
        row.timer = loop.call_later(timeout, self._expired, row)
        self._pump()
        try:
            return await row.future
        finally:
            row.timer.cancel()
            self._leave(row)

    async def stop(self) -> None:
        """Hand every row back and end what runs; waits at most five seconds for it. Nothing is taken afterwards."""
        self._stopped = True
        self._set_timer(None)
        for row in self._queue.clear():
            self._fail(row, _stopping())
        for batch in list(self._batches):
            for row in batch.rows:
                self._fail(row, _stopping())
            _end(batch)
        tasks = [batch.task for batch in self._batches if batch.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)

    def _leave(self, row: _Row[T, R]) -> None:
        """Its submitter is gone."""
        if not row.future.done():
            row.future.cancel()
        if self._queue.discard(row):
            self._pump()
        elif row.batch is not None and not row.batch.wanted:
            _end(row.batch)

    # When batches go.

    def _pump(self) -> None:
        """Run what is due, and wake up again for what will be."""
        now = asyncio.get_running_loop().time()
        while not self._stopped and len(self._batches) < self._parallel and (rows := self._queue.take(now)):
            batch = _Batch(rows)
            for row in rows:
                row.batch = batch
            self._batches.add(batch)
            batch.task = asyncio.create_task(self._run(batch))
            batch.task.add_done_callback(partial(self._ended, batch))
        free = not self._stopped and len(self._batches) < self._parallel
        self._set_timer(self._queue.due() if free else None)

    def _set_timer(self, due: float | None) -> None:
        if self._timer is not None:
            if self._timer.when() == due:
                return
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = asyncio.get_running_loop().call_at(due, self._woken)

    def _woken(self) -> None:
        self._timer = None
        self._pump()

    # What a batch comes to.

    async def _run(self, batch: _Batch[T, R]) -> None:
        parts = [batch.rows]
        while parts:
            part = [row for row in parts.pop() if not row.future.done()]
            if part and not await self._run_part(batch, part):
                middle = (len(part) + 1) // 2
                parts += [part[middle:], part[:middle]]

    async def _run_part(self, batch: _Batch[T, R], rows: list[_Row[T, R]]) -> bool:
        """Run some of a batch's rows and resolve them; False where they failed together and are to be parted."""
        loop = asyncio.get_running_loop()
        batch.running, batch.began = rows, loop.time()
        failed: RowError | None = None
        answers: Sequence[R | RowError] = ()
        try:
            answers = await self._process([row.item for row in rows])
            if len(answers) != len(rows):
                failed = RowError("ExecutorError", f"{len(answers)} answers to {len(rows)} rows", retryable=True)
        except RowError as error:
            failed = error
        except Exception as error:
            failed = RowError("ExecutorError", f"{type(error).__name__} in the executor", retryable=True)
        except asyncio.CancelledError:
            self._ran(rows, loop.time() - batch.began, len(rows), succeeded=False)
            raise
        finally:
            batch.running = []
        took = loop.time() - batch.began
        if failed is not None:
            parted = failed.spent and len(rows) > 1
            self._ran(rows, took, 0 if parted else len(rows), succeeded=False)
            if parted:
                return False
            answers = [failed] * len(rows)
        else:
            self._ran(rows, took, sum(isinstance(answer, RowError) for answer in answers), succeeded=True)
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, RowError):
                self._fail(row, answer)
            elif not row.future.done():
                self._suspects.pop(row.key, None)
                row.future.set_result(answer)
        return True

    def _ended(self, batch: _Batch[T, R], task: asyncio.Task[None]) -> None:
        """Its task is done, in whatever way: nobody waits on."""
        self._batches.discard(batch)
        bug = not task.cancelled() and task.exception() is not None
        for row in batch.rows:
            self._fail(row, RowError("ExecutorError", "a batch broke", retryable=True) if bug else _stopping())
        self._pump()

    def _expired(self, row: _Row[T, R]) -> None:
        """A row's time is over: it is told at once, and so are those that run with it, for their batch ends now."""
        batch, seconds = row.batch, f"{row.timeout:g} s"
        if batch is None:
            self._queue.discard(row)
            self._fail(row, _late(f"waited {seconds} (timeoutSeconds) for its batch to go", spent=False))
            self._pump()
            return
        running = batch.running
        ran = asyncio.get_running_loop().time() - batch.began
        if running == [row] and ran >= row.timeout * _FAIR_SHARE:
            self._fail(row, _late(f"no result within {seconds} (timeoutSeconds); the call was ended", spent=True))
        for one in batch.rows:
            if one.future.done():
                continue
            told = f"its batch of {len(batch.rows)} was not done within {seconds} (timeoutSeconds); it is run again"
            if one in running:
                self._suspect(one.key)
                told += ", alone"
            self._fail(one, _late(told, spent=False))
        _end(batch)

    def _suspect(self, key: Hashable) -> None:
        self._suspects[key] = None
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def _fail(self, row: _Row[T, R], error: RowError) -> None:
        if row.future.done():
            return
        if error.spent:
            self._suspects.pop(row.key, None)
        # An exception that is raised to several waiters would grow a traceback of all of them.
        row.future.set_exception(
            RowError(
                error.error_class,
                error.message,
                retryable=error.retryable,
                retry_after=error.retry_after,
                spent=error.spent,
            )
        )

    def _ran(self, rows: list[_Row[T, R]], seconds: float, failed: int, *, succeeded: bool) -> None:
        if self._metrics is not None:
            self._metrics.ran(len(rows), seconds, rows_failed=failed, succeeded=succeeded)


def _end(batch: _Batch[T, R]) -> None:
    if batch.task is not None:
        batch.task.cancel()


def _late(message: str, *, spent: bool) -> RowError:
    return RowError("Timeout", message, retryable=True, spent=spent)


def _stopping() -> RowError:
    return RowError("WorkerStopping", "this worker stops; the row is handed back", retryable=True, spent=False)
