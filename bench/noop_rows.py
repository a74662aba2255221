"""`noop_rows`: how many rows that do nothing one worker process gets through, against the fastest of four task queues.

Every side works off a backlog that lies in the same Redis before its worker starts, one worker process with 32 slots on
uvloop, the same 100 bytes a row. Rowmill is timed from its first read to its last acknowledgement and writes every
outcome to Postgres; a peer is timed from the start of its first task to the start of its last, and keeps no results.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.children import ROOT, ChildFailed, module, started
from bench.peers_env import NoPeers, python_of
from bench.report import Figure, Missing, median
from bench.runs import fresh_name, open_run, write_manifest
from bench.stores import environment
from rowmill_cli.local.servers import Endpoints

NAME = "noop_rows"
CONCURRENCY = 32
PEERS = {"streaq": "peers", "saq": "peers", "taskiq": "peers", "arq": "peers-arq"}


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, rows, tasks = (1, 5_000, 500) if quick else (3, 100_000, 6_000)
    try:
        pythons = {peer: python_of(lock) for peer, lock in PEERS.items()}
    except NoPeers as error:
        return [Missing(NAME, str(error))]
    ours: list[dict[str, Any]] = []
    theirs: dict[str, list[dict[str, Any]]] = {peer: [] for peer in PEERS}
    for number in range(1, rounds + 1):
        ours.append(await rowmill(stores, rows))
        say(f"round {number}: rowmill {_rate(ours[-1]):,.0f} rows/s")
        for peer, python in pythons.items():
            theirs[peer].append(run_peer(stores, peer, python, tasks))
            say(f"round {number}: {peer} {_rate(theirs[peer][-1]):,.0f} tasks/s")
    rates = {peer: median([_rate(m) for m in measured]) for peer, measured in theirs.items()}
    fastest = max(rates, key=lambda peer: rates[peer])
    ratios = [_rate(m) / max(_rate(theirs[peer][i]) for peer in PEERS) for i, m in enumerate(ours)]
    own = median([_rate(m) for m in ours])
    cpu = {"rowmill": median([_cpu(m) for m in ours])}
    cpu |= {peer: median([_cpu(m) for m in measured]) for peer, measured in theirs.items()}
    return [
        Figure(
            NAME,
            f"rows/s of one worker process over those of the fastest peer ({fastest}), concurrency {CONCURRENCY}",
            median(ratios),
            (6.0, 12.0),
            True,
            ratios,
            {
                "rows/s": {"rowmill": own, **rates},
                "worker CPU in µs a row": cpu,
                "versions": {peer: _versions(measured[0]) for peer, measured in theirs.items()},
                "rows": {"rowmill": rows, "peers": tasks},
            },
        )
    ]


async def rowmill(stores: Endpoints, rows: int) -> dict[str, Any]:
    """One worker process over a backlog of so many rows."""
    name = fresh_name(NAME)
    async with open_run(stores, name) as run:
        await run.fill(rows)
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_manifest(Path(folder), name, concurrency=CONCURRENCY)
            command = module("worker_process", "--job", str(manifest), "--rows", str(rows))
            with started("the worker", command, environ=environment(stores)) as child:
                measured = child.result()
        counts = await run.ledger.runs.progress(run.record)
    if counts.succeeded != rows:
        raise ChildFailed(f"the ledger holds {counts.succeeded} outcomes, not {rows}")
    return measured


def run_peer(stores: Endpoints, peer: str, python: Path, tasks: int) -> dict[str, Any]:
    """One worker process of a peer over a backlog of so many tasks."""
    script = ROOT / "bench" / "peers" / f"{peer}_peer.py"
    queue = f"bench-{peer}-{secrets.token_hex(4)}"
    measured: dict[str, Any] = {}
    for command in ("enqueue", "work"):
        line = [str(python), str(script), command, stores.redis_url, queue, str(tasks), str(CONCURRENCY)]
        with started(f"{peer} ({command})", line) as child:
            measured = child.result()
    return measured


def _rate(measured: dict[str, Any]) -> float:
    return float(measured["rows"]) / float(measured["seconds"])


def _cpu(measured: dict[str, Any]) -> float:
    return float(measured["cpu_seconds"]) / float(measured["rows"]) * 1e6


def _versions(measured: dict[str, Any]) -> str:
    return " ".join(f"{name} {version}" for name, version in measured["versions"].items())
