"""Engines and workers as tasks of the test's own loop, on real stores: for many jobs at once, and for a look inside."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.outcome import Outcome
from rowmill.spec import BatchJob, identity_of, load_manifest
from rowmill.status import RunStatus
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill.window import Window
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.feeder import WindowBounds
from rowmill_operator.engine.run_source import SourcePlaces
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Worker
from tests.support.engine_process import NoFleet

INSTALLATION = "test"


class KeepLast:
    """A status sink that keeps every status."""

    def __init__(self) -> None:
        self.all: list[RunStatus] = []

    async def report(self, status: RunStatus) -> None:
        self.all.append(status)


def manifest(url: str, *, name: str = "job", namespace: str = "default", rows: Any = None, **spec: Any) -> BatchJob:
    """A job over inline rows (a number of them, or themselves) through the endpoint at `url`."""
    if isinstance(rows, int):
        rows = [{"id": str(n)} for n in range(1, rows + 1)]
    document = {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "source": {"rows": rows},
            "executor": {"http": {"url": url, "method": "POST", "body": {"row": "{{ row.id }}"}}},
            "timeoutSeconds": 10,
            **spec,
        },
    }
    return load_manifest(json.dumps(document), where=name)


class Lab:
    """The stores of one test, and what runs on them."""

    def __init__(self, ledger: Ledger, window: Window, folder: Path) -> None:
        self.ledger = ledger
        self.window = window
        self.folder = folder
        self.log: Any = structlog.wrap_logger(structlog.PrintLogger(), processors=[_drop])

    def identity(self, job: BatchJob) -> RunIdentity:
        return identity_of(job, installation=INSTALLATION)

    async def drive(self, job: BatchJob, *, sink: KeepLast | None = None, window_rows: int = 20_000) -> RunStatus:
        """An engine, to its end."""
        engine = Engine(
            job=job,
            identity=self.identity(job),
            ledger=self.ledger,
            window=self.window,
            fleet=NoFleet(),
            sink=sink or KeepLast(),
            places=SourcePlaces(base=self.folder, cache=self.folder),
            log=self.log,
            bounds=WindowBounds(rows=window_rows),
        )
        return await engine.run(stop=asyncio.Event())

    async def record(self, job: BatchJob) -> RunRecord:
        """The run's record, once an engine has made it."""
        async with asyncio.timeout(60):
            while True:
                record = await self.ledger.find_run(self.identity(job))
                if record is not None:
                    return record
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def worker(
        self,
        job: BatchJob,
        *,
        executor: Executor | None = None,
        environ: Mapping[str, str] | None = None,
        reached: Callable[[str, Sequence[int]], None] = lambda stage, seqs: None,
    ) -> AsyncIterator[Worker]:
        """A worker for the length of the block, drained at its end."""
        record = await self.record(job)
        resolved = worker_job(job, record.identity, environ=environ or {})
        sender = executor or executor_of(
            job, record.identity, secrets=SecretReader(environ=environ or {}, base=self.folder)
        )
        await sender.open()
        worker = Worker(
            record=record,
            job=resolved,
            consumer=f"w-{random.getrandbits(40):x}",
            ledger=self.ledger,
            window=self.window,
            executor=sender,
            events=Events(
                metrics=WorkerMetrics(CollectorRegistry()),
                log=self.log,
                request_id=lambda row: request_id(record.identity, row),
                now=time.monotonic,
            ),
            rng=random.Random(),
            reached=reached,
        )
        stop = asyncio.Event()
        working = asyncio.create_task(worker.run(stop, grace=20))
        try:
            yield worker
        finally:
            stop.set()
            await working
            await sender.close()

    async def outcomes(self, job: BatchJob) -> list[Outcome]:
        record = await self.record(job)
        return [outcome async for page in self.ledger.results(record) for outcome in page]


@asynccontextmanager
async def lab(folder: Path, *, redis_url: str, postgres_dsn: str, connections: int = 8) -> AsyncIterator[Lab]:
    """Connect to the stores for the length of the block."""
    ledger = await Ledger.connect(postgres_dsn, application_name="rowmill lab", connections=connections)
    window = await Window.connect(redis_url, connections=100)
    try:
        await ledger.migrate()
        yield Lab(ledger, window, folder)
    finally:
        await window.close()
        await ledger.close()


def _drop(logger: object, method: str, event: Any) -> Any:
    raise structlog.DropEvent
