"""The worker process: reads its job, opens its stores, works until SIGTERM, drains, ends.

Exit codes: 0 drained · 1 a part of ours failed (the log says which) · 2 the job or a store's settings are not usable.
Stores that are away at the start are waited for.
"""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import uvloop
from prometheus_client import CollectorRegistry

from rowmill.errors import InvalidInput, RowmillError, StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.spec import BatchJob, gathers_rows, identity_of, load_manifest_file
from rowmill.tasks import set_within
from rowmill.telemetry.batches import BatchMetrics
from rowmill.telemetry.logging import Logger, RedactSecrets, configure_logging
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill.window import Window
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.health import serve_health
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Job, Worker

T = TypeVar("T")

RETRY_SECONDS = (0.2, 5.0)
CONNECTIONS = 2
"""To Postgres, besides the lock session: one for commits, one for everything else."""


def _nothing(stage: str, seqs: Sequence[int]) -> None:
    """Stages are told to nobody."""


def _to_nobody(words: str) -> None:
    """Last words are told to nobody."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How a worker is started. `name` is the pod's or the process's; an incarnation is added to it. `http_port` 0 takes
    a free one. `secrets_base` is where relative secret files are found
    (the manifest's folder when absent). `told` is given, beside the log, what ends a worker that cannot go on."""

    manifest: Path
    installation: str
    name: str
    redis_url: str = field(repr=False)
    postgres_dsn: str = field(repr=False)
    http_host: str = "127.0.0.1"
    http_port: int = 0
    log_level: str = "info"
    secrets_base: Path | None = None
    executor: Callable[[BatchJob, RunRecord], Executor] | None = None
    reached: Callable[[str, Sequence[int]], None] = _nothing
    told: Callable[[str], None] = _to_nobody


def main(settings: WorkerSettings) -> int:
    """Run one worker to its end; returns the exit code."""
    log, redact = configure_logging(level=settings.log_level, worker=settings.name)
    try:
        return uvloop.run(_main(settings, log, redact))
    except InvalidInput as error:
        for line in error.lines():
            log.error("the job cannot be run", reason=line)
            print(line, file=sys.stderr)  # noqa: T201 - the last line is what a person is shown
        settings.told(_redacted(str(error), redact))
        return 2
    except RowmillError as error:
        log.error("the worker cannot run", reason=str(error))
        settings.told(_redacted(str(error), redact))
        return 2


def _redacted(text: str, redact: RedactSecrets) -> str:
    return str(redact(None, "", {"text": text})["text"])


async def _main(settings: WorkerSettings, log: Logger, redact: RedactSecrets) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    job = load_manifest_file(settings.manifest)
    identity = identity_of(job, installation=settings.installation)
    resolved = worker_job(job, identity, environ=os.environ)
    log = log.bind(job=str(identity))
    life = _Life(resolved)
    # From now on it answers that it is alive: a worker that waits for its stores must not be taken for a dead one.
    async with AsyncExitStack() as serving:
        try:
            life.port = await serving.enter_async_context(
                serve_health(
                    host=settings.http_host,
                    port=settings.http_port,
                    registry=life.registry,
                    not_ready=life.not_ready,
                    numbers=life.numbers,
                )
            )
        except OSError:
            log.exception("health and metrics cannot be served", host=settings.http_host, http_port=settings.http_port)
            return 1
        log.info("alive", http_port=life.port)
        return await _connected(settings, job, identity, life, stop, log, redact)


@dataclass(slots=True)
class _Life:
    """What is answered over HTTP, before there is a worker and then. `job` is the manifest, resolved."""

    job: Job
    worker: Worker | None = None
    port: int = 0
    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def not_ready(self) -> str | None:
        return "not connected to its stores yet" if self.worker is None else self.worker.not_ready()

    def numbers(self) -> dict[str, Any]:
        if self.worker is not None:
            return self.worker.numbers()
        slots = self.job.concurrency
        free = {"max_concurrent": slots, "available_slots": slots}
        return {**free, "processing_count": 0, "active_sessions": 0, "waiting": 0}


async def _connected(
    settings: WorkerSettings,
    job: BatchJob,
    identity: RunIdentity,
    life: _Life,
    stop: asyncio.Event,
    log: Logger,
    redact: RedactSecrets,
) -> int:
    ledger = await _patiently(
        lambda: Ledger.connect(settings.postgres_dsn, application_name="rowmill worker", connections=CONNECTIONS),
        stop=stop,
        log=log,
    )
    window = await _patiently(lambda: Window.connect(settings.redis_url), stop=stop, log=log)
    if ledger is None or window is None:
        return 0
    try:
        record = await _patiently(lambda: _run_record(ledger, identity), stop=stop, log=log)
        if record is None:
            return 0
        return await _work(settings, job, record, ledger, window, life, stop, log, redact)
    finally:
        await window.close()
        await ledger.close()


async def _run_record(ledger: Ledger, identity: RunIdentity) -> RunRecord:
    record = await ledger.find_run(identity)
    if record is None:
        raise StoreUnavailable("the run is not in the ledger yet; the engine makes it")
    return record


async def _work(
    settings: WorkerSettings,
    job: BatchJob,
    record: RunRecord,
    ledger: Ledger,
    window: Window,
    life: _Life,
    stop: asyncio.Event,
    log: Logger,
    redact: RedactSecrets,
) -> int:
    resolved = life.job
    metrics = WorkerMetrics(life.registry)
    reader = SecretReader(
        environ=os.environ, base=settings.secrets_base or settings.manifest.parent, where=str(settings.manifest)
    )
    make = settings.executor or (
        lambda job, record: executor_of(
            job,
            record.identity,
            secrets=reader,
            environ=os.environ,
            log=log,
            metrics=BatchMetrics(life.registry) if gathers_rows(job.spec) else None,
        )
    )
    executor = make(job, record)
    await executor.open()
    redact.add(reader.redactor().redact)  # what the manifest refers to is known now, and stays out of every line
    rng = random.Random(secrets.randbits(64))
    consumer = f"{settings.name}-{secrets.token_hex(4)}"
    worker = Worker(
        record=record,
        job=resolved,
        consumer=consumer,
        ledger=ledger,
        window=window,
        executor=executor,
        events=Events(
            metrics=metrics,
            log=log,
            request_id=lambda row: request_id(record.identity, row),
            now=asyncio.get_running_loop().time,
        ),
        rng=rng,
        reached=settings.reached,
    )
    metrics.watch(
        slots_max=lambda: worker.gate.limit,
        slots_available=lambda: worker.gate.available,
        slots_waiting=lambda: worker.waiting,
        in_flight=lambda: worker.running,
        sessions_active=lambda: executor.active_sessions,
        locks_held=lambda: worker.locks_held,
        permits_waiting=lambda: worker.permits_waiting,
    )
    # What is there by now stays to the end: no collection needs to look at it again.
    gc.collect()
    gc.freeze()
    try:
        life.worker = worker
        log.info("working", consumer=consumer, slots=resolved.concurrency, http_port=life.port)
        await worker.run(stop, grace=resolved.rules.timeout + 5)
        log.info("drained")
        return 0
    except Exception as error:
        log.exception("a part of this worker failed; its rows are taken over by others")
        settings.told(f"a part of this worker failed ({type(error).__name__}); its log says how")
        return 1
    finally:
        await executor.close()


async def _patiently(attempt: Callable[[], Awaitable[T]], *, stop: asyncio.Event, log: Logger) -> T | None:
    """Try until it works; None when told to stop before."""
    delay = RETRY_SECONDS[0]
    while not stop.is_set():
        try:
            return await attempt()
        except StoreUnavailable as error:
            log.warning("waiting", reason=str(error))
        await set_within(stop, delay)
        delay = min(delay * 2, RETRY_SECONDS[1])
    return None
