"""The dispatcher by itself: who may start, what a cancel that comes late or is lost does, how a drain ends."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from rowmill.ledger import LockSession
from rowmill.window import WorkWindow
from rowmill_worker.backoff import RetryPolicy
from rowmill_worker.dispatcher import CallRules, Dispatcher, Ends
from rowmill_worker.executors.protocol import Attempt, Usage
from rowmill_worker.gate import Gate
from rowmill_worker.held import HeldRow


async def until(reached: Callable[[], bool], *, within: float = 90.0) -> None:
    async with asyncio.timeout(within):
        while not reached():
            await asyncio.sleep(0.005)


class HeldExecutor:
    """Holds every call until it is let go. `deaf` calls swallow that many cancels first."""

    def __init__(self, *, deaf: int = 0) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.beside: dict[int, set[int]] = {}
        self._go = asyncio.Event()
        self._deaf = deaf

    active_sessions = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    def let_go(self) -> None:
        self._go.set()

    async def execute(self, attempt: Attempt) -> Any:
        for other in self.running:
            self.beside.setdefault(other, set()).add(attempt.seq)
        self.beside.setdefault(attempt.seq, set()).update(self.running)
        self.running.add(attempt.seq)
        try:
            while True:
                try:
                    await self._go.wait()
                    return attempt.seq
                except asyncio.CancelledError:
                    if self._deaf == 0:
                        raise
                    self._deaf -= 1
        finally:
            self.running.discard(attempt.seq)


class Bench:
    """A dispatcher with everything around it in the test's hands."""

    def __init__(self, *, slots: int = 4, timeout: float = 60.0, deaf: int = 0) -> None:
        self.executor = HeldExecutor(deaf=deaf)
        self.locks = SimpleNamespace(is_open=True, number=1)
        self.noting = asyncio.Event()
        self.noting.set()
        self.noted: list[tuple[int, bool]] = []
        self.committed: list[HeldRow] = []
        self.put_back: list[HeldRow] = []
        self.broken: list[BaseException] = []
        self.storms: list[tuple[str, str]] = []
        self.usages: list[Usage | None] = []
        self.time = 0.0
        self.gate = Gate(slots)
        self.dispatcher = Dispatcher(
            gate=self.gate,
            executor=self.executor,
            rules=CallRules(
                timeout=timeout,
                acquire_timeout=300.0,
                retry=RetryPolicy(max_attempts=1, initial=0.0, maximum=0.0),
                idempotency_key=lambda row: str(row.seq),
                request_id=lambda row: str(row.seq),
            ),
            ends=Ends(
                commit=self.committed.append,
                called=self.usages.append,
                put_back=self.put_back.extend,
                retried=lambda row, error, delay: None,
                attempt_failed=lambda row, error: None,
                handed_back=lambda rows, why: None,
                storm=lambda error_class, message: self.storms.append((error_class, message)),
                bug=lambda row, error: self.broken.append(error),
                broken=self.broken.append,
            ),
            locks=cast(LockSession, self.locks),
            window=lambda: cast(WorkWindow, self),
            may_start=lambda: self.locks.is_open,
            now=lambda: self.time,
            rng=random.Random(0),
        )

    epoch = 1

    async def mark_started(self, shard: int, seqs: Sequence[int], *, alone: bool) -> None:
        self.noted += [(seq, alone) for seq in seqs]
        await self.noting.wait()


def row(seq: int, *, deaths: int = -1, session: int = 1) -> HeldRow:
    return HeldRow(seq, 0, b"{}", 0, deaths, 0, 1, session)


async def test_a_row_that_runs_alone_gets_no_company_while_it_runs() -> None:
    bench = Bench()
    bench.dispatcher.offer([row(1, deaths=2)])
    await until(lambda: 1 in bench.executor.running)
    bench.dispatcher.offer([row(2), row(3)])
    bench.dispatcher.pump()
    await asyncio.sleep(0.02)
    assert bench.executor.running == {1}, "a death now convicts row 1: nothing else may be its cause"
    bench.executor.let_go()
    await until(lambda: len(bench.committed) == 3)
    assert bench.executor.beside[1] == set()
    assert bench.gate.processing == 0
    assert bench.broken == []


async def test_a_row_whose_session_goes_while_its_start_is_noted_is_not_started() -> None:
    bench = Bench()
    bench.noting.clear()
    bench.dispatcher.offer([row(1, deaths=0)])
    await until(lambda: bench.noted == [(1, False)])
    bench.locks.number = 2  # lost and open again: the claim on row 1 is gone
    bench.noting.set()
    await until(lambda: bool(bench.put_back or bench.executor.running))
    assert bench.executor.running == set()
    assert [r.seq for r in bench.put_back] == [1]


async def test_a_row_of_a_session_that_is_gone_is_not_started() -> None:
    bench = Bench()
    bench.dispatcher.offer([row(1, session=7), row(2)])
    await until(lambda: 2 in bench.executor.running)
    assert bench.executor.running == {2}
    assert [r.seq for r in bench.put_back] == [1]
    bench.executor.let_go()
    await until(lambda: len(bench.committed) == 1)


async def test_a_row_whose_start_is_noted_when_the_drain_begins_is_handed_back() -> None:
    bench = Bench()
    bench.noting.clear()
    bench.dispatcher.offer([row(1, deaths=0)])
    await until(lambda: bench.noted == [(1, False)])
    draining = asyncio.create_task(bench.dispatcher.drain(grace=300))
    await asyncio.sleep(0)
    bench.noting.set()
    await asyncio.wait_for(draining, 60)
    assert [r.seq for r in bench.put_back] == [1]
    assert bench.executor.beside == {}


async def test_a_cancel_that_an_executor_loses_is_repeated() -> None:
    bench = Bench(timeout=1.0, deaf=1)
    watching = asyncio.create_task(bench.dispatcher.watch())
    bench.dispatcher.offer([row(1)])
    await until(lambda: 1 in bench.executor.running)
    bench.time = 10.0
    await until(lambda: bool(bench.committed), within=90)
    (ended,) = bench.committed
    assert ended.outcome is not None
    assert ended.outcome.error_class == "Timeout"
    assert bench.gate.processing == 0, "the slot is back"
    watching.cancel()


async def test_a_drain_ends_though_an_executor_loses_its_cancel() -> None:
    bench = Bench(deaf=1)
    bench.dispatcher.offer([row(1)])
    await until(lambda: 1 in bench.executor.running)
    await asyncio.wait_for(bench.dispatcher.drain(grace=0.01), 60)
    assert [r.seq for r in bench.put_back] == [1]


async def test_a_worker_that_breaks_off_ends_its_calls() -> None:
    bench = Bench(slots=2, deaf=1)
    bench.dispatcher.offer([row(1), row(2), row(3)])
    await until(lambda: bench.executor.running == {1, 2})
    await asyncio.wait_for(bench.dispatcher.abandon(), 60)
    assert bench.executor.running == set()
    assert 3 not in bench.executor.beside, "nothing is started any more"
    assert bench.gate.processing == 0


async def test_fewer_slots_take_effect_as_rows_end() -> None:
    bench = Bench(slots=4)
    bench.dispatcher.offer([row(seq) for seq in range(1, 9)])
    await until(lambda: len(bench.executor.running) == 4)
    bench.gate.resize(1)
    assert (bench.gate.limit, bench.gate.available) == (4, 0)
    go, bench.executor._go = bench.executor._go, asyncio.Event()  # who comes from now on is held anew
    go.set()
    await until(lambda: len(bench.committed) == 4)
    await until(lambda: len(bench.executor.running) == 1)
    assert (bench.gate.limit, bench.gate.processing) == (1, 1)
    bench.executor.let_go()
    await until(lambda: len(bench.committed) == 8)
    assert all(bench.executor.beside[seq].isdisjoint({5, 6, 7, 8}) for seq in range(6, 9))
