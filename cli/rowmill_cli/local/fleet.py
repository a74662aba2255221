"""The workers of one run as processes on this machine.

A worker's life: spawned → (answers `/readyz`) ready → ended, of itself or because it was asked. One that ends unasked
is replaced, at once the first times and later ever more slowly, so that a crash loop does not spin. One that is
asked to end (SIGTERM) drains; past its grace it is killed, and its rows run again elsewhere.

Workers are children that the kernel ends with us, recorded besides so that the next command can end what is left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rowmill_cli.local.files import bound_log, last_line, load_json, open_log, save_json
from rowmill_cli.local.processes import ProcessRecord, Steps, end_recorded, spawn
from rowmill_cli.local.servers import POSTGRES_DSN_VARIABLE, REDIS_URL_VARIABLE, Endpoints
from rowmill_cli.local.settings import LOOPBACK, pick_port

STEADY_SECONDS = 5.0
"""A worker that lived this long was well: its end starts the count of quick ends anew."""

MAX_RESPAWN_DELAY = 10.0
_POLL_SECONDS = 0.02
_QUICK_ENDS_TOLD = 4
_READY_TIMEOUT = 1.0
_INVALID_INPUT = 2
_DEFAULT_GRACE = 70.0


def respawn_delay(quick_ends: int) -> float:
    """Seconds to wait before the next start after `quick_ends` ends in a row that came soon after their start."""
    return 0.0 if quick_ends < 2 else min(MAX_RESPAWN_DELAY, 0.25 * 2.0 ** (quick_ends - 2))


def worker_command() -> list[str]:
    """How a worker is started so that `ps` shows `rowmill worker`: by the installed script, else by the module."""
    script = Path(sys.executable).with_name("rowmill")
    return [str(script)] if script.is_file() else [sys.executable, "-m", "rowmill_cli"]


@dataclass(slots=True)
class _Worker:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    record: ProcessRecord
    log: Path
    started: float
    ready: bool = False
    kill_at: float | None = None


@dataclass(slots=True)
class _Slot:
    worker: _Worker | None = None
    quick_ends: int = 0
    not_before: float = 0.0


@dataclass(slots=True)
class ProcessFleet:
    """Implements the engine's `Fleet`. Every method is called on one event loop, in the main thread.

    `job_file` is the manifest that workers read, `base` where its relative files are found; `environ` is theirs, to
    which the stores' addresses are added (never to their arguments); `grace_seconds` is how long a draining worker
    may take. `clock` gives monotonic seconds.
    """

    job_file: Path
    base: Path
    installation: str
    endpoints: Endpoints
    logs: Path
    records_file: Path
    environ: Mapping[str, str]
    grace_seconds: float
    log_level: str = "info"
    command: Sequence[str] = field(default_factory=worker_command)
    clock: Callable[[], float] = time.monotonic
    incarnation: Callable[[], str] = field(default=lambda: secrets.token_hex(4))
    _slots: list[_Slot] = field(default_factory=list, init=False)
    _draining: list[_Worker] = field(default_factory=list, init=False)
    _never_ready: int = field(default=0, init=False)
    _trouble: str | None = field(default=None, init=False)
    _stopping: bool = field(default=False, init=False)
    _ever_ready: bool = field(default=False, init=False)
    refused: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set when a worker says that its input cannot be used before any was ready: no other will do better."""
    _recorded: list[int] = field(default_factory=list, init=False)

    def wants(self, desired: int) -> int:
        """Nobody else says how many."""
        return desired

    async def scale(self, desired: int) -> None:
        """Have `desired` workers, soon: reap, replace, start, drain. Never waits for a worker."""
        now = self.clock()
        self._reap(now)
        if self._stopping:
            return
        while len(self._slots) < desired:
            self._slots.append(_Slot())
        for index, slot in enumerate(self._slots):
            if index >= desired:
                if slot.worker is not None:
                    self._drain(slot.worker, now)
                    slot.worker = None
            elif slot.worker is None and now >= slot.not_before:
                slot.worker = self._spawn(index, now)
        self._save_records()

    async def ready(self) -> int:
        """How many workers answer `/readyz` with 200 now. Takes at most a second."""
        workers = [slot.worker for slot in self._slots if slot.worker is not None]
        answers = await asyncio.gather(*(_answers_ready(worker.port) for worker in workers))
        for worker, answer in zip(workers, answers, strict=True):
            if answer:
                worker.ready = self._ever_ready = True
                self._never_ready, self._trouble = 0, None
        return sum(answers)

    async def failure(self) -> str | None:
        """Why workers end before they are ready, with the last line that one said; None while they do not."""
        self._reap(self.clock())
        return self._trouble

    def stop(self) -> None:
        """Let every worker drain, and start none from now on. Returns at once."""
        self._stopping = True
        now = self.clock()
        for slot in self._slots:
            if slot.worker is not None:
                self._drain(slot.worker, now)
        self._slots.clear()

    async def close(self, *, hurry: asyncio.Event) -> None:
        """`stop`, and wait until all workers have ended; `hurry`, once set, kills those that are left."""
        self.stop()
        while True:
            if hurry.is_set():
                self.kill()
            self._reap(self.clock())
            self._save_records()
            if not self._draining:
                return
            await asyncio.sleep(_POLL_SECONDS)

    def kill(self) -> None:
        """Kill every worker at once. Rows in flight are run again later; nothing that was recorded is lost."""
        for worker in [*self._draining, *(slot.worker for slot in self._slots if slot.worker is not None)]:
            with contextlib.suppress(ProcessLookupError):
                worker.process.kill()

    def pids(self) -> list[int]:
        """The processes of all workers that have not ended, those that drain last."""
        return [worker.process.pid for worker in self._all()]

    def _all(self) -> list[_Worker]:
        return [*(slot.worker for slot in self._slots if slot.worker is not None), *self._draining]

    def _spawn(self, index: int, now: float) -> _Worker:
        name = f"w{index}-{self.incarnation()}"
        port = pick_port()
        log_file = self.logs / f"worker-{index}.log"
        arguments = {
            "--job": str(self.job_file),
            "--base": str(self.base),
            "--installation": self.installation,
            "--name": name,
            "--http-port": str(port),
            "--log-level": self.log_level,
        }
        with open_log(log_file) as log:
            process = spawn(
                [*self.command, "worker", *(part for pair in arguments.items() for part in pair)],
                output=log,
                env={
                    **self.environ,
                    REDIS_URL_VARIABLE: self.endpoints.redis_url,
                    POSTGRES_DSN_VARIABLE: self.endpoints.postgres_dsn,
                },
            )
        record = ProcessRecord.of(process.pid, str(self.job_file))
        return _Worker(name, port, process, record, log_file, started=now)

    def _drain(self, worker: _Worker, now: float) -> None:
        worker.kill_at = now + self.grace_seconds
        with contextlib.suppress(ProcessLookupError):
            worker.process.terminate()
        self._draining.append(worker)

    def _reap(self, now: float) -> None:
        for slot in self._slots:
            if slot.worker is None:
                continue
            bound_log(slot.worker.log)
            code = slot.worker.process.poll()
            if code is not None:
                self._ended(slot, slot.worker, code, now)
        left = []
        for worker in self._draining:
            if worker.process.poll() is not None:
                continue
            left.append(worker)
            if worker.kill_at is not None and now >= worker.kill_at:
                worker.process.kill()
        self._draining[:] = left

    def _ended(self, slot: _Slot, worker: _Worker, code: int, now: float) -> None:
        slot.worker = None
        slot.quick_ends = slot.quick_ends + 1 if now - worker.started < STEADY_SECONDS else 0
        slot.not_before = now + respawn_delay(slot.quick_ends)
        # A worker that was killed says nothing about the next one; one that gave up by itself does.
        if worker.ready or code < 0:
            return
        self._never_ready += 1
        if code == _INVALID_INPUT or self._never_ready >= _QUICK_ENDS_TOLD:
            self._trouble = (
                f"workers end before they are ready: {worker.name} exited with code {code}: "
                f"{_last_words(worker.log)} (log: {worker.log})"
            )
        if code == _INVALID_INPUT and not self._ever_ready:
            self.refused.set()

    def _save_records(self) -> None:
        pids = self.pids()
        if pids == self._recorded:
            return
        records = [worker.record.to_json() for worker in self._all()]
        content = {"graceSeconds": self.grace_seconds, "workers": records}
        save_json(self.records_file, content, mode=0o600, durable=False)
        self._recorded = pids


def end_left_behind(records_file: Path) -> int:
    """End the workers that a killed command left running; how many there were.

    Each may finish and record what it does, for as long as its job allows; then it is killed.
    """
    content = load_json(records_file)
    if not isinstance(content, dict):
        return 0
    grace, items = content.get("graceSeconds"), content.get("workers")
    records = [ProcessRecord.from_json(item) for item in items] if isinstance(items, list) else []
    seconds = float(grace) if isinstance(grace, int | float) else _DEFAULT_GRACE
    steps: Steps = ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0))
    ended = end_recorded([record for record in records if record is not None], steps)
    records_file.unlink(missing_ok=True)
    return len(ended)


def _last_words(log: Path) -> str:
    """The last line of a log, for a person: the message alone where the line is a JSON record."""
    line = last_line(log)
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if isinstance(record, dict):
            parts = [record.get("event"), record.get("error")]
            return ": ".join(str(part) for part in parts if part) or line[:500]
    return line[:500] or "it said nothing"


async def _answers_ready(port: int) -> bool:
    try:
        async with asyncio.timeout(_READY_TIMEOUT):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split(b" ")[1:2] == [b"200"]
