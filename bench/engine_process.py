"""A real engine process over a source file, whose workers are somebody else's business.

    python -m bench.engine_process --job FILE

The last line of its output is JSON: how the run ended, and the most memory that this process had.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from pathlib import Path

import uvloop

from bench.children import peak_rss
from bench.runs import INSTALLATION
from rowmill.ledger import Ledger
from rowmill.spec import identity_of, load_manifest_file
from rowmill.status import Phase, RunStatus
from rowmill.telemetry.logging import configure_logging
from rowmill.window import Window
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.run_source import SourcePlaces


class OneWorker:
    """A fleet that is there already."""

    def wants(self, desired: int) -> int:
        return desired

    async def scale(self, desired: int) -> None:
        return None

    async def ready(self) -> int:
        return 1

    async def failure(self) -> str | None:
        return None


class Highest:
    """Keeps the fullest window that was ever told."""

    def __init__(self) -> None:
        self.window_rows = 0

    async def report(self, status: RunStatus) -> None:
        self.window_rows = max(self.window_rows, status.queued + status.running)


async def drive(job_file: Path) -> tuple[RunStatus, int]:
    job = load_manifest_file(job_file)
    log, _ = configure_logging(level="error")
    ledger = await Ledger.connect(os.environ["ROWMILL_POSTGRES_DSN"], application_name="rowmill engine")
    await ledger.migrate()
    window = await Window.connect(os.environ["ROWMILL_REDIS_URL"])
    sink = Highest()
    try:
        engine = Engine(
            job=job,
            identity=identity_of(job, installation=INSTALLATION),
            ledger=ledger,
            window=window,
            fleet=OneWorker(),
            sink=sink,
            places=SourcePlaces(base=job_file.parent, cache=job_file.parent),
            log=log,
        )
        return await engine.run(stop=asyncio.Event()), sink.window_rows
    finally:
        await window.close()
        await ledger.close()


def run(job_file: Path) -> int:
    status, window_rows = uvloop.run(drive(job_file))
    measured = {
        "phase": status.phase.value,
        "succeeded": status.succeeded,
        "window_rows": window_rows,
        "peak_rss": peak_rss(),
    }
    print(json.dumps(measured), flush=True)
    return 0 if status.phase is Phase.COMPLETE else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    sys.exit(run(parser.parse_args().job))
