"""The real Redis and Postgres that everything is measured on, their versions and the settings that matter."""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import asyncpg
import redis.asyncio as redis

from rowmill_cli.local.servers import POSTGRES_DSN_VARIABLE, REDIS_URL_VARIABLE, Endpoints, LocalServers

POSTGRES_SETTINGS = ("fsync", "synchronous_commit", "full_page_writes", "shared_buffers", "max_wal_size", "wal_level")
REDIS_SETTINGS = ("appendonly", "appendfsync", "save", "maxmemory-policy")
PACKAGES = ("rowmill", "redis", "hiredis", "asyncpg", "uvloop", "aiohttp", "msgspec")


@contextmanager
def running_stores() -> Iterator[Endpoints]:
    """A fresh Redis and Postgres for the length of the block, or those that ROWMILL_REDIS_URL and ROWMILL_POSTGRES_DSN
    name (the bench leaves its runs' tables in such a Postgres, and expects the Redis to be otherwise idle)."""
    with tempfile.TemporaryDirectory(prefix="rowmill-bench-") as folder:
        with LocalServers(Path(folder), environ=os.environ) as endpoints:
            yield endpoints


def environment(stores: Endpoints) -> dict[str, str]:
    """How a child is told where the stores are."""
    return {REDIS_URL_VARIABLE: stores.redis_url, POSTGRES_DSN_VARIABLE: stores.postgres_dsn}


async def circumstances(stores: Endpoints) -> dict[str, Any]:
    """Versions and settings of everything. Raises SystemExit where the stores would make the figures worthless."""
    connection = await asyncpg.connect(stores.postgres_dsn)
    try:
        postgres = {name: await connection.fetchval(f"show {name}") for name in POSTGRES_SETTINGS}
        postgres["version"] = str(connection.get_server_version().major)
    finally:
        await connection.close()
    for name in ("fsync", "synchronous_commit"):
        if postgres[name] == "off":
            raise SystemExit(f"bench: Postgres has {name} off: such figures are worth nothing; switch it on")
    client = redis.Redis.from_url(stores.redis_url)
    try:
        info = await client.info("server")
        settings: dict[str, Any] = {}
        for name in REDIS_SETTINGS:
            settings.update(cast("dict[str, Any]", await client.config_get(name)))
    finally:
        await client.aclose()
    return {
        "machine": {"cores": os.cpu_count(), "platform": platform.platform(), "load": os.getloadavg()},
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "postgres": postgres,
        "redis": {"version": info["redis_version"], **settings},
    }
