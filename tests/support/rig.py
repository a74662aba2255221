"""A whole run on real parts, each of which can be killed: source file, endpoint, engine, workers, Redis, Postgres.

    async with Rig(folder, redis_url=…, postgres_dsn=…, endpoint=…) as rig:
        rig.table(10_000)
        rig.job(concurrency={"perWorker": 8})
        await rig.start_engine()
        worker = await rig.start_worker()
        worker.kill()
        await rig.complete()
        (await rig.history()).assert_clean(allowed_duplicates=…)

Everything that it started is ended when the block is left.
"""

from __future__ import annotations

import asyncio
import csv
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.outcome import Outcome
from rowmill_cli.export import export
from tests.support.checker import History, check_history
from tests.support.endpoint import Call, RemoteEndpoint, read_log
from tests.support.nursery import Child, nursery

POLL_SECONDS = 0.02
IN_SOCKETS_SECONDS = 0.5
"""How long after its caller's death the endpoint may still see a call. Nobody else has its rows before a heartbeat has
expired, which takes three times as long."""


async def eventually(reached: Callable[[], bool], *, within: float = 120.0, poll: float = POLL_SECONDS) -> None:
    """Wait until `reached` says so. Raises TimeoutError."""
    async with asyncio.timeout(within):
        while True:
            if reached():
                return
            await asyncio.sleep(poll)


@dataclass(frozen=True, slots=True)
class Stage:
    """Rows that passed a stage in a worker (claimed, committed, unlocked, finished), at a time in seconds."""

    time: float
    name: str
    seqs: Sequence[int]


class Process:
    """A part in a process of its own; its log is a file, and so are the stages that rows passed in a worker."""

    def __init__(self, name: str, process: Child, log: Path) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.killed_at = 0.0

    @property
    def alive(self) -> bool:
        return self.process.returncode is None

    def kill(self) -> None:
        """SIGKILL."""
        if self.alive:
            self.killed_at = time.time()
            self.process.kill()

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, *, within: float = 120.0) -> int:
        """Wait for its end; returns the exit code."""
        return await asyncio.wait_for(self.process.wait(), within)

    async def logged(self, event: str, *, within: float = 90.0) -> dict[str, Any]:
        """Wait for a log line whose event is this; returns its fields."""
        async with asyncio.timeout(within):
            while True:
                alive = self.alive
                for line in self.log.read_text().splitlines():
                    if f'"event":"{event}"' in line:
                        fields: dict[str, Any] = json.loads(line)
                        return fields
                assert alive, f"{self.name} ended before it logged {event!r}:\n{self.log.read_text()[-3000:]}"
                await asyncio.sleep(POLL_SECONDS)

    @property
    def stages_file(self) -> Path:
        return self.log.with_suffix(".stages")

    def stages(self) -> list[Stage]:
        """Every stage that rows passed here, in order."""
        if not self.stages_file.exists():
            return []
        lines = self.stages_file.read_bytes().split(b"\n")[:-1]
        return [Stage(line["t"], line["stage"], line["seqs"]) for line in map(json.loads, lines)]

    def unfinished(self) -> dict[int, float]:
        """Rows that this worker has claimed and neither committed nor given back, with the time of the claim."""
        open_rows: dict[int, float] = {}
        for stage in self.stages():
            for seq in stage.seqs:
                if stage.name == "claimed":
                    open_rows[seq] = stage.time
                else:
                    open_rows.pop(seq, None)
        return open_rows

    def was_running(self, calls: Sequence[Call]) -> set[int]:
        """Rows in flight in this worker when it died: claimed, called (as the endpoint wrote down), not committed."""
        claimed = self.unfinished()
        last = self.died_at + IN_SOCKETS_SECONDS
        return {int(c.row) for c in calls if c.row and claimed.get(int(c.row), last) <= c.start < last}

    def is_calling(self, calls: Sequence[Call]) -> bool:
        """Whether a row that this worker has claimed is at the endpoint, and was not answered."""
        claimed = self.unfinished()
        return any(c.end is None and c.row and claimed.get(int(c.row), c.start + 1) <= c.start for c in calls)

    @property
    def died_at(self) -> float:
        """When it was killed, or, having killed itself, passed its last stage."""
        return self.killed_at or self.stages()[-1].time


class Rig:
    """One run. `identity` is fixed; the manifest is written by `job`."""

    def __init__(
        self, folder: Path, *, redis_url: str, postgres_dsn: str, endpoint: RemoteEndpoint, name: str = "job"
    ) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.postgres_dsn = postgres_dsn
        self.endpoint = endpoint
        self.source = folder / "table.csv"
        self.job_file = folder / f"{name}.yaml"
        self.status_file = folder / f"{name}-status.jsonl"
        self.identity = RunIdentity("test", "default", name, "1")
        self.engine: Process | None = None
        self.workers: list[Process] = []
        self._all: list[Process] = []
        self._started = 0

    async def __aenter__(self) -> Rig:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for process in self._all:
            process.kill()
        for process in self._all:
            await process.ended()

    def table(self, rows: int, *, text: str = "some text of a row") -> None:
        """A CSV of so many rows; column `id` is the row's number."""
        with self.source.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows([n, f"{text} {n}"] for n in range(1, rows + 1))

    def job(self, **spec: Any) -> None:
        """Write the manifest: the table through the endpoint, with these fields of the spec replaced. A worker that
        starts meanwhile reads the one before or this one, never half of it."""
        manifest = {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": self.identity.name},
            "spec": {
                "source": {"uri": str(self.source)},
                "executor": {"http": {"url": self.endpoint.url, "method": "POST", "body": {"row": "{{ row.id }}"}}},
                "timeoutSeconds": 10,
                "retry": {"maxAttempts": 5, "initialSeconds": 1, "maxSeconds": 2},
                **spec,
            },
        }
        written = self.job_file.with_suffix(".new")
        written.write_text(json.dumps(manifest))
        written.replace(self.job_file)

    async def start_engine(self, *, window_rows: int = 20_000, die_at: str | None = None, nth: int = 1) -> Process:
        """Start an engine. `die_at` names a call on the window (open, append, close) before whose `nth` it dies."""
        extra = ("--die-at", die_at, "--nth", str(nth)) if die_at else ()
        self.engine = await self._start(
            "engine",
            "engine",
            *("--job", str(self.job_file), "--status", str(self.status_file), "--window-rows", str(window_rows)),
            *extra,
        )
        return self.engine

    async def start_worker(self, *, die_at: str | None = None, after: int = 1, wait: bool = True) -> Process:
        """Start a worker; with `wait`, until it works. `die_at` names the stage at whose `after`th block it dies."""
        self._started += 1
        name = f"w{self._started}"
        extra = ("--die-at", die_at, "--after", str(after)) if die_at else ()
        stages = self.folder / f"{name}-{len(self._all)}.stages"
        worker = await self._start(
            name, "worker", "--job", str(self.job_file), "--name", name,
            "--stages", str(stages), *extra,
        )  # fmt: skip
        self.workers.append(worker)
        if wait:
            await worker.logged("working")
        return worker

    @asynccontextmanager
    async def keep_workers(self, count: int) -> AsyncIterator[None]:
        """Within the block a worker that dies is replaced at once, so that `count` live."""

        stop = asyncio.Event()

        async def keep_one() -> None:
            while not stop.is_set():
                worker = await self.start_worker(wait=False)
                waits = {asyncio.ensure_future(worker.process.wait()), asyncio.ensure_future(stop.wait())}
                _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                for task in pending:
                    task.cancel()

        async with asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(keep_one())
            try:
                yield
            finally:
                stop.set()

    def calls(self) -> list[Call]:
        """What the endpoint wrote down."""
        assert self.endpoint.log is not None
        return read_log(self.endpoint.log)

    async def _start(self, name: str, part: str, *arguments: str) -> Process:
        log = self.folder / f"{name}-{len(self._all)}.log"
        environ = {
            **os.environ,
            "ROWMILL_REDIS_URL": self.redis_url,
            "ROWMILL_POSTGRES_DSN": self.postgres_dsn,
        }
        with log.open("wb") as output:
            process = nursery().bear(part, arguments, environ=environ, output=output.fileno(), errors=output.fileno())
        started = Process(name, process, log)
        self._all.append(started)
        return started

    def status(self) -> Mapping[str, Any]:
        """The last status that the engine told, or an empty one."""
        if not self.status_file.exists():
            return {}
        lines = self.status_file.read_bytes().split(b"\n")[:-1]
        last: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        return last

    async def until(self, reached: Callable[[Mapping[str, Any]], bool], *, within: float = 120.0) -> Mapping[str, Any]:
        """Wait for a status that satisfies `reached`."""
        async with asyncio.timeout(within):
            while True:
                status = self.status()
                if status and reached(status):
                    return status
                assert self.engine is not None
                assert self.engine.alive or not self.engine.process.returncode, self.tail()
                await asyncio.sleep(POLL_SECONDS)

    async def complete(self, *, within: float = 200.0) -> Mapping[str, Any]:
        """Wait until the engine ends with Complete; returns its last status."""
        assert self.engine is not None
        try:
            code = await self.engine.ended(within=within)
        except TimeoutError:
            raise AssertionError(f"not complete within {within} s: {self.status()}\n{self.tail()}") from None
        assert code == 0, f"the engine ended with {code}: {self.status()}\n{self.tail()}"
        status = self.status()
        assert status["phase"] == "Complete", status
        return status

    async def stop_workers(self) -> None:
        """SIGTERM to all, and wait: each drains and ends with 0."""
        for worker in self.workers:
            if worker.alive:
                worker.signal(signal.SIGTERM)
        for worker in self.workers:
            code = await worker.ended()
            if code == -signal.SIGTERM:  # it was being born, and listened to nothing yet
                assert "alive" not in worker.log.read_text(), f"{worker.name} did not drain"
                continue
            assert code in (0, -signal.SIGKILL), f"{worker.name} ended with {code}:\n{worker.log.read_text()[-3000:]}"

    def tail(self) -> str:
        """The last lines of every log."""
        return "\n".join(f"--- {p.name}\n{p.log.read_text()[-1500:]}" for p in self._all)

    async def record(self) -> RunRecord:
        ledger = await Ledger.connect(self.postgres_dsn)
        try:
            record = await ledger.find_run(self.identity)
            assert record is not None
            return record
        finally:
            await ledger.close()

    async def outcomes(self) -> list[Outcome]:
        """Every effective outcome, by seq."""
        ledger = await Ledger.connect(self.postgres_dsn)
        try:
            record = await ledger.find_run(self.identity)
            assert record is not None
            return [outcome async for page in ledger.results(record) for outcome in page]
        finally:
            await ledger.close()

    async def export(self) -> Path:
        """The results as the command line writes them."""
        path = self.folder / f"{self.identity.name}-results.jsonl"
        ledger = await Ledger.connect(self.postgres_dsn)
        try:
            record = await ledger.find_run(self.identity)
            assert record is not None
            await export(ledger.results(record), path)
        finally:
            await ledger.close()
        return path

    async def history(self) -> History:
        """Source, endpoint, ledger, exported file and Redis, compared; call it when the run has ended."""
        return await check_history(
            source=self.source,
            endpoint_log=self.endpoint.log,
            postgres_dsn=self.postgres_dsn,
            identity=self.identity,
            export=await self.export(),
            redis_url=self.redis_url,
        )

    async def sql(self, statement: str, *args: Any) -> Any:
        """One statement behind everybody's back; `{outcomes}` is the run's table."""
        record = await self.record()
        connection = await asyncpg.connect(self.postgres_dsn)
        try:
            return await connection.fetch(statement.replace("{outcomes}", f"rowmill.outcomes_{record.id}"), *args)
        finally:
            await connection.close()

    async def health(self, worker: Process) -> dict[str, Any]:
        """What a worker's `/health` answers now."""
        port = (await worker.logged("working"))["http_port"]
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/health") as response:
            numbers: dict[str, Any] = await response.json()
            return numbers
