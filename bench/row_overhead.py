"""`row_overhead`: the worker's CPU a row against a bare aiohttp loop that makes the same call.

Both run in one process by turns, on uvloop, 32 calls at a time, against a service in another process. The loop has
what nobody can do without: rows that are decoded already, the same compiled template, one shared session, the answer
read and parsed. The worker is the whole one: reads from Redis, locks, looks up, a session a row, headers, outcomes to
Postgres, acknowledgements. Only CPU of this process counts: what it waits for costs nobody anything.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry

from bench.children import Child, module, started
from bench.report import Figure, Missing, median
from bench.runs import BenchRun, fresh_name, open_run, payload, write_manifest
from rowmill.ledger.budget import rows_a_worker
from rowmill.spec import load_manifest_file
from rowmill.telemetry.logging import configure_logging
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill.templating import compile_value
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.events import Events
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Worker

NAME = "row_overhead"
CONCURRENCY = 32
BODY = {"text": "{{ row.text }}", "id": "{{ row.id }}"}


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, rows = (1, 500) if quick else (7, 5_000)
    with started("the endpoint", module("endpoint"), stdin=True) as child:
        url = f"http://127.0.0.1:{_port(child)}/"
        bare, worker = [], []
        await bare_loop(url, rows // 4)
        await whole_worker(stores, url, rows // 4)
        for number in range(1, rounds + 1):
            bare.append(await bare_loop(url, rows) * 1e6)
            worker.append(await whole_worker(stores, url, rows) * 1e6)
            say(f"round {number}: worker {worker[-1]:.0f} µs of CPU a row, bare loop {bare[-1]:.0f} µs")
    ratios = [a / b for a, b in zip(worker, bare, strict=True)]
    parts = {"CPU in µs a row": {"rowmill": median(worker), "bare aiohttp": median(bare)}, "rows a round": rows}
    what = f"worker CPU a row over a bare aiohttp loop, concurrency {CONCURRENCY}"
    return [Figure(NAME, what, median(ratios), (1.6, 1.25), False, ratios, parts)]


def _port(child: Child) -> int:
    assert child.process.stdout is not None
    return int(child.process.stdout.readline())


async def bare_loop(url: str, rows: int) -> float:
    """CPU seconds a row of the loop."""
    template = compile_value(BODY, path="body")
    decode = msgspec.json.Decoder().decode
    waiting = iter([decode(payload(seq)) for seq in range(1, rows + 1)])
    answers: list[Any] = []
    headers = {"Content-Type": "application/json"}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY)) as session:

        async def slot(waiting: Iterator[Mapping[str, Any]]) -> None:
            for row in waiting:
                body = msgspec.json.encode(template.render({"row": row}))
                async with session.post(url, data=body, headers=headers) as response:
                    answers.append(decode(await response.read()))

        began = time.process_time()
        await asyncio.gather(*(slot(waiting) for _ in range(CONCURRENCY)))
        cpu = time.process_time() - began
    assert len(answers) == rows
    return cpu / rows


async def whole_worker(stores: Endpoints, url: str, rows: int) -> float:
    """CPU seconds a row of a worker over a backlog, from its start to its last acknowledgement."""
    name = fresh_name(NAME)
    async with open_run(stores, name) as run:
        await run.fill(rows)
        with tempfile.TemporaryDirectory() as folder:
            http = {"url": url, "method": "POST", "body": BODY}
            manifest = write_manifest(Path(folder), name, concurrency=CONCURRENCY, executor={"http": http})
            cpu = await _work(run, manifest, rows)
        counts = await run.ledger.runs.progress(run.record)
    assert counts.succeeded == rows, counts
    return cpu / rows


async def _work(run: BenchRun, manifest: Path, rows: int) -> float:
    job = load_manifest_file(manifest)
    record = run.record
    executor = executor_of(job, record.identity, environ={}, base=manifest.parent)
    await executor.open()
    done = asyncio.Event()
    left = rows

    def reached(stage: str, seqs: Sequence[int]) -> None:
        nonlocal left
        if stage == "finished":
            left -= len(seqs)
            if left <= 0:
                done.set()

    log, _ = configure_logging(level="error")
    resolved = worker_job(job, record.identity, environ={})
    capacity = await run.ledger.runs.capacity()
    worker = Worker(
        record=record,
        job=resolved,
        consumer="bench",
        ledger=run.ledger,
        window=run.window,
        executor=executor,
        events=Events(
            metrics=WorkerMetrics(CollectorRegistry()),
            log=log,
            request_id=lambda row: request_id(record.identity, row),
            now=asyncio.get_running_loop().time,
        ),
        budget=rows_a_worker(capacity, workers=1, concurrency=CONCURRENCY),
        rng=random.Random(1),
        reached=reached,
    )
    stop = asyncio.Event()
    began = time.process_time()
    working = asyncio.create_task(worker.run(stop, grace=5))
    waiting = asyncio.create_task(done.wait())
    await asyncio.wait([working, waiting], return_when=asyncio.FIRST_COMPLETED)
    cpu = time.process_time() - began
    stop.set()
    waiting.cancel()
    await working
    await executor.close()
    return cpu
