"""Real servers for the suite: one pair for all tests, and pairs of their own for tests that kill, cut or wipe them.

The shared pair is started once a session (and dies with it, whatever ends it), unless `ROWMILL_REDIS_URL` and
`ROWMILL_POSTGRES_DSN` name servers to use instead: an empty Redis database, a role that may create databases.
"""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import uuid
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis

from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_cli.local.redis_server import RedisServer

T = TypeVar("T")


def run_apart(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` on an event loop of its own in another thread: fixtures need no loop, and disturb none."""
    results: list[T] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(asyncio.run(work))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def with_database(dsn: str, database: str) -> str:
    """`dsn` with another database."""
    return urlunsplit(urlsplit(dsn)._replace(path=f"/{database}"))


@contextmanager
def fresh_database(dsn: str) -> Iterator[str]:
    """The DSN of a new, empty database on the server of `dsn`; dropped at the end, whoever is still connected."""
    name = f"rowmill_test_{uuid.uuid4().hex[:12]}"
    run_apart(_execute(dsn, f'CREATE DATABASE "{name}"'))
    try:
        yield with_database(dsn, name)
    finally:
        run_apart(_execute(dsn, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'))


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=60)
    try:
        await connection.execute(statement, timeout=30)
    finally:
        await connection.close(timeout=10)


def redis_of_worker(url: str, worker: str) -> str:
    """A Redis database for each of the processes that share the tests (`gw0`, `gw1` …): each empties its own."""
    parts = urlsplit(url)
    database = int(parts.path.strip("/") or 0) + int(worker.removeprefix("gw") or 0)
    return urlunsplit(parts._replace(path=f"/{database}"))


@contextmanager
def empty_redis(url: str) -> Iterator[str]:
    """`url`, with nothing in its database, before and after."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield url
        client.flushdb()


def redis_is_empty(url: str) -> bool:
    """Whether the database of `url` holds no key at all."""
    with redis.Redis.from_url(url) as client:
        return bool(client.dbsize() == 0)


class PrivateServers:
    """A Redis and a Postgres for one test, which may do anything to them. Their addresses never change.

    Every method blocks (tens of milliseconds, up to a second) and must be called from the main thread: it is fine to
    call them from a coroutine of a test. Each waits until what it says has happened.

    `initialised` is the folder of a Postgres that was started and stopped before: a copy of its data saves the second
    or so that making new data takes.
    """

    def __init__(self, folder: Path, *, initialised: Path | None = None) -> None:
        self.folder = folder
        self.redis = RedisServer(folder / "redis")
        self.postgres = PostgresServer(folder / "postgres", durable_init=False)
        if initialised is not None:
            self.postgres.folder.mkdir(mode=0o700)
            # Owners as well: Postgres does not run as root, nor on data of somebody else's.
            subprocess.run(["cp", "-a", initialised / "data", self.postgres.data], check=True, timeout=60)

    @property
    def redis_url(self) -> str:
        return self.redis.url

    @property
    def postgres_dsn(self) -> str:
        return self.postgres.dsn

    def start(self) -> None:
        self.start_redis()
        self.start_postgres()

    def stop(self) -> None:
        try:
            self.redis.stop()
        finally:
            self.postgres.stop_at_once()

    # Redis

    def start_redis(self) -> None:
        """Start it, empty, where it was before."""
        port = self.redis.port
        self.redis.start()
        assert port in (0, self.redis.port), "somebody took the port of the Redis that was stopped"

    def stop_redis(self) -> None:
        self.redis.stop()

    def kill_redis(self) -> None:
        """SIGKILL."""
        self.redis.kill()

    def restart_redis_empty(self) -> None:
        """SIGKILL, then a start with nothing in it."""
        self.kill_redis()
        self.start_redis()

    def wipe_redis(self) -> None:
        """FLUSHALL, while everybody stays connected."""
        assert self.redis.ask("FLUSHALL").startswith(b"+OK")

    def snapshot_redis(self) -> Path:
        """A copy of what it holds now, for `restore_redis`."""
        assert self.redis.ask("SAVE", timeout=20).startswith(b"+OK")
        snapshot = self.folder / f"snapshot-{uuid.uuid4().hex[:8]}.rdb"
        shutil.move(self.redis.folder / "dump.rdb", snapshot)
        return snapshot

    def restore_redis(self, snapshot: Path) -> None:
        """SIGKILL, then a start with what it held at the time of `snapshot`."""
        self.kill_redis()
        dump = self.redis.folder / "dump.rdb"
        shutil.copyfile(snapshot, dump)
        self.start_redis()
        dump.unlink()

    # Postgres

    def start_postgres(self) -> None:
        """Start it where it was before, with everything that was committed."""
        port = self.postgres.port
        self.postgres.start()
        assert port in (0, self.postgres.port), "somebody took the port of the Postgres that was stopped"

    def stop_postgres(self) -> None:
        """An orderly end: sessions are cut, open transactions rolled back."""
        self.postgres.stop()

    def stop_postgres_at_once(self) -> None:
        """Immediate shutdown: sessions cut, no checkpoint, recovery at the next start."""
        self.postgres.stop_at_once()

    def kill_postgres(self) -> None:
        """SIGKILL of its main process."""
        self.postgres.kill()

    def restart_postgres_at_once(self) -> None:
        self.stop_postgres_at_once()
        self.start_postgres()

    def cut_sessions(self, application_name: str) -> int:
        """End every session of that `application_name` (LIKE pattern); how many there were."""
        return run_apart(_terminate(self.postgres_dsn, application_name))


async def _terminate(dsn: str, application_name: str) -> int:
    connection = await asyncpg.connect(dsn, timeout=60)
    try:
        rows = await connection.fetch(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE application_name LIKE $1 AND pid <> pg_backend_pid()",
            application_name,
            timeout=30,
        )
        return len(rows)
    finally:
        await connection.close(timeout=10)
