"""`limits`: how much of a group's allowed rate is used, and by how much any 60 seconds pass it, seen at the endpoint.

Two jobs of one group, each with a worker that stays and others that come for a while and go, call a real service; what
counts is when it got their calls.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry

from bench.report import Figure, Missing
from bench.runs import BenchRun, fresh_name, open_run, write_manifest
from rowmill.spec import BatchJob, load_manifest_file
from rowmill.telemetry.logging import configure_logging
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.events import Events
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Worker

NAME = "limits"
RATE = 1200
SLOTS = 24
BEGINNING = 5.0
"""Seconds until everybody is there."""
STAYS = 9.0


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    seconds = 8.0 if quick else 140.0
    times: list[float] = []
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(_endpoint(times))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        jobs = []
        group = fresh_name(NAME)
        for number in (1, 2):
            name = f"{group}-{number}"
            run = await stack.enter_async_context(open_run(stores, name))
            await run.fill(int(RATE / 60 * (seconds + BEGINNING) * 1.2))
            spec = {
                "executor": {"http": {"url": url, "method": "POST", "body": {"text": "{{ row.text }}"}}},
                "limits": {"group": group, "requestsPerMinute": RATE},
            }
            jobs.append((run, load_manifest_file(write_manifest(folder, name, concurrency=SLOTS, **spec))))
        for run, job in jobs:
            await stack.enter_async_context(_worker(run, job, folder, "stays"))
        end = asyncio.get_running_loop().time() + BEGINNING + seconds
        visits = 0
        while (left := end - asyncio.get_running_loop().time()) > 0:
            run, job = jobs[visits % 2]
            visits += 1
            async with _worker(run, job, folder, f"visits-{visits}"):
                await asyncio.sleep(min(STAYS, left))
            say(f"{len(times)} calls, {visits} workers have come and gone")
    first = times[0] + BEGINNING
    steady = [at for at in times if first < at <= first + seconds]
    share = len(steady) / (RATE * seconds / 60)
    over = max(0, _most(times, 60.0) - RATE)
    parts = {"calls": len(times), "visitors": visits, "allowed a minute": RATE}
    return [
        Figure(NAME, "calls a minute over those that the group's limit allows", share, (0.95,), True, [share], parts),
        Figure(
            f"{NAME}_overshoot", "calls past the limit in the worst 60 seconds", float(over), (0.0,), False, [], parts
        ),
    ]


def _most(times: list[float], seconds: float) -> int:
    first = most = 0
    for n, at in enumerate(sorted(times)):
        while times[first] <= at - seconds:
            first += 1
        most = max(most, n - first + 1)
    return most


@asynccontextmanager
async def _endpoint(times: list[float]) -> AsyncIterator[str]:
    """A service that writes down when it was called."""
    loop = asyncio.get_running_loop()

    async def answer(request: web.BaseRequest) -> web.Response:
        times.append(loop.time())
        await request.read()
        return web.json_response({"label": "billing"})

    server = web.Server(answer, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", 0, backlog=1024)
    try:
        yield f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    finally:
        listener.close()
        await server.shutdown(1.0)


@asynccontextmanager
async def _worker(run: BenchRun, job: BatchJob, folder: Path, name: str) -> AsyncIterator[None]:
    """A worker of a run for the length of the block."""
    record = run.record
    executor = executor_of(job, record.identity, secrets=SecretReader(environ={}, base=folder))
    await executor.open()
    log, _ = configure_logging(level="error")
    worker = Worker(
        record=record,
        job=worker_job(job, record.identity, environ={}),
        consumer=f"{record.identity.name}-{name}",
        ledger=run.ledger,
        window=run.window,
        executor=executor,
        events=Events(
            metrics=WorkerMetrics(CollectorRegistry()),
            log=log,
            request_id=lambda row: request_id(record.identity, row),
            now=asyncio.get_running_loop().time,
        ),
        rng=random.Random(1),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(worker.run(stop, grace=5))
    try:
        yield
    finally:
        stop.set()
        await running
        await executor.close()
