"""Contended claims: what many workers are given again and again is still executed by one at a time.

Another party schedules rows that live workers are running, as a sweeper would that took them for dead: every row is
delivered to several workers, at every point of its way. Only the lock, the look-up after it, the order of commit and
unlock, and the table of held rows stand between that and a second execution.
"""

from __future__ import annotations

import asyncio
import csv
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from rowmill.identity import RunIdentity
from rowmill.ledger import RunRecord
from rowmill.outcome import Outcome, State
from rowmill.status import Phase
from rowmill.window import EpochOver, Later
from rowmill.window.connect import unknown_group
from rowmill.window.keys import GROUP, shard_keys
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.worker import Worker
from tests.support.inprocess import Lab, lab, manifest
from tests.support.rig import eventually
from tests.support.servers import PrivateServers

WORKERS = 6
SLOTS = 16


@dataclass(slots=True, eq=False)
class Execution:
    """One execution of a row, in seconds of the event loop's clock; `committed` when its outcome was in the ledger."""

    seq: int
    worker: int
    entered: float
    left: float = float("inf")
    committed: float = float("inf")


class Book:
    """Every execution in every worker. Workers share one event loop, so that entering and leaving are in order."""

    def __init__(self) -> None:
        self.executions: list[Execution] = []
        self.inside: dict[int, Execution] = {}
        self.at_once: list[tuple[Execution, Execution]] = []
        self._uncommitted: dict[tuple[int, int], Execution] = {}

    def enter(self, seq: int, worker: int) -> Execution:
        execution = Execution(seq, worker, time.monotonic())
        if seq in self.inside:
            self.at_once.append((self.inside[seq], execution))
        self.inside[seq] = execution
        self.executions.append(execution)
        self._uncommitted[worker, seq] = execution
        return execution

    def leave(self, execution: Execution) -> None:
        execution.left = time.monotonic()
        if self.inside.get(execution.seq) is execution:
            del self.inside[execution.seq]

    def reached(self, worker: int) -> Callable[[str, Sequence[int]], None]:
        def reached(stage: str, seqs: Sequence[int]) -> None:
            if stage == "committed":
                for seq in seqs:
                    if (execution := self._uncommitted.pop((worker, seq), None)) is not None:
                        execution.committed = time.monotonic()

        return reached

    def too_many(self) -> dict[int, list[Execution]]:
        """The executions of rows that were executed more than once, but for the last of each."""
        of_row: dict[int, list[Execution]] = defaultdict(list)
        for execution in self.executions:
            of_row[execution.seq].append(execution)
        return {seq: made[:-1] for seq, made in of_row.items() if len(made) > 1}


class Recorded:
    """An executor that takes a few milliseconds and keeps book."""

    def __init__(self, book: Book, worker: int) -> None:
        self._book = book
        self._worker = worker
        self._rng = random.Random(worker)
        self.active_sessions = 0

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close."""

    async def execute(self, attempt: Attempt) -> Any:
        execution = self._book.enter(attempt.seq, self._worker)
        try:
            await asyncio.sleep(self._rng.choice((0, 0.002, 0.01)))
            return {"row": attempt.row["id"]}
        finally:
            self._book.leave(execution)


class Meddler:
    """Schedules rows of live workers as due, over and over, until it is stopped; `forced` counts them."""

    def __init__(self, lab: Lab, record: RunRecord, redis: Redis) -> None:
        self._redis = redis
        self._shards = record.shards
        self._token = record.token
        self._window = lab.window.work(token=record.token, shards=record.shards, epoch=1, consumer="meddler")
        self.forced = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for shard in range(self._shards):
                group.create_task(self._meddle(shard))

    async def _meddle(self, shard: int) -> None:
        try:
            while True:
                await self._again(shard)
                await asyncio.sleep(0.001)
        except EpochOver:
            pass  # the run has ended, and its window is gone
        except ResponseError as error:
            if not unknown_group(error):
                raise

    async def _again(self, shard: int) -> None:
        of_consumer: dict[str, list[Later]] = defaultdict(list)
        stream = shard_keys(self._token, shard, 1).stream
        for pending in await self._redis.xpending_range(stream, GROUP, "-", "+", 400):
            seq = int(str(pending["message_id"]).partition("-")[0])
            of_consumer[str(pending["consumer"])].append(Later(seq, 0.0, 0))
        for consumer, rows in of_consumer.items():
            self.forced += await self._window.schedule(shard, rows, consumer=consumer)

    async def bury_the_living(self) -> int:
        """Give everybody's rows to everybody, as a sweeper does with those of a dead worker; how many."""
        scheduled = 0
        for shard in range(self._shards):
            for consumer in await self._redis.xinfo_consumers(shard_keys(self._token, shard, 1).stream, GROUP):
                scheduled += (await self._window.sweep(shard, consumer["name"])).scheduled
        return scheduled


@dataclass(frozen=True, slots=True)
class Crowd:
    """A run that is under way, its workers, and what it is done to."""

    lab: Lab
    book: Book
    workers: Sequence[Worker]
    meddler: Meddler
    driving: asyncio.Task[Any]

    async def executed(self, rows: int) -> None:
        """Wait for so many executions."""
        await eventually(lambda: len(self.book.executions) >= rows or self.driving.done(), within=120, poll=0.005)
        if len(self.book.executions) < rows:
            await self.driving
            raise AssertionError(f"the run ended after {len(self.book.executions)} executions, before {rows}")


@asynccontextmanager
async def crowd(folder: Path, *, redis_url: str, postgres_dsn: str, rows: int) -> AsyncIterator[Crowd]:
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id"], *([n] for n in range(1, rows + 1))])
    job = manifest("http://127.0.0.1:9/", source={"uri": str(folder / "table.csv")}, concurrency={"perWorker": SLOTS})
    book = Book()
    async with AsyncExitStack() as stack:
        here = await stack.enter_async_context(
            lab(folder, redis_url=redis_url, postgres_dsn=postgres_dsn, connections=2 * WORKERS)
        )
        redis = await stack.enter_async_context(Redis.from_url(redis_url, decode_responses=True))
        driving = asyncio.create_task(here.drive(job))
        meddler = Meddler(here, await here.record(job), redis)
        workers = [
            await stack.enter_async_context(here.worker(job, executor=Recorded(book, n), reached=book.reached(n)))
            for n in range(WORKERS)
        ]
        run = Crowd(here, book, workers, meddler, driving)
        await run.executed(1)
        meddling = asyncio.create_task(meddler.run())
        try:
            yield run
            status = await driving
        finally:
            driving.cancel()
            if meddling.done():
                meddling.result()
            meddling.cancel()
            await asyncio.gather(driving, meddling, return_exceptions=True)
        assert (status.phase, status.succeeded, status.failed) == (Phase.COMPLETE, rows, 0), status
        assert status.epoch == 1, "rows had left the window with no outcome, and had to be fed again"
        outcomes = await here.outcomes(job)
        assert [outcome.seq for outcome in outcomes] == list(range(1, rows + 1))
        assert all(outcome.result == f'{{"row":"{outcome.seq}"}}' for outcome in outcomes)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_no_row_is_executed_by_two_at_once_nor_twice(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    rows = 45_000
    async with crowd(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, rows=rows) as run:
        await run.executed(rows // 2)
        buried = await run.meddler.bury_the_living()
    print(f"{rows} rows, {run.meddler.forced} of them forced to be delivered again, {buried} taken from the living")
    assert run.meddler.forced > rows // 5, "too little contention to show anything"
    assert buried > 0
    share = Counter(execution.worker for execution in run.book.executions)
    assert min(share.values()) > rows / WORKERS / 10, f"some workers had next to nothing to contend for: {share}"
    assert not run.book.at_once, f"executed by two at once: {run.book.at_once[:3]}"
    assert not run.book.too_many(), f"executed again: {list(run.book.too_many().items())[:3]}"
    assert len(run.book.executions) == rows


@pytest.mark.timeout(600)
async def test_overlapping_claims_of_large_blocks(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    """Everybody claims the same large blocks, so that others commit and unlock while a claim is being answered.

    This is where a look-up in the locking statement fails: its snapshot is older than the locks that it takes last.
    """
    rows, block = 45_000, 1000
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, connections=WORKERS) as here:
        record = await here.ledger.runs.ensure(
            RunIdentity("test", "default", "claims", "1"), frozen={}, shards=1, row_limit=None
        )
        executed: Counter[int] = Counter()
        running: set[int] = set()
        elsewhere = 0

        async def claimant(name: str, rng: random.Random) -> None:
            nonlocal elsewhere
            session = here.ledger.lock_session(record, consumer=name)
            work = here.ledger.work(record, worker=name)
            await session.open()
            ahead = 0  # blocks behind this one are done
            while ahead * block < rows:
                seqs = list(range(ahead * block + 1, ahead * block + block + 1))
                rng.shuffle(seqs)
                claim = await session.claim(seqs, 0)
                elsewhere += len(claim.elsewhere)
                # Piece by piece, so that rows are committed and unlocked while others ask for the same block.
                for start in range(0, len(claim.ours), 100):
                    mine = claim.ours[start : start + 100]
                    assert not running & set(mine), "executed by two at once"
                    running.update(mine)
                    executed.update(mine)
                    await work.commit([Outcome(seq, State.SUCCEEDED, 1, "1") for seq in mine], generation=0)
                    running.difference_update(mine)
                    await session.release(mine)
                ahead += len(claim.done) == block
                if len(claim.elsewhere) == block:
                    await asyncio.sleep(0.002)
            await session.close()

        async with asyncio.TaskGroup() as group:
            for n in range(WORKERS):
                group.create_task(claimant(f"w{n}", random.Random(n)))
        print(f"{rows} rows, found {elsewhere} times locked elsewhere; {executed.total() - rows} executed again")
        assert elsewhere > rows, "too little contention to show anything"
        assert set(executed) == set(range(1, rows + 1))
        assert executed.total() == rows, f"executed again: {executed.total() - rows}"


@pytest.mark.timeout(600)
async def test_lost_lock_sessions_cost_no_more_than_what_was_in_flight(
    tmp_path: Path, private_servers: PrivateServers
) -> None:
    """Every lock is lost while rows run, and the rows are forced upon others at that moment."""
    rows, cuts = 12_000, 4
    lost: list[set[Execution]] = []
    async with crowd(
        tmp_path, redis_url=private_servers.redis_url, postgres_dsn=private_servers.postgres_dsn, rows=rows
    ) as run:
        postgres = await asyncpg.connect(private_servers.postgres_dsn)
        for n in range(1, cuts + 1):
            await run.executed(n * rows // (cuts + 1))
            lost.append(await cut(run, postgres))
        await postgres.close()
    for in_flight in lost:
        assert in_flight, "nothing was in flight when the locks were lost"
    allowed = set().union(*lost)
    again = [execution for made in run.book.too_many().values() for execution in made]
    print(f"{sum(map(len, lost))} rows in flight in {cuts} cuts, {len(again)} executed again")
    assert set(again) <= allowed, "a row was executed again that had kept its lock until its outcome was recorded"
    assert {first for first, _ in run.book.at_once} <= allowed


async def cut(run: Crowd, postgres: asyncpg.Connection) -> set[Execution]:
    """End every lock session; the executions whose locks were lost: under way, or not yet recorded, at that time."""
    numbers = [worker._locks.number for worker in run.workers]
    noticed: dict[int, float] = {}

    def all_noticed() -> bool:
        for n, worker in enumerate(run.workers):
            if n not in noticed and (worker._locks.number > numbers[n] or not worker._locks.is_open):
                noticed[n] = time.monotonic()
        return len(noticed) == len(run.workers)

    watching = asyncio.create_task(eventually(all_noticed, poll=0.001))
    began = time.monotonic()
    ended = await postgres.fetch(
        "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'rowmill worker % locks'"
    )
    assert len(ended) == len(run.workers)
    await watching
    return {e for e in run.book.executions if e.committed >= began and e.entered <= noticed[e.worker]}
