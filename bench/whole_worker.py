"""The whole worker in this process, wired as its own process wires it, which works off rows in turns.

It reads from Redis, locks, looks up, calls, commits and acknowledges as ever; only that its executor lets rows pass
while it is the worker's turn. What is measured is the CPU of this process: what a turn waits for costs nobody anything.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from bench.children import Child
from bench.runs import fresh_name, open_run, write_manifest
from rowmill.spec import load_manifest_file
from rowmill.telemetry.logging import configure_logging
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Attempt, Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Worker

CONCURRENCY = 32


def port_of(endpoint: Child) -> int:
    """Where `bench.endpoint`, just started, listens."""
    assert endpoint.process.stdout is not None
    return int(endpoint.process.stdout.readline())


class Turnstile:
    """The real executor, which lets rows pass only while it is the worker's turn."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.passes = asyncio.Semaphore(0)

    @property
    def active_sessions(self) -> int:
        return self._executor.active_sessions

    async def open(self) -> None:
        await self._executor.open()

    async def execute(self, attempt: Attempt) -> Any:
        await self.passes.acquire()
        return await self._executor.execute(attempt)

    async def close(self) -> None:
        await self._executor.close()


class WholeWorker:
    """A worker over a backlog, which works off a number of rows when it is told to."""

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._left = 0
        self._done = asyncio.Event()

    def reached(self, stage: str, seqs: Sequence[int]) -> None:
        if stage == "finished":
            self._left -= len(seqs)
            if self._left <= 0:
                self._done.set()

    async def turn(self, rows: int) -> float:
        """CPU seconds of so many rows, from their calls to their acknowledgement; reading ahead for later ones counts,
        as reading these was counted earlier."""
        self._left = rows
        self._done.clear()
        began = time.process_time()
        for _ in range(rows):
            self._turnstile.passes.release()
        async with asyncio.timeout(60):
            await self._done.wait()
        return time.process_time() - began


@asynccontextmanager
async def working(
    stores: Endpoints, figure: str, executor: Mapping[str, Any], rows: int, *, environ: Mapping[str, str] | None = None
) -> AsyncIterator[WholeWorker]:
    """A worker with a backlog of so many rows for `executor` (as in a manifest); all must succeed within the block.

    `environ` is what the manifest's references of kind `env` are read from.
    """
    name = fresh_name(figure)
    async with open_run(stores, name) as run:
        await run.fill(rows)
        with tempfile.TemporaryDirectory() as folder:
            manifest = write_manifest(Path(folder), name, concurrency=CONCURRENCY, executor=executor)
            job = load_manifest_file(manifest)
            record = run.record
            turnstile = Turnstile(
                executor_of(job, record.identity, secrets=SecretReader(environ=environ or {}, base=manifest.parent))
            )
        await turnstile.open()
        log, _ = configure_logging(level="error")
        whole = WholeWorker(turnstile)
        worker = Worker(
            record=record,
            job=worker_job(job, record.identity, environ={}),
            consumer="bench",
            ledger=run.ledger,
            window=run.window,
            executor=turnstile,
            events=Events(
                metrics=WorkerMetrics(CollectorRegistry()),
                log=log,
                request_id=lambda row: request_id(record.identity, row),
                now=asyncio.get_running_loop().time,
            ),
            rng=random.Random(1),
            reached=whole.reached,
        )
        stop = asyncio.Event()
        running = asyncio.create_task(worker.run(stop, grace=5))
        try:
            yield whole
        finally:
            stop.set()
            await running
            await turnstile.close()
        counts = await run.ledger.runs.progress(record)
        assert counts.succeeded == rows, counts
