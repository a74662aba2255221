"""A worker in a process of its own that dies by SIGKILL exactly where a test wants it to. Arguments:

    --job FILE --name NAME [--stages FILE] [--die-at committed --after 3]

dies when the third block of rows has passed that stage (claimed, committed, unlocked, finished): after a commit and
before the unlock, say. Every stage that rows pass is a line of the stages file, written before anything follows from
it: {"t": 1700000000.0, "stage": "committed", "seqs": [1, 2]}. The stores come from ROWMILL_REDIS_URL and
ROWMILL_POSTGRES_DSN.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rowmill_worker import main as worker_main
from rowmill_worker.main import WorkerSettings


def dies_at(stage: str | None, after: int, stages: Path | None) -> Callable[[str, Sequence[int]], None]:
    """Is told of every stage: writes it down, and kills this process at the `after`th block that reaches `stage`."""
    seen: Counter[str] = Counter()
    file = os.open(stages, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if stages else -1

    def reached(at: str, seqs: Sequence[int]) -> None:
        if not seqs:
            return
        if file >= 0:
            os.write(file, json.dumps({"t": time.time(), "stage": at, "seqs": list(seqs)}).encode() + b"\n")
        seen[at] += 1
        if at == stage and seen[at] == after:
            os.kill(os.getpid(), signal.SIGKILL)

    return reached


def main(arguments: Sequence[str]) -> int:
    """One worker's life; its exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--stages", type=Path)
    parser.add_argument("--die-at")
    parser.add_argument("--after", type=int, default=1)
    options = parser.parse_args(arguments)
    return worker_main.main(
        WorkerSettings(
            manifest=options.job,
            installation="test",
            name=options.name,
            redis_url=os.environ["ROWMILL_REDIS_URL"],
            postgres_dsn=os.environ["ROWMILL_POSTGRES_DSN"],
            reached=dies_at(options.die_at, options.after, options.stages),
        )
    )
