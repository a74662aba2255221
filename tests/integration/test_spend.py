"""What a run may use, asked of a real Postgres: never more than the budget, whoever asks at once, dies, or repeats."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from decimal import Decimal

import asyncpg
import pytest

from rowmill.identity import RunIdentity
from rowmill.ledger import Held, Ledger, RunRecord, SpendBook, Superseded, Want
from rowmill.outcome import Outcome, State
from rowmill.spend import Budget, Pause, Reason, Shortage, Spend
from rowmill.status import Phase

ALICE = RunIdentity("test", "default", "alice", "1")


@pytest.fixture
async def ledger(postgres_dsn: str) -> AsyncIterator[Ledger]:
    ledger = await Ledger.connect(postgres_dsn, connections=8)
    await ledger.migrate()
    yield ledger
    await ledger.close()


async def a_run(ledger: Ledger, budget: Budget | None) -> RunRecord:
    record = await ledger.runs.ensure(ALICE, frozen={}, shards=1, row_limit=None)
    record = await ledger.runs.take_over(record.id)
    return await ledger.spending.bound(record, budget)


def spent(requests: int, *, tokens: int = 0, cost: str = "0") -> Spend:
    return Spend(requests, tokens, 0, Decimal(cost))


async def test_everything_is_allowed_where_there_is_no_budget(ledger: Ledger) -> None:
    record = await a_run(ledger, None)
    book = ledger.spend_book(record, worker="a")
    assert (await book.tell(used=Spend(), held=Held(), wants=[Want(10**12)] * 5)).calls == 5
    assert (await ledger.spending.of(record)).spent == Spend(), "what is only held is not spent"


@pytest.mark.parametrize(
    ("budget", "wants", "calls", "what", "need", "left"),
    [
        (Budget(requests=3), [Want()] * 5, 3, "requests", 1, 0),
        (Budget(tokens=100), [Want(40), Want(40), Want(40)], 2, "tokens", 40, 20),
        (Budget(tokens=100), [Want(60), Want(50), Want(10)], 1, "tokens", 50, 40),
        (Budget(cost=Decimal("0.5")), [Want(0, Decimal("0.2"))] * 3, 2, "cost", "0.2", "0.1"),
        (Budget(requests=9, tokens=50), [Want(20)] * 3, 2, "tokens", 20, 10),
        (Budget(requests=1, tokens=5), [Want(6)], 0, "tokens", 6, 5),
    ],
)
async def test_calls_are_allowed_in_their_order_as_far_as_the_budget_goes(
    ledger: Ledger, budget: Budget, wants: list[Want], calls: int, what: str, need: object, left: object
) -> None:
    book = ledger.spend_book(await a_run(ledger, budget), worker="a")
    allowed = await book.tell(used=Spend(), held=Held(), wants=wants)
    assert allowed.calls == calls
    assert allowed.shortage == Shortage(what, Decimal(str(need)), Decimal(str(left)))
    assert allowed.for_good == (calls == 0), "what was allowed just now may leave room"


async def test_a_shortage_is_for_good_only_when_nothing_is_under_way(ledger: Ledger) -> None:
    record = await a_run(ledger, Budget(requests=2))
    a, b = (ledger.spend_book(record, worker=name) for name in "ab")
    assert (await a.tell(used=Spend(), held=Held(), wants=[Want()])).calls == 1
    assert (await b.tell(used=Spend(), held=Held(), wants=[Want()])).calls == 1
    refused = await b.tell(used=spent(1), held=Held(), wants=[Want()])
    assert (refused.calls, refused.for_good) == (0, False), "a's call may turn out not to have been sent"
    assert (await ledger.spending.of(record)).shortage is None
    await a.tell(used=spent(1), held=Held())
    assert (await b.tell(used=spent(1), held=Held(), wants=[Want()])).for_good
    told = await ledger.spending.of(record)
    assert (told.spent, told.shortage) == (spent(2), Shortage("requests", Decimal(1), Decimal(0)))


async def test_a_lost_reply_reserves_nothing_for_good_and_what_was_used_never_becomes_less(ledger: Ledger) -> None:
    record = await a_run(ledger, Budget(requests=10))
    a, b = (ledger.spend_book(record, worker=name) for name in "ab")
    assert (await a.tell(used=Spend(), held=Held(), wants=[Want()] * 10)).calls == 10  # and the reply is lost
    assert (await b.tell(used=Spend(), held=Held(), wants=[Want()])).calls == 0
    await a.tell(used=spent(2), held=Held(1))
    assert (await b.tell(used=Spend(), held=Held(), wants=[Want()] * 9)).calls == 7
    await a.tell(used=spent(1), held=Held())  # an old one, that comes late
    assert (await ledger.spending.of(record)).spent == spent(2)


async def test_a_telling_that_comes_late_changes_nothing(ledger: Ledger) -> None:
    record = await a_run(ledger, Budget(requests=10))
    first, book = (ledger.spend_book(record, worker="a") for _ in range(2))
    assert (await book.tell(used=Spend(), held=Held(), wants=[Want()] * 3)).calls == 3
    assert (await book.tell(used=spent(1), held=Held(2), wants=[Want()] * 7)).calls == 7
    assert await first.tell(used=Spend(), held=Held(), wants=[Want()] * 3) == (0, None, False), "number 1, once more"
    other = ledger.spend_book(record, worker="b")
    assert (await other.tell(used=Spend(), held=Held(), wants=[Want()])).calls == 0, "all ten are spoken for"


async def test_tables_of_older_runs_learn_to_keep_tokens_and_wait_for_nobody_for_long(
    ledger: Ledger, postgres_dsn: str
) -> None:
    """Somebody reads one of them for hours: migrating waits two seconds at a time, and nobody longer behind it."""
    record = await a_run(ledger, None)
    old = await asyncpg.connect(postgres_dsn)
    await old.execute(f"alter table rowmill.outcomes_{record.id} drop column input_tokens, drop column output_tokens")
    reader = old.transaction()
    await reader.start()
    await old.execute(f"select count(*) from rowmill.outcomes_{record.id}")
    migrating = asyncio.create_task(ledger.migrate())
    async with asyncio.timeout(60):
        while not await ledger_waits(ledger):
            await asyncio.sleep(0.01)
        while await ledger_waits(ledger):
            await asyncio.sleep(0.01)
    assert not migrating.done(), "it gave way, and tries again"
    await reader.commit()
    await old.close()
    assert await migrating == 0
    await ledger.work(record, worker="a").commit(
        [Outcome(1, State.SUCCEEDED, 1, '"x"', input_tokens=5, output_tokens=6)], generation=0
    )


async def ledger_waits(ledger: Ledger) -> bool:
    """Whether somebody waits for a table."""
    async with ledger.pool.connection() as c:
        return bool(await c.fetchval("select count(*) from pg_locks where not granted and locktype = 'relation'"))


async def test_a_worker_that_died_has_spent_what_it_held_and_nobody_waits_for_it(
    ledger: Ledger, postgres_dsn: str
) -> None:
    record = await a_run(ledger, Budget(requests=10, tokens=1000))
    a, b = (ledger.spend_book(record, worker=name) for name in "ab")
    await a.tell(used=spent(3, tokens=30), held=Held(2, 200))
    assert (await ledger.spending.of(record)).spent == spent(3, tokens=30)
    connection = await asyncpg.connect(postgres_dsn)
    await connection.execute("update rowmill.spend set told_at = told_at - interval '31 seconds' where worker = 'a'")
    await connection.close()
    assert (await ledger.spending.of(record)).spent == spent(5, tokens=230), "perhaps it was all sent"
    assert (await b.tell(used=Spend(), held=Held(), wants=[Want()] * 6)).calls == 5
    assert (await b.tell(used=spent(5), held=Held(), wants=[Want()])).for_good


async def test_one_that_leaves_is_added_up_once_and_complains_no_more(ledger: Ledger) -> None:
    record = await a_run(ledger, Budget(requests=4))
    for name in ("a", "b"):
        book = ledger.spend_book(record, worker=name)
        await book.tell(used=spent(2, tokens=7, cost="0.25"), held=Held(), refused=f"{name} is refused")
        await book.leave()
        await book.leave()
    assert await ledger.spending.of(record) == (spent(4, tokens=14, cost="0.5"), None, None)
    late = await ledger.spend_book(record, worker="c").tell(used=Spend(), held=Held(), wants=[Want()])
    assert late.for_good


async def test_outcomes_come_with_what_they_cost(ledger: Ledger) -> None:
    record = await a_run(ledger, None)
    work = ledger.work(record, worker="a")
    one = Outcome(1, State.SUCCEEDED, 2, '"x"', input_tokens=5, output_tokens=0)
    two = Outcome(2, State.FAILED, 1, error_class="HTTP400")
    for _ in range(2):  # as after a reply that was lost
        await work.commit([one, two], generation=0, spent=Spend(3, 5, 0, Decimal("0.01")))
        assert (await ledger.spending.of(record)).spent == Spend(3, 5, 0, Decimal("0.01"))
    (page,) = [page async for page in ledger.runs.results(record)]
    assert [(o.input_tokens, o.output_tokens) for o in page] == [(5, 0), (None, None)]


async def test_pauses_are_kept_fenced_and_forgotten_with_their_complaints(ledger: Ledger) -> None:
    record = await a_run(ledger, Budget(cost=Decimal("12.5")))
    assert record.budget == Budget(cost=Decimal("12.5"))
    await ledger.spend_book(record, worker="a").tell(used=spent(1), held=Held(), refused="a key that is wrong")
    pause = Pause(Reason.REFUSED, "calls are refused", 5.0, until=65.0, tries=2)
    await ledger.spending.pause(record, pause)
    kept = await ledger.runs.find(ALICE)
    assert kept is not None
    assert (kept.pause, kept.phase, kept.message) == (pause, Phase.SUSPENDED, "calls are refused")
    old, record = record, await ledger.runs.take_over(record.id)
    with pytest.raises(Superseded):
        await ledger.spending.pause(old, None)
    with pytest.raises(Superseded):
        await ledger.spending.bound(old, None)
    assert (await ledger.spending.of(record)).refused == "a key that is wrong"
    assert (await ledger.spending.pause(record, None)).pause is None
    assert (await ledger.spending.of(record)).refused is None


async def test_the_budget_is_never_passed_however_many_ask_at_once(ledger: Ledger) -> None:
    """Twelve workers with lost replies and deaths, and a budget that is raised meanwhile."""
    rng = random.Random(7)
    record = await a_run(ledger, Budget(requests=300, tokens=9_000, cost=Decimal(40)))
    sent = [0, 0, Decimal(0)]

    async def worker(name: str) -> None:
        book = SpendBook(ledger.pool, run=record.id, worker=name)
        used, held = Spend(), Held()
        for _ in range(60):
            wants = [Want(rng.randint(1, 60), Decimal(rng.randint(1, 30)) / 100) for _ in range(rng.randint(1, 6))]
            allowed = await book.tell(used=used, held=held, wants=wants)
            if rng.random() < 0.1:
                continue  # the reply was lost
            for want in wants[: allowed.calls]:
                tokens, cost = rng.randint(0, want.tokens), want.cost / rng.randint(1, 3)
                sent[0] += 1
                sent[1] += tokens
                sent[2] += cost
                used = used.plus(Spend(1, tokens, 0, cost))
            if rng.random() < 0.02:
                return  # it dies
        await book.tell(used=used, held=held)

    async def raising() -> None:
        await asyncio.sleep(0.05)
        await ledger.spending.bound(record, Budget(requests=400, tokens=12_000, cost=Decimal(60)))

    await asyncio.gather(raising(), *(worker(f"w{n}") for n in range(12)))
    last = await ledger.spend_book(record, worker="last").tell(used=Spend(), held=Held(), wants=[Want()] * 500)
    assert sent[0] <= 400, sent
    assert sent[1] <= 12_000, sent
    assert sent[2] <= 60, sent
    assert sent[0] + last.calls >= 250, "and it is used"
