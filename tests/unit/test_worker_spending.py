"""A worker's leave to send by the run's budget: never too much, every reservation back, nothing counted twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rowmill.errors import StoreUnavailable
from rowmill.ledger import TELL_SECONDS, Allowed, Held, SpendBook, Want
from rowmill.spend import Budget, Prices, Shortage, Spend
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.held import HeldRow
from rowmill_worker.permits import CUT_OFF
from rowmill_worker.spending import ROWS_ASKED, Spending, SpendRule
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_worker_dispatcher import row

PRICES = Prices(Decimal("0.002"), Decimal("0.15"), Decimal("0.60"))
PLENTY = Budget(requests=10**6, tokens=10**12, cost=Decimal(10**6))


class Book:
    """The ledger's rules in memory, with one worker's row and what all others have told together.

    `troubles` is what meets each telling, in turn: None, "away" (nothing arrives), "lost" (it arrives, its answer does
    not). `seconds` is how long one takes.
    """

    def __init__(self, budget: Budget | None = PLENTY) -> None:
        self.budget = budget
        self.others_used = Spend()
        self.others_held = Held()
        self.used, self.held = Spend(), Held()
        self.left: Spend | None = None
        self.refused: str | None = None
        self.tellings: list[SimpleNamespace] = []
        self.troubles: list[str | None] = []
        self.seconds = 0.0
        self.at_once = 0
        self.answering: Callable[[], object] = lambda: None

    async def tell(self, *, used: Spend, held: Held, wants: Sequence[Want] = (), refused: str | None = None) -> Allowed:
        assert self.at_once == 0, "one telling at a time"
        self.tellings.append(SimpleNamespace(used=used, held=held, wants=list(wants), refused=refused))
        trouble = self.troubles.pop(0) if self.troubles else None
        self.at_once += 1
        try:
            await asyncio.sleep(self.seconds / 2)
            if trouble == "away":
                raise StoreUnavailable("Postgres is away")
            allowed = self._told(used, held, wants, refused)
            await asyncio.sleep(self.seconds / 2)
            if trouble == "lost":
                raise StoreUnavailable("the connection broke")
            self.answering()
            return allowed
        finally:
            self.at_once -= 1

    def _told(self, used: Spend, held: Held, wants: Sequence[Want], refused: str | None) -> Allowed:
        granted, shortage = len(wants), None
        if self.budget is not None:
            granted, shortage = 0, None
            kept = held
            for want in wants:
                if (shortage := self._shortage(used, kept, want)) is not None:
                    break
                kept = kept.plus(want)
                granted += 1
        mine = self.used  # never becomes less
        self.used = Spend(
            max(mine.requests, used.requests),
            max(mine.input_tokens, used.input_tokens),
            max(mine.output_tokens, used.output_tokens),
            max(mine.cost, used.cost),
        )
        self.held = held
        for want in wants[:granted]:
            self.held = self.held.plus(want)
        self.refused = refused or self.refused
        for_good = shortage is not None and not granted and not held.requests and not self.others_held.requests
        return Allowed(granted, shortage, for_good)

    def _shortage(self, used: Spend, held: Held, want: Want) -> Shortage | None:
        assert self.budget is not None
        theirs, theirs_held = self.others_used, self.others_held
        for what, mine, need in (
            ("requests", used.requests + held.requests + theirs.requests + theirs_held.requests, 1),
            ("tokens", used.tokens + held.tokens + theirs.tokens + theirs_held.tokens, want.tokens),
            ("cost", used.cost + held.cost + theirs.cost + theirs_held.cost, want.cost),
        ):
            limit = getattr(self.budget, what)
            if limit is not None and limit - mine < need:
                return Shortage(what, Decimal(need), Decimal(max(limit - mine, 0)))
        return None

    async def leave(self) -> None:
        await asyncio.sleep(self.seconds)
        self.left = self.used.plus(Spend(self.held.requests, self.held.tokens, 0, self.held.cost))
        self.used, self.held = Spend(), Held()

    @property
    def counted(self) -> Spend:
        """What the ledger knows of this worker, whether it has left or not."""
        return self.used.plus(self.left or Spend())


@dataclass
class Call:
    """A row: when it comes, how long it has patience, what its call may use and uses, and how that ends.

    `told`: the endpoint says what was used. `gives_up`: seconds until whoever asks is cancelled.
    """

    comes: float = 0.0
    patience: float = 60.0
    most: tuple[int, int] = (40, 20)
    uses: tuple[int, int] = (30, 10)
    told: bool = True
    ends: str | None = "answered"
    lasts: float = 0.0
    gives_up: float | None = None


@dataclass
class Case:
    """One worker's spending over such a book, running."""

    book: Book
    rule: SpendRule = field(default_factory=lambda: SpendRule(PRICES, bounded=True, tokens=True))

    def __post_init__(self) -> None:
        self.calls: dict[int, Call] = {}
        self.sent: list[Call] = []
        self.refused = 0
        self.shortages: list[Shortage] = []
        self.away: list[StoreUnavailable] = []
        self.spending = Spending(
            book=cast(SpendBook, self.book),
            rule=self.rule,
            most=lambda row: self.calls[row.seq].most,
            short=self.shortages.append,
            away=self.away.append,
        )
        self.running = asyncio.create_task(self.spending.run())

    def comes(self, call: Call) -> asyncio.Task[None]:
        seq = len(self.calls) + 1
        self.calls[seq] = call
        return asyncio.create_task(self._one(row(seq), call))

    async def _one(self, held: HeldRow, call: Call) -> None:
        await asyncio.sleep(call.comes)
        taking = asyncio.create_task(self.spending.take(held, within=call.patience))
        if call.gives_up is not None:
            asyncio.get_running_loop().call_later(call.gives_up, taking.cancel)
        await asyncio.wait([taking])
        if taking.cancelled() or (leave := taking.result()) is None:
            self.refused += 1
            return
        if call.ends is None:
            await asyncio.sleep(call.lasts)
            leave.unused()
            return
        self.sent.append(call)
        await asyncio.sleep(call.lasts)
        attempt = Attempt(held.seq, {}, None, 1, "", "", 60.0)
        attempt.usage = Usage(1, *call.uses) if call.told else Usage(1)
        error = None if call.ends == "answered" else RowError(call.ends, "…", retryable=True)
        self.spending.called(attempt.usage)
        leave.over(attempt, error)

    def should_count(self) -> Spend:
        """What the calls that were sent have used, or may have."""
        inputs = outputs = 0
        for call in self.sent:
            if call.told:
                inputs, outputs = inputs + call.uses[0], outputs + call.uses[1]
            elif call.ends in ("answered", "Timeout", CUT_OFF):
                inputs += sum(call.most)  # nobody knows of what kind
        return Spend(len(self.sent), inputs, outputs)


def counts(spend: Spend) -> tuple[int, int, int]:
    return spend[:3]


moments = st.sampled_from([0.0, 0.001, 0.002, 0.5, 3.0])
calls = st.builds(
    Call,
    comes=moments,
    patience=st.sampled_from([0.0, 0.002, 1.0, 30.0]),
    most=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    uses=st.just((0, 0)),
    told=st.booleans(),
    ends=st.sampled_from(["answered", "answered", "HTTP429", "Timeout", CUT_OFF, None]),
    lasts=moments,
    gives_up=st.none() | moments,
)


def using(call: Call, share: int) -> Call:
    """What it uses is a part of what it may; an endpoint that tells nothing used all of it."""
    call.uses = (call.most[0] * share // 4, call.most[1] * share // 4)
    call.told = call.told and bool(sum(call.uses))
    return call


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    wanted=st.lists(st.builds(using, calls, st.integers(0, 4)), min_size=1, max_size=12),
    budget=st.builds(
        Budget,
        st.none() | st.integers(0, 12),
        st.none() | st.integers(0, 400),
        st.none() | st.decimals(0, Decimal("0.03"), places=4),
    ),
    others=st.integers(0, 4),
    troubles=st.lists(st.sampled_from([None, "away", "lost"]), max_size=6),
    seconds=st.sampled_from([0.0, 0.002, 0.8]),
)
def test_never_more_is_sent_than_allowed_and_every_reservation_comes_back(
    wanted: list[Call], budget: Budget, others: int, troubles: list[str | None], seconds: float
) -> None:
    async def main() -> None:
        book = Book(budget)
        book.others_held = Held(others, 10 * others)
        book.troubles, book.seconds = list(troubles), seconds
        case = Case(book)
        rows = [case.comes(call) for call in wanted]
        await pass_time(2.0)
        book.others_used, book.others_held = Spend(others, 5 * others), Held()
        await asyncio.wait(rows, timeout=200)
        assert all(one.done() and one.exception() is None for one in rows), "a row waits for ever"
        assert (case.spending.held, case.spending.waiting) == (Held(), 0)

        count = case.should_count()
        assert counts(case.spending.used) == counts(count)
        if budget.requests is not None and case.sent:
            assert count.requests + others <= budget.requests
        if budget.tokens is not None and case.sent:
            assert count.tokens + 5 * others <= budget.tokens
        if budget.cost is not None:
            assert case.spending.used.cost <= budget.cost

        await pass_time(3 * TELL_SECONDS)
        assert (book.used, book.held) == (case.spending.used, Held()), "the ledger holds what nobody uses"
        tellings = len(book.tellings)
        await pass_time(600.0)
        assert len(book.tellings) == tellings, "there was nothing to tell"

        await case.spending.leave()
        await pass_time(60.0)
        assert book.counted == case.spending.used
        assert book.used == Spend(), "who has left is counted once"

    simulate(main)


def test_what_the_budget_has_room_for_is_all_sent_in_blocks() -> None:
    async def main() -> None:
        book = Book()
        book.seconds = 0.01
        case = Case(book)
        rows = [case.comes(Call(lasts=1.0)) for _ in range(2 * ROWS_ASKED + 10)]
        await asyncio.wait(rows, timeout=60)
        assert len(case.sent) == len(rows)
        assert [len(one.wants) for one in book.tellings[:3]] == [ROWS_ASKED, ROWS_ASKED, 10]
        assert case.shortages == []
        assert case.spending.used == Spend(
            522, 522 * 30, 522 * 10, 522 * PRICES.cost(requests=1, input_tokens=30, output_tokens=10)
        )

    simulate(main)


def test_who_is_short_asks_seldom_and_goes_on_when_the_budget_is_raised() -> None:
    async def main() -> None:
        book = Book(Budget(requests=2))
        case = Case(book)
        rows = [case.comes(Call(patience=500.0, lasts=3.0)) for _ in range(4)]
        await pass_time(2.5)
        assert (len(case.sent), case.spending.waiting) == (2, 2)
        assert case.shortages == [], "what is under way may make room"
        await pass_time(100.0)
        assert case.shortages == [Shortage("requests", Decimal(1), Decimal(0))], "told once"
        assert len(book.tellings) < 125, "about once a second"
        book.budget = Budget(requests=3)
        await pass_time(5.0)
        assert (len(case.sent), case.spending.waiting) == (3, 1)
        assert len(case.shortages) == 2, "and again when it is so again"
        case.spending.refuse_waiting()
        await asyncio.wait_for(asyncio.gather(*rows), 60)
        assert (case.refused, case.spending.waiting) == (1, 0)

    simulate(main)


def test_leave_that_nobody_took_goes_back_without_anybody_asking() -> None:
    """Rows that gave up while the answer was on its way: others must not wait for what is reserved for them."""

    async def main() -> None:
        book = Book(Budget(requests=5))
        book.seconds = 1.0
        case = Case(book)
        rows = [case.comes(Call(patience=0.7)) for _ in range(3)]
        await asyncio.wait(rows, timeout=60)
        await pass_time(0.5)
        assert (case.refused, book.held) == (
            3,
            Held(3, 180, 3 * PRICES.cost(requests=1, input_tokens=40, output_tokens=20)),
        )
        await pass_time(2 * TELL_SECONDS)
        assert book.held == Held()

        # The same of a reply that is lost, and of a worker that leaves before it would have told.
        book.troubles = ["lost"]
        await asyncio.wait([case.comes(Call(patience=0.7))], timeout=60)
        await pass_time(0.5)
        assert book.held.requests == 1
        await pass_time(2 * TELL_SECONDS)
        assert book.held == Held()
        await asyncio.wait([case.comes(Call(patience=0.7))], timeout=60)
        await pass_time(0.5)
        assert book.held.requests == 1
        await case.spending.leave()
        assert (book.counted, book.held) == (Spend(), Held()), "nothing was ever sent"

    simulate(main)


@pytest.mark.parametrize(
    ("usage", "error", "tokens", "requests"),
    [
        (Usage(1, 30, 10), None, 40, 1),
        (Usage(1, 30, 10), "OutputTruncated", 40, 1),
        (Usage(1, 0, 900), None, 900, 1),  # more than it said it might: the endpoint's word counts
        (Usage(1), None, 60, 1),  # answered, and nothing said of tokens
        (None, None, 60, 1),
        (Usage(1), "Timeout", 60, 1),
        (Usage(1), "ConnectionReset", 60, 1),
        (Usage(1), "InvalidAnswer", 60, 1),
        (None, "ExecutorError", 60, 1),
        (None, CUT_OFF, 60, 1),
        (Usage(1), "HTTP401", 0, 1),  # refused: a call, but no work
        (Usage(1), "HTTP429", 0, 1),
        (Usage(1), "ContextLengthExceeded", 0, 1),
        (None, "TemplateError", 0, 1),
        (Usage(0), "ConnectionRefused", 0, 0),  # nobody listened
        (Usage(0), None, 0, 0),  # work of an earlier call was found
    ],
)
def test_a_call_counts_what_it_used_or_may_have_used(
    usage: Usage | None, error: str | None, tokens: int, requests: int
) -> None:
    async def main() -> None:
        case = Case(Book())
        case.calls[1] = Call()
        leave = await case.spending.take(row(1), within=60.0)
        assert leave is not None
        assert case.spending.held == Held(1, 60, PRICES.cost(requests=1, input_tokens=40, output_tokens=20))
        attempt = Attempt(1, {}, None, 1, "", "", 60.0, usage)
        case.spending.called(usage)
        leave.over(attempt, None if error is None else RowError(error, "…", retryable=True))
        used = case.spending.used
        assert (used.requests, used.tokens, case.spending.held) == (requests, tokens, Held())
        charged = case.spending.used.cost - requests * PRICES.call
        assert charged >= 0
        assert (charged == 0) is (tokens == 0)

    simulate(main)


def test_without_tokens_only_calls_count_and_cost() -> None:
    async def main() -> None:
        case = Case(Book(Budget(cost=Decimal("0.005"))), SpendRule(PRICES, bounded=True, tokens=False))
        rows = [case.comes(Call(told=told, lasts=1.0, patience=9.0)) for told in (True, False, True)]
        await asyncio.wait(rows, timeout=60)
        assert case.spending.used == Spend(2, 0, 0, Decimal("0.004"))
        assert case.book.tellings[0].wants == [Want(0, Decimal("0.002"))] * 3

    simulate(main)


def test_without_a_budget_what_was_used_is_told_now_and_then_and_nothing_else() -> None:
    async def main() -> None:
        case = Case(Book(None), SpendRule(Prices(), tokens=True))
        for _ in range(100):
            case.spending.called(Usage(1, 3, 1))
            await pass_time(0.1)
        assert 1 <= len(case.book.tellings) <= 2
        await pass_time(TELL_SECONDS)
        assert case.book.used == Spend(100, 300, 100)
        told = len(case.book.tellings)
        await pass_time(600.0)
        assert len(case.book.tellings) == told

    simulate(main)


@pytest.mark.parametrize("trouble", [None, "away", "lost"])
def test_that_calls_are_refused_is_told_for_as_long_as_the_worker_lives(trouble: str | None) -> None:
    async def main() -> None:
        case = Case(Book())
        case.book.troubles = [trouble]
        await pass_time(0.0)
        case.spending.refused("the endpoint refused 10 calls")
        await pass_time(1.0)
        assert case.book.refused == "the endpoint refused 10 calls"
        assert [one.refused for one in case.book.tellings] == ["the endpoint refused 10 calls"] * (1 + bool(trouble))
        assert len(case.away) == bool(trouble)
        case.book.refused = None  # the engine has seen it, and forgotten
        await pass_time(2 * TELL_SECONDS)
        assert case.book.refused == "the endpoint refused 10 calls", "or a worker that sends nothing looks like others"
        case.book.refused = None
        await case.spending.leave()
        assert case.book.refused is None, "that is over with this worker"

    simulate(main)


def test_a_new_complaint_while_another_is_on_its_way_is_not_lost() -> None:
    async def main() -> None:
        case = Case(Book())
        case.book.seconds = 1.0
        await pass_time(0.0)
        case.spending.refused("one")
        await pass_time(0.5)
        case.spending.refused("two")
        await pass_time(5.0)
        assert [one.refused for one in case.book.tellings] == ["one", "two"]

    simulate(main)


@pytest.mark.parametrize("seconds", [0.0, 0.003, 2.0])
@pytest.mark.parametrize("after", [0.0, 0.0025, TELL_SECONDS - 0.001, TELL_SECONDS + 0.003, TELL_SECONDS + 1.5])
def test_who_leaves_is_counted_once_whenever_that_is(seconds: float, after: float) -> None:
    """Also while a telling is on its way, or just before one is due: what is told after leaving would count again."""

    async def main() -> None:
        case = Case(Book())
        case.book.seconds = seconds
        rows = [case.comes(Call()) for _ in range(3)]
        await asyncio.wait(rows, timeout=60)
        await pass_time(after)
        case.spending.called(Usage(1, 5, 5))
        await case.spending.leave()
        assert case.book.counted == case.spending.used
        await pass_time(60.0)
        assert case.book.left == case.spending.used
        assert case.book.used == Spend()

    simulate(main)


def test_a_ledger_that_is_away_at_the_end_keeps_nobody_from_leaving() -> None:
    async def main() -> None:
        case = Case(Book())
        await asyncio.wait([case.comes(Call())], timeout=60)
        case.book.troubles = ["away"] * 9
        await case.spending.leave()
        assert len(case.away) == 1
        assert case.book.left is None

    simulate(main)


def test_while_the_ledger_is_away_nothing_is_allowed_and_it_is_asked_ever_less() -> None:
    async def main() -> None:
        case = Case(Book())
        case.book.troubles = ["away"] * 30
        task = case.comes(Call(patience=20.0))
        await asyncio.wait([task], timeout=60)
        assert (case.refused, case.sent, case.spending.held) == (1, [], Held())
        assert 10 <= len(case.book.tellings) <= 16
        case.book.troubles = []
        await asyncio.wait([case.comes(Call())], timeout=60)
        assert len(case.sent) == 1, "and then it goes on"

    simulate(main)


def test_a_cancel_in_the_moment_of_the_leave_gives_it_back() -> None:
    async def main() -> None:
        case = Case(Book())
        case.calls[1] = Call()
        taking = asyncio.create_task(case.spending.take(row(1), within=60.0))
        # After the answer came, and before the row runs that waits for it.
        case.book.answering = lambda: asyncio.get_running_loop().call_soon(taking.cancel)
        await asyncio.wait([taking])
        assert taking.cancelled()
        assert case.book.held.requests == 1, "it was allowed"
        assert (case.spending.held, case.spending.waiting) == (Held(), 0)
        await pass_time(2 * TELL_SECONDS)
        assert case.book.held == Held()

    simulate(main)
