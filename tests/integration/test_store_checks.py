"""Servers that cannot be used, and how a person is told: what is wrong, where, what to do; never a password.

Away (it may come back: `StoreUnavailable`, whoever runs waits) is told apart from unusable (`StoreUnsafe`: nothing is
started, waiting would not help).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from rowmill.errors import StoreUnavailable, StoreUnsafe
from rowmill.ledger import Leadership, Ledger
from rowmill.ledger.connect import Pool, check_settings
from rowmill.row import Entry
from rowmill.window import Window
from rowmill.window.connect import RedisClient
from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_cli.local.redis_server import RedisServer
from rowmill_cli.local.settings import pick_port
from tests.support.servers import with_database

SECRET = "s3cret-of-nobody"


def changed(url: str, *, password: str | None = None, host: str | None = None, port: int | None = None) -> str:
    """`url` with another password, host or port."""
    parts = urlsplit(url)
    place = f"{host or parts.hostname}:{port or parts.port}"
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{password or parts.password}@{place}"))


async def told_by_postgres(dsn: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        await Ledger.connect(dsn)
    return without_secrets(str(raised.value), dsn)


async def told_by_redis(url: str, kind: type[Exception]) -> str:
    with pytest.raises(kind) as raised:
        await Window.connect(url)
    return without_secrets(str(raised.value), url)


def without_secrets(message: str, url: str) -> str:
    password = urlsplit(url).password
    assert password is None or password not in message
    assert "Traceback" not in message
    return message


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One that tests may set as they like, one after the other."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.stop()


class AnyPostgres(PostgresServer):
    """One that need not be a primary."""

    def _pid_file_lines(self) -> list[str]:
        return ["ready" if line == "standby" else line for line in super()._pid_file_lines()]


@pytest.fixture(scope="module")
def own_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    server = AnyPostgres(tmp_path_factory.mktemp("postgres"), durable_init=False)
    server.start()
    yield server
    server.stop_at_once()


# Postgres


async def test_postgres_with_a_wrong_password(postgres_dsn: str) -> None:
    message = await told_by_postgres(changed(postgres_dsn, password=SECRET), StoreUnsafe)
    assert message.startswith("Postgres at 127.0.0.1:")
    assert "password authentication failed" in message
    assert "Check user and password in ROWMILL_POSTGRES_DSN" in message


async def test_postgres_away(postgres_dsn: str) -> None:
    port = pick_port(0)
    message = await told_by_postgres(changed(postgres_dsn, port=port), StoreUnavailable)
    assert message.startswith(f"Postgres at 127.0.0.1:{port}/")


async def test_postgres_at_a_name_that_nobody_knows(postgres_dsn: str) -> None:
    message = await told_by_postgres(changed(postgres_dsn, host="nowhere.invalid"), StoreUnavailable)
    assert "nowhere.invalid" in message


async def test_postgres_without_that_database(postgres_dsn: str) -> None:
    message = await told_by_postgres(with_database(postgres_dsn, "not_made_yet"), StoreUnsafe)
    assert 'database "not_made_yet" does not exist' in message
    assert "createdb" in message


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://user:pw@127.0.0.1:port/db",
        "postgresql://user:p/s3cret@127.0.0.1:5432/db",
        "host=127.0.0.1 user=me password=s3cret",
        "redis://127.0.0.1:6379",
    ],
)
async def test_a_dsn_that_is_none(dsn: str) -> None:
    message = await told_by_postgres(dsn, StoreUnsafe)
    assert "ROWMILL_POSTGRES_DSN" in message
    assert "postgresql://user:password@host:port/database" in message
    assert "s3cret" not in message


async def test_commits_that_a_crash_loses(postgres_dsn: str) -> None:
    await execute(postgres_dsn, f'alter database "{urlsplit(postgres_dsn).path[1:]}" set synchronous_commit = off')
    message = await told_by_postgres(postgres_dsn, StoreUnsafe)
    assert "synchronous_commit is off" in message
    assert "ALTER SYSTEM SET synchronous_commit = on" in message


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes"])
async def test_a_postgres_that_a_crash_corrupts(own_postgres: PostgresServer, setting: str) -> None:
    own_postgres.stop_at_once()
    server = PostgresServer(own_postgres.folder, settings={setting: "off"})
    server.start()
    try:
        message = await told_by_postgres(server.dsn, StoreUnsafe)
        assert f"{setting} is off" in message
        assert f"ALTER SYSTEM SET {setting} = on" in message
    finally:
        server.stop_at_once()
        own_postgres.start()
    await (await Ledger.connect(own_postgres.dsn)).close()


async def test_a_standby(own_postgres: PostgresServer) -> None:
    signal_file = own_postgres.data / "standby.signal"
    own_postgres.stop()
    signal_file.touch()
    own_postgres.start()
    try:
        message = await told_by_postgres(own_postgres.dsn, StoreUnsafe)
        assert "this is a standby" in message
        assert "Point ROWMILL_POSTGRES_DSN at the primary" in message
    finally:
        own_postgres.stop_at_once()
        signal_file.unlink(missing_ok=True)
        own_postgres.start()


async def test_a_postgres_that_is_too_old() -> None:
    """No such server is at hand: only its greeting is played."""

    class Version(NamedTuple):
        major: int

    class Old:
        def get_server_version(self) -> Version:
            return Version(13)

    with pytest.raises(StoreUnsafe, match="version 13 is too old; Rowmill needs Postgres 14 or newer"):
        await check_settings("postgresql://127.0.0.1/x", Old(), application_name="test")


async def execute(dsn: str, *statements: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


# Redis


async def test_redis_with_a_wrong_password(own_redis: RedisServer) -> None:
    message = await told_by_redis(changed(own_redis.url, password=SECRET), StoreUnsafe)
    assert message.startswith("Redis at 127.0.0.1:")
    assert "Check user and password in ROWMILL_REDIS_URL" in message


async def test_redis_without_a_password(own_redis: RedisServer) -> None:
    message = await told_by_redis(f"redis://127.0.0.1:{own_redis.port}/0", StoreUnsafe)
    assert "Check user and password in ROWMILL_REDIS_URL" in message


async def test_redis_away() -> None:
    port = pick_port(0)
    message = await told_by_redis(f"redis://:{SECRET}@127.0.0.1:{port}/0", StoreUnavailable)
    assert message.startswith(f"Redis at 127.0.0.1:{port}: ")


async def test_redis_at_a_name_that_nobody_knows() -> None:
    message = await told_by_redis(f"redis://:{SECRET}@nowhere.invalid:6379/0", StoreUnavailable)
    assert "nowhere.invalid" in message


@pytest.mark.parametrize(
    "url",
    ["redis://127.0.0.1:port/0", "redis://:p/s3cret@127.0.0.1:6379", "postgresql://user:s3cret@127.0.0.1/db", "a", ""],
)
async def test_a_url_that_is_none(url: str) -> None:
    message = await told_by_redis(url, StoreUnsafe)
    assert "ROWMILL_REDIS_URL" in message
    assert "redis://user:password@host:port/0" in message
    assert "s3cret" not in message


async def test_a_redis_that_evicts(own_redis: RedisServer) -> None:
    own_redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        message = await told_by_redis(own_redis.url, StoreUnsafe)
        assert "maxmemory-policy is allkeys-lru" in message
        assert "CONFIG SET maxmemory-policy noeviction" in message
    finally:
        own_redis.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    await (await Window.connect(own_redis.url)).close()


async def test_a_replica(own_redis: RedisServer) -> None:
    own_redis.ask("REPLICAOF", "127.0.0.1", str(pick_port(0)))
    try:
        message = await told_by_redis(own_redis.url, StoreUnsafe)
        assert "this is a replica" in message
        assert "Point ROWMILL_REDIS_URL at the primary" in message
    finally:
        own_redis.ask("REPLICAOF", "NO", "ONE")


async def test_a_redis_that_is_too_old(own_redis: RedisServer) -> None:
    """No such server is at hand: only what it says of itself is played."""

    class Old(RedisClient):
        async def call(self, *command: Any) -> Any:
            said = await super().call(*command)
            return said | {"redis_version": "6.0.16"} if command == ("INFO", "server") else said

    client = Old(own_redis.url)
    with pytest.raises(StoreUnsafe, match=r"version 6\.0\.16 is too old; Rowmill needs Redis 6\.2 or newer"):
        await client.check()
    await client.close()


async def test_a_redis_that_is_full(own_redis: RedisServer, tmp_path: Path) -> None:
    """Nothing is appended, which passes; what is finished still leaves, which makes room."""
    window = await Window.connect(own_redis.url)
    feed = window.feed(token="full", shards=1)
    await feed.open(1)
    await feed.append(1, 0, after=0, entries=[Entry(1, b"{}"), Entry(2, b"{}")])
    own_redis.ask("CONFIG", "SET", "maxmemory", "1")
    try:
        with pytest.raises(StoreUnavailable, match=r"OOM|maxmemory"):
            await feed.append(1, 0, after=2, entries=[Entry(3, b"{}")])
        work = window.work(token="full", shards=1, epoch=1, consumer="a")
        rows = await work.take(10)
        await work.finish(0, [row.seq for row in rows])
    finally:
        own_redis.ask("CONFIG", "SET", "maxmemory", "0")
    assert [row.seq for row in rows] == [1, 2]
    assert await feed.append(1, 0, after=2, entries=[Entry(3, b"{}")]) == 1
    await feed.close(1)
    await window.close()


async def test_what_is_in_use_when_a_pool_is_closed_ends_when_it_comes_back(postgres_dsn: str) -> None:
    """Nobody would come for it: it would hold its place at the server for as long as the process lives."""
    pool = Pool(postgres_dsn, application_name="rowmill test pool", size=1)
    async with pool.connection() as connection:
        await pool.close()
        assert await connection.fetchval("select 1") == 1
    assert connection.is_closed()


async def test_a_lead_is_not_taken_any_more_once_the_ledger_is_closed(postgres_dsn: str) -> None:
    leadership = Leadership(postgres_dsn, application_name="rowmill test")
    taking = asyncio.create_task(leadership.take(1))
    await asyncio.sleep(0)  # it has begun to connect
    leadership.close()
    with pytest.raises(StoreUnavailable, match="this ledger was closed"):
        await taking
