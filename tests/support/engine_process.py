"""An engine in a process of its own, without a fleet: a test starts and kills the workers itself. Arguments:

    --job FILE --status FILE [--die-at append --nth 3]

Each status goes to the status file as a line of JSON. Exit code 0: Complete. With `--die-at` it ends by SIGKILL right
before its nth call of that kind on the window (`open`, `append`, `close`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from rowmill.ledger import Ledger
from rowmill.spec import identity_of, load_manifest_file
from rowmill.status import Phase, RunStatus
from rowmill.telemetry.logging import configure_logging
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.feeder import WindowBounds
from rowmill_operator.engine.run_source import SourcePlaces
from tests.support.disturbed import At, DisturbedWindow, dies_at, undisturbed


class NoFleet:
    """Workers are somebody else's business; `workers` tells how many there are."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = workers
        self.scaled_to: list[int] = []

    def wants(self, desired: int) -> int:
        return desired

    async def scale(self, desired: int) -> None:
        if self.scaled_to[-1:] != [desired]:
            self.scaled_to.append(desired)

    async def ready(self) -> int:
        return self.workers

    async def failure(self) -> str | None:
        return None


class LineSink:
    """Writes each status that differs from the last as a line."""

    def __init__(self, path: Path) -> None:
        self._path = path

    async def report(self, status: RunStatus) -> None:
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode(asdict(status)) + b"\n")


async def drive(job_file: Path, status_file: Path, window_rows: int, at: At) -> Phase:
    job = load_manifest_file(job_file)
    log, _ = configure_logging(level="info")
    ledger = await Ledger.connect(os.environ["ROWMILL_POSTGRES_DSN"], application_name="rowmill engine")
    await ledger.migrate()
    window = await DisturbedWindow.disturbed(os.environ["ROWMILL_REDIS_URL"], at=at)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    engine = Engine(
        job=job,
        identity=identity_of(job, installation="test"),
        ledger=ledger,
        window=window,
        fleet=NoFleet(),
        sink=LineSink(status_file),
        places=SourcePlaces(base=job_file.parent, cache=job_file.parent),
        log=log,
        bounds=WindowBounds(rows=window_rows),
    )
    try:
        return (await engine.run(stop=stop)).phase
    finally:
        await window.close()
        await ledger.close()


def main(arguments: Sequence[str]) -> int:
    """One engine's life; its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--status", type=Path, required=True)
    parser.add_argument("--window-rows", type=int, default=20_000)
    parser.add_argument("--die-at", choices=("open", "append", "close"))
    parser.add_argument("--nth", type=int, default=1)
    options = parser.parse_args(arguments)
    at = dies_at(options.die_at, options.nth) if options.die_at else undisturbed
    phase = asyncio.run(drive(options.job, options.status, options.window_rows, at))
    return 0 if phase is Phase.COMPLETE else 1
