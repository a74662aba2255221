"""saq: one worker, results off (ttl -1), uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from harness import BATCH, Tally, main, row
from saq import Queue, Worker


def enqueue(url: str, name: str, tasks: int) -> None:
    async def run() -> None:
        queue = Queue.from_url(url, name=name)
        await queue.connect()
        for begin in range(1, tasks + 1, BATCH):
            seqs = range(begin, min(tasks + 1, begin + BATCH))
            await asyncio.gather(*(queue.enqueue("noop", row=row(seq), ttl=-1, timeout=60) for seq in seqs))
        await queue.disconnect()

    uvloop.run(run())


def work(url: str, name: str, concurrency: int, tally: Tally) -> None:
    async def noop(_: dict[str, Any], *, row: dict[str, str]) -> None:
        tally.task_started()

    async def run() -> None:
        queue = Queue.from_url(url, name=name)
        await queue.connect()
        await Worker(queue, [("noop", noop)], concurrency=concurrency).start()

    uvloop.run(run())


main(enqueue=enqueue, work=work, packages=("saq", "redis", "hiredis", "uvloop"))
