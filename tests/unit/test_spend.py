"""What a run has used and may use, and when it stands still for it: exact sums, texts of JSON, decisions."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.spend import NANO, Budget, Pause, Prices, Reason, Shortage, Spend, money
from rowmill.status import Phase, RunStatus
from rowmill_operator.engine.pauses import goes_on, pause_of, still

AT = 1_800_000_000.0
SPENT = Spend(5, 60, 30, Decimal("0.4"))

prices = st.decimals(min_value=0, max_value=10**12 - 1, places=9)
sums = st.decimals(min_value=0, max_value=10**20, places=9)
counts = st.integers(0, 2**53 - 1)
spends = st.builds(Spend, counts, counts, counts, sums)
shortages = st.builds(Shortage, st.sampled_from(["requests", "tokens", "cost"]), sums, sums)
budgets = st.builds(Budget, st.none() | counts, st.none() | counts, st.none() | sums)
pauses = st.builds(
    Pause,
    st.sampled_from(Reason),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.floats(0, 2e9),
    st.none() | st.floats(0, 2e9),
    st.integers(0, 1000),
    st.none() | shortages,
)


# -- sums


@given(prices, prices, prices, st.integers(0, 1000), st.integers(0, 10**9), st.integers(0, 10**9))
def test_a_cost_is_exact_to_nine_digits(
    call: Decimal, million_in: Decimal, million_out: Decimal, calls: int, given_in: int, given_out: int
) -> None:
    cost = Prices(call, million_in, million_out).cost(requests=calls, input_tokens=given_in, output_tokens=given_out)
    amounts = ((calls * 10**6, call), (given_in, million_in), (given_out, million_out))
    millionths = sum(number * int(price.scaleb(9)) for number, price in amounts)
    exponent = cost.as_tuple().exponent
    assert isinstance(exponent, int)
    assert exponent >= -9
    if millionths < 10**27:  # beyond that 28 digits do not hold it before it is rounded
        assert abs(int(cost.scaleb(15)) - millionths) <= 10**6 // 2


def test_a_call_costs_what_the_manifest_says() -> None:
    mini = Prices(Decimal("0.002"), Decimal("0.15"), Decimal("0.60"))
    assert mini.cost(requests=1, input_tokens=1_000, output_tokens=100) == Decimal("0.002210000")
    assert mini.cost(requests=0, input_tokens=1, output_tokens=0) == Decimal("0.00000015").quantize(NANO)
    assert Prices().cost(requests=9, input_tokens=9, output_tokens=9) == 0


@given(st.lists(spends.filter(lambda one: one.cost < 10**17), max_size=6))
def test_sums_are_sums(parts: list[Spend]) -> None:
    whole = Spend()
    for part in parts:
        whole = whole.plus(part)
    assert (whole.requests, whole.tokens) == (sum(p.requests for p in parts), sum(p.tokens for p in parts))
    assert int(whole.cost.scaleb(9)) == sum(int(p.cost.scaleb(9)) for p in parts)


@given(spends, st.integers(1, 10**9), st.integers(1, 10**9))
def test_what_all_rows_would_use_is_never_told_too_low(used: Spend, done: int, rows: int) -> None:
    told = used.for_rows(done, rows)
    for now, then in zip(used[:3], told[:3], strict=True):
        assert then * done >= now * rows > (then - 1) * done
    # Of the money, nine digits after the point and 28 in all.
    exact = int(used.cost.scaleb(9)) * rows
    assert abs(int(told.cost.scaleb(9)) * done - exact) <= max(done, exact // 10**26)


def test_the_rows_that_are_done_use_what_they_used() -> None:
    assert SPENT.for_rows(7, 7) == SPENT
    assert Spend(10, 100, 7, Decimal("0.01")).for_rows(3, 10) == Spend(34, 334, 24, Decimal("0.033333333"))


@pytest.mark.parametrize(
    ("amount", "told"),
    [("0.400", "0.4"), ("1E+3", "1,000"), ("0.000000001", "0.000000001"), ("12345678.5", "12,345,678.5"), ("0", "0")],
)
def test_money_is_written_without_exponent_and_zeros(amount: str, told: str) -> None:
    assert money(Decimal(amount)) == told


@given(sums.filter(lambda amount: amount < 10**18))
def test_no_digit_of_money_is_lost_for_people(amount: Decimal) -> None:
    assert Decimal(money(amount).replace(",", "")) == amount


@given(budgets, shortages, pauses)
def test_what_the_ledger_keeps_is_what_was_given(budget: Budget, shortage: Shortage, pause: Pause) -> None:
    assert Budget.from_json(json.loads(budget.as_json())) == budget
    assert Shortage.from_json(json.loads(shortage.as_json())) == shortage
    assert Pause.from_json(json.loads(pause.as_json())) == pause


# -- standing still


def short(what: str, need: str, left: str) -> Shortage:
    return Shortage(what, Decimal(need), Decimal(left))


CASES: list[tuple[Budget, Shortage, bool]] = [
    # The budget now, what a call lacked when it was another one, and whether it still lacks it.
    (Budget(requests=5), short("requests", "1", "0"), True),
    (Budget(requests=6), short("requests", "1", "0"), False),
    (Budget(tokens=99), short("tokens", "10", "5"), True),
    (Budget(tokens=100), short("tokens", "10", "5"), False),
    (Budget(cost=Decimal("0.599999999")), short("cost", "0.2", "0.1"), True),
    (Budget(cost=Decimal("0.6")), short("cost", "0.2", "0.1"), False),
    (Budget(requests=5, cost=Decimal(9)), short("cost", "0.2", "0.1"), False),
    (Budget(tokens=1), short("requests", "1", "0"), False),
]


@pytest.mark.parametrize(("budget", "shortage", "lasts"), CASES)
def test_a_run_stands_still_as_long_as_its_budget_is_too_small(budget: Budget, shortage: Shortage, lasts: bool) -> None:
    assert shortage.lasts(spent=SPENT, budget=budget) is lasts
    found = pause_of(spent=SPENT, shortage=shortage, refused=None, budget=budget, wall=AT, tries=0)
    assert (found is not None) is lasts
    before = Pause(Reason.BUDGET, "…", AT, shortage=shortage)
    assert goes_on(before, spent=SPENT, budget=budget, wall=AT + 9e9, resumed_at=AT + 1) is not lasts
    if found is not None:
        assert found == Pause(Reason.BUDGET, found.message, AT, shortage=shortage)
        assert still(before, budget=budget).message == found.message


def test_without_a_budget_nothing_is_in_the_way() -> None:
    shortage = short("requests", "1", "0")
    assert pause_of(spent=SPENT, shortage=shortage, refused=None, budget=None, wall=AT, tries=0) is None
    assert pause_of(spent=SPENT, shortage=None, refused=None, budget=Budget(5), wall=AT, tries=0) is None
    pause = Pause(Reason.BUDGET, "used up", AT, shortage=shortage)
    assert goes_on(pause, spent=SPENT, budget=None, wall=AT, resumed_at=None)
    assert still(pause, budget=None) == pause


@pytest.mark.parametrize(
    ("shortage", "budget", "says"),
    [
        (short("requests", "1", "0"), Budget(1_500), "the 1,500 calls of spec.budget.requests are used up"),
        (
            short("tokens", "4096", "12"),
            Budget(tokens=20_000),
            "the next call may need 4,096 tokens, more than is left of spec.budget.tokens 20,000",
        ),
        (
            short("cost", "0.0250", "0.01"),
            Budget(cost=Decimal("12.50")),
            "the next call may need 0.025, more than is left of spec.budget.cost 12.5",
        ),
    ],
)
def test_it_says_which_number_to_raise(shortage: Shortage, budget: Budget, says: str) -> None:
    spent = Spend(1_500, 19_988, 0, Decimal("12.49"))
    found = pause_of(spent=spent, shortage=shortage, refused=None, budget=budget, wall=AT, tries=0)
    assert found is not None
    assert found.message.startswith(f"{says}. Raise it, or leave it out, to go on")
    raised = budget._replace(**{shortage.what: getattr(budget, shortage.what) + 1})
    number = money(Decimal(getattr(raised, shortage.what)))
    assert number in still(found, budget=raised).message, "raised by too little: in words of today"


def test_refused_calls_are_tried_again_ever_later() -> None:
    waits = []
    for tries in range(8):
        found = pause_of(
            spent=SPENT,
            shortage=short("requests", "1", "0"),
            refused="the endpoint refused 10 calls in a row",
            budget=Budget(1),
            wall=AT,
            tries=tries,
        )
        assert found is not None
        assert (found.reason, found.at, found.tries, found.shortage) == (Reason.REFUSED, AT, tries, None)
        assert found.until is not None
        waits.append(found.until - AT)
    assert waits == [60.0, 240.0, 960.0, *[1800.0] * 5]
    first = pause_of(spent=SPENT, shortage=None, refused="calls are refused", budget=None, wall=AT, tries=0)
    assert first is not None
    assert first.message.startswith("calls are refused. Nothing more is sent, and no row failed by it.")
    assert "again at 2027-01-15 08:01 UTC" in first.message
    many = pause_of(spent=SPENT, shortage=None, refused="x", budget=None, wall=AT, tries=10**6)
    assert many is not None
    assert many.until == AT + 1800


@pytest.mark.parametrize(
    ("wall", "resumed_at", "goes"),
    [
        (AT + 59.9, None, False),
        (AT + 60, None, True),
        (AT + 1, AT - 1, False),
        (AT + 1, AT, False),
        (AT + 1, AT + 0.001, True),
        (AT + 1, AT + 1e6, True),
        (AT - 1e6, AT - 1, False),
    ],
)
def test_refused_calls_wait_for_their_time_or_for_somebody(wall: float, resumed_at: float | None, goes: bool) -> None:
    pause = Pause(Reason.REFUSED, "calls are refused", AT, until=AT + 60)
    for budget in (None, Budget(requests=1)):
        assert goes_on(pause, spent=SPENT, budget=budget, wall=wall, resumed_at=resumed_at) is goes
        assert still(pause, budget=budget) is pause


# -- what all rows would use


@pytest.mark.parametrize(
    ("done", "total", "source_rows", "requests"),
    [
        (10, 100, None, 50),  # of what there is
        (10, 10, 1000, 500),  # a canary: of the whole source
        (10, 20, 1000, 500),
        (3, 100, None, 167),
        (10, None, 1000, 500),
        (10, None, None, None),  # not known yet
        (10, 10, None, None),  # all of them are done
        (0, 10, 1000, None),
        (10, 20, 5, None),  # a source that has fewer rows than were done is another one
    ],
)
def test_a_status_projects_what_all_rows_would_use(
    done: int, total: int | None, source_rows: int | None, requests: int | None
) -> None:
    status = RunStatus(
        phase=Phase.RUNNING,
        total=total,
        succeeded=done - done // 3,
        failed=done // 3,
        spend=SPENT,
        source_rows=source_rows,
    )
    projected = status.projected
    assert (None if projected is None else projected.requests) == requests


def test_before_the_first_call_nothing_is_projected() -> None:
    assert RunStatus(total=10, deduplicated=5).projected is None
