"""`spec.resultsRetentionSeconds` on a cluster: results go when their time is over, and the job says so from then on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import PlaceUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Kept, RunRecord
from rowmill.status import Phase
from rowmill_operator.kube import retention, runner
from rowmill_operator.kube.retention import keep_retention
from tests.support.inprocess import INSTALLATION
from tests.support.kube_cluster import Object, condition
from tests.support.kube_lab import KubeLab, Operator, batch_job, hurry, kube_lab, parsed
from tests.support.parts import folder_at

HOUR = 3600
SOME_FAIL: dict[str, Any] = {"simulate": {"errors": [{"class": "HTTP400", "percent": 50, "retryable": False}]}}
DROPPED = "rowmill_operator_runs_dropped_total"
WITHIN = 60.0


@pytest.fixture
async def lab(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    """A cluster whose pods execute rows, and an operator whose pauses are short."""
    hurry(monkeypatch)
    monkeypatch.setattr(retention, "LOOK_SECONDS", 0.05)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab:
        yield lab


@asynccontextmanager
async def keeping(lab: KubeLab) -> AsyncIterator[Operator]:
    """An operator that leads, and so drops results."""
    async with lab.operator() as operator:
        keeper = asyncio.create_task(
            keep_retention(
                operator.hub,
                stores=operator.stores,
                installation=INSTALLATION,
                log=operator.log,
                dropped=operator.metrics.run_dropped,
            )
        )
        try:
            yield operator
        finally:
            assert not keeper.done(), keeper
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)


async def sql(lab: KubeLab, text: str) -> None:
    async with lab.ledger.pool.connection() as connection:
        await connection.execute(text)


async def time_passes(lab: KubeLab) -> None:
    await sql(lab, f"update rowmill.runs set finished_at = finished_at - interval '{HOUR + 1} seconds'")


async def until_dropped(lab: KubeLab) -> Object:
    await lab.cluster.until(lambda: "resultsDroppedTime" in (lab.job().get("status") or {}), within=WITHIN)
    return lab.job()


async def record_of(lab: KubeLab, body: Any) -> RunRecord:
    return await lab.lab.record(parsed(body))


async def test_a_job_whose_results_are_dropped_says_so_and_stays_complete(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = batch_job(rows=12, resultsRetentionSeconds=HOUR, **SOME_FAIL)
    async with keeping(lab) as operator:
        ledger, _ = await operator.stores.get()
        compared, note = asyncio.Event(), ledger.retention.note

        async def noted(installation: str, kept: Sequence[Kept]) -> dict[RunIdentity, float]:
            found = await note(installation, kept)
            compared.set()
            return found

        monkeypatch.setattr(ledger.retention, "note", noted)
        lab.cluster.put("batchjobs", body)
        before = (await lab.until_phase("Complete", within=WITHIN))["status"]
        assert "resultsDroppedTime" not in before
        assert before["rows"]["failed"]
        pods = lab.kubelet.made["job-workers"]
        await asyncio.wait_for(compared.wait(), WITHIN)  # it is looked up again when its results were dropped
        await time_passes(lab)
        job = await until_dropped(lab)
        assert job["status"]["phase"] == "Complete"
        assert {name: job["status"][name] for name in ("rows", "errors", "done")} == {
            name: before[name] for name in ("rows", "errors", "done")
        }
        assert "the results were dropped on" in condition(job, "Complete")["message"]
        assert "retryGeneration" not in condition(job, "Complete")["message"]
        assert operator.sample(DROPPED) == 1
        line = operator.log.said("the results of a run were dropped: their retention is over")
        assert [one["job"] for one in line] == ["default/job/1~simulate"]

        lab.cluster.edit("batchjobs", "job", {"spec": {"retryGeneration": 1}})
        refused = await lab.until_reason("ResultsDropped", within=WITHIN)
        message = condition(refused, "Stalled")["message"]
        assert message.startswith("spec.retryGeneration: the results of this run were dropped on ")
        assert message.endswith("change spec.runId to run again")
        lab.cluster.edit("batchjobs", "job", {"spec": {"retryGeneration": 0}})
        await lab.until_phase("Complete", within=WITHIN)

    async with keeping(lab):  # an operator that has just begun
        lab.cluster.edit("batchjobs", "job", {"spec": {"completionTargetSeconds": 60}})
        assert "resultsDroppedTime" in (await lab.until_phase("Complete", within=WITHIN))["status"]
        lab.cluster.delete("batchjobs", "job")
        await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None, within=WITHIN)
        lab.cluster.put("batchjobs", body)  # a pipeline brings it back
        job = await lab.until_phase("Complete", within=WITHIN)
        assert job["status"]["rows"] == before["rows"]
        assert "resultsDroppedTime" in job["status"]
        assert lab.kubelet.made["job-workers"] == pods, "nothing is called"


async def test_a_job_at_rest_teaches_the_ledger_what_it_did_not_know(lab: KubeLab) -> None:
    """It ended under a release that kept no retention, and has no engine any more."""
    body = batch_job(resultsRetentionSeconds=HOUR)
    async with lab.operator():
        lab.cluster.put("batchjobs", body)
        await lab.until_phase("Complete", within=WITHIN)
    await sql(lab, "update rowmill.runs set retention_seconds = null")
    await time_passes(lab)
    async with keeping(lab):
        await until_dropped(lab)
    assert (await record_of(lab, body)).dropped_at is not None


def never(uri: str, run_id: str, **options: Any) -> Any:
    raise PlaceUnavailable("the bucket is away")


async def until_over(lab: KubeLab, body: Any) -> None:
    """Wait until the ledger knows the end, whatever the job says."""
    async with asyncio.timeout(WITHIN):
        while (await record_of(lab, body)).phase is not Phase.COMPLETE:
            await asyncio.sleep(0.02)


async def test_another_run_id_leaves_nobody_to_write_the_results_of_the_run_before(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "open_folder", never)
    body = batch_job(rows=2, output={"uri": "s3://bucket/results/"})
    async with lab.operator():
        lab.cluster.put("batchjobs", body)
        await until_over(lab, body)
        assert (await record_of(lab, body)).output_pending
        lab.cluster.edit("batchjobs", "job", {"spec": {"runId": "2", "output": None}})
        await lab.until_phase("Complete", within=WITHIN)
    assert not (await record_of(lab, body)).output_pending


async def test_results_that_cannot_be_written_are_not_dropped(
    lab: KubeLab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = True

    def opened(uri: str, run_id: str, **options: Any) -> Any:
        return never(uri, run_id) if away else folder_at(str(tmp_path / "out"), run_id)

    monkeypatch.setattr(runner, "open_folder", opened)
    body = batch_job(rows=3, resultsRetentionSeconds=HOUR, output={"uri": "s3://bucket/results/"})
    async with keeping(lab):
        lab.cluster.put("batchjobs", body)
        await until_over(lab, body)
        await lab.until_reason("OutputUnavailable", within=WITHIN)
        await time_passes(lab)
        assert (await record_of(lab, body)).output_pending
        assert await lab.ledger.retention.expired(INSTALLATION) == []
        away = False
        # Tried again by itself, later each time; and the moment that it is written, its time is over.
        job = await until_dropped(lab)
        assert job["status"]["phase"] == "Complete"
        assert job["status"]["output"]["parts"] == 1
    assert (tmp_path / "out").exists()
