"""`row_overhead`: the worker's CPU a row against a bare aiohttp loop that makes the same call.

Both run in one process by turns, on uvloop, 32 calls at a time, against a service in another process. The loop has
what nobody can do without: rows that are decoded already, the same compiled template, one shared session, the answer
read and parsed. The worker is the whole one: reads from Redis, locks, looks up, a session a row, headers, outcomes to
Postgres, acknowledgements. Only CPU of this process counts: what it waits for costs nobody anything.
"""

from __future__ import annotations

import asyncio
import gc
import random
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from prometheus_client import CollectorRegistry

from bench.children import Child, module, started
from bench.report import Figure, Missing, median
from bench.runs import fresh_name, open_run, payload, write_manifest
from rowmill.spec import load_manifest_file
from rowmill.telemetry.logging import configure_logging
from rowmill.telemetry.metrics import WorkerMetrics
from rowmill.templating import compile_value
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.events import Events
from rowmill_worker.executors.protocol import Attempt, Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.job import executor_of, request_id, worker_job
from rowmill_worker.worker import Worker

NAME = "row_overhead"
CONCURRENCY = 32
HEADERS = {"Content-Type": "application/json"}
BODY = {"text": "{{ row.text }}", "id": "{{ row.id }}"}


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, turns, rows = (1, 2, 100) if quick else (7, 6, 800)
    ratios, bare, worker = [], [], []
    gc.collect()
    gc.freeze()  # as the worker's own process does
    with started("the endpoint", module("endpoint"), stdin=True) as child:
        url = f"http://127.0.0.1:{_port(child)}/"
        loop = BareLoop(url)
        async with working(stores, url, rows * (turns * rounds + 2)) as whole:
            await loop.turn(rows)
            await whole.turn(rows)
            for number in range(1, rounds + 1):
                mine = theirs = 0.0
                for _ in range(turns):
                    theirs += await loop.turn(rows)
                    mine += await whole.turn(rows)
                bare.append(theirs / (turns * rows) * 1e6)
                worker.append(mine / (turns * rows) * 1e6)
                ratios.append(mine / theirs)
                say(f"round {number}: worker {worker[-1]:.0f} µs of CPU a row, bare loop {bare[-1]:.0f} µs")
            await whole.turn(rows)
        await loop.close()
    parts = {
        "CPU in µs a row": {"rowmill": median(worker), "bare aiohttp": median(bare)},
        "rows": f"{rounds} rounds of {turns} turns of {rows} each",
    }
    what = f"worker CPU a row over a bare aiohttp loop, concurrency {CONCURRENCY}"
    return [Figure(NAME, what, median(ratios), (1.6, 1.25), False, ratios, parts)]


def _port(child: Child) -> int:
    assert child.process.stdout is not None
    return int(child.process.stdout.readline())


class BareLoop:
    """What anybody would write: one session, as many tasks as calls at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._template = compile_value(BODY, path="body")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))

    async def turn(self, rows: int) -> float:
        """CPU seconds of so many rows."""
        waiting = iter([msgspec.json.decode(payload(seq)) for seq in range(1, rows + 1)])
        answers: list[Any] = []
        began = time.process_time()
        await asyncio.gather(*(self._slot(waiting, answers) for _ in range(CONCURRENCY)))
        cpu = time.process_time() - began
        assert len(answers) == rows
        return cpu

    async def _slot(self, waiting: Iterator[Mapping[str, Any]], answers: list[Any]) -> None:
        for row in waiting:
            body = msgspec.json.encode(self._template.render({"row": row}))
            async with self._session.post(self._url, data=body, headers=HEADERS) as response:
                answers.append(msgspec.json.decode(await response.read()))

    async def close(self) -> None:
        await self._session.close()


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
async def working(stores: Endpoints, url: str, rows: int) -> AsyncIterator[WholeWorker]:
    """A worker in this process, wired as its own process wires it, with a backlog of so many rows."""
    name = fresh_name(NAME)
    async with open_run(stores, name) as run:
        await run.fill(rows)
        with tempfile.TemporaryDirectory() as folder:
            http = {"url": url, "method": "POST", "body": BODY}
            manifest = write_manifest(Path(folder), name, concurrency=CONCURRENCY, executor={"http": http})
            job = load_manifest_file(manifest)
            record = run.record
            turnstile = Turnstile(
                executor_of(job, record.identity, secrets=SecretReader(environ={}, base=manifest.parent))
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
