"""streaq: one worker, results off (ttl 0), logs off (silent), uvloop."""

from __future__ import annotations

from typing import Any

import anyio
from harness import BATCH, Tally, main, row
from streaq import Worker


def worker_of(url: str, name: str, concurrency: int, tally: Tally | None) -> tuple[Worker[None], Any]:
    worker: Worker[None] = Worker(redis_url=url, queue_name=name, concurrency=concurrency)

    @worker.task(ttl=0, silent=True, name="noop")
    async def noop(row: dict[str, str]) -> None:
        if tally is not None:
            tally.task_started()

    return worker, noop


def enqueue(url: str, name: str, tasks: int) -> None:
    async def run() -> None:
        worker, noop = worker_of(url, name, 1, None)
        async with worker:
            for begin in range(1, tasks + 1, BATCH):
                seqs = range(begin, min(tasks + 1, begin + BATCH))
                await worker.enqueue_many([noop.enqueue(row(seq)) for seq in seqs])

    anyio.run(run, backend_options={"use_uvloop": True})


def work(url: str, name: str, concurrency: int, tally: Tally) -> None:
    worker, _ = worker_of(url, name, concurrency, tally)
    worker.run_sync()


main(enqueue=enqueue, work=work, packages=("streaq", "coredis", "uvloop"))
