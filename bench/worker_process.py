"""A real worker process whose executor does nothing, and which tells how fast it was.

    python -m bench.worker_process --job FILE --rows N [--until-stopped]

Timed from the read that brought the first row to the acknowledgement of the last. The last line of its output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.children import peak_rss
from bench.runs import INSTALLATION
from rowmill.window import Delivery, WorkWindow
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.main import WorkerSettings, main


class NoopExecutor:
    """Answers at once, with the row's number."""

    active_sessions = 0

    async def open(self) -> None:
        return None

    async def execute(self, attempt: Attempt) -> Any:
        return attempt.seq

    async def close(self) -> None:
        return None


class Stopwatch:
    """Starts with the read that brought the first row, stops with the acknowledgement of the last one."""

    def __init__(self, rows: int, *, done: Callable[[], None]) -> None:
        self._left = rows
        self._done = done
        self.began = self.ended = 0.0
        self.cpu_began = self.cpu_ended = 0.0

    def reached(self, stage: str, seqs: Sequence[int]) -> None:
        if stage == "finished":
            self._left -= len(seqs)
            if self._left <= 0 and not self.ended:
                self.ended, self.cpu_ended = time.perf_counter(), time.process_time()
                self._done()

    def watch_reads(self) -> None:
        """Note when the first read that brings rows is made, then get out of the way."""
        original = WorkWindow.take

        async def take(window: WorkWindow, count: int) -> list[Delivery]:
            asked, cpu = time.perf_counter(), time.process_time()
            rows = await original(window, count)
            if rows:
                self.began, self.cpu_began = asked, cpu
                WorkWindow.take = original  # type: ignore[method-assign]
            return rows

        WorkWindow.take = take  # type: ignore[method-assign, assignment]


def run(options: argparse.Namespace) -> int:
    def stop() -> None:
        if not options.until_stopped:
            os.kill(os.getpid(), signal.SIGTERM)

    watch = Stopwatch(options.rows, done=stop)
    watch.watch_reads()
    code = main(
        WorkerSettings(
            manifest=options.job,
            installation=INSTALLATION,
            name="bench",
            redis_url=os.environ["ROWMILL_REDIS_URL"],
            postgres_dsn=os.environ["ROWMILL_POSTGRES_DSN"],
            log_level="error",
            executor=lambda job, record: NoopExecutor(),
            reached=watch.reached,
        )
    )
    measured = {
        "rows": options.rows,
        "seconds": watch.ended - watch.began,
        "cpu_seconds": watch.cpu_ended - watch.cpu_began,
        "peak_rss": peak_rss(),
    }
    print(json.dumps(measured), flush=True)
    return code


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--until-stopped", action="store_true", help="do not end by itself after the last row")
    sys.exit(run(parser.parse_args()))
