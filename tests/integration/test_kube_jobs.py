"""BatchJobs from `kubectl apply` to their end, on an API server in memory and on real stores."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.status import Phase
from rowmill_operator.kube import conditions, execution, naming
from rowmill_operator.kube.runner import Results
from tests.support.kube_cluster import CREATED, Cluster, Object, condition
from tests.support.kube_lab import KubeLab, batch_job, hurry, kube_lab, parsed
from tests.support.starved import starved

SLOW = {"simulate": {"latencySeconds": 600.0}, "timeoutSeconds": 900}
"""Rows that stay on their way for as long as a test lasts."""


@pytest.fixture
async def lab(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    """A cluster whose pods execute rows, and an operator whose pauses are short."""
    hurry(monkeypatch)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab:
        yield lab


@pytest.fixture
async def idle(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    """The same with pods that are ready and execute nothing: a run goes on for as long as a test wants."""
    hurry(monkeypatch)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, workers=False) as lab:
        yield lab


def statuses(cluster: Cluster, name: str = "job") -> list[Object]:
    """What was written to a job's status, in order."""
    return [call.body["status"] for call in cluster.made(f"patch batchjobs/{name}/status")]


def replicas(cluster: Cluster, name: str = "job") -> int | None:
    live = cluster.get("deployments", naming.workers_name(name))
    return None if live is None else live["spec"]["replicas"]


def names(objects: list[Object]) -> set[str]:
    return {one["metadata"]["name"] for one in objects}


async def drained(seconds: float = 0.4) -> None:
    """Long enough, with short pauses, for everything that would be said to have been said; of a busy machine's time
    only what it gave to us counts."""
    me = threading.get_native_id()
    end = time.monotonic() - starved(me) + seconds
    while (left := end - time.monotonic() + starved(me)) > 0:
        await asyncio.sleep(left)


# -- from apply to the end


async def test_a_job_goes_from_apply_to_complete_and_is_left_alone(lab: KubeLab) -> None:
    async with lab.operator() as operator:
        lab.cluster.put("batchjobs", batch_job(rows=20))
        job = await lab.until_phase("Complete")
        first = statuses(lab.cluster)[0]
        assert first["observedGeneration"] == 1
        assert condition({"status": first}, "Ready")["reason"] == "Pending"
        assert condition(job, "Complete")["status"] == "True"
        assert job["status"]["rows"]["succeeded"] == 20
        assert job["metadata"]["finalizers"] == [naming.FINALIZER]
        await lab.cluster.until(lambda: not lab.cluster.all("pods"))
        assert lab.cluster.get("deployments", "job-workers") is None
        assert await lab.keys() == []
        assert operator.sample("rowmill_job_rows", namespace="default", name="job", state="succeeded") == 20


async def test_the_first_word_comes_before_anything_is_asked_of_anybody(idle: KubeLab) -> None:
    idle.cluster.fail("get batchjobs", 503, "not now")  # the finalizer cannot be set yet
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.cluster.until(lambda: statuses(idle.cluster))
    assert statuses(idle.cluster)[0]["observedGeneration"] == 1


async def test_the_finalizer_is_put_on_beside_others_and_again_after_a_conflict(idle: KubeLab) -> None:
    body = batch_job()
    body["metadata"]["finalizers"] = ["other.dev/keep"]
    puts = lambda call: call.verb == "patch" and "finalizers" in (call.body or {}).get("metadata", {})  # noqa: E731
    idle.cluster.fail(puts, 409, "the object has been modified", times=2)
    async with idle.operator():
        idle.cluster.put("batchjobs", body)
        await idle.cluster.until(lambda: naming.FINALIZER in idle.job()["metadata"]["finalizers"])
    assert idle.job()["metadata"]["finalizers"] == ["other.dev/keep", naming.FINALIZER]
    tries = [call.body["metadata"] for call in idle.cluster.calls if puts(call)]
    assert len(tries) == 3
    assert all(one["resourceVersion"] for one in tries)


async def test_nothing_is_fed_before_the_finalizer_is_on(idle: KubeLab) -> None:
    refused = idle.cluster.fail(
        lambda call: call.verb == "patch" and "finalizers" in (call.body or {}).get("metadata", {}), 500, "not now"
    )
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_reason("PodsRefused")
        assert await idle.keys() == []
        idle.cluster.mend(refused)
        await idle.until_phase("Running")


async def test_complete_is_told_only_after_the_results_are_written(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, allowed = asyncio.Event(), asyncio.Event()

    async def finish(self: Results) -> None:
        self._report.writing_results()
        asked.set()
        await allowed.wait()

    async def run(self: Results, stop: asyncio.Event) -> None:
        await stop.wait()

    monkeypatch.setattr(Results, "finish", finish)
    monkeypatch.setattr(Results, "run", run)
    async with lab.operator():
        lab.cluster.put("batchjobs", batch_job(output={"uri": "s3://bucket/results/"}))
        await asyncio.wait_for(asked.wait(), 60)
        await lab.until_reason("WritingResults")
        assert all(one.get("phase") != "Complete" for one in statuses(lab.cluster))
        allowed.set()
        await lab.until_phase("Complete")


# -- an operator that begins again


async def test_a_restart_says_nothing_new_of_a_running_job(idle: KubeLab) -> None:
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.job()["status"]["workers"].get("ready") == 1)
        await drained()
    told, events = len(statuses(idle.cluster)), len(idle.cluster.made("create events"))
    pods, before = names(idle.cluster.all("pods")), len(idle.cluster.calls)
    async with idle.operator() as second:
        await second.until(lambda: second.sample("rowmill_operator_reconcile_seconds_count"))
        await drained(0.8)
        assert names(idle.cluster.all("pods")) == pods, "workers go on"
        assert [str(call) for call in idle.cluster.calls[before:] if call.verb != "list"] == []
        assert second.controller().numbers.phase == "Running"
    assert statuses(idle.cluster)[told:] == []
    assert len(idle.cluster.made("create events")) == events


async def test_a_restart_says_and_asks_nothing_of_a_finished_job(lab: KubeLab) -> None:
    async with lab.operator():
        lab.cluster.put("batchjobs", batch_job())
        await lab.until_phase("Complete")
        await lab.cluster.until(lambda: lab.cluster.get("deployments", "job-workers") is None)
        await drained()
    before = len(lab.cluster.calls)
    async with lab.operator() as second:
        await drained()
        assert [str(call) for call in lab.cluster.calls[before:]] == []
        assert second.controller().numbers.phase == "Complete"


async def test_a_restart_says_nothing_new_of_a_job_that_waits_for_its_config_map(idle: KubeLab) -> None:
    source = {"configMap": {"name": "table", "key": "rows.csv"}}
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job(source=source))
        await idle.until_reason("ConfigMapMissing")
        await drained()
    told, events = len(statuses(idle.cluster)), len(idle.cluster.made("create events"))
    async with idle.operator():
        await idle.cluster.until(lambda: len(idle.cluster.made("get configmaps/table")) > 3)
        await drained()
    assert [condition({"status": s}, "Ready").get("reason") for s in statuses(idle.cluster)[told:]] == []
    assert len(idle.cluster.made("create events")) == events


async def test_a_trouble_that_lasts_becomes_stalled_and_one_event(
    idle: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conditions, "PATIENCE_SECONDS", 0.6)
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job(source={"configMap": {"name": "table", "key": "rows.csv"}}))
        await idle.until_reason("ConfigMapMissing")
        await idle.cluster.until(lambda: condition(idle.job(), "Stalled")["status"] == "True")
        idle.cluster.put("configmaps", {"metadata": {"name": "table"}, "data": {"rows.csv": "id\n1\n"}})
        await idle.until_phase("Running")
    told = [call.body["reason"] for call in idle.cluster.made("create events")]
    assert told.count("ConfigMapMissing") == 1


async def test_a_raised_retry_generation_is_not_complete_before_it_ran(lab: KubeLab) -> None:
    async with lab.operator():
        lab.cluster.put("batchjobs", batch_job(rows=3))
        await lab.until_phase("Complete")
        told = len(statuses(lab.cluster))
        lab.kubelet.ready = False  # the second run cannot end yet
        lab.cluster.edit("batchjobs", "job", {"spec": {"retryGeneration": 1, "source": {"limit": None}}})
        await lab.cluster.until(lambda: lab.job()["status"]["observedGeneration"] == 2)
        seen = lab.job()
        if seen["status"]["phase"] == "Complete":
            # Nothing failed, so there was nothing to run again: the run's own generation says that it was looked at.
            assert seen["status"]["run"]["generation"] == 1
        job = await lab.until_phase("Complete")
    assert job["status"]["run"]["generation"] == 1
    said = [
        (one.get("phase"), [c for c in one.get("conditions", []) if c["type"] == "Complete"])
        for one in statuses(lab.cluster)[told:]
    ]
    assert said[0][0] == "Pending"
    assert said[0][1][0]["status"] == "False"


async def test_the_image_of_a_run_stays_when_the_operator_brings_another(idle: KubeLab) -> None:
    def image() -> Any:
        live = idle.cluster.get("deployments", "job-workers")
        return live and live["spec"]["template"]["spec"]["containers"][0]["image"]

    async with idle.operator(worker_image="example.org/worker:1"):
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.job()["status"]["workers"].get("image"))
        await idle.cluster.until(lambda: image() == "example.org/worker:1")
    async with idle.operator(worker_image="example.org/worker:2") as second:
        await second.until(lambda: second.sample("rowmill_operator_reconcile_seconds_count"))
        await drained()
        assert image() == "example.org/worker:1"
        idle.cluster.edit("batchjobs", "job", {"spec": {"runId": "2"}})
        await idle.cluster.until(lambda: image() == "example.org/worker:2")


# -- edits


async def test_an_edit_stops_the_engine_and_begins_another(idle: KubeLab) -> None:
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        term = (await idle.lab.record(parsed(batch_job()))).term
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        pods = names(idle.cluster.all("pods"))
        idle.cluster.edit("batchjobs", "job", {"spec": {"activeDeadlineSeconds": 3600}})
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.job()["status"]["observedGeneration"] == 2)
        await operator.until(lambda: operator.sample("rowmill_operator_reconcile_seconds_count") == 2)
        async with asyncio.timeout(60):
            while (record := await idle.lab.record(parsed(batch_job()))).term == term:
                await asyncio.sleep(0.02)
        assert record.term == term + 1
        await drained()
        assert names(idle.cluster.all("pods")) == pods, "nothing of it concerns workers"


async def test_replicas_of_external_scaling_are_followed_without_a_new_engine(idle: KubeLab) -> None:
    workers = {"scaling": "External", "replicas": 1, "maxReplicas": 3}
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job(workers=workers))
        await idle.cluster.until(lambda: replicas(idle.cluster) == 1)
        idle.cluster.edit("batchjobs", "job", {"spec": {"workers": {"replicas": 2}}})
        await idle.cluster.until(lambda: replicas(idle.cluster) == 2)
        await idle.cluster.until(lambda: idle.job()["status"]["observedGeneration"] == 2)
        idle.cluster.edit("batchjobs", "job", {"spec": {"workers": {"replicas": 900}}})
        await idle.cluster.until(lambda: replicas(idle.cluster) == 3)
        await drained()
        assert replicas(idle.cluster) == 3
        assert operator.sample("rowmill_operator_reconcile_seconds_count") == 1
        assert len({one["metadata"]["uid"] for one in idle.cluster.all("deployments")}) == 1


@pytest.mark.parametrize("phase", ["Suspended", "Complete"])
async def test_a_replica_count_that_nobody_needs_is_seen_all_the_same(lab: KubeLab, phase: str) -> None:
    """Whoever waits for observedGeneration waits for ever otherwise."""
    workers = {"scaling": "External", "replicas": 1, "maxReplicas": 3}
    async with lab.operator():
        lab.cluster.put("batchjobs", batch_job(workers=workers, suspend=phase == "Suspended"))
        await lab.until_phase(phase)
        lab.cluster.edit("batchjobs", "job", {"spec": {"workers": {"replicas": 2}}})
        await lab.cluster.until(lambda: lab.job()["status"]["observedGeneration"] == 2)
        assert lab.job()["status"]["phase"] == phase


async def test_suspend_frees_the_pods_and_resume_goes_on(idle: KubeLab) -> None:
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        idle.cluster.edit("batchjobs", "job", {"spec": {"suspend": True}})
        job = await idle.until_phase("Suspended")
        assert condition(job, "Suspended")["status"] == "True"
        await idle.cluster.until(lambda: not idle.cluster.all("pods"))
        idle.cluster.edit("batchjobs", "job", {"spec": {"suspend": False}})
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))


@pytest.mark.parametrize("paused", [False, True])
async def test_another_run_id_closes_the_window_of_the_run_before(idle: KubeLab, paused: bool) -> None:
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job(rows=7))
        await idle.until_phase("Running")
        first = await idle.lab.record(parsed(batch_job(rows=7)))
        old = set(await idle.keys())
        assert old
        if paused:
            idle.cluster.edit("batchjobs", "job", {"spec": {"suspend": True}})
            await idle.until_phase("Suspended")
        idle.cluster.edit("batchjobs", "job", {"spec": {"runId": "2", "suspend": False}})
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.job()["status"]["run"]["id"].startswith("2"))
        record = await idle.ledger.find_run(first.identity)
        assert record is not None
        assert record.phase is Phase.SUSPENDED
        assert [key for key in await idle.keys() if key in old] == []


# -- deletion


async def test_a_deleted_job_leaves_no_key_no_pod_and_its_ledger(idle: KubeLab) -> None:
    async with idle.operator() as operator:
        body = batch_job(rows=9)
        body["metadata"]["finalizers"] = ["other.dev/keep"]
        idle.cluster.put("batchjobs", body)
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        record = await idle.lab.record(parsed(batch_job(rows=9)))
        idle.kubelet.linger = asyncio.Event()
        idle.cluster.delete("batchjobs", "job")
        await idle.cluster.until(lambda: idle.cluster.get("deployments", "job-workers") is None)
        await idle.until_reason("Deleting")
        await idle.cluster.until(lambda: len(idle.cluster.made("list pods")) > 2)
        assert await idle.keys() == []
        assert naming.FINALIZER in idle.job()["metadata"]["finalizers"], "a pod is still there"
        idle.kubelet.linger.set()
        await idle.cluster.until(lambda: idle.job()["metadata"]["finalizers"] == ["other.dev/keep"])
        assert not idle.cluster.all("pods")
        kept = await idle.ledger.find_run(record.identity)
        assert kept is not None
        assert kept.phase is Phase.SUSPENDED
        idle.cluster.edit("batchjobs", "job", {"metadata": {"finalizers": []}})
        await idle.cluster.until(lambda: idle.cluster.get("batchjobs", "job") is None)
        await operator.until(lambda: not operator.hub.controllers)


async def test_an_operator_that_ends_while_pods_drain_keeps_the_finalizer(idle: KubeLab) -> None:
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        idle.kubelet.linger = asyncio.Event()
        idle.cluster.delete("batchjobs", "job")
        await idle.cluster.until(lambda: len(idle.cluster.made("list pods")) > 2)
    assert idle.job()["metadata"]["finalizers"] == [naming.FINALIZER]
    assert idle.cluster.all("pods")
    async with idle.operator():
        idle.kubelet.linger.set()
        await idle.cluster.until(lambda: idle.cluster.get("batchjobs", "job") is None)


async def test_a_forced_removal_closes_the_window_too(idle: KubeLab) -> None:
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        assert await idle.keys()
        idle.cluster.vanish("batchjobs", "job")
        await operator.until(lambda: not operator.hub.controllers)
        assert await idle.keys() == []


async def test_a_job_made_anew_is_not_disturbed_by_what_is_left_of_the_one_before(idle: KubeLab) -> None:
    """Its finalizer taken off by force, deleted and applied again at once: the run of that name is the new one's."""
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        old = idle.job()["metadata"]["uid"]
        idle.cluster.vanish("batchjobs", "job")
        told = len(statuses(idle.cluster))
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await operator.until(lambda: old not in [one.uid for one in operator.hub.controllers])
        await idle.cluster.until(lambda: replicas(idle.cluster) == 1)
        assert await idle.keys()
        said = [condition({"status": one}, "Ready").get("reason") for one in statuses(idle.cluster)[told:]]
        assert "Deleting" not in said
        assert condition(await idle.until_phase("Running"), "Ready")["reason"] == "Running"


async def test_the_workers_of_somebody_else_are_left_alone_when_a_job_goes(idle: KubeLab) -> None:
    stranger = {"metadata": {"name": "job-workers"}, "spec": {"replicas": 2, "template": {"metadata": {"labels": {}}}}}
    stranger["spec"]["template"]["spec"] = {}
    idle.cluster.put("deployments", stranger)
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_reason("PodsRefused")
        idle.cluster.delete("batchjobs", "job")
        await idle.cluster.until(lambda: idle.cluster.get("batchjobs", "job") is None)
    assert replicas(idle.cluster) == 2


async def test_the_workers_of_somebody_else_are_left_alone_by_a_job_that_is_complete(lab: KubeLab) -> None:
    async with lab.operator():
        lab.cluster.put("batchjobs", batch_job())
        await lab.until_phase("Complete")
        lab.cluster.delete("batchjobs", "job")
        await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None)
        stranger = {"metadata": {"name": "job-workers"}, "spec": {"replicas": 0, "template": {}}}
        lab.cluster.put("deployments", stranger)
        lab.cluster.put("batchjobs", batch_job())
        await lab.until_phase("Complete")
    assert lab.cluster.get("deployments", "job-workers") is not None


async def test_its_time_to_live_deletes_this_very_object(lab: KubeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    async with lab.operator():
        body = batch_job(ttlSecondsAfterFinished=0)
        lab.cluster.put("batchjobs", body)
        await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None)
    deleted = lab.cluster.made("delete batchjobs/job")
    assert deleted
    assert all(call.body["preconditions"]["uid"] for call in deleted)
    assert any(one.get("phase") == "Complete" for one in statuses(lab.cluster))


async def test_an_object_made_meanwhile_survives_the_time_to_live_of_the_one_before(idle: KubeLab) -> None:
    status = {
        "observedGeneration": 1,
        "phase": "Complete",
        "completionTime": "2020-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "reason": "Completed", "message": ""}],
    }
    old = batch_job(ttlSecondsAfterFinished=60)
    old["metadata"] |= {"uid": "the-old-one", "generation": 1, "finalizers": [naming.FINALIZER]}
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job(suspend=True))
        await idle.until_phase("Suspended")
        operator.hub.saw(None, {**old, "status": status})  # what a watch that lags behind still believes
        await idle.cluster.until(lambda: idle.cluster.made("delete batchjobs/job"))
        await drained()
    assert idle.job()["metadata"]["uid"] != "the-old-one"
    assert "deletionTimestamp" not in idle.job()["metadata"]


# -- crashes, and servers that are away


async def test_a_controller_that_fails_is_begun_again_and_harms_no_other(
    idle: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, crashes = execution.build_workload, 0

    def fails(job: Any, **given: Any) -> Any:
        nonlocal crashes
        if job.metadata.name == "cursed" and crashes < 2:
            crashes += 1
            raise ZeroDivisionError("nobody foresaw it")
        return real(job, **given)

    monkeypatch.setattr(execution, "build_workload", fails)
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job("well"))
        idle.cluster.put("batchjobs", batch_job("cursed"))
        await idle.until_phase("Running", "well")
        await idle.until_phase("Running", "cursed")
        lines = operator.log.said("a job's controller failed; it is started again")
        assert [one["job"] for one in lines] == ["cursed", "cursed"]


async def test_a_fleet_that_fails_is_told_and_begun_again(idle: KubeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it rows would wait for workers for ever, and nobody would be told."""
    from rowmill_operator.kube.fleet import KubeFleet

    real, crashes = KubeFleet._converge, 0

    async def fails(self: KubeFleet) -> None:
        nonlocal crashes
        if crashes < 2:
            crashes += 1
            raise KeyError("replicas")
        await real(self)

    monkeypatch.setattr(KubeFleet, "_converge", fails)
    async with idle.operator() as operator:
        idle.cluster.put("batchjobs", batch_job())
        await idle.cluster.until(lambda: replicas(idle.cluster) == 1)
        assert any(kind == "exception" for kind, _, _ in operator.log.lines)


async def test_an_operator_that_ends_stops_its_engines_and_leaves_the_workers(idle: KubeLab) -> None:
    async with idle.operator():
        idle.cluster.put("batchjobs", batch_job())
        await idle.until_phase("Running")
        await idle.cluster.until(lambda: idle.cluster.all("pods"))
        pods = names(idle.cluster.all("pods"))
    assert names(idle.cluster.all("pods")) == pods
    assert await idle.keys()
    record = await idle.lab.record(parsed(batch_job()))
    assert record.phase is Phase.RUNNING
    await idle.ledger.leadership.take(record.id)  # the lead was given back
    await idle.ledger.leadership.release(record.id)


async def test_an_api_server_that_is_away_does_not_reach_the_engine(lab: KubeLab) -> None:
    async with lab.operator() as operator:
        lab.cluster.put("batchjobs", batch_job(rows=30, concurrency={"perWorker": 1}))
        await lab.cluster.until(lambda: lab.cluster.all("pods"))
        away = lab.cluster.fail(lambda call: True, 503, "the server is starting")
        async with asyncio.timeout(60):  # rows go on without it
            while (await lab.lab.record(parsed(batch_job(rows=30)))).phase is not Phase.COMPLETE:
                await asyncio.sleep(0.02)
        lab.cluster.mend(away)
        await lab.until_phase("Complete")
        await lab.cluster.until(lambda: lab.cluster.get("deployments", "job-workers") is None)
        assert operator.log.said("a job's controller failed; it is started again") == []


async def test_stores_that_are_away_at_the_start_are_told_and_waited_for(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, workers=False) as lab:
        async with lab.operator(redis_url="redis://127.0.0.1:1/0") as operator:
            lab.cluster.put("batchjobs", batch_job())
            job = await lab.until_reason("WaitingForStore")
            assert condition(job, "Reconciling")["status"] == "True"
            operator.stores._redis_url = redis_url  # it is there now
            await lab.until_phase("Running")


async def test_a_job_that_is_being_deleted_waits_for_stores_that_are_away(idle: KubeLab) -> None:
    body = batch_job()
    body["metadata"] |= {"finalizers": [naming.FINALIZER], "deletionTimestamp": CREATED}
    idle.cluster.put("batchjobs", body)
    async with idle.operator(redis_url="redis://127.0.0.1:1/0") as operator:
        await idle.until_reason("Deleting")
        await drained()
        assert idle.cluster.get("batchjobs", "job") is not None
        operator.stores._redis_url = idle.redis_url
        await idle.cluster.until(lambda: idle.cluster.get("batchjobs", "job") is None)


async def test_a_refusal_waits_for_an_edit_and_is_told_once(idle: KubeLab) -> None:
    body = batch_job()
    body["spec"]["timeoutSeconds"] = -3
    async with idle.operator():
        idle.cluster.put("batchjobs", body)
        job = await idle.until_reason("InvalidSpec")
        assert "timeoutSeconds" in condition(job, "Stalled")["message"]
        await idle.cluster.until(lambda: idle.cluster.made("create events"))
        before = len(idle.cluster.calls)
        await drained()
        assert idle.cluster.calls[before:] == []
        idle.cluster.edit("batchjobs", "job", {"spec": {"timeoutSeconds": 5}})
        await idle.until_phase("Running")
    assert [call.body["reason"] for call in idle.cluster.made("create events")].count("InvalidSpec") == 1
