"""Permits of a limits group in a worker: asked for in blocks, waited for, sent in time, given back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from rowmill.errors import StoreUnavailable
from rowmill.ledger import LockSession
from rowmill.spec import identity_of
from rowmill.window import Granted, GroupLimits, LimitsWindow, Permit
from rowmill.window.limits import SEND_WITHIN_SECONDS, group_key
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.grants import Grant, Grants
from rowmill_worker.job import worker_job
from rowmill_worker.permits import GroupPermits
from tests.support.inprocess import manifest
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_worker_dispatcher import Bench, row

LIMITS = GroupLimits(requests_per_minute=600, tokens_per_minute=10_000, max_in_flight=5)


class Books:
    """The group's books in the test's hands: `offers` are the seconds from now on at which calls are permitted."""

    def __init__(self) -> None:
        self.offers: list[float] = []
        self.asks: list[SimpleNamespace] = []
        self.away = False
        self.others: list[str] = []

    async def ask(
        self,
        wants: Sequence[int],
        *,
        holds: int,
        refunds: Sequence[tuple[float, int]] = (),
        unused: Sequence[float] = (),
        pause: float = 0.0,
        leaves: bool = False,
    ) -> Granted:
        self.asks.append(
            SimpleNamespace(
                wants=list(wants),
                holds=holds,
                refunds=list(refunds),
                unused=list(unused),
                pause=pause,
                leaves=leaves,
            )
        )
        if self.away:
            raise StoreUnavailable("Redis is away")
        given, self.offers = self.offers[: len(wants)], self.offers[len(wants) :]
        permits = [Permit(500.0 + later, want) for later, want in zip(given, wants, strict=False)]
        return Granted(500.0, permits, 0.1, LIMITS, self.others)


class Case:
    """Grants over such books, running."""

    def __init__(self) -> None:
        self.books = Books()
        self.told: list[tuple[GroupLimits, list[str]]] = []
        self.away: list[StoreUnavailable] = []
        loop = asyncio.get_running_loop()
        self.grants = Grants(
            books=cast(LimitsWindow, self.books),
            told=lambda limits, others: self.told.append((limits, others)),
            away=self.away.append,
            now=loop.time,
        )
        self.running = asyncio.create_task(self.grants.run())

    def take(self, tokens: int = 0, *, within: float = 60.0) -> asyncio.Task[Grant | None]:
        return asyncio.create_task(self.grants.take(tokens, within=within))


def test_a_block_is_asked_for_at_once_and_each_row_waits_for_its_time() -> None:
    async def main() -> None:
        case = Case()
        began = asyncio.get_running_loop().time()
        case.books.offers = [0.0, 2.0]
        rows = [case.take(100), case.take(200), case.take(300)]
        await pass_time(1.0)
        assert case.books.asks[0].wants == [100, 200, 300]
        assert [one.done() for one in rows] == [True, False, False]
        assert (case.grants.held, case.grants.waiting) == (2, 1)
        grant = await rows[1]
        assert grant is not None
        assert 2.0 <= asyncio.get_running_loop().time() - began <= 2.1, "never before its time"
        assert case.told == [(LIMITS, [])]

    simulate(main)


def test_nothing_is_sent_while_redis_is_away_and_patience_has_an_end() -> None:
    async def main() -> None:
        case = Case()
        case.books.away = True
        patient, impatient = case.take(within=100.0), case.take(within=5.0)
        await pass_time(20.0)
        assert impatient.result() is None
        assert not patient.done()
        assert case.away
        case.books.away = False
        case.books.offers = [0.0]
        assert await patient is not None
        assert case.grants.waiting == 0

    simulate(main)


def test_what_was_not_used_is_told_once_even_when_the_answer_is_lost() -> None:
    async def main() -> None:
        case = Case()
        case.books.offers = [0.0, 0.0]
        used, unsent = await case.take(1000), await case.take(50)
        assert used is not None
        assert unsent is not None
        case.grants.end(used, used=300, pause=4.0)
        case.grants.give_back(unsent)
        case.books.away = True
        case.take(within=1.0)
        await pass_time(3.0)
        asks = [ask for ask in case.books.asks if ask.refunds]
        assert [(ask.refunds, ask.pause, ask.holds) for ask in asks] == [([(500.0, 700), (500.0, 50)], 4.0, 0)]
        assert [ask.unused for ask in case.books.asks if ask.unused] == [[500.0]]

    simulate(main)


def test_whoever_stops_waiting_gives_its_permit_back() -> None:
    async def main() -> None:
        case = Case()
        case.books.offers = [5.0, 5.0]
        one, other = case.take(10), case.take(10)
        await pass_time(1.0)
        assert case.grants.held == 2
        one.cancel()
        await pass_time(6.0)
        assert await other is not None
        assert case.grants.held == 1
        refused = case.take(10)
        await pass_time(0.1)
        case.grants.refuse_waiting()
        assert await refused is None
        assert case.grants.waiting == 0

    simulate(main)


def test_a_permit_that_is_too_old_is_not_used() -> None:
    async def main() -> None:
        case = Case()
        case.books.offers = [-SEND_WITHIN_SECONDS - 0.5, 0.5]
        grant = await case.take(10)
        assert grant is not None
        assert grant.permit.time == 500.5
        assert case.grants.held == 1

    simulate(main)


def test_a_worker_that_leaves_says_so() -> None:
    async def main() -> None:
        case = Case()
        await case.grants.leave()
        assert case.books.asks[-1].leaves
        case.books.away = True
        await case.grants.leave()

    simulate(main)


def test_a_group_is_its_namespaces_and_a_simulation_belongs_to_none() -> None:
    limits = {"group": "g", "requestsPerMinute": 60, "priority": -3}
    for namespace in ("a", "b"):
        job = manifest("http://h/", namespace=namespace, rows=1, limits=limits, concurrency={"adaptive": {"max": 9}})
        resolved = worker_job(job, identity_of(job, installation="i"), environ={})
        assert resolved.limits is not None
        assert (resolved.limits.namespace, resolved.limits.priority) == (namespace, -3)
        assert resolved.limits.limits == GroupLimits(requests_per_minute=60)
        assert (resolved.concurrency, resolved.adaptive, resolved.most_slots) == (3, (1, 9), 9)
    assert group_key("i", "a", "g") != group_key("i", "b", "g") != group_key("j", "b", "g")
    job = manifest("http://h/", rows=1, limits=limits, mode="Simulate", concurrency={"adaptive": {}})
    resolved = worker_job(job, identity_of(job, installation="i"), environ={})
    assert (resolved.limits, resolved.adaptive) == (None, None)


class Answers:
    """An executor that uses 30 tokens a call, and fails the second row with a Retry-After, the third unsent."""

    active_sessions = 0

    def __init__(self) -> None:
        self.sent: list[int] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, attempt: Attempt) -> int:
        self.sent.append(attempt.seq)
        if attempt.seq == 3:
            raise RowError("SessionClosed", "closed", retryable=True, spent=False)
        attempt.usage = Usage(requests=1, input_tokens=10, output_tokens=20)
        if attempt.seq == 2:
            raise RowError("HTTP429", "slow down", retryable=True, retry_after=7.0)
        return attempt.seq


class Permitted(Bench):
    """A dispatcher whose rows need permits."""

    def __init__(self, case: Case, *, slots: int = 4) -> None:
        super().__init__(slots=slots)
        self.answers = Answers()
        self.dispatcher._executor = self.answers
        self.dispatcher._permits = GroupPermits(case.grants, tokens=lambda row: 100)


def test_rows_are_sent_with_a_permit_only_and_settle_it() -> None:
    async def main() -> None:
        case = Case()
        bench = Permitted(case)
        bench.dispatcher.offer([row(1), row(2), row(3), row(4)])
        await pass_time(5.0)
        assert bench.answers.sent == [], "nothing is permitted yet"
        assert bench.gate.processing == 4, "but the slots are theirs"
        assert bench.dispatcher.running == []
        case.books.offers = [0.0, 0.0, 0.0]
        await pass_time(1.0)
        assert bench.answers.sent == [1, 2, 3]
        assert case.grants.held == 0
        refunds = [one for ask in case.books.asks for one in ask.refunds]
        assert refunds == [(500.0, 70), (500.0, 70), (500.0, 100)]
        assert max(ask.pause for ask in case.books.asks) == 7.0
        assert [one.seq for one in bench.put_back] == [3], "sent by nobody: no attempt, and again"

    simulate(main)


def test_a_row_that_waits_too_long_is_handed_back_unspent_and_a_drain_does_not_wait_for_permits() -> None:
    async def main() -> None:
        case = Case()
        bench = Permitted(case, slots=2)
        bench.dispatcher.offer([row(1), row(2)])
        await pass_time(200.0)
        bench.time = 200.0
        bench.dispatcher.offer([row(3), row(4)])
        await pass_time(110.0)
        assert [(one.seq, one.attempts) for one in bench.put_back] == [(1, 0), (2, 0)]
        await asyncio.wait_for(bench.dispatcher.drain(grace=60.0), 5.0)
        assert [one.seq for one in bench.put_back] == [1, 2, 3, 4]
        assert bench.answers.sent == []
        assert bench.gate.processing == 0

    simulate(main)


def test_a_claim_that_was_lost_meanwhile_gives_the_permit_back() -> None:
    async def main() -> None:
        case = Case()
        bench = Permitted(case)
        bench.dispatcher.offer([row(1)])
        await pass_time(1.0)
        cast(LockSession, bench.locks).number = 2
        case.books.offers = [0.0]
        await pass_time(1.0)
        assert bench.answers.sent == []
        assert [one.seq for one in bench.put_back] == [1]
        assert case.grants.held == 0

    simulate(main)


def test_a_lock_session_that_is_lost_takes_waiting_rows_out_of_their_slots() -> None:
    async def main() -> None:
        case = Case()
        bench = Permitted(case)
        bench.dispatcher.offer([row(1), row(2)])
        await pass_time(1.0)
        bench.locks.is_open = False
        assert bench.dispatcher.withdraw() == []
        await pass_time(0.1)
        assert sorted(one.seq for one in bench.put_back) == [1, 2]
        assert all(one.delay == 0.0 for one in bench.put_back)

    simulate(main)
