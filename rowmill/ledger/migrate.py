"""Schema migrations: numbered files, each applied once, in order, in a transaction of its own.

They can run twice and at once: an advisory lock lets one at a time in, and what is applied already is skipped.
A ledger that is newer than this release is used as it is (migrations expand first and contract a release later).

No migration makes others wait behind it for long: a table that somebody reads for hours (a backup) is tried again, and
the tables of single runs, of which there may be thousands, are widened one by one: one lock each at a time.
"""

from __future__ import annotations

import asyncio
from importlib.resources import files

import asyncpg

from rowmill.ledger.keys import MIGRATION_KEY
from rowmill.ledger.queries import statement

LOCK_SECONDS = 2
"""How long a migration waits for a table at most, and everybody else behind it."""
TRIES = 30
PAUSE_SECONDS = 1.0


def _migrations() -> list[tuple[int, str]]:
    folder = files("rowmill.ledger").joinpath("migrations")
    found = [f for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted((int(f.name.split("_")[0]), f.read_text("utf-8")) for f in found)


async def migrate(connection: asyncpg.Connection) -> int:
    """Bring the schema up to this release; returns how many migrations were applied now.

    Raises asyncpg.LockNotAvailableError where somebody holds a table for longer than is tried: begin again later.
    """
    applied_now = 0
    for version, sql in _migrations():
        applied_now += await _patiently(connection, version, sql)
    await widen(connection)
    return applied_now


async def widen(connection: asyncpg.Connection) -> None:
    """Give the tables of single runs the columns that new ones have. Null columns are added without rewriting."""
    for row in await connection.fetch(statement("narrow_outcomes")):
        add = (
            f"alter table if exists rowmill.{row[0]} add column if not exists input_tokens bigint, "
            "add column if not exists output_tokens bigint"
        )
        await _patiently(connection, None, add)


async def _patiently(connection: asyncpg.Connection, version: int | None, sql: str) -> int:
    for tries in range(1, TRIES + 1):
        try:
            async with connection.transaction():
                return await _apply(connection, version, sql)
        except asyncpg.LockNotAvailableError:
            if tries == TRIES:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


async def _apply(connection: asyncpg.Connection, version: int | None, sql: str) -> int:
    if version is not None:
        await connection.execute("select pg_advisory_xact_lock($1)", MIGRATION_KEY)
        await connection.execute("create schema if not exists rowmill")
        await connection.execute(
            "create table if not exists rowmill.migrations"
            " (version int primary key, applied_at timestamptz not null default now())"
        )
        if await connection.fetchval("select 1 from rowmill.migrations where version = $1", version):
            return 0
    await connection.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
    await connection.execute(sql)
    if version is not None:
        await connection.execute("insert into rowmill.migrations (version) values ($1)", version)
    return 1
