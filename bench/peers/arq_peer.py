"""arq: one worker, poll_delay 0.01, results off (keep_result 0), uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

import uvloop
from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func
from harness import BATCH, Tally, main, row


def enqueue(url: str, name: str, tasks: int) -> None:
    async def run() -> None:
        pool = await create_pool(RedisSettings.from_dsn(url), default_queue_name=name)
        for begin in range(1, tasks + 1, BATCH):
            seqs = range(begin, min(tasks + 1, begin + BATCH))
            await asyncio.gather(*(pool.enqueue_job("noop", row(seq)) for seq in seqs))
        await pool.aclose()

    uvloop.run(run())


def work(url: str, name: str, concurrency: int, tally: Tally) -> None:
    async def noop(_: dict[str, Any], row: dict[str, str]) -> None:
        tally.task_started()

    async def run() -> None:
        worker = Worker(
            [func(noop, name="noop")],
            redis_settings=RedisSettings.from_dsn(url),
            queue_name=name,
            max_jobs=concurrency,
            poll_delay=0.01,
            keep_result=0,
            log_results=False,
            handle_signals=False,
        )
        await worker.async_run()

    uvloop.run(run())


main(enqueue=enqueue, work=work, packages=("arq", "redis", "hiredis", "uvloop"))
