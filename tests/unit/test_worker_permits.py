"""Leave to send: several have a say, and each of their passes is settled once."""

from __future__ import annotations

import asyncio
from typing import Any

from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.held import HeldRow
from rowmill_worker.permits import AllOf, Pass
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_worker_dispatcher import Bench, row


class Ends:
    """An executor whose first row is answered, whose others fail: by a bug, sent and refused, not sent, for ever."""

    active_sessions = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, attempt: Attempt) -> Any:
        match attempt.seq:
            case 1:
                return "answer"
            case 2:
                raise ZeroDivisionError
            case 3:
                raise RowError("HTTP400", "bad", retryable=False)
            case 4:
                raise RowError("SessionClosed", "closed", retryable=True, spent=False)
        return await asyncio.get_running_loop().create_future()


class Part:
    """Permits in the test's hands; a pass takes `seconds`. `settled` tells how each pass ended."""

    def __init__(self, name: str, *, seconds: float = 0.0) -> None:
        self.waits_for = name
        self.seconds = seconds
        self.refuses = False
        self.asked: list[tuple[int, float]] = []
        self.given = 0
        self.settled: list[tuple[int, str | None]] = []
        self.waiting: list[asyncio.Future[bool]] = []

    async def take(self, row: HeldRow, *, within: float) -> Pass | None:
        self.asked.append((row.seq, within))
        if self.refuses:
            return None
        if self.seconds:
            leave: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
            self.waiting.append(leave)
            handle = asyncio.get_running_loop().call_later(min(self.seconds, within), self._tell, leave)
            try:
                if not await leave:
                    return None
            finally:
                handle.cancel()
        self.given += 1
        return _Settles(self, row.seq)

    def _tell(self, leave: asyncio.Future[bool]) -> None:
        if not leave.done():
            leave.set_result(True)

    def refuse_waiting(self) -> None:
        waiting, self.waiting = self.waiting, []
        for leave in waiting:
            if not leave.done():
                leave.set_result(False)


class _Settles:
    def __init__(self, part: Part, seq: int) -> None:
        self._part = part
        self._seq = seq

    def over(self, attempt: Attempt, error: RowError | None) -> None:
        assert attempt.seq == self._seq
        self._part.settled.append((self._seq, "answered" if error is None else error.error_class))

    def unused(self) -> None:
        self._part.settled.append((self._seq, None))


class Asking(Bench):
    """A dispatcher whose rows ask two parts, one after the other."""

    def __init__(self, first: Part, second: Part) -> None:
        super().__init__(slots=5)
        self.dispatcher._executor = Ends()
        self.all = AllOf(first, second, now=asyncio.get_running_loop().time)
        self.dispatcher._permits = self.all


def test_each_pass_is_settled_once_however_its_call_ends() -> None:
    async def main() -> None:
        first, second = Part("one"), Part("another")
        bench = Asking(first, second)
        bench.dispatcher.offer([row(seq) for seq in range(1, 6)])
        await pass_time(1.0)
        await bench.dispatcher.drain(grace=1.0)
        for part in (first, second):
            assert sorted(part.settled) == [
                (1, "answered"),
                (2, "ExecutorError"),
                (3, "HTTP400"),
                (4, None),
                (5, "Cancelled"),
            ]
        assert bench.all.waits_for == "one and another"

    simulate(main)


def test_what_a_later_part_refuses_goes_back_to_those_before_it() -> None:
    async def main() -> None:
        first, second = Part("one", seconds=100.0), Part("another")
        second.refuses = True
        bench = Asking(first, second)
        bench.dispatcher.offer([row(1)])
        await pass_time(101.0)
        assert first.asked == [(1, 300.0)]
        assert second.asked == [(1, 200.0)], "the time is one for all of them"
        assert first.settled == [(1, None)]
        assert [(one.seq, one.attempts) for one in bench.put_back] == [(1, 0)]

        second.refuses, second.seconds = False, 100.0
        bench.dispatcher.offer([row(2)])
        await pass_time(150.0)
        await asyncio.wait_for(bench.dispatcher.abandon(), 60.0)
        assert first.settled == [(1, None), (2, None)], "also of one that was cancelled meanwhile"
        assert [one.seq for one in bench.put_back] == [1, 2]
        assert bench.gate.processing == 0

    simulate(main)


def test_a_row_between_two_parts_hears_of_a_refusal_too() -> None:
    async def main() -> None:
        first, second = Part("one", seconds=10.0), Part("another", seconds=100.0)
        bench = Asking(first, second)
        bench.dispatcher.offer([row(1)])
        await pass_time(1.0)
        first.waiting[0].set_result(True)  # it has its pass, and has not run since
        assert bench.dispatcher.withdraw() == []
        await pass_time(1.0)
        assert first.settled == [(1, None)]
        assert second.asked == []
        assert [one.seq for one in bench.put_back] == [1]

    simulate(main)


def test_a_claim_that_went_while_its_row_waited_leaves_the_passes_unused() -> None:
    async def main() -> None:
        first, second = Part("one"), Part("another", seconds=10.0)
        bench = Asking(first, second)
        bench.dispatcher.offer([row(1)])
        await pass_time(1.0)
        bench.locks.number = 2
        await pass_time(10.0)
        assert first.settled == second.settled == [(1, None)]
        assert [one.seq for one in bench.put_back] == [1]

    simulate(main)


class Deaf(Part):
    """Its first refusal comes while it does not wait: it waits again."""

    async def take(self, row: HeldRow, *, within: float) -> Pass | None:
        return await super().take(row, within=within) or await super().take(row, within=within)


def test_a_drain_ends_though_a_row_began_to_wait_after_the_refusal() -> None:
    async def main() -> None:
        first, second = Part("one"), Deaf("another", seconds=200.0)
        bench = Asking(first, second)
        bench.dispatcher._permits = second
        bench.dispatcher.offer([row(1)])
        await pass_time(1.0)
        await asyncio.wait_for(bench.dispatcher.drain(grace=5.0), 30.0)
        assert [one.seq for one in bench.put_back] == [1]
        assert second.given == 0

    simulate(main)
