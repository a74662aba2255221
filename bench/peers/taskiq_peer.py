"""taskiq-redis: RedisStreamBroker (the one that acknowledges), one worker, no result backend (the default), uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from harness import BATCH, Tally, main, row
from taskiq.receiver import Receiver
from taskiq_redis import RedisStreamBroker


def broker_of(url: str, name: str) -> RedisStreamBroker:
    return RedisStreamBroker(url, queue_name=name, consumer_id="0")


def enqueue(url: str, name: str, tasks: int) -> None:
    async def run() -> None:
        broker = broker_of(url, name)

        @broker.task("noop")
        async def noop(row: dict[str, str]) -> None: ...

        await broker.startup()
        for begin in range(1, tasks + 1, BATCH):
            seqs = range(begin, min(tasks + 1, begin + BATCH))
            await asyncio.gather(*(noop.kiq(row(seq)) for seq in seqs))
        await broker.shutdown()

    uvloop.run(run())


def work(url: str, name: str, concurrency: int, tally: Tally) -> None:
    async def run() -> None:
        broker = broker_of(url, name)
        broker.is_worker_process = True

        @broker.task("noop")
        async def noop(row: dict[str, str]) -> None:
            tally.task_started()

        # As its command line runs a worker, with prefetching, which makes it faster, and no parsing of parameters.
        receiver = Receiver(broker, max_async_tasks=concurrency, max_prefetch=100, validate_params=False)
        await receiver.listen(asyncio.Event())

    uvloop.run(run())


main(enqueue=enqueue, work=work, packages=("taskiq", "taskiq-redis", "redis", "hiredis", "uvloop"))
