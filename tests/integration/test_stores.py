"""Window and ledger against the real servers: what each script and statement promises."""

from __future__ import annotations

from importlib.resources import files

import pytest
import redis.asyncio as redis

from rowmill.ledger import Ledger, RunRecord, Superseded
from rowmill.outcome import Outcome, State
from rowmill.row import Entry
from rowmill.window import Delivery, EpochOver, FeedWindow, Later, Window, WindowLost, WorkWindow
from rowmill.window.keys import shard_keys


@pytest.fixture
async def feed(window: Window) -> FeedWindow:
    feed = window.feed(token="t", shards=1)
    await feed.open(1)
    return feed


def work(window: Window, consumer: str = "a", epoch: int = 1) -> WorkWindow:
    return window.work(token="t", shards=1, epoch=epoch, consumer=consumer)


ROWS = [Entry(1, b'{"a":1}'), Entry(2, b'{"a":2}'), Entry(3, b'{"a":3}')]


async def test_append_take_finish(feed: FeedWindow, window: Window) -> None:
    assert await feed.append(1, 0, after=0, entries=ROWS) == 3
    a = work(window)
    rows = await a.take(10)
    assert [(r.seq, r.payload, r.attempts, r.deaths) for r in rows] == [(e.seq, e.payload, 0, -1) for e in ROWS]
    await a.finish(0, [1, 2, 3])
    look = (await feed.look(1))[0]
    assert (look.last_seq, look.entries, look.pending) == (3, 0, 0)


async def test_append_is_fenced_and_repeatable(feed: FeedWindow) -> None:
    await feed.append(1, 0, after=0, entries=ROWS)
    await feed.append(1, 0, after=0, entries=ROWS)  # a lost reply: the same block again
    assert (await feed.look(1))[0].entries == 3
    with pytest.raises(WindowLost):
        await feed.append(1, 0, after=2, entries=[Entry(9, b"{}")])
    await feed.open(2)
    with pytest.raises(WindowLost):
        await feed.append(1, 0, after=3, entries=[Entry(4, b"{}")])
    with pytest.raises(WindowLost):
        await feed.open(1)


async def test_schedule_pops_once_and_only_what_is_pending(feed: FeedWindow, window: Window) -> None:
    await feed.append(1, 0, after=0, entries=ROWS)
    a, b = work(window, "a"), work(window, "b")
    await a.take(10)
    assert await b.schedule(0, [Later(1, 0, 1)]) == 0, "only the holder schedules"
    assert await a.schedule(0, [Later(1, 0, 1), Later(2, 60, 0)]) == 2
    assert await a.unscheduled(0) == [3]
    taken = await b.take(10)
    assert [(r.seq, r.attempts) for r in taken] == [(1, 1)]
    assert await a.take(10) == []
    await b.finish(0, [1])
    assert await b.schedule(0, [Later(1, 0, 2)]) == 0, "a finished row is not revived"


async def when_due(worker: WorkWindow, redis_url: str) -> list[Delivery]:
    """Take what is scheduled, as if its time had come."""
    due = shard_keys("t", 0, worker.epoch).due
    async with redis.from_url(redis_url) as client:
        for entry in await client.zrange(due, 0, -1):
            await client.zadd(due, {entry: 0})
    return await worker.take(10)


async def test_orphans_are_scheduled_counted_and_convicted(feed: FeedWindow, window: Window, redis_url: str) -> None:
    await feed.append(1, 0, after=0, entries=ROWS[:1])
    names = iter("abcdefgh")
    deaths = []
    for alone in (False, False, False, True, True):
        dead = work(window, next(names))
        (row,) = await when_due(dead, redis_url)
        deaths.append(row.deaths)
        if row.deaths >= 0:
            await dead.mark_started(0, [row.seq], alone=alone)
        found = await work(window, "sweeper").sweep(0, dead.consumer)
        assert found.convicted == ([1] if len(deaths) == 5 else []), "dying alone once may be bad luck"
    assert deaths == [-1, 0, 1, 2, 3]
    again = await work(window, "another").sweep(0, dead.consumer)
    assert again.convicted == [1], "a sweeper that dies before it records the verdict leaves it to the next"
    await work(window, "sweeper").finish(0, [1])


async def test_calls_of_an_old_epoch_do_nothing(feed: FeedWindow, window: Window) -> None:
    await feed.append(1, 0, after=0, entries=ROWS)
    a = work(window)
    await a.take(10)
    await feed.open(2)
    with pytest.raises(EpochOver):
        await a.finish(0, [1])
    with pytest.raises(EpochOver):
        await a.schedule(0, [Later(1, 0, 0)])
    with pytest.raises(EpochOver):
        await a.take(1)


async def test_claims_two_statements_and_release(ledger: Ledger, record: RunRecord) -> None:
    a, b = ledger.lock_session(record, consumer="a"), ledger.lock_session(record, consumer="b")
    await a.open()
    await b.open()
    try:
        claim = await a.claim([1, 2, 3], 0)
        assert claim.ours == [1, 2, 3]
        assert (await b.claim([2, 4], 0)).elsewhere == [2]
        work_a = ledger.work(record, worker="a")
        done = [
            Outcome(1, State.SUCCEEDED, 1, result='"x"'),
            Outcome(2, State.FAILED, 5, error_class="E", error_message="m"),
        ]
        assert await work_a.commit(done, generation=0) == 2
        assert await work_a.commit(done, generation=0) == 0, "a repeated commit adds and counts nothing"
        await a.release([1, 2])
        claim = await b.claim([1, 2, 3], 0)
        assert (claim.done, claim.elsewhere, claim.ours) == ([1, 2], [3], [])
        again = await b.claim([1, 2], 1)
        assert (again.done, again.ours) == ([1], [2]), "a success is final, a failure is open in the next generation"
        progress = await ledger.runs.progress(record)
        assert (progress.succeeded, progress.failed, progress.retried) == (1, 1, 4)
        assert await work_a.silent(["a", "b", "c"]) == ["c"]
    finally:
        await a.close()
        await b.close()


async def test_a_superseded_engine_writes_nothing(ledger: Ledger, record: RunRecord) -> None:
    await ledger.runs.take_over(record.id)
    with pytest.raises(Superseded):
        await ledger.runs.save_total(record, 5)
    with pytest.raises(Superseded):
        await ledger.runs.commit_bad_rows(record, [Outcome(1, State.FAILED, 0, error_class="BadRow")])


async def test_migrations_run_twice_and_at_once(postgres_dsn: str) -> None:
    import asyncio

    ledgers = [await Ledger.connect(postgres_dsn) for _ in range(4)]
    try:
        applied = await asyncio.gather(*(ledger.migrate() for ledger in ledgers))
        assert sum(applied) == len(list(files("rowmill.ledger").joinpath("migrations").iterdir())), "each of them once"
        assert await ledgers[0].migrate() == 0
    finally:
        for ledger in ledgers:
            await ledger.close()
