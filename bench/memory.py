"""`memory`: whether a job of ten times the rows needs more memory, and what it leaves in Redis.

A whole run each, engine and worker in processes of their own, a CSV of 100-byte rows, an executor that does nothing.
The most that each process ever had resident, at the larger number of rows over the smaller one; and what Redis holds
more after the run than before, over the bytes that went through it.
"""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis.asyncio as redis

from bench.children import ChildFailed, module, started
from bench.feed import write_table
from bench.report import Figure, Missing
from bench.runs import fresh_name, payload, write_manifest
from bench.stores import environment
from rowmill_cli.local.servers import Endpoints

NAME = "memory"
CONCURRENCY = 32


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    few, many = (2_000, 10_000) if quick else (100_000, 1_000_000)
    client = redis.Redis.from_url(stores.redis_url)
    try:
        if not quick:
            await _whole_run(stores, client, 20_000)  # fills what Redis and the system keep for themselves
        small = await _whole_run(stores, client, few)
        say(f"{few:,} rows: {_shown(small)}")
        large = await _whole_run(stores, client, many)
        say(f"{many:,} rows: {_shown(large)}")
    finally:
        await client.aclose()
    figures: list[Figure | Missing] = []
    for part in ("engine", "worker"):
        figures.append(
            Figure(
                f"{NAME}_{part}",
                f"peak resident memory of the {part} at {many:,} rows over {few:,}",
                large[part] / small[part],
                (1.2,),
                False,
                parts={"MiB": {f"{few:,} rows": small[part] / 2**20, f"{many:,} rows": large[part] / 2**20}},
            )
        )
    figures.append(
        Figure(
            f"{NAME}_redis",
            f"bytes left in Redis over bytes fed, {many:,} rows",
            max(0, large["left"]) / large["fed"],
            (0.01,),
            False,
            parts={
                "bytes": {"fed": large["fed"], "left": large["left"]},
                "keys left": large["keys"],
                "most rows in the window": large["window_rows"],
            },
        )
    )
    return figures


async def _whole_run(stores: Endpoints, client: redis.Redis, rows: int) -> dict[str, Any]:
    name = fresh_name(NAME)
    before, keys_before = await _used(client)
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.csv", rows)
        manifest = write_manifest(Path(folder), name, concurrency=CONCURRENCY, source={"uri": "table.csv"})
        environ = environment(stores)
        worker_command = module("worker_process", "--job", str(manifest), "--rows", str(rows), "--until-stopped")
        with (
            started("the engine", module("engine_process", "--job", str(manifest)), environ=environ) as engine,
            started("the worker", worker_command, environ=environ) as worker,
        ):
            driven = engine.result(within=600)
            worker.process.send_signal(signal.SIGTERM)
            worked = worker.result()
    if driven["succeeded"] != rows:
        raise ChildFailed(f"the run ended {driven['phase']} with {driven['succeeded']} rows, not {rows}")
    after, keys_after = await _used(client)
    return {
        "engine": driven["peak_rss"],
        "worker": worked["peak_rss"],
        "seconds": worked["seconds"],
        "fed": rows * len(payload(1)),
        "left": after - before,
        "keys": keys_after - keys_before,
        "window_rows": driven["window_rows"],
    }


async def _used(client: redis.Redis) -> tuple[int, int]:
    """Bytes and keys in Redis, once what was unlinked is really gone."""
    for _ in range(100):
        info = await client.info("memory")
        if not info.get("lazyfree_pending_objects"):
            break
    return int(info["used_memory"]), int(await client.dbsize())


def _shown(run: dict[str, Any]) -> str:
    return (
        f"engine {run['engine'] / 2**20:.1f} MiB, worker {run['worker'] / 2**20:.1f} MiB, "
        f"{run['left']:,} bytes left in Redis, {run['seconds']:.1f} s"
    )
