"""`feed`: rows a second from a CSV file into streams, against what redis-benchmark appends with a pipeline of 100.

The real source and the real feeder, with nothing that drains the window and bounds that it never meets: reading,
parsing to JSON and the fenced appends. The other side sends one constant entry of the same size again and again from C.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import unquote, urlsplit

import redis

from bench.children import ChildFailed
from bench.report import Figure, Missing, median
from bench.runs import SHARDS, TEXT, fresh_name, open_run, payload
from rowmill.row import Position
from rowmill.sources import open_source
from rowmill_cli.local.servers import Endpoints
from rowmill_operator.engine.feeder import Feeder, FeedState, WindowBounds

NAME = "feed"
TOOL = "redis-benchmark"


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, rows = (1, 20_000) if quick else (5, 400_000)
    tool = shutil.which(TOOL)
    if tool is None:
        return [
            Missing(NAME, f"{TOOL} is not on PATH; install it (on Debian: apt-get install redis-tools) and run again")
        ]
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "table.csv"
        write_table(table, rows)
        fed, benchmark = [], []
        for number in range(1, rounds + 1):
            benchmark.append(_redis_benchmark(stores, tool, rows))
            fed.append(await _feed(stores, table, rows))
            say(f"round {number}: fed {fed[-1]:,.0f} rows/s, {TOOL} {benchmark[-1]:,.0f} entries/s")
    ratios = [a / b for a, b in zip(fed, benchmark, strict=True)]
    parts = {
        "rows/s": {"rowmill": median(fed), "redis-benchmark": median(benchmark)},
        "version": _version(tool),
        "rows": rows,
        "shards": SHARDS,
    }
    what = f"rows/s from a CSV of 100-byte rows into streams over {TOOL} XADD -P 100"
    return [Figure(NAME, what, median(ratios), (0.2, 0.35), True, ratios, parts)]


def _version(tool: str) -> str:
    return subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=10).stdout.strip()


def write_table(path: Path, rows: int) -> None:
    """A CSV of `rows` rows of 100 bytes each (with the line's end)."""
    text = (TEXT + "....")[: 100 - 8 - 1 - 1]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", "text"])
        writer.writerows([f"{n:08}", text] for n in range(1, rows + 1))


async def _feed(stores: Endpoints, table: Path, rows: int) -> float:
    async with open_run(stores, fresh_name(NAME)) as run:
        source = open_source(uri=str(table), rows=None, format=None, limit=None, base=table.parent, cache=table.parent)
        with ThreadPoolExecutor(2) as threads:
            feeder = Feeder(
                source=source,
                record=run.record,
                runs=run.ledger.runs,
                window=run.feed,
                state=FeedState([0] * SHARDS, Position()),
                skip_closed=False,
                bounds=WindowBounds(rows=10**9, bytes=10**12),
                threads=threads,
                now=time.monotonic,
                fed=lambda rows, size, seconds: None,
            )
            began = time.perf_counter()
            total = await feeder.run()
            seconds = time.perf_counter() - began
        source.close()
        entries = sum(look.entries for look in await run.feed.look(run.record.epoch))
        if (total, entries) != (rows, rows):
            raise ChildFailed(f"fed {total} rows and found {entries} in the streams, not {rows}")
    return rows / seconds


def _redis_benchmark(stores: Endpoints, tool: str, rows: int) -> float:
    parts = urlsplit(stores.redis_url)
    command = [tool, "-h", parts.hostname or "127.0.0.1", "-p", str(parts.port or 6379), "-P", "100", "-n", str(rows)]
    if parts.password:
        command += ["-a", unquote(parts.password)]
    stream = f"bench:{fresh_name(NAME)}"
    command += ["--csv", "XADD", stream, "*", "r", payload(1).decode()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    lines = [line for line in done.stdout.splitlines() if line.startswith('"XADD')]
    if done.returncode != 0 or not lines:
        raise ChildFailed(f"{TOOL} ended with code {done.returncode}: {done.stderr[-500:]}")
    with redis.Redis.from_url(stores.redis_url) as client:
        client.unlink(stream)
    # The test's name holds the payload, quotes and commas included: the numbers are what follows its end.
    return float(next(csv.reader([lines[0].rpartition('}",')[2]]))[0])
