"""What happens between two awaits of the core: replies that fail half-way, sessions that go, calls that come late.

Each test holds the parts exactly where the race is, on real servers where a server takes part in it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import asyncpg
import pytest

from rowmill.errors import StateInUse, StoreUnavailable
from rowmill.ledger import KeyEnd, Leadership, Ledger, LockSession, RunRecord
from rowmill.ledger.connect import passing_failures
from rowmill.outcome import Outcome, State
from rowmill.row import Entry, Position
from rowmill.sources import open_source
from rowmill.status import Phase, RunStatus
from rowmill.window import FeedWindow, Later, ShardLook, Window, WorkWindow
from rowmill.window.work import SMALLEST_TAKE
from rowmill_cli.local.redis_server import RedisServer
from rowmill_operator.engine.autoscaler import Autoscaler, Scaling
from rowmill_operator.engine.conductor import Conductor, Rules, Tools
from rowmill_operator.engine.feeder import Feeder, FeedState, WindowBounds
from rowmill_operator.engine.progress import RateMeter
from rowmill_worker import keeper, reader
from rowmill_worker.dispatcher import Dispatcher
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.held import HeldRow
from rowmill_worker.keeper import SessionKeeper
from rowmill_worker.quota import LockQuota
from tests.support.engine_process import NoFleet
from tests.support.inprocess import KeepLast, lab, manifest


async def until(reached: Callable[[], bool], *, within: float = 90.0) -> None:
    async with asyncio.timeout(within):
        while not reached():
            await asyncio.sleep(0.005)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis whose settings a test may change."""
    server = RedisServer(tmp_path / "redis")
    server.start()
    try:
        yield server
    finally:
        server.stop()


def entries(seqs: Sequence[int]) -> list[Entry]:
    return [Entry(seq, b'{"id":"%d"}' % seq) for seq in seqs]


def work(window: Window, consumer: str = "a", *, shards: int = 1) -> WorkWindow:
    return window.work(token="t", shards=shards, epoch=1, consumer=consumer)


# Redis that refuses.


async def test_a_redis_that_became_a_replica_is_waited_for(own_redis: RedisServer) -> None:
    window = await Window.connect(own_redis.url)
    try:
        feed = window.feed(token="t", shards=1)
        await feed.open(1)
        await feed.append(1, 0, after=0, entries=entries([1, 2, 3]))
        a = work(window)
        assert len(await a.take(8)) == 3
        own_redis.ask("CONFIG", "SET", "replica-serve-stale-data", "yes")
        own_redis.ask("REPLICAOF", "127.0.0.1", "1")
        calls: list[Callable[[], Any]] = [
            lambda: a.take(1),
            lambda: a.wait(0, 0.05),
            lambda: a.finish(0, [1]),
            lambda: a.schedule(0, [Later(2, 0, 1)]),
            lambda: a.mark_started(0, [2], alone=False),
            lambda: feed.append(1, 0, after=3, entries=entries([4])),
            lambda: feed.open(2),
        ]
        for stale in ("yes", "no"):
            own_redis.ask("CONFIG", "SET", "replica-serve-stale-data", stale)
            for call in calls:
                with pytest.raises(StoreUnavailable):
                    await call()
            if stale == "no":
                with pytest.raises(StoreUnavailable):
                    await feed.look(1)
    finally:
        await window.close()


async def test_a_redis_that_cannot_save_is_waited_for(own_redis: RedisServer) -> None:
    window = await Window.connect(own_redis.url)
    try:
        feed = window.feed(token="t", shards=1)
        await feed.open(1)
        await feed.append(1, 0, after=0, entries=entries([1, 2]))
        a = work(window)
        await a.take(1)
        (own_redis.folder / "dump.rdb").mkdir()  # so that no snapshot can take its place
        own_redis.ask("CONFIG", "SET", "save", "3600 1000000")
        own_redis.ask("BGSAVE")
        await until(lambda: b"rdb_last_bgsave_status:err" in own_redis.ask("INFO", "persistence"))
        for call in (lambda: a.take(1), lambda: a.finish(0, [1]), lambda: a.schedule(0, [Later(1, 0, 1)])):
            with pytest.raises(StoreUnavailable):
                await call()
    finally:
        await window.close()
        own_redis.kill()  # asked to end, it would try to save, and stay for as long as it cannot


class FailsOnce:
    """The first attempt at a row in `rows` fails and may be repeated; `before` is called ahead of it."""

    active_sessions = 0

    def __init__(self, rows: set[int], before: Callable[[], object]) -> None:
        self._rows = rows
        self._before = before
        self.calls: list[int] = []

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, attempt: Attempt) -> Any:
        self.calls.append(attempt.seq)
        if attempt.seq in self._rows:
            self._rows.discard(attempt.seq)
            self._before()
            raise RowError("HTTP503", "not now", retryable=True)
        return attempt.seq


async def test_a_full_redis_does_not_keep_workers_from_emptying_it(
    tmp_path: Path, own_redis: RedisServer, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row that is to be tried again needs memory for its schedule. The others must go on: only that frees any."""
    monkeypatch.setattr(reader, "RECOVER_EVERY_SECONDS", 0.05)
    executor = FailsOnce({1}, lambda: own_redis.ask("CONFIG", "SET", "maxmemory", "1"))
    async with lab(tmp_path, redis_url=own_redis.url, postgres_dsn=postgres_dsn) as stores:
        job = manifest(
            "http://127.0.0.1:1", rows=60, shards=1, concurrency={"perWorker": 2}, retry={"initialSeconds": 1}
        )
        driving = asyncio.create_task(stores.drive(job))
        record = await stores.record(job)
        feed = stores.window.feed(token=record.token, shards=1)
        await until_fed(feed, 60)
        async with stores.worker(job, executor=executor):
            await until(lambda: len(set(executor.calls)) == 60)
            own_redis.ask("CONFIG", "SET", "maxmemory", "0")
            status = await asyncio.wait_for(driving, 60)
    assert status.succeeded == 60


async def until_fed(feed: FeedWindow, rows: int) -> None:
    async with asyncio.timeout(60):
        while (await feed.look(1))[0].last_seq != rows:
            await asyncio.sleep(0.01)


# The window.


async def test_no_more_rows_are_taken_than_asked_for_however_many_shards(window: Window) -> None:
    """Each row is an advisory lock: what is asked for is what the budget of locks has left."""
    shards = 256
    feed = window.feed(token="t", shards=shards)
    await feed.open(1)
    for shard in range(0, shards, 2):
        seqs = [n * shards + shard for n in range(1, 5)]
        await feed.append(1, shard, after=0, entries=entries(seqs))
    a = work(window, shards=shards)
    got = await a.take(6)
    assert 0 < len(got) <= SMALLEST_TAKE
    for delivery in got:
        await a.schedule(delivery.shard, [Later(delivery.seq, 0.0, 0)])
    seen = {delivery.seq for delivery in got}
    while got := await a.take(40):
        assert len(got) <= 40, "also when some are due and some are new"
        seen |= {delivery.seq for delivery in got}
    assert len(seen) == 4 * shards // 2, "an empty answer means that there is nothing on any shard"


async def test_a_lost_delivery_never_hurries_a_row_that_waits_for_its_turn(window: Window) -> None:
    feed = window.feed(token="t", shards=1)
    await feed.open(1)
    await feed.append(1, 0, after=0, entries=entries([1, 2]))
    a = work(window)
    await a.take(8)
    assert await a.unscheduled(0) == [1, 2]  # asked just before the releaser schedules row 1 ...
    assert await a.schedule(0, [Later(1, 60.0, 3)]) == 1
    await a.reschedule_lost(0, [1, 2])  # ... and acted upon just after
    assert [(r.seq, r.attempts) for r in await a.take(8)] == [(2, 0)]


# The ledger.


async def test_a_lock_statement_that_is_given_up_leaves_no_lock_behind(ledger: Ledger, record: RunRecord) -> None:
    """Session locks outlive the statement that took them: a session of which that is unknown must end."""
    a, b = ledger.lock_session(record, consumer="a"), ledger.lock_session(record, consumer="b")
    await a.open()
    await b.open()
    try:
        a._lock_rows = a._lock_rows.replace("from unnest", ", pg_sleep(200) from unnest", 1)
        for call in (lambda: a.relock([1, 2]), lambda: a.claim([1, 2], 0)):
            await a.open()
            cut = asyncio.create_task(_cancel_when_asleep(ledger))
            with pytest.raises(StoreUnavailable):
                await call()
            await cut
            assert not a.is_open
            async with asyncio.timeout(60):
                while (claim := await b.claim([1, 2], 0)).ours != [1, 2]:
                    await b.release(claim.ours)
            await b.release([1, 2])
    finally:
        await a.close()
        await b.close()


async def _cancel_when_asleep(ledger: Ledger) -> None:
    async with ledger.pool.connection() as c, asyncio.timeout(60):
        while not await c.fetchval(
            "select pg_cancel_backend(pid) from pg_stat_activity"
            " where wait_event = 'PgSleep' and datname = current_database()"
        ):
            await asyncio.sleep(0.01)


async def test_what_runs_keeps_its_key_when_the_session_is_lost(ledger: Ledger, record: RunRecord) -> None:
    """Else the next who asks for the key would execute it a second time, beside the first."""
    a, b = ledger.lock_session(record, consumer="a"), ledger.lock_session(record, consumer="b")
    await a.open()
    await b.open()
    try:

        async def nothing() -> None:
            """What may be held is another test's."""

        running = HeldRow(1, 0, b"{}", 0, -1, 0, 1, session=1)
        running.digest, running.key_lock = b"d" * 16, 77
        ended = HeldRow(2, 0, b"{}", 0, -1, 0, 1, session=1)
        ended.digest, ended.key_lock, ended.releasing = b"e" * 16, 78, True
        assert (await a.claim([1, 2], 0)).ours == [1, 2]
        assert await a.lock_keys([77, 78]) == [True, True]
        await a.close()
        dispatcher = SimpleNamespace(withdraw=list, running=[running, ended], pump=lambda: None)
        await SessionKeeper(
            locks=a,
            quota=cast(LockQuota, SimpleNamespace(look=nothing)),
            dispatcher=cast(Dispatcher, dispatcher),
            give_back=lambda rows: None,
            lost=lambda: None,
            away=lambda error: None,
            now=lambda: 0.0,
            rng=random.Random(0),
        )._reopen()
        assert (running.session, running.key_lock) == (2, 77)
        assert await b.lock_keys([77, 78]) == [False, True], "of the row that has ended nothing is kept"
        assert (await b.claim([1, 2], 0)).ours == [2]
    finally:
        await a.close()
        await b.close()


async def test_a_session_that_cannot_be_opened_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that waits for Postgres with nothing to read would otherwise stand still without a word."""
    monkeypatch.setattr(keeper, "RETRY_SECONDS", (0.001, 0.001))
    told: list[str] = []

    async def nothing() -> None:
        raise AssertionError("there is no session to look from")

    async def no_postgres() -> None:
        raise StoreUnavailable("Postgres is away")

    keeping = asyncio.create_task(
        SessionKeeper(
            locks=cast(LockSession, SimpleNamespace(is_open=False, number=1, open=no_postgres)),
            quota=cast(LockQuota, SimpleNamespace(look=nothing)),
            dispatcher=cast(Dispatcher, SimpleNamespace(withdraw=list)),
            give_back=lambda rows: None,
            lost=lambda: told.append("lost"),
            away=lambda error: told.append(str(error)),
            now=lambda: 0.0,
            rng=random.Random(0),
        ).run()
    )
    await until(lambda: len(told) > 4)
    keeping.cancel()
    assert told[:3] == ["lost", "Postgres is away", "Postgres is away"]
    assert told.count("lost") == 1


async def test_the_end_of_a_declared_key_is_written_once(ledger: Ledger, record: RunRecord) -> None:
    """Two executed the row (a lost session); the ledger keeps the first end, and duplicates must be told the same."""
    first, second = ledger.work(record, worker="a"), ledger.work(record, worker="b")
    digest = b"k" * 16
    await first.take_keys([digest], [1], ["me#1"], rerun_failed=False)
    for worker, result in ((first, '"first"'), (second, '"second"')):
        end = Outcome(1, State.SUCCEEDED, 1, result=result)
        await worker.commit([end], generation=0, keys=[KeyEnd(digest, 1, end)], keep_seconds=60)
    _, holders = await first.take_keys([digest], [9], ["you#9"], rerun_failed=False)
    assert holders[digest].result == '"first"'


async def test_every_declared_key_whose_time_is_over_is_dropped(ledger: Ledger, record: RunRecord) -> None:
    async with ledger.pool.connection() as c:
        await c.execute(
            "insert into rowmill.claims (digest, run, seq, owner, state, keep_until)"
            " select decode(lpad(to_hex(n), 32, '0'), 'hex'), 1, n, 'me', n % 2,"
            " clock_timestamp() + case when n <= 25000 then interval '-1 s' else interval '1 h' end"
            " from generate_series(1, 25010) n"
        )
        await c.execute("insert into rowmill.claims (digest, run, seq, owner) values ('\\x00', 1, 1, 'runs now')")
    await ledger.runs.expire_claims()
    async with ledger.pool.connection() as c:
        assert await c.fetchval("select count(*) from rowmill.claims") == 11


async def takes(other: Ledger, run: int) -> None:
    """Wait until `run` is free, and take it."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await other.leadership.take(run)
            except StateInUse:
                await asyncio.sleep(0.02)


@pytest.fixture
async def other(ledger: Ledger, postgres_dsn: str) -> AsyncIterator[Ledger]:
    """Another process."""
    other = await Ledger.connect(postgres_dsn)
    yield other
    await other.close()


async def test_a_lead_whose_taking_is_cancelled_is_free(ledger: Ledger, other: Ledger) -> None:
    await ledger.leadership.take(7)
    taking = asyncio.create_task(ledger.leadership.take(8))
    for _ in range(3):
        await asyncio.sleep(0)  # the statement is on its way by now
    taking.cancel()
    await asyncio.wait([taking])
    assert not ledger.leadership.holds(8)
    await takes(other, 8)


async def test_a_lead_whose_release_is_cancelled_is_free(ledger: Ledger, other: Ledger) -> None:
    """It may have to wait for its turn, while another run is being taken."""
    await ledger.leadership.take(7)
    async with ledger.leadership._turn:
        releasing = asyncio.create_task(ledger.leadership.release(7))
        await asyncio.sleep(0)
        releasing.cancel()
        await asyncio.wait([releasing])
    assert not ledger.leadership.holds(7)
    await takes(other, 7)
    await other.leadership.release(7)
    await takes(ledger, 7)


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.CannotConnectNowError,
        asyncpg.AdminShutdownError,
        asyncpg.IdleSessionTimeoutError,
        asyncpg.QueryCanceledError,
        asyncpg.TooManyConnectionsError,
        asyncpg.OutOfMemoryError,
        asyncpg.DiskFullError,
        asyncpg.DeadlockDetectedError,
        asyncpg.SerializationError,
        asyncpg.LockNotAvailableError,
        asyncpg.PostgresIOError,
        asyncpg.ReadOnlySQLTransactionError,
        asyncpg.ConnectionDoesNotExistError,
        ConnectionResetError,
        TimeoutError,
    ],
)
def test_what_passes_is_waited_for(error: type[Exception]) -> None:
    with pytest.raises(StoreUnavailable), passing_failures("Postgres"):
        raise error("what the server said")


@pytest.mark.parametrize("error", [asyncpg.UniqueViolationError, asyncpg.NumericValueOutOfRangeError, ValueError])
def test_what_would_come_again_is_not_waited_for(error: type[Exception]) -> None:
    with pytest.raises(error), passing_failures("Postgres"):
        raise error("what the server said")


# The engine.


class StaleLook:
    """A window that is seen empty, just before the last rows are appended to it."""

    def __init__(self, appended: asyncio.Event) -> None:
        self._appended = appended
        self.looks = 0

    async def look(self, epoch: int) -> list[ShardLook]:
        self.looks += 1
        seen = [ShardLook(epoch, 5, 5 if self._appended.is_set() else 0, 0, 0, 0)]
        self._appended.set()
        for _ in range(5):
            await asyncio.sleep(0)
        return seen


class Appending:
    """A feeder at its last rows."""

    def __init__(self, appended: asyncio.Event) -> None:
        self._appended = appended

    async def run(self) -> int:
        await self._appended.wait()
        return 5


async def test_rows_that_were_appended_after_a_look_are_not_missed_in_it(ledger: Ledger, record: RunRecord) -> None:
    """Else the run would begin a new epoch, over rows that are on their way."""
    appended = asyncio.Event()
    threads = ThreadPoolExecutor(1)
    window = StaleLook(appended)
    stop = asyncio.Event()

    async def report(status: RunStatus) -> None:
        if window.looks == 3:
            stop.set()

    await ledger.leadership.take(record.id)
    conductor = Conductor(
        record=record,
        source=open_source(uri=None, rows=[{}] * 5, format=None, limit=None, base=Path(), cache=Path()),
        state=FeedState([5], Position()),
        skip_closed=False,
        leadership=cast(Leadership, SimpleNamespace(holds=lambda run: True)),
        rules=Rules(None, None, WindowBounds(), 64),
        tools=Tools(
            runs=ledger.runs,
            window=cast(FeedWindow, window),
            shares=ledger.shares,
            spending=ledger.spending,
            fleet=NoFleet(),
            sink=SimpleNamespace(report=report),
            threads=threads,
            now=time.monotonic,
            wall=time.time,
            fed=lambda rows, size, seconds: None,
        ),
        scaler=Autoscaler(Scaling(0, 1, 500)),
        meter=RateMeter(),
        status=RunStatus(),
    )
    conductor._feeder = cast(Feeder, Appending(appended))
    with threads:
        verdict = await asyncio.wait_for(conductor.conduct(stop), 60)
    assert verdict.phase is Phase.RUNNING, verdict.message


async def test_a_window_is_never_overfilled_however_many_shards(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    seen: list[int] = []
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores:
        job = manifest("http://127.0.0.1:1", rows=600, shards=64)
        sink = KeepLast()
        driving = asyncio.create_task(stores.drive(job, sink=sink, window_rows=100))
        await until(lambda: sum(status.queued > 0 for status in sink.all) >= 2)
        async with stores.worker(job, executor=FailsOnce(set(), lambda: None)):
            assert (await asyncio.wait_for(driving, 60)).succeeded == 600
        seen = [status.queued + status.running for status in sink.all]
    assert 0 < max(seen) <= 100


# The whole worker.


async def test_a_worker_that_left_leaves_no_heartbeat(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "HEARTBEAT_EVERY_SECONDS", 0.0)
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores:
        job = manifest("http://127.0.0.1:1", rows=3)
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job, executor=FailsOnce(set(), lambda: None)):
            await asyncio.wait_for(driving, 60)
        assert await stores.window._client.call("KEYS", "rowmill:*") == []
