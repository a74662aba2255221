"""Postgres dies, cuts its sessions, or loses what it had: what runs goes on and is committed, what is lost runs again.

Rows in flight are not cut by any of these: their worker lives, holds them, and commits when it can. So the bound for
duplicate calls is 0, but for outcomes that were lost: each costs one call more.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from rowmill.status import Phase, RunStatus
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere, outcomes_reach
from tests.support.rig import Process, Rig
from tests.support.servers import PrivateServers

ROWS = 3000
WINDOW = 1500


@pytest.fixture
async def rig(tmp_path: Path, private_servers: PrivateServers) -> AsyncIterator[Rig]:
    servers = private_servers
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(
            tmp_path, redis_url=servers.redis_url, postgres_dsn=servers.postgres_dsn, endpoint=endpoint
        ) as rig:
            rig.table(ROWS)
            rig.job(shards=1, concurrency={"perWorker": 32})
            yield rig


def stop_at_once_and_start(servers: PrivateServers) -> None:
    servers.restart_postgres_at_once()


def kill_and_start(servers: PrivateServers) -> None:
    servers.kill_postgres()
    servers.start_postgres()


def cut_lock_sessions(servers: PrivateServers) -> None:
    assert servers.cut_sessions("rowmill worker % locks") == 2


def cut_all_sessions(servers: PrivateServers) -> None:
    assert servers.cut_sessions("rowmill%") >= 4  # two of each worker's; the engine may be between two tries


@pytest.mark.parametrize("strike", [stop_at_once_and_start, kill_and_start, cut_lock_sessions, cut_all_sessions])
async def test_sessions_lost(
    rig: Rig, private_servers: PrivateServers, strike: Callable[[PrivateServers], None]
) -> None:
    """With rows in flight in two workers, three times in one run: none of them is called again."""
    engine = await rig.start_engine(window_rows=WINDOW)
    workers = [await rig.start_worker(wait=False) for _ in range(2)]
    for third in range(3):
        await rig.endpoint.wait(calls=third * ROWS // 4 + 100)
        await rig.endpoint.hold()
        await rig.endpoint.wait(in_flight=64)
        strike(private_servers)
        await rig.endpoint.release()
    status = await rig.complete()
    assert all(worker.alive for worker in workers), rig.tail()
    assert engine.process.returncode == 0
    assert (status["succeeded"], status["epoch"]) == (ROWS, 1)
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def why_not_ready(rig: Rig, worker: Process) -> str:
    """Wait until a worker's `/readyz` says that it is not; what it says."""
    port = (await worker.logged("working"))["http_port"]
    async with asyncio.timeout(60), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
                if response.status == 503:
                    return await response.text()
            await asyncio.sleep(0.02)


async def test_away_for_a_while(rig: Rig, private_servers: PrivateServers) -> None:
    """Gone long enough to be noticed by everybody: all wait, nobody ends, results that came home meanwhile are kept."""
    engine = await rig.start_engine(window_rows=WINDOW)
    worker = await rig.start_worker()
    await rig.endpoint.wait(calls=100)
    await rig.endpoint.hold()
    await rig.endpoint.wait(in_flight=32)
    private_servers.stop_postgres_at_once()
    await rig.endpoint.release()
    await rig.endpoint.wait(idle=True)
    await engine.logged("a store is away; waiting")
    assert "Postgres" in await why_not_ready(rig, worker)
    await rig.until(lambda s: s["message"].startswith("waiting: Postgres at 127.0.0.1"))
    private_servers.start_postgres()
    assert (await rig.complete())["epoch"] == 1
    assert worker.alive
    (await rig.history()).assert_clean(allowed_duplicates=0)


class Watched:
    """Sees what the ledger holds at the moment that the run is marked Complete."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self.rows_at_the_end: list[int] = []

    async def __call__(self, stage: str, nth: int) -> None:
        if stage == "close":  # the engine's next step after it has written the phase
            assert (await self._rig.record()).phase is Phase.COMPLETE
            (count,) = await self._rig.sql("select count(distinct seq) as n from {outcomes}")
            self.rows_at_the_end.append(count["n"])


async def test_outcomes_lost_on_the_way(rig: Rig) -> None:
    """Every seventh outcome vanishes behind everybody's back when half of the rows are done."""
    watched = Watched(rig)
    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=watched, window_rows=WINDOW) as engine:
        await outcomes_reach(rig, ROWS // 2)
        lost = await rig.sql("delete from {outcomes} where seq % 7 = 0 returning seq")
        assert lost
        status = await engine.ended()
    assert (status.phase, status.epoch, status.succeeded) == (Phase.COMPLETE, 2, ROWS)
    assert watched.rows_at_the_end == [ROWS]
    assert f"{len(lost):,} rows have no outcome" in engine.log.reasons("a new epoch")[0]
    (await rig.history()).assert_clean(allowed_duplicates=len(lost))


async def test_outcomes_lost_just_before_the_end(rig: Rig) -> None:
    """They vanish when all counters say that the run is done and the window is empty, twice: before the run is called
    Complete every row is looked for. The last row of the table is among them, and the first."""
    watched = Watched(rig)
    lost: list[list[object]] = []

    async def tell(status: RunStatus) -> None:
        ended = status.phase is Phase.RUNNING and status.done >= ROWS and status.queued == 0
        if ended and len(lost) < 2 and status.epoch == len(lost) + 1:  # once an epoch
            gone = f"seq in (1, 2, {ROWS})" if not lost else "seq = 1500"
            lost.append(await rig.sql(f"delete from {{outcomes}} where {gone} returning seq"))

    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=watched, told=tell, window_rows=WINDOW) as engine:
        status = await engine.ended()
    assert [len(rows) for rows in lost] == [3, 1]
    assert (status.phase, status.epoch, status.succeeded) == (Phase.COMPLETE, 3, ROWS)
    assert watched.rows_at_the_end == [ROWS]
    (await rig.history()).assert_clean(allowed_duplicates=4)


FAILOVER = "update rowmill.runs set epoch = 1, term = term - 1, feed_position = null, total = null"


async def test_a_failover_lost_the_last_epoch(rig: Rig, private_servers: PrivateServers) -> None:
    """The ledger goes back to before the second epoch began, with outcomes lost as well; Redis has the second one open.
    The engine that drives the run, and one that comes new, both find their way to a third."""

    async def fail_over() -> list[object]:
        lost = await rig.sql("delete from {outcomes} where seq % 5 = 0 returning seq")
        await rig.sql(FAILOVER)
        private_servers.cut_sessions("rowmill%")
        return list(lost)

    await rig.start_worker(wait=False)
    engine = await rig.start_engine(window_rows=WINDOW)
    await rig.endpoint.wait(calls=300)
    await rig.endpoint.hold()
    private_servers.wipe_redis()
    await rig.until(lambda s: s["epoch"] == 2 and s["fed"] > 0)
    lost = await fail_over()
    await rig.until(lambda s: s["epoch"] == 3)
    engine.kill()
    await engine.ended()
    lost += await fail_over()
    await rig.start_engine(window_rows=WINDOW)
    await rig.endpoint.release()
    status = await rig.complete()
    assert (status["epoch"], status["succeeded"]) == (4, ROWS)
    (await rig.history()).assert_clean(allowed_duplicates=len(lost))


async def test_a_ledger_gone_back_under_a_live_engine(rig: Rig) -> None:
    """No session is cut, so that the engine's own writes are the first to meet it. Nobody has taken the run over: it is
    not superseded, and goes on."""

    await rig.endpoint.hold()
    await rig.start_worker(wait=False)
    async with EngineHere(rig, window_rows=WINDOW) as engine:
        await rig.endpoint.wait(in_flight=32)
        await rig.sql("update rowmill.runs set epoch = 0, term = 0")
        await rig.endpoint.release()
        status = await engine.ended()
    assert (status.phase, status.succeeded, status.epoch) == (Phase.COMPLETE, ROWS, 2)
    assert "the ledger went back in time" in engine.log.reasons("a store is away; waiting")[0]
    (await rig.history()).assert_clean(allowed_duplicates=0)
