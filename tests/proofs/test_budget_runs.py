"""A run stops where its budget ends or its calls are refused, with nothing lost, and goes on from there."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rowmill.spend import Reason
from rowmill.status import Phase, RunStatus
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere
from tests.support.rig import Rig, eventually

ROWS = 300


@pytest.fixture
async def rig(tmp_path: Path, redis_url: str, postgres_dsn: str) -> AsyncIterator[Rig]:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(ROWS)
            yield rig


async def drive(rig: Rig, *, resumed_at: float | None = None, **spec: Any) -> RunStatus:
    """One engine's life under a manifest with these fields, beside the workers that there are."""
    rig.job(**spec)
    async with EngineHere(rig, resumed_at=resumed_at) as engine:
        return await engine.ended()


async def test_no_call_is_made_past_the_budget_and_raising_it_goes_on(rig: Rig) -> None:
    """Retried calls count, a worker dies with calls under way, and two share what there is."""
    await rig.endpoint.play({"rows": {str(row): [503] for row in range(5, ROWS + 1, 10)}})
    small = {"budget": {"requests": 120}, "pricing": {"perCall": "0.005"}, "source": _canary(rig, 200)}
    rig.job(**small)
    for _ in range(2):
        await rig.start_worker(wait=False)
    async with EngineHere(rig) as engine:
        await eventually(lambda: len(rig.calls()) >= 40)
        rig.workers[0].kill()
        await rig.workers[0].ended()
        await rig.start_worker(wait=False)
        status = await engine.ended()
    assert (status.phase, status.failed) == (Phase.SUSPENDED, 0)
    assert status.pause is not None
    assert status.pause.reason is Reason.BUDGET
    assert "120 calls of spec.budget.requests are used up" in status.message
    made = len(rig.calls())
    assert made <= 120, "never one too many"
    assert status.spend.requests == 120, "what the dead worker may have sent counts"
    assert status.spend.cost == Decimal("0.6")
    assert 120 - made <= 3 + 3, "and no more than its slots and a block that it had been allowed"

    # By too little: told again, and nothing is called.
    rig.job(**{**small, "budget": {"requests": 120, "cost": "9"}})
    async with EngineHere(rig) as engine:
        await engine.ended()
        assert {told.phase for told in engine.statuses} == {Phase.SUSPENDED}, "nobody is even asked to try"
    assert len(rig.calls()) == made

    await rig.stop_workers()
    rig.job(**{**small, "budget": {"requests": 1_000}})
    await rig.start_worker(wait=False)
    status = await drive(rig, **{**small, "budget": {"requests": 1_000}})
    assert (status.phase, status.succeeded, status.pause) == (Phase.COMPLETE, 200, None)
    assert status.spend.requests == 120 + len(rig.calls()) - made
    assert status.source_rows == ROWS
    projected = status.projected
    assert projected is not None
    assert projected.requests == -(-status.spend.requests * ROWS // 200), "of a canary what all rows would take"
    assert projected.cost == projected_cost(status)
    calls = len(rig.calls())
    status = await drive(rig, **{**small, "budget": {"requests": 1}})
    assert (status.phase, len(rig.calls())) == (Phase.COMPLETE, calls), "a run that is over needs no budget"
    assert status.projected == projected, "and still tells what it used"


def projected_cost(status: RunStatus) -> Decimal:
    return status.spend.cost * ROWS / 200


def _canary(rig: Rig, rows: int) -> dict[str, Any]:
    return {"uri": str(rig.source), "limit": rows}


async def test_calls_that_are_refused_fail_no_row_and_are_tried_again_with_care(rig: Rig) -> None:
    denied = {"default": {"kind": "ok", "status": 401, "body": {"error": "no such key"}}}
    await rig.endpoint.play(denied)
    slots = {"concurrency": {"perWorker": 32}}
    rig.job(**slots)
    for _ in range(2):
        await rig.start_worker(wait=False)
    status = await drive(rig, **slots)
    assert (status.phase, status.failed, status.succeeded) == (Phase.SUSPENDED, 0, 0)
    assert status.pause is not None
    assert (status.pause.reason, status.pause.tries) == (Reason.REFUSED, 0)
    assert "HTTP401" in status.message
    assert 10 <= len(rig.calls()) <= 20, "ten a worker, however many slots it has"
    assert status.pause.until is not None
    assert 50 < status.pause.until - time.time() <= 60

    # Nobody has mended anything, or asked: nothing is called.
    made = len(rig.calls())
    again = await drive(rig, resumed_at=status.pause.at - 1, **slots)
    assert (again.phase, again.pause, len(rig.calls())) == (Phase.SUSPENDED, status.pause, made)

    # Asked for, in vain: workers begin anew, as pods do.
    await rig.stop_workers()
    await rig.start_worker(wait=False)
    vain = await drive(rig, resumed_at=time.time(), **slots)
    assert vain.pause is not None
    assert (vain.phase, vain.failed, vain.pause.tries) == (Phase.SUSPENDED, 0, 1)
    assert len(rig.calls()) <= made + 10
    assert vain.pause.until is not None
    assert 200 < vain.pause.until - time.time() <= 240

    await rig.stop_workers()
    await rig.endpoint.play({})
    await rig.start_worker(wait=False)
    made = len(rig.calls())
    status = await drive(rig, resumed_at=time.time(), **slots)
    assert (status.phase, status.succeeded, status.failed) == (Phase.COMPLETE, ROWS, 0)
    assert len(rig.calls()) - made == ROWS, "each row once"
    assert all(outcome.attempts == 1 for outcome in await rig.outcomes()), "a refused call was no attempt"


async def test_a_row_that_is_forbidden_alone_fails_alone(rig: Rig) -> None:
    forbidden = range(7, ROWS + 1, 7)
    await rig.endpoint.play({"rows": {str(row): [403] for row in forbidden}})
    rig.job()
    await rig.start_worker(wait=False)
    status = await drive(rig)
    assert (status.phase, status.succeeded, status.failed) == (Phase.COMPLETE, ROWS - len(forbidden), len(forbidden))
    assert status.errors[0].error_class == "HTTP403"


async def test_a_small_job_with_a_wrong_key_fails_and_says_why(rig: Rig) -> None:
    await rig.endpoint.play({"default": {"kind": "ok", "status": 401}})
    three = {"source": _canary(rig, 3)}
    rig.job(**three)
    await rig.start_worker(wait=False)
    status = await drive(rig, **three)
    assert (status.phase, status.failed) == (Phase.COMPLETE, 3)
