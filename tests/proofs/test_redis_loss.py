"""Redis loses what it held, or goes back in time, at the worst moments: the slice is fed again, no call is made twice.

Rows that run meanwhile are not cut: their workers hold them, their outcomes are committed, and where they are fed again
they are found locked, held or done. So the bound for duplicate calls is 0 in every one of these.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis

from rowmill.row import Entry
from rowmill.status import Phase
from rowmill.window import EpochOver, Later, Window
from rowmill.window.keys import GROUP, shard_keys
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere, outcomes_reach
from tests.support.rig import Rig
from tests.support.servers import PrivateServers

ROWS = 5000
WINDOW = 1500


@pytest.fixture
async def rig(tmp_path: Path, private_servers: PrivateServers) -> AsyncIterator[Rig]:
    servers = private_servers
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(
            tmp_path, redis_url=servers.redis_url, postgres_dsn=servers.postgres_dsn, endpoint=endpoint
        ) as rig:
            rig.table(ROWS)
            rig.job(shards=2, concurrency={"perWorker": 32})
            yield rig


def lose_streams(url: str, token: str, epoch: int, *, empty: bool) -> None:
    """The streams alone are gone, the epoch's keys are still there. With `empty` there are new ones, with groups."""
    with redis.Redis.from_url(url) as client:
        for shard in (0, 1):
            stream = shard_keys(token, shard, epoch).stream
            client.delete(stream)
            if empty:
                client.xgroup_create(stream, GROUP, "0", mkstream=True)


@pytest.mark.parametrize("empty", [False, True])
async def test_a_worker_whose_streams_are_lost(redis_url: str, empty: bool) -> None:
    """Whatever it asks of them is answered with the end of the epoch, or with nothing; no call breaks it."""
    window = await Window.connect(redis_url)
    feed = window.feed(token="t", shards=2)
    await feed.open(1)
    for shard in (0, 1):
        await feed.append(1, shard, after=0, entries=[Entry(seq, b"{}") for seq in range(2 + shard, 12, 2)])
    work = window.work(token="t", shards=2, epoch=1, consumer="a")
    other = window.work(token="t", shards=2, epoch=1, consumer="b")
    rows = await work.take(6)
    await work.schedule(0, [Later(rows[0].seq, 0, 1)])
    lose_streams(redis_url, "t", 1, empty=empty)
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: work.take(4),
        lambda: work.wait(0, 0.01),
        lambda: work.unscheduled(0),
        lambda: work.schedule(0, [Later(rows[0].seq, 0, 1)]),
        lambda: work.mark_started(0, [rows[0].seq], alone=False),
        lambda: other.sweep(0, "a"),
        lambda: work.payload(0, rows[0].seq),
        lambda: work.finish(0, [rows[0].seq]),
        lambda: work.leave(),
    ]
    over = 0
    for call in calls:
        try:
            await call()
        except EpochOver:
            over += 1
    assert (over == 0) == empty
    assert await other.silent_consumers() == []
    await window.close()


async def test_wiped_between_two_appends(rig: Rig, private_servers: PrivateServers) -> None:
    """Right before an append: FLUSHALL in the middle of the very first block, the streams lost, the streams lost and
    made again, FLUSHALL once more. Each is refused there and then, and what was fed before it is fed again."""
    token = ""
    epoch = appends = 0

    async def at(stage: str, nth: int) -> None:
        nonlocal token, epoch, appends
        if stage == "open":
            token = (await rig.record()).token
            epoch, appends = nth, 0
        appends += stage == "append"
        if (stage, epoch, appends) in (("append", 1, 2), ("append", 4, 2)):
            private_servers.wipe_redis()
        elif (stage, epoch, appends) in (("append", 2, 3), ("append", 3, 3)):
            lose_streams(rig.redis_url, token, epoch, empty=epoch == 3)

    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=at, window_rows=WINDOW) as engine:
        status = await engine.ended()
    assert (status.phase, status.epoch) == (Phase.COMPLETE, 5)
    for said in ("epoch 1 is not open", "epoch 2 ends at row -1", "epoch 3 ends at row 0, not", "epoch 4 is not open"):
        assert any(said in refused for refused in engine.refused), (said, engine.refused)
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_wiped_again_and_again(rig: Rig, private_servers: PrivateServers) -> None:
    """FLUSHALL under two workers in full flight, at moments that nobody chose."""
    await rig.start_engine(window_rows=WINDOW)
    for _ in range(2):
        await rig.start_worker(wait=False)
    for wipe in range(6):
        await rig.endpoint.wait(calls=wipe * ROWS // 6 + 50)
        private_servers.wipe_redis()
    status = await rig.complete()
    assert status["epoch"] > 3
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_restarted_empty(rig: Rig, private_servers: PrivateServers) -> None:
    """SIGKILL and a start with nothing, with rows in flight and others scheduled for a retry."""
    await rig.endpoint.play({"rows": {str(row): [503] for row in range(1, 41)}})
    await rig.start_engine(window_rows=WINDOW)
    await rig.start_worker(wait=False)
    await rig.endpoint.wait(calls=300)
    await rig.endpoint.hold()
    await rig.endpoint.wait(in_flight=32)
    private_servers.restart_redis_empty()
    await rig.endpoint.release()
    status = await rig.complete()
    assert status["epoch"] == 2
    # Attempts that a row had spent are forgotten with the window: calls that were answered 503 are not in its outcome.
    (await rig.history()).assert_clean(allowed_duplicates=40)


async def test_away_for_a_while(rig: Rig, private_servers: PrivateServers) -> None:
    """Stopped, noticed by engine and worker, and started again: both wait, neither ends, what ran is committed."""
    engine = await rig.start_engine(window_rows=WINDOW)
    worker = await rig.start_worker()
    await rig.endpoint.wait(calls=300)
    await rig.endpoint.hold()
    await rig.endpoint.wait(in_flight=32)
    private_servers.stop_redis()
    await rig.endpoint.release()
    await engine.logged("a store is away; waiting")
    await worker.logged("a store is away; waiting")
    told = await rig.until(lambda s: s["message"].startswith("waiting: Redis at 127.0.0.1"))
    assert told["phase"] != "Failed"
    private_servers.start_redis()
    await rig.complete()
    assert worker.alive
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_gone_back_in_time_while_it_feeds(rig: Rig, private_servers: PrivateServers) -> None:
    """An older snapshot of the same epoch: rows that were fed since are not in it."""
    snapshot: Path | None = None
    restored = False

    async def at(stage: str, nth: int) -> None:
        nonlocal snapshot, restored
        if stage == "append" and nth == 3:
            snapshot = private_servers.snapshot_redis()
        if stage == "append" and nth == 6 and snapshot is not None:
            private_servers.restore_redis(snapshot)
            restored = True

    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=at, window_rows=WINDOW) as engine:
        status = await engine.ended()
    assert (status.phase, status.epoch, restored) == (Phase.COMPLETE, 2, True), engine.log.lines
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_gone_back_in_time_when_all_was_fed(rig: Rig, private_servers: PrivateServers) -> None:
    """Nothing is appended any more, so that no append can notice. First to a moment before the last block: rows are
    missing. Then to a moment when all was there: rows that are done come back, and are acknowledged unexecuted."""
    early: Path | None = None

    async def at(stage: str, nth: int) -> None:
        nonlocal early
        if stage == "append" and nth == 5:
            early = private_servers.snapshot_redis()

    await rig.endpoint.hold()
    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=at) as engine:
        await engine.until(lambda s: s.fed == ROWS)
        await rig.endpoint.wait(in_flight=32)
        assert early is not None
        private_servers.restore_redis(early)
        await engine.until(lambda s: s.epoch == 2 and s.fed == ROWS)
        late = private_servers.snapshot_redis()
        await rig.endpoint.release()
        await outcomes_reach(rig, ROWS // 2)
        await rig.endpoint.hold()
        await rig.endpoint.wait(in_flight=32)
        private_servers.restore_redis(late)
        await rig.endpoint.release()
        status = await engine.ended()
    assert (status.phase, status.epoch) == (Phase.COMPLETE, 2), engine.log.lines
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_gone_back_to_an_older_epoch(rig: Rig, private_servers: PrivateServers) -> None:
    """A snapshot of an epoch that is over, while the engine is dead: the one that comes next trusts nothing of it."""
    await rig.endpoint.hold()
    engine = await rig.start_engine(window_rows=WINDOW)
    await rig.start_worker(wait=False)
    await rig.endpoint.wait(in_flight=32)
    snapshot = private_servers.snapshot_redis()
    private_servers.wipe_redis()
    await rig.until(lambda s: s["epoch"] == 2 and s["fed"] > 0)
    engine.kill()
    await engine.ended()
    private_servers.restore_redis(snapshot)
    await rig.endpoint.release()
    await rig.start_engine(window_rows=WINDOW)
    status = await rig.complete()
    assert status["epoch"] == 3
    (await rig.history()).assert_clean(allowed_duplicates=0)
