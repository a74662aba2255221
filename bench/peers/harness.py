"""What the four peers share: enqueue no-op tasks, run one worker over them, tell how long it took.

    python PEER enqueue|work REDIS_URL QUEUE TASKS CONCURRENCY

Runs in the peers' own virtual environments: the standard library only. Timed from the start of the first task to the
start of the last one, which leaves out the first read and the last acknowledgements: to the peer's advantage.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

TEXT = "a row of about one hundred bytes, with a bit of text that stands for the work to be done....."
BATCH = 500


class Tally:
    """Counts tasks; at the last one it says what was measured and ends the process: no peer stops by itself."""

    def __init__(self, tasks: int, packages: tuple[str, ...]) -> None:
        self._tasks = tasks
        self._packages = packages
        self._seen = 0
        self._began = self._cpu = 0.0

    def task_started(self) -> None:
        self._seen += 1
        if self._seen == 1:
            self._began, self._cpu = time.perf_counter(), time.process_time()
        elif self._seen == self._tasks:
            measured = {
                "rows": self._tasks,
                "seconds": time.perf_counter() - self._began,
                "cpu_seconds": time.process_time() - self._cpu,
                "versions": {name: version(name) for name in self._packages},
            }
            print(json.dumps(measured), flush=True)
            os._exit(0)


def row(seq: int) -> dict[str, str]:
    """The payload, the same 100 bytes of cells that Rowmill's rows have."""
    return {"id": f"{seq:08}", "text": TEXT[:92]}


def main(
    *,
    enqueue: Callable[[str, str, int], None],
    work: Callable[[str, str, int, Tally], None],
    packages: tuple[str, ...],
) -> None:
    command, url, queue, tasks, concurrency = sys.argv[1:]
    if command == "enqueue":
        enqueue(url, queue, int(tasks))
        print(json.dumps({"enqueued": int(tasks)}))
    else:
        work(url, queue, int(concurrency), Tally(int(tasks), packages))
