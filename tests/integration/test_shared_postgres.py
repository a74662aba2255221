"""Several runs share one small Postgres: together they never take more than half of it, and all of them finish.

Two ledgers (databases) on one server, a process's connections for each engine's side, and a ledger of its own for every
worker, as in a process of its own; what the server has is counted all the while by somebody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from rowmill.ledger import shares
from rowmill.spec import BatchJob
from rowmill.status import Phase, RunStatus
from rowmill.tasks import end_tasks
from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_operator.engine import conductor
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.run_source import SourcePlaces
from rowmill_worker import quota
from rowmill_worker.executors.protocol import Attempt
from tests.support.inprocess import KeepLast, Lab, lab, manifest
from tests.support.rig import eventually
from tests.support.servers import fresh_database, run_apart

CONNECTIONS = 60
HALF_CONNECTIONS = (CONNECTIONS - 3) // 2
LOCKS = 16 * CONNECTIONS
WAIT_SECONDS = 90.0


@pytest.fixture
def small_postgres(tmp_path: Path) -> Any:
    settings = {"max_connections": str(CONNECTIONS), "max_locks_per_transaction": "16"}
    server = PostgresServer(tmp_path / "postgres", settings=settings, durable_init=False)
    try:
        server.start()
        yield server
    finally:
        server.stop_at_once()


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody looks often."""
    monkeypatch.setattr(shares, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(shares, "SOON_SECONDS", 0.05)
    monkeypatch.setattr(shares, "LOOK_SHARE", 1.0)
    monkeypatch.setattr(shares, "SETTLE_SECONDS", 1.0)
    monkeypatch.setattr(quota, "LOOK_SECONDS", 0.2)
    monkeypatch.setattr(quota, "SOON_SECONDS", 0.05)
    monkeypatch.setattr(conductor, "TICK_SECONDS", (0.05, 0.2))


class Turnstile:
    """An executor whose rows wait until it is opened."""

    active_sessions = 0

    def __init__(self) -> None:
        self.gate = asyncio.Event()

    async def open(self) -> None:
        return None

    async def close(self) -> None:
        return None

    async def execute(self, attempt: Attempt) -> Any:
        await self.gate.wait()
        return attempt.seq


class Workers:
    """A fleet of workers in this process, each with its own way into the stores."""

    def __init__(self, job: BatchJob, executor: Turnstile, *, folder: Path, redis_url: str, dsn: str) -> None:
        self._job, self._executor = job, executor
        self._folder, self._redis_url, self._dsn = folder, redis_url, dsn
        self._stops: list[asyncio.Event] = []
        self._all: list[asyncio.Task[None]] = []
        self._ready = 0
        self.most = 0

    def wants(self, desired: int) -> int:
        return desired

    async def scale(self, desired: int) -> None:
        while len(self._stops) > desired:
            self._stops.pop().set()
        while len(self._stops) < desired:
            self._stops.append(asyncio.Event())
            self._all.append(asyncio.create_task(self._live(self._stops[-1])))
        self.most = max(self.most, desired)
        for task in self._all:
            if task.done():
                task.result()

    async def ready(self) -> int:
        return self._ready

    async def failure(self) -> str | None:
        return None

    async def close(self) -> None:
        await self.scale(0)
        await asyncio.gather(*self._all)

    @property
    def count(self) -> int:
        return len(self._stops)

    async def _live(self, stop: asyncio.Event) -> None:
        async with (
            lab(self._folder, redis_url=self._redis_url, postgres_dsn=self._dsn, connections=2) as stores,
            stores.worker(self._job, executor=self._executor),
        ):
            self._ready += 1
            await stop.wait()
            self._ready -= 1


class Watch:
    """The most that Rowmill ever had on the server, counted by somebody else."""

    def __init__(self) -> None:
        self.connections = 0
        self.locks = 0

    async def look(self, dsn: str) -> None:
        connection = await asyncpg.connect(dsn, server_settings={"application_name": "watch"})
        try:
            while True:
                connections, advisory = await connection.fetchrow(
                    "select (select count(*) from pg_stat_activity where application_name like 'rowmill%'),"
                    " (select count(*) from pg_locks where locktype = 'advisory')"
                )
                self.connections = max(self.connections, connections)
                self.locks = max(self.locks, advisory)
                await asyncio.sleep(0.01)
        finally:
            await connection.close()


class Drive:
    """One run: its engine, its workers, what was told."""

    def __init__(self, stores: Lab, job: BatchJob, workers: Workers) -> None:
        self.workers, self.sink = workers, KeepLast()
        engine = Engine(
            job=job,
            identity=stores.identity(job),
            ledger=stores.ledger,
            window=stores.window,
            fleet=workers,
            sink=self.sink,
            places=SourcePlaces(base=stores.folder, cache=stores.folder),
            log=stores.log,
        )
        self.task: asyncio.Task[RunStatus] = asyncio.create_task(engine.run(stop=asyncio.Event()))

    @property
    def message(self) -> str:
        return self.sink.all[-1].message if self.sink.all else ""


@asynccontextmanager
async def watched(dsn: str) -> AsyncIterator[Watch]:
    watch = Watch()
    looking = asyncio.create_task(watch.look(dsn))
    try:
        yield watch
    finally:
        await end_tasks([looking])


@pytest.mark.slow
async def test_runs_of_two_ledgers_share_half_of_a_server_and_all_finish(
    tmp_path: Path, redis_url: str, small_postgres: PostgresServer
) -> None:
    """The first takes all there is; those that come later get theirs while the first goes on; nobody is refused."""
    executor = Turnstile()
    drives: list[Drive] = []
    with fresh_database(small_postgres.dsn) as here, fresh_database(small_postgres.dsn) as there:
        # A role with no right to look at others' statements sees enough of them.
        run_apart(_plain_role(small_postgres.dsn, there))
        plain = there.replace("rowmill:", "plain:").replace(there.split(":")[2].split("@")[0], "plain")
        async with (
            watched(small_postgres.dsn) as watch,
            lab(tmp_path, redis_url=redis_url, postgres_dsn=here, connections=2) as first,
            lab(tmp_path, redis_url=redis_url, postgres_dsn=plain, connections=2) as second,
        ):

            def drive(stores: Lab, name: str, dsn: str, rows: int = 600) -> Drive:
                job = manifest(
                    "http://127.0.0.1:1",
                    name=name,
                    rows=rows,
                    concurrency={"perWorker": 4},
                    workers={"minReplicas": 12, "maxReplicas": 12},
                )
                drives.append(Drive(stores, job, Workers(job, executor, folder=tmp_path, redis_url=redis_url, dsn=dsn)))
                return drives[-1]

            # Both processes are there; one has nothing to do yet.
            executor.gate.set()
            await asyncio.wait_for(drive(second, "before", plain, rows=1).task, WAIT_SECONDS)
            await drives.pop().workers.close()
            executor.gate.clear()
            early = drive(first, "early", here)
            # 28 connections are half, and 4 each are the two processes' own.
            await eventually(lambda: early.workers.count == 6, within=WAIT_SECONDS)
            assert "max_connections to 100" in early.message, early.message
            late = [drive(second, "late-1", plain), drive(second, "late-2", plain), drive(first, "late-3", here)]
            await eventually(lambda: all(one.workers.count >= 1 for one in late), within=WAIT_SECONDS)
            await eventually(lambda: sorted(d.workers.count for d in drives) == [1, 1, 2, 2], within=WAIT_SECONDS)
            assert not any(one.task.done() for one in drives)
            executor.gate.set()
            ends = await asyncio.wait_for(asyncio.gather(*(one.task for one in drives)), WAIT_SECONDS)
            for one in drives:
                await one.workers.close()
    assert [(end.phase, end.succeeded) for end in ends] == [(Phase.COMPLETE, 600)] * 4
    assert watch.connections <= HALF_CONNECTIONS, "a worker was not counted"
    assert 100 < watch.locks <= LOCKS // 2, "as many as they may, and no more"


async def _plain_role(admin: str, database: str) -> None:
    connection = await asyncpg.connect(admin)
    try:
        await connection.execute("create role plain login password 'plain'")
        await connection.execute(f'grant all on database "{database.rsplit("/", 1)[1]}" to plain')
    finally:
        await connection.close()


async def test_a_server_that_is_too_small_for_a_single_worker_says_what_to_raise(
    tmp_path: Path, redis_url: str, small_postgres: PostgresServer
) -> None:
    dsn = small_postgres.dsn
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=dsn, connections=24) as stores:
        job = manifest("http://127.0.0.1:1", rows=5)
        one = Drive(stores, job, Workers(job, Turnstile(), folder=tmp_path, redis_url=redis_url, dsn=dsn))
        try:
            await eventually(lambda: one.message.startswith("no worker yet: "), within=WAIT_SECONDS)
            assert "raise max_connections to 100" in one.message
            assert one.workers.most == 0
        finally:
            await end_tasks([one.task])
