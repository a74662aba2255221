"""Schema migrations: numbered files, each applied once, in order, in a transaction of its own.

They can run twice and at once: an advisory lock lets one at a time in, and what is applied already is skipped.
A ledger that is newer than this release is used as it is (migrations expand first and contract a release later).
"""

from __future__ import annotations

from importlib.resources import files

import asyncpg

from rowmill.ledger.keys import MIGRATION_KEY


def _migrations() -> list[tuple[int, str]]:
    folder = files("rowmill.ledger").joinpath("migrations")
    found = [f for f in folder.iterdir() if f.name.endswith(".sql")]
    return sorted((int(f.name.split("_")[0]), f.read_text("utf-8")) for f in found)


async def migrate(connection: asyncpg.Connection) -> int:
    """Bring the schema up to this release; returns how many migrations were applied now."""
    applied_now = 0
    for version, sql in _migrations():
        async with connection.transaction():
            await connection.execute("select pg_advisory_xact_lock($1)", MIGRATION_KEY)
            await connection.execute("create schema if not exists rowmill")
            await connection.execute(
                "create table if not exists rowmill.migrations"
                " (version int primary key, applied_at timestamptz not null default now())"
            )
            if await connection.fetchval("select 1 from rowmill.migrations where version = $1", version):
                continue
            await connection.execute(sql)
            await connection.execute("insert into rowmill.migrations (version) values ($1)", version)
            applied_now += 1
    return applied_now
