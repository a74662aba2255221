"""The engine dies, is paused, or meets another one, at every point of feeding: the run goes on, no call is made twice.

What guards it: ids and the last-id check of an append (a block is there once), the checkpoint that a restart goes on
from, the leader's lock (two engines are rare), the term on every ledger write and the epoch on every append (and where
two engines meet all the same, the older one can change nothing).
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import StateInUse
from rowmill.ledger import Superseded
from rowmill.status import Phase, RunStatus
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere, outcomes_reach
from tests.support.rig import Rig

ROWS = 4500
WINDOW = 1500
"""Two shards make blocks of 2,000 rows: each waits until the window is empty, so that feeding lasts."""


@pytest.fixture
async def rig(tmp_path: Path, redis_url: str, postgres_dsn: str) -> AsyncIterator[Rig]:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(ROWS)
            rig.job(shards=2, concurrency={"perWorker": 64})
            yield rig


async def die(rig: Rig, stage: str, nth: int) -> None:
    """One engine's life, up to the call on the window before which it dies."""
    engine = await rig.start_engine(window_rows=WINDOW, die_at=stage, nth=nth)
    assert await engine.ended() == -signal.SIGKILL, rig.tail()


async def test_it_dies_before_each_kind_of_step(rig: Rig) -> None:
    """Between the ledger's epoch and Redis', in the middle of a block (an append a shard), after its end is told."""
    await die(rig, "open", 1)
    record = await rig.record()
    assert (record.epoch, record.phase) == (1, Phase.RUNNING), "the ledger knows the epoch, Redis does not"
    await rig.start_worker()
    await die(rig, "append", 2)
    assert (await rig.record()).epoch == 2, "an epoch that Redis never saw cannot be trusted"
    await die(rig, "append", 2)
    assert (await rig.record()).phase is Phase.RUNNING
    await die(rig, "close", 1)
    record = await rig.record()
    assert (record.epoch, record.phase) == (2, Phase.COMPLETE), "it went on in the same epoch all along"
    await rig.start_engine(window_rows=WINDOW)
    await rig.complete()
    (await rig.history()).assert_clean(allowed_duplicates=0)


def fed_more_than(rows: int, status: Mapping[str, Any]) -> bool:
    return status["phase"] == "Running" and bool(status["fed"] > rows)


async def test_workers_go_on_while_it_is_dead(rig: Rig) -> None:
    """Killed while it waits for room; what was fed is executed without it, and a new one feeds the rest."""
    await rig.start_worker(wait=False)
    fed = 0
    for _ in range(2):
        await rig.endpoint.hold()
        engine = await rig.start_engine(window_rows=WINDOW)
        status = await rig.until(partial(fed_more_than, fed))
        fed = int(status["fed"])
        engine.kill()
        await engine.ended()
        await rig.endpoint.release()
        await outcomes_reach(rig, fed)
    assert fed < ROWS
    await rig.start_engine(window_rows=WINDOW)
    assert (await rig.complete())["epoch"] == 1
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_a_second_engine_is_refused(rig: Rig) -> None:
    await rig.endpoint.hold()
    await rig.start_engine(window_rows=WINDOW)
    await rig.start_worker(wait=False)
    await rig.endpoint.wait(in_flight=64)
    async with EngineHere(rig, window_rows=WINDOW) as second:
        with pytest.raises(StateInUse, match="another engine drives run"):
            await second.ended()
    assert (await rig.record()).term == 1
    await rig.endpoint.release()
    assert (await rig.complete())["epoch"] == 1
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def cut_leader(rig: Rig) -> None:
    """End the session that holds the leadership; what else the leader has open lives on."""
    cut = await rig.sql(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity"
        " where datname = current_database() and application_name like 'rowmill engine%leader%'"
    )
    assert len(cut) == 1


class Pause:
    """Holds an engine up at one point until it is told to go on."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.over = asyncio.Event()

    async def __call__(self) -> None:
        self.reached.set()
        await self.over.wait()


async def test_a_leader_that_wakes_up_loses_both_fences(rig: Rig) -> None:
    """Paused right before an append, it wakes up when another has fed the rest, and does not know that it lost the
    lead: its append is refused by the window, the new epoch that it asks for by the ledger."""
    pause = Pause()

    async def at(stage: str, nth: int) -> None:
        if (stage, nth) == ("append", 4):
            await pause()

    await rig.start_worker(wait=False)
    async with EngineHere(rig, at=at, window_rows=WINDOW, unaware=True) as first:
        await pause.reached.wait()
        await cut_leader(rig)
        await rig.start_engine(window_rows=WINDOW)
        await rig.until(lambda s: s["fed"] == ROWS)
        pause.over.set()
        with pytest.raises(Superseded, match="another engine has taken run"):
            await first.ended()
        # Fast workers may have ended the run meanwhile: then there is no epoch to append to.
        assert any("ends at row" in said or "is not open any more" in said for said in first.refused), first.refused
        assert len(first.log.reasons("a new epoch")) == 1
    assert (await rig.complete())["epoch"] == 1
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_a_leader_that_wakes_up_finishes_nothing(rig: Rig) -> None:
    """Paused when all was fed, it wakes up when the last outcome is there: the end is not its to tell any more."""
    first_pause, second_pause = Pause(), Pause()

    async def tell_first(status: RunStatus) -> None:
        if status.phase is Phase.RUNNING and status.fed == ROWS and status.total == ROWS:
            await first_pause()

    async def tell_second(status: RunStatus) -> None:
        if status.phase is Phase.RUNNING:
            await second_pause()

    await rig.endpoint.hold()
    await rig.start_worker(wait=False)
    async with EngineHere(rig, told=tell_first, unaware=True) as first:
        await first_pause.reached.wait()
        await cut_leader(rig)
        async with EngineHere(rig, told=tell_second) as second:
            await second_pause.reached.wait()
            await rig.endpoint.release()
            await outcomes_reach(rig, ROWS)
            first_pause.over.set()
            with pytest.raises(Superseded):
                await first.ended()
            record = await rig.record()
            assert (record.phase, record.epoch, record.term) == (Phase.RUNNING, 1, 2)
            second_pause.over.set()
            assert (await second.ended()).phase is Phase.COMPLETE
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_a_stopped_process_wakes_up(rig: Rig) -> None:
    """SIGSTOP, its session cut, another takes over, SIGCONT: it disturbs nothing, and ends when the run does."""
    await rig.endpoint.hold()
    stopped = await rig.start_engine(window_rows=WINDOW)
    await rig.start_worker(wait=False)
    await rig.endpoint.wait(in_flight=64)
    stopped.signal(signal.SIGSTOP)
    await cut_leader(rig)
    async with EngineHere(rig, window_rows=WINDOW) as second:
        await rig.endpoint.release()
        await second.until(lambda s: s.fed == ROWS)
        stopped.signal(signal.SIGCONT)
        assert (await second.ended()).phase is Phase.COMPLETE
        assert second.log.reasons("a new epoch") == []
    code = await stopped.ended()
    assert code == 0 or "Superseded" in stopped.log.read_text() or "another engine drives" in stopped.log.read_text()
    record = await rig.record()
    assert (record.phase, record.epoch) == (Phase.COMPLETE, 1)
    (await rig.history()).assert_clean(allowed_duplicates=0)
