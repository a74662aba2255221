"""What is asked of a run that has ended, or that goes on with another manifest: only open rows are called, never a
succeeded one, and what must not change is refused. One worker lives through all of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput, SourceChanged
from rowmill.ledger import Ledger
from rowmill.status import Phase, RunStatus
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere, outcomes_reach
from tests.support.rig import Rig

ROWS = 300


@pytest.fixture
async def rig(tmp_path: Path, redis_url: str, postgres_dsn: str) -> AsyncIterator[Rig]:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(ROWS)
            rig.job()
            await rig.start_worker(wait=False)
            yield rig


async def drive(rig: Rig, **spec: Any) -> RunStatus:
    """One engine's life under a manifest with these fields."""
    rig.job(**spec)
    async with EngineHere(rig) as engine:
        return await engine.ended()


def calls_of(rig: Rig, before: int) -> list[int]:
    """Rows called since there were `before` calls, sorted."""
    return sorted(int(call.row or 0) for call in rig.calls()[before:])


async def test_only_failed_rows_run_again(rig: Rig) -> None:
    tenth, twentieth = list(range(10, ROWS + 1, 10)), list(range(20, ROWS + 1, 20))
    refusals = {str(row): [400] for row in tenth} | {str(row): [400, 400] for row in twentieth}
    await rig.endpoint.play({"rows": refusals})
    status = await drive(rig)
    assert (status.phase, status.succeeded, status.failed) == (Phase.COMPLETE, ROWS - 30, 30)
    assert status.errors[0].count == 30
    assert calls_of(rig, 0) == list(range(1, ROWS + 1)), "a refusal is final within its generation"

    status = await drive(rig)
    assert (status.phase, status.succeeded, status.failed) == (Phase.COMPLETE, ROWS - 30, 30)
    assert calls_of(rig, ROWS) == [], "a run that is complete calls nothing"

    status = await drive(rig, retryGeneration=1)
    assert (status.phase, status.generation) == (Phase.COMPLETE, 1)
    assert (status.succeeded, status.failed) == (ROWS - 15, 15)
    assert calls_of(rig, ROWS) == tenth

    # Generations may be skipped; what counts is what has no success.
    status = await drive(rig, retryGeneration=7)
    assert (status.generation, status.succeeded, status.failed) == (7, ROWS, 0)
    assert calls_of(rig, ROWS + 30) == twentieth

    status = await drive(rig, retryGeneration=8)
    assert (status.phase, status.generation, status.succeeded) == (Phase.COMPLETE, 8, ROWS)
    assert calls_of(rig, ROWS + 45) == []
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_limit_raised_and_lowered(rig: Rig) -> None:
    source = {"uri": str(rig.source)}
    status = await drive(rig, source=source | {"limit": 100})
    assert (status.phase, status.total) == (Phase.COMPLETE, 100)
    status = await drive(rig, source=source | {"limit": 150})
    assert (status.phase, status.total, status.succeeded) == (Phase.COMPLETE, 150, 150)
    assert calls_of(rig, 100) == list(range(101, 151))
    with pytest.raises(InvalidInput, match=r"spec\.source\.limit: 120 is less than .*\(150\); raise it"):
        await drive(rig, source=source | {"limit": 120})
    status = await drive(rig, source=source)
    assert (status.phase, status.total, status.succeeded) == (Phase.COMPLETE, ROWS, ROWS)
    assert calls_of(rig, 150) == list(range(151, ROWS + 1))
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_killed_right_after_the_limit_was_raised(rig: Rig) -> None:
    """The ledger has the new limit, no epoch has begun: the run is not taken for complete."""
    source = {"uri": str(rig.source)}
    await drive(rig, source=source | {"limit": 100})
    ledger = await Ledger.connect(rig.postgres_dsn)
    await ledger.runs.raise_limit(await rig.record(), ROWS)
    await ledger.close()
    status = await drive(rig, source=source | {"limit": ROWS})
    assert (status.phase, status.total, status.succeeded) == (Phase.COMPLETE, ROWS, ROWS)
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_limit_lowered_before_anything_was_fed(rig: Rig) -> None:
    source = {"uri": str(rig.source)}
    assert (await drive(rig, suspend=True)).phase is Phase.SUSPENDED
    await rig.endpoint.hold()
    rig.job(source=source | {"limit": 50})
    async with EngineHere(rig) as engine:
        await rig.endpoint.wait(in_flight=1)
        engine.stop()
        await engine.ended()
    await rig.endpoint.release()
    status = await drive(rig, source=source | {"limit": 50})
    assert (status.phase, status.total, status.epoch) == (Phase.COMPLETE, 50, 1)


async def test_anything_may_change_before_something_was_fed(rig: Rig) -> None:
    """A first start that fails by a mistake in the manifest leaves no trace in the way of the mended one."""
    await rig.stop_workers()  # one that had read the mistake would fail the rows by it
    http = {"url": rig.endpoint.url, "method": "POST", "body": {"row": "{{ row.no }}"}}
    with pytest.raises(InvalidInput, match=r"has no column \"no\""):
        await drive(rig, executor={"http": http}, shards=2)
    rig.job(shards=3)
    await rig.start_worker(wait=False)
    status = await drive(rig, shards=3)
    assert (status.phase, status.succeeded) == (Phase.COMPLETE, ROWS)


async def test_what_must_not_change_is_refused(rig: Rig) -> None:
    """A source with other content, and a field that shapes requests, in the middle of a run and before a retry."""
    await rig.endpoint.play({"rows": {"7": [400]}})
    await rig.endpoint.hold()
    async with EngineHere(rig) as engine:
        await rig.endpoint.wait(in_flight=1)
        engine.stop()
        assert (await engine.ended()).phase is Phase.RUNNING
    original = rig.source.read_bytes()
    rig.source.write_bytes(original.replace(b"row 5\r\n", b"row five\r\n"))
    with pytest.raises(SourceChanged, match=r"Put the old content back, or change spec\.runId"):
        await drive(rig)
    rig.source.write_bytes(original)
    with pytest.raises(InvalidInput, match=r"spec\.timeoutSeconds.*runId"):
        await drive(rig, timeoutSeconds=11)
    await rig.endpoint.release()
    status = await drive(rig)
    assert (status.phase, status.succeeded, status.failed, status.epoch) == (Phase.COMPLETE, ROWS - 1, 1, 1)

    rig.source.write_bytes(original + b"301,one more\r\n")
    with pytest.raises(SourceChanged):
        await drive(rig, retryGeneration=1)
    rig.source.write_bytes(original)
    assert (await drive(rig, retryGeneration=1)).succeeded == ROWS
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def at_rest(rig: Rig) -> int:
    """Wait until the worker holds nothing any more; how many calls there were."""
    async with asyncio.timeout(60):
        while True:
            numbers = await rig.health(rig.workers[0])
            if not numbers["processing_count"] and not numbers["waiting"]:
                return int((await rig.endpoint.wait(idle=True))["calls"])
            await asyncio.sleep(0.02)


async def test_failure_policy(rig: Rig) -> None:
    """Past its share of failures the run ends Failed, most rows never called; retried, it goes on with the rest."""
    rig.table(20_000)
    await rig.endpoint.play({"default": {"status": 400}, "rows": {str(row): ["ok"] for row in range(1, 41)}})
    policy = {"maxFailedPercent": 50, "minProcessedRows": 100}
    status = await drive(rig, failurePolicy=policy)
    assert status.phase is Phase.FAILED
    assert "failurePolicy.maxFailedPercent allows 50 %" in status.message
    called = await at_rest(rig)
    assert 100 <= called < 10_000
    status = await drive(rig, failurePolicy=policy)
    assert (status.phase, await at_rest(rig)) == (Phase.FAILED, called), "it stays Failed"

    await rig.endpoint.play({})
    rig.job(failurePolicy=policy, retryGeneration=1)
    async with EngineHere(rig, window_rows=500) as engine:
        await engine.until(lambda s: s.generation == 1 and s.succeeded > called)
    again = set(calls_of(rig, called))
    assert not again & set(range(1, 41)), "succeeded rows are never called again"
    assert set(range(41, 61)) <= again, "failed rows are"


async def test_deadline(rig: Rig) -> None:
    """The run fails when its time is over. What was in flight then is kept, and the rest runs when it is retried."""
    hours = 0
    await rig.endpoint.hold()
    rig.job(activeDeadlineSeconds=7200)
    async with EngineHere(rig, wall=lambda: time.time() + hours * 3600) as engine:
        in_flight = (await rig.endpoint.wait(in_flight=3))["in_flight"]
        hours = 1
        seen = len(engine.statuses)
        await engine.until(lambda s: len(engine.statuses) > seen + 1)
        hours = 3
        status = await engine.ended()
    assert status.phase is Phase.FAILED
    assert "activeDeadlineSeconds (7200 s)" in status.message
    await rig.endpoint.release()
    await outcomes_reach(rig, in_flight)
    status = await drive(rig, retryGeneration=1)
    assert (status.phase, status.succeeded, status.generation) == (Phase.COMPLETE, ROWS, 1)
    (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_suspend(rig: Rig) -> None:
    """Suspended it wants no workers and keeps what is finished; set to false it goes on where it was."""
    await rig.endpoint.hold()
    async with EngineHere(rig) as engine:
        await rig.endpoint.wait(in_flight=1)
        engine.stop()
        await engine.ended()
    rig.job(suspend=True)
    async with EngineHere(rig) as engine:
        status = await engine.ended()
        assert engine.fleet.scaled_to == [0]
    assert status.phase is Phase.SUSPENDED
    assert "set spec.suspend to false" in status.message
    assert (await rig.record()).phase is Phase.SUSPENDED
    await rig.endpoint.release()
    status = await drive(rig)
    assert (status.phase, status.succeeded, status.epoch) == (Phase.COMPLETE, ROWS, 1)
    (await rig.history()).assert_clean(allowed_duplicates=0)
