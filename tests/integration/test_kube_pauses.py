"""BatchJobs that stand still by themselves, in a cluster: a budget that is used up, calls that are refused."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rowmill.ledger import Held, RunRecord, Want
from rowmill.spend import Pause, Reason, Spend
from rowmill.status import Phase
from rowmill_operator.engine import pauses
from rowmill_operator.kube import naming
from tests.support.kube_cluster import condition
from tests.support.kube_lab import KubeLab, Operator, batch_job, hurry, kube_lab, parsed

PRICED: dict[str, Any] = {"pricing": {"perCall": "0.2"}, "budget": {"cost": "0.5"}}


@pytest.fixture
async def idle(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    """Pods that are ready and execute nothing: what workers would tell of their calls, the test tells."""
    hurry(monkeypatch)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, workers=False) as lab:
        yield lab


async def applied(lab: KubeLab, **spec: Any) -> RunRecord:
    """The run of a job that has just been applied and has its pods."""
    lab.cluster.put("batchjobs", batch_job(**spec))
    await lab.until_phase("Running")
    await lab.cluster.until(lambda: lab.cluster.all("pods"))
    return await lab.lab.record(parsed(batch_job(**spec)))


async def kept(lab: KubeLab, run: RunRecord) -> RunRecord:
    record = await lab.ledger.find_run(run.identity)
    assert record is not None
    return record


async def pause_of(lab: KubeLab, run: RunRecord, *, after: Pause | None = None) -> Pause:
    """Why the run stands still, as soon as that is another reason than `after`."""
    async with asyncio.timeout(90):
        while (found := (await kept(lab, run)).pause) in (None, after):
            await asyncio.sleep(0.02)
    assert found is not None
    return found


async def refuse(lab: KubeLab, run: RunRecord) -> None:
    """A worker that has just begun, as each that tries again has, says so."""
    book = lab.ledger.spend_book(run, worker=secrets.token_hex(4))
    await book.tell(used=Spend(10), held=Held(), refused="the endpoint refused 10 calls")


async def stands_still(lab: KubeLab, reason: str, true: str) -> dict[str, Any]:
    """The status of the job, once it tells so and its pods are gone."""
    job = await lab.until_reason(reason)
    await lab.cluster.until(lambda: not lab.cluster.all("pods"))
    held = {one["type"] for one in job["status"]["conditions"] if one["status"] == "True"}
    assert held == {"Suspended", true}
    status: dict[str, Any] = job["status"]
    return status


def annotate(lab: KubeLab, at: float) -> None:
    """What `kubectl rowmill resume` does."""
    said = datetime.fromtimestamp(at, UTC).isoformat()
    lab.cluster.edit("batchjobs", "job", {"metadata": {"annotations": {naming.RESUMED_AT: said}}})


async def looked(operator: Operator, times: int) -> None:
    """The operator has taken up the manifest so often."""
    await operator.until(lambda: (operator.sample("rowmill_operator_reconcile_seconds_count") or 0) >= times)


async def test_refused_calls_are_tried_again_when_somebody_asks_and_not_for_what_was_asked_before(
    idle: KubeLab,
) -> None:
    async with idle.operator() as operator:
        run = await applied(idle)
        await refuse(idle, run)
        status = await stands_still(idle, "CallsRefused", "Stalled")
        pause = await pause_of(idle, run)
        assert (pause.reason, pause.tries) == (Reason.REFUSED, 0)
        assert pause.until == pytest.approx(pause.at + 60, abs=0.01)
        assert status["spend"]["requests"] == 10
        assert condition({"status": status}, "Stalled")["message"].startswith("the endpoint refused 10 calls. Nothing")

        before = operator.sample("rowmill_operator_reconcile_seconds_count") or 0
        annotate(idle, pause.at - 5)
        await looked(operator, int(before) + 1)
        annotate(idle, pause.at - 4)
        await looked(operator, int(before) + 2)  # so the first one is over, and has changed nothing
        assert (await kept(idle, run)).pause == pause
        assert idle.cluster.all("pods") == []

        annotate(idle, pause.at + 1)
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: len(idle.cluster.all("pods")) == 1)
        assert (await kept(idle, run)).pause is None
        told = await idle.ledger.spending.of(run)
        assert (told.spent.requests, told.refused) == (10, None), "what was used is not forgotten"

        # In vain: it waits four times as long, and a restarted operator says the same.
        await refuse(idle, run)
        again = await pause_of(idle, run)
        assert again.tries == 1
        assert again.until == pytest.approx(again.at + 240, abs=0.01)
        await stands_still(idle, "CallsRefused", "Stalled")
        version = idle.job()["metadata"]["resourceVersion"]
    async with idle.operator() as second:
        await looked(second, 1)
        await second.until(lambda: second.controller().numbers.phase == "Suspended")
        assert (await kept(idle, run)).pause == again
        # A change of the manifest that concerns neither does not try either, and suspending clears the reason.
        idle.cluster.edit("batchjobs", "job", {"spec": {"suspend": True}})
        await idle.until_reason("Suspended")
        async with asyncio.timeout(60):
            while (await kept(idle, run)).pause is not None:
                await asyncio.sleep(0.02)
        assert (await kept(idle, run)).phase is Phase.SUSPENDED
        idle.cluster.edit("batchjobs", "job", {"spec": {"suspend": False}})
        await idle.until_phase("Running")
        assert idle.job()["metadata"]["resourceVersion"] != version


async def test_refused_calls_are_tried_again_after_a_while_by_one_worker(
    idle: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pauses, "TRY_AGAIN_SECONDS", (0.5, 1800.0))
    async with idle.operator():
        many = {"rows": 900, "workers": {"scaling": "External", "replicas": 3, "maxReplicas": 3}}
        run = await applied(idle, **many)
        await idle.cluster.until(lambda: len(idle.cluster.all("pods")) == 3)
        await refuse(idle, run)
        first = await pause_of(idle, run)
        await idle.cluster.until(lambda: not idle.cluster.all("pods"))
        idle.kubelet.most.clear()
        await idle.until_phase("Running")  # nobody has asked
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        assert (await kept(idle, run)).pause is None
        monkeypatch.setattr(pauses, "TRY_AGAIN_SECONDS", (60.0, 1800.0))
        await refuse(idle, run)
        second = await pause_of(idle, run, after=first)
        assert second.tries == 1
        assert second.until == pytest.approx(second.at + 240, abs=0.01)
        assert second.at >= first.at + 0.5
        assert idle.kubelet.most == {"job-workers": 1}


async def test_a_budget_that_is_used_up_stops_the_run_until_it_is_raised_by_enough(idle: KubeLab) -> None:
    async with idle.operator():
        run = await applied(idle, **PRICED)
        config = {one["metadata"]["name"] for one in idle.cluster.all("configmaps")}
        book = idle.ledger.spend_book(run, worker="w")
        used = Spend(2, 0, 0, Decimal("0.4"))
        allowed = await book.tell(used=used, held=Held(), wants=[Want(0, Decimal("0.2"))])
        assert (allowed.calls, allowed.for_good) == (0, True)
        status = await stands_still(idle, "BudgetExhausted", "Ready")
        message = "the next call may need 0.2, more than is left of spec.budget.cost 0.5. Raise it, or leave it out"
        assert condition({"status": status}, "Ready")["message"].startswith(message)
        assert status["spend"] == {"requests": 2, "cost": "0.4"}
        pause = await pause_of(idle, run)

        idle.cluster.edit("batchjobs", "job", {"spec": {"budget": {"cost": "0.55"}}})
        await idle.cluster.until(lambda: "cost 0.55. Raise it" in str(condition(idle.job(), "Ready").get("message")))
        assert condition(idle.job(), "Ready")["reason"] == "BudgetExhausted"
        by_too_little = await kept(idle, run)
        assert by_too_little.pause is not None
        assert (by_too_little.pause.at, by_too_little.pause.shortage) == (pause.at, pause.shortage)
        assert by_too_little.budget is not None
        assert by_too_little.budget.cost == Decimal("0.55")
        assert idle.cluster.all("pods") == []

        idle.cluster.edit("batchjobs", "job", {"spec": {"budget": {"cost": "0.6"}}})
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        assert (await book.tell(used=used, held=Held(), wants=[Want(0, Decimal("0.2"))])).calls == 1
        assert {one["metadata"]["name"] for one in idle.cluster.all("configmaps")} == config, "workers need not know"

        # Used up again, and the budget is left out.
        await book.tell(used=Spend(3, 0, 0, Decimal("0.6")), held=Held(), wants=[Want(0, Decimal("0.2"))])
        await stands_still(idle, "BudgetExhausted", "Ready")
        idle.cluster.edit("batchjobs", "job", {"spec": {"budget": None}})
        await idle.until_phase("Running")
        assert (await kept(idle, run)).budget is None


async def test_a_budget_that_is_lowered_below_what_was_used_holds_for_workers_that_run(idle: KubeLab) -> None:
    async with idle.operator():
        run = await applied(idle, budget={"requests": 100})
        book = idle.ledger.spend_book(run, worker="w")
        assert (await book.tell(used=Spend(7), held=Held(), wants=[Want()])).calls == 1
        idle.cluster.edit("batchjobs", "job", {"spec": {"budget": {"requests": 5}}})
        await idle.cluster.until(lambda: idle.job()["status"]["observedGeneration"] == 2)
        async with asyncio.timeout(60):
            while (await book.tell(used=Spend(8), held=Held(), wants=[Want()])).calls:
                await asyncio.sleep(0.02)
        status = await stands_still(idle, "BudgetExhausted", "Ready")
        assert "the 5 calls of spec.budget.requests are used up" in condition({"status": status}, "Ready")["message"]
        assert status["spend"]["requests"] == 8
