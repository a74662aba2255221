"""The batcher by itself, on simulated time: whoever submits a row leaves again, whatever becomes of its batch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from rowmill.telemetry.batches import BatchMetrics
from rowmill_worker.batcher import Batcher
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.microbatch import BatchRules
from tests.unit.simulated_time import pass_time, simulate

RULES = BatchRules(max_size=64, min_size=1, max_wait=0.05, hard_timeout=1.0, queue_size=640)
Answers = Sequence[int | RowError]


def on_simulated_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        simulate(lambda: test(*args, **kwargs))

    return run


class Model:
    """Doubles numbers, a batch in `seconds`; what `wrong` says of a batch is raised, or awaited, first."""

    def __init__(self, seconds: float = 1.0, wrong: Callable[[list[int]], Any] | None = None) -> None:
        self.seconds, self.wrong = seconds, wrong
        self.batches: list[list[int]] = []
        self.at: list[float] = []
        self.cancelled = 0

    async def __call__(self, rows: list[int]) -> Answers:
        self.batches.append(rows)
        self.at.append(asyncio.get_running_loop().time())
        try:
            if self.wrong is not None:
                found = self.wrong(rows)
                if isinstance(found, BaseException):
                    raise found
                if found is not None:
                    await found
            await pass_time(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return [row * 2 for row in rows]


async def submitted(batcher: Batcher[int, int], rows: Sequence[int], *, timeout: float = 60.0) -> list[Any]:
    """What comes of rows that are submitted together."""
    calls = (batcher.submit(row, key=row, timeout=timeout) for row in rows)
    return await asyncio.gather(*calls, return_exceptions=True)


def told(result: Any) -> tuple[str, bool]:
    assert isinstance(result, RowError), result
    return result.error_class, result.spent


@contextmanager
def timers_set(loop: asyncio.AbstractEventLoop) -> Iterator[list[float]]:
    """The times for which anybody has asked to be woken up."""
    times: list[float] = []
    call_at = loop.call_at

    def noted(when: float, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:
        times.append(when)
        return call_at(when, *args, **kwargs)

    loop.call_at = noted  # type: ignore[method-assign]
    try:
        yield times
    finally:
        loop.call_at = call_at  # type: ignore[method-assign]


@on_simulated_time
async def test_an_idle_batcher_wakes_up_for_nothing() -> None:
    """Ten minutes: not one timer, before the first row and after the last."""
    loop = asyncio.get_running_loop()
    batcher = Batcher(rules=RULES, process=Model())
    for _ in range(2):
        with timers_set(loop) as times:
            began = loop.time()
            await pass_time(600)
        assert times == [began + 600], "its own waiting alone"
        assert await submitted(batcher, [1, 2]) == [2, 4]
    await batcher.stop()


@on_simulated_time
async def test_a_batch_goes_when_full_or_when_its_oldest_has_waited() -> None:
    model = Model(seconds=0.0)
    batcher = Batcher(rules=BatchRules(max_size=3, min_size=2, max_wait=1, hard_timeout=4, queue_size=9), process=model)
    began = asyncio.get_running_loop().time()
    tasks = []
    for row, at in enumerate([0, 0, 0, 10, 10.5, 20]):
        await pass_time(began + at - asyncio.get_running_loop().time())
        tasks.append(asyncio.create_task(batcher.submit(row, key=row, timeout=60)))
    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
    assert model.batches == [[0, 1, 2], [3, 4], [5]]
    assert [at - began for at in model.at] == [0, 11, 25]


@on_simulated_time
async def test_while_a_batch_runs_the_next_one_fills() -> None:
    model = Model(seconds=1.0)
    batcher = Batcher(rules=RULES, process=model)
    assert await submitted(batcher, range(200)) == [row * 2 for row in range(200)]
    assert [len(batch) for batch in model.batches] == [64, 64, 64, 8]
    assert model.at[3] - model.at[0] == 3.0


@on_simulated_time
async def test_past_the_queues_bound_the_caller_is_told_and_nothing_is_dropped() -> None:
    model = Model()
    batcher = Batcher(rules=BatchRules(max_size=4, max_wait=0.05, queue_size=8), process=model)
    results = await submitted(batcher, range(20))
    full = [result for result in results if isinstance(result, RowError)]
    assert [told(result) for result in full] == [("BatchQueueFull", False)] * 8
    assert all(result.retryable and result.retry_after for result in full)
    assert [result for result in results if not isinstance(result, RowError)] == [row * 2 for row in range(12)]
    assert batcher.waiting == batcher.running == 0


@pytest.mark.parametrize("poison", [0, 17, 63])
@on_simulated_time
async def test_one_bad_row_fails_alone(poison: int) -> None:
    """A poison row in a batch of 64: 63 succeed."""
    bad = RowError("ProcessCrashed", "it died", retryable=True)
    model = Model(seconds=0.01, wrong=lambda rows: bad if poison in rows else None)
    results = await submitted(Batcher(rules=RULES, process=model), range(64))
    assert told(results.pop(poison)) == ("ProcessCrashed", True)
    assert results == [row * 2 for row in range(64) if row != poison]
    assert len(model.batches) == 1 + 2 * 6


@on_simulated_time
async def test_what_the_model_says_of_single_rows_is_theirs_alone() -> None:
    async def process(rows: list[int]) -> Answers:
        return [RowError("TextTooLong", "x", retryable=False) if row == 2 else row for row in rows]

    results = await submitted(Batcher(rules=RULES, process=process), range(4))
    assert told(results.pop(2)) == ("TextTooLong", True)
    assert results == [0, 1, 3]


@on_simulated_time
async def test_what_is_no_rows_fault_goes_to_all_of_them_and_costs_nothing() -> None:
    away = RowError("ProcessUnavailable", "x", retryable=True, retry_after=5.0, spent=False)
    model = Model(wrong=lambda rows: away)
    results = await submitted(Batcher(rules=RULES, process=model), range(64))
    assert {told(result) for result in results} == {("ProcessUnavailable", False)}
    assert len({id(result) for result in results}) == 64
    assert len(model.batches) == 1


@on_simulated_time
async def test_a_row_that_hangs_is_found_and_fails_alone() -> None:
    """The first time nobody knows who it was: all come back, and none has lost an attempt."""
    model = Model(seconds=0.1, wrong=lambda rows: pass_time(10_000) if 3 in rows else None)
    batcher = Batcher(rules=RULES, process=model)
    first = await submitted(batcher, range(8), timeout=10)
    assert {told(result) for result in first} == {("Timeout", False)}
    assert model.cancelled == 1
    again = await submitted(batcher, range(8), timeout=10)
    assert told(again[3]) == ("Timeout", True)
    assert again[:3] == [0, 2, 4]
    assert {told(result) for result in again[4:]} == {("Timeout", False)}, "they waited behind it"
    assert await submitted(batcher, range(4, 8), timeout=10) == [8, 10, 12, 14]
    assert sorted(map(len, model.batches)) == [1] * 8 + [8]
    assert await submitted(batcher, [0, 1]) == [0, 2]
    assert model.batches[-1] == [0, 1], "innocent, they run together again"


@on_simulated_time
async def test_time_that_runs_out_in_the_queue_costs_nothing() -> None:
    model = Model(seconds=100)
    batcher = Batcher(rules=BatchRules(max_size=2, max_wait=0.05, queue_size=20), process=model)
    running = asyncio.create_task(submitted(batcher, [1, 2], timeout=300))
    await pass_time(1)
    late = await submitted(batcher, [3], timeout=5)
    assert told(late[0]) == ("Timeout", False)
    assert "waited 5 s" in str(late[0])
    assert await running == [2, 4]
    assert model.batches == [[1, 2]]


@on_simulated_time
async def test_a_row_that_is_cancelled_leaves_and_takes_no_other_along() -> None:
    model = Model(seconds=5)
    batcher = Batcher(rules=BatchRules(max_size=2, max_wait=0.05, queue_size=20), process=model)
    tasks = [asyncio.create_task(batcher.submit(row, key=row, timeout=60)) for row in range(5)]
    await pass_time(1)
    assert (batcher.running, batcher.waiting) == (2, 3)
    tasks[0].cancel()  # of the batch that runs
    tasks[2].cancel()  # of those that wait
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results if isinstance(result, BaseException)] == [asyncio.CancelledError] * 2
    assert [result for result in results if isinstance(result, int)] == [2, 6, 8]
    assert model.batches == [[0, 1], [3, 4]]
    alone = [asyncio.create_task(batcher.submit(row, key=row, timeout=60)) for row in (8, 9)]
    await pass_time(1)
    for task in alone:
        task.cancel()
    await pass_time(0.1)
    assert model.cancelled == 1, "nobody waits for that batch any more"
    assert batcher.running == 0


@on_simulated_time
async def test_stop_hands_everything_back_and_waits_five_seconds_at_most() -> None:
    give_in = asyncio.Event()

    async def deaf(rows: list[int]) -> Answers:
        while not give_in.is_set():
            with suppress(asyncio.CancelledError):
                await give_in.wait()
        return rows

    batcher: Batcher[int, int] = Batcher(rules=BatchRules(max_size=2, max_wait=0.05, queue_size=20), process=deaf)
    tasks = [asyncio.create_task(batcher.submit(row, key=row, timeout=60)) for row in range(6)]
    await pass_time(1)
    began = asyncio.get_running_loop().time()
    stopping = asyncio.create_task(batcher.stop())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert asyncio.get_running_loop().time() == began, "nobody waits for the model to give in"
    assert {told(result) for result in results} == {("WorkerStopping", False)}
    await stopping
    assert asyncio.get_running_loop().time() - began == 5.0
    assert told((await submitted(batcher, [9]))[0]) == ("WorkerStopping", False)
    give_in.set()


FAULTS: list[Any] = [
    RowError("ProcessCrashed", "x", retryable=True),
    RowError("ProcessUnavailable", "x", retryable=True, spent=False),
    ValueError("x"),
    asyncio.CancelledError(),
    TimeoutError(),
    "short",
    "hang",
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: getattr(fault, "error_class", None) or type(fault).__name__)
@pytest.mark.parametrize("nth", [1, 2, 3])
@on_simulated_time
async def test_no_future_is_left_pending_whatever_breaks(fault: Any, nth: int) -> None:
    """The model's `nth` call breaks in each way that there is; rows come, are cancelled, and the batcher is stopped."""
    calls = 0

    async def process(rows: list[int]) -> Answers:
        nonlocal calls
        calls += 1
        await pass_time(0.5)
        if calls == nth:
            if fault == "short":
                return [0] * (len(rows) - 1)
            if fault == "hang":
                await pass_time(10_000)
            else:
                raise fault
        return [row * 2 for row in rows]

    batcher = Batcher(rules=BatchRules(max_size=4, max_wait=0.1, queue_size=40), process=process, parallel=2)
    # Not the rows' own time is to save them, but where nothing else can.
    seconds = 3.0 if fault == "hang" else 1_000.0
    tasks = [asyncio.create_task(batcher.submit(row, key=row, timeout=seconds)) for row in range(20)]
    await pass_time(0.7)
    tasks[5].cancel()
    tasks[19].cancel()
    done, pending = await asyncio.wait(tasks, timeout=20.0)
    assert not pending
    for task in done:
        if not task.cancelled():
            assert task.exception() is None or isinstance(task.exception(), RowError)
    more = [asyncio.create_task(batcher.submit(row, key=row, timeout=3.0)) for row in range(20)]
    await pass_time(0.2)
    await batcher.stop()
    _, pending = await asyncio.wait(more, timeout=0.1)
    assert not pending
    assert batcher.running == batcher.waiting == 0


@on_simulated_time
async def test_queue_sizes_times_and_errors_are_metrics() -> None:
    registry = CollectorRegistry()
    bad = RowError("ProcessCrashed", "x", retryable=True)
    model = Model(seconds=2.0, wrong=lambda rows: bad if 9 in rows else None)
    batcher = Batcher(
        rules=BatchRules(max_size=2, max_wait=50, queue_size=20), process=model, metrics=BatchMetrics(registry)
    )
    tasks = [asyncio.create_task(submitted(batcher, [9, 1, 2]))]
    await pass_time(0.1)
    name = "rowmill_worker_batch"
    assert registry.get_sample_value(f"{name}_queue_rows") == 1
    await asyncio.gather(*tasks)
    assert registry.get_sample_value(f"{name}_queue_rows") == 0
    # Of two, of each of them alone, and of the third: those with the bad one failed.
    assert registry.get_sample_value("rowmill_worker_batches_total", {"result": "Failure"}) == 2
    assert registry.get_sample_value("rowmill_worker_batches_total", {"result": "Success"}) == 2
    assert registry.get_sample_value(f"{name}_rows_failed_total") == 1
    assert registry.get_sample_value(f"{name}_rows_sum") == 5
    assert registry.get_sample_value(f"{name}_duration_seconds_sum") == 4.0
