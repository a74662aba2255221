"""A Deployment brought to what the engine wants, on an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from rowmill.tasks import end_tasks
from rowmill_operator.kube import fleet as module
from rowmill_operator.kube import naming
from rowmill_operator.kube.fleet import KubeFleet, remove_workers
from rowmill_operator.kube.pod_template import WorkloadSettings
from rowmill_operator.kube.workload import build_workload
from tests.support.kube_cluster import Cluster
from tests.support.kube_lab import IMAGE, Kubelet, Noted, api_of, batch_job, hurry, parsed

NAME = "job-workers"


class Bench:
    """A fleet of a job that is there, and what it works with."""

    def __init__(self, cluster: Cluster, *, image: str = IMAGE, **spec: Any) -> None:
        self.cluster = cluster
        held = cluster.get("batchjobs", "job") or cluster.put("batchjobs", batch_job(**spec))
        self.uid = held["metadata"]["uid"]
        self.api = api_of(cluster)
        self.log = Noted()
        self.blind = False
        """The watch shows nothing."""
        job = parsed(batch_job(**spec))
        settings = WorkloadSettings(image=image, installation="test", redis_url="redis://r", postgres_dsn="pg://p")
        self.workload = build_workload(job, uid=self.uid, settings=settings)
        loop = asyncio.get_running_loop()
        self.fleet = KubeFleet(
            api=self.api,
            job=job,
            uid=self.uid,
            workload=self.workload,
            live=lambda: None if self.blind else self.live,
            now=loop.time,
            wall=lambda: 1_800_000_600.0,
            log=self.log,
        )

    @property
    def live(self) -> Any:
        return self.cluster.get("deployments", NAME)

    @property
    def replicas(self) -> int | None:
        return None if self.live is None else self.live["spec"]["replicas"]

    async def told(self, reason: str | None) -> None:
        """Wait until the fleet's trouble has this reason."""
        async with asyncio.timeout(60):
            while ((found := self.fleet.trouble()) is not None and found.reason != reason) or (
                found is None and reason is not None
            ):
                await asyncio.sleep(0.01)


@pytest.fixture
async def cluster(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    hurry(monkeypatch)
    async with Cluster() as cluster:
        yield cluster


@asynccontextmanager
async def running(cluster: Cluster, **given: Any) -> AsyncIterator[Bench]:
    bench = Bench(cluster, **given)
    converging = asyncio.create_task(bench.fleet.run())
    try:
        yield bench
    finally:
        await end_tasks([converging])
        await bench.api.close()


async def settled() -> None:
    """Several turns of everything, with short pauses."""
    await asyncio.sleep(0.4)


async def test_workers_are_made_by_a_post_with_none_and_then_scaled(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(2)
        await cluster.until(lambda: bench.replicas == 2)
        await settled()
    order = [(call.verb, call.resource) for call in cluster.calls if call.verb in ("create", "patch")]
    assert order[:3] == [("patch", "configmaps"), ("patch", "secrets"), ("patch", "networkpolicies")]
    assert order[3:] == [("create", "deployments"), ("patch", "deployments")]
    [made] = cluster.made("create deployments")
    assert made.body["spec"]["replicas"] == 0
    assert cluster.made("patch deployments")[-1].body == {"spec": {"replicas": 2}}


async def test_nothing_is_made_before_somebody_is_wanted(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(0)
        await settled()
    assert cluster.calls == []


async def test_what_was_applied_is_not_applied_again_by_another_operator(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
    before = len(cluster.calls)
    async with running(cluster) as bench:
        await settled()
        assert bench.replicas == 1, "nobody has said yet how many there should be"
        await bench.fleet.scale(1)
        await settled()
    assert [str(call) for call in cluster.calls[before:] if call.verb != "list"] == []


async def test_another_template_is_put_in_place_without_a_number(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(3)
        await cluster.until(lambda: bench.replicas == 3)
        uid = bench.live["metadata"]["uid"]
        before = len(cluster.calls)
    async with running(cluster, image="example.org/worker:2") as bench:
        await bench.fleet.scale(3)
        await cluster.until(
            lambda: bench.live["spec"]["template"]["spec"]["containers"][0]["image"] == "example.org/worker:2"
        )
        await settled()
        assert bench.live["metadata"]["uid"] == uid
        assert bench.replicas == 3
    for call in cluster.calls[before:]:
        assert "replicas" not in str(call.body)


async def test_a_manifest_that_becomes_another_leaves_no_config_map_that_no_pod_mounts(cluster: Cluster) -> None:
    cluster.put("configmaps", {"metadata": {"name": "job-workers-table"}, "data": {}})  # a person's own
    kubelet = Kubelet(cluster)
    try:
        async with running(cluster) as bench:
            await bench.fleet.scale(1)
            await cluster.until(lambda: cluster.all("pods"))
            first = bench.workload.config_map["metadata"]["name"]
        # A pod of the old manifest drains still: what it mounts stays.
        async with running(cluster, timeoutSeconds=9) as bench:
            await bench.fleet.scale(1)
            await cluster.until(lambda: cluster.get("configmaps", bench.workload.config_map["metadata"]["name"]))
            await settled()
            assert cluster.get("configmaps", first) is not None
    finally:
        await kubelet.close()
    for pod in cluster.all("pods"):
        cluster.vanish("pods", pod["metadata"]["name"])
    async with running(cluster, timeoutSeconds=11) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: cluster.get("configmaps", first) is None)
        current = bench.workload.config_map["metadata"]["name"]
        await cluster.until(
            lambda: {m["metadata"]["name"] for m in cluster.all("configmaps")} == {current, "job-workers-table"}
        )


async def test_a_deployment_that_is_not_the_jobs_is_never_touched(cluster: Cluster) -> None:
    stranger = cluster.put("deployments", {"metadata": {"name": NAME}, "spec": {"replicas": 2}})
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await bench.told("PodsRefused")
        assert NAME in str(bench.fleet.trouble())
        bench.blind = True  # the watch has not seen it yet: the creation conflicts
        await cluster.until(lambda: cluster.made("create deployments"))
        await bench.told("PodsRefused")
        await bench.fleet.remove()
        await settled()
        assert cluster.get("deployments", NAME) == stranger
        # It goes: its place is taken.
        bench.blind = False
        cluster.vanish("deployments", NAME)
        await cluster.until(lambda: bench.replicas == 1)
        await bench.told(None)


async def test_a_secret_that_is_not_the_jobs_is_never_touched(cluster: Cluster) -> None:
    """It would hold the stores' addresses afterwards, and go with the job."""
    stranger = cluster.put("secrets", {"metadata": {"name": NAME}, "data": {"theirs": "eA=="}})
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await bench.told("PodsRefused")
        assert f"Secret {NAME}" in str(bench.fleet.trouble())
        assert cluster.get("secrets", NAME) == stranger
        assert bench.live is None
        cluster.vanish("secrets", NAME)
        await cluster.until(lambda: bench.replicas == 1)


async def test_the_workers_of_a_deleted_job_of_the_same_name_are_not_removed(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        await remove_workers(bench.api, namespace="default", name=NAME, uid="another-job")
        assert bench.live is not None
        await remove_workers(bench.api, namespace="default", name=NAME, uid=bench.uid)
        assert bench.live is None
        await remove_workers(bench.api, namespace="default", name=NAME, uid=bench.uid)


async def test_a_deployment_that_somebody_deleted_is_made_anew(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        cluster.delete("deployments", NAME)
        await cluster.until(lambda: bench.replicas == 1)
        assert naming.is_owned(bench.live, bench.uid)
    assert len(cluster.made("create deployments")) == 2


async def test_a_number_is_not_written_again_before_the_watch_could_show_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 60.0)
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        shown = bench.live
        cluster.seen.clear()
        bench.fleet._live = lambda: {**shown, "spec": {**shown["spec"], "replicas": 0}}  # it lags
        wrote = len(cluster.made("patch deployments"))
        for _ in range(5):
            await bench.fleet.scale(1)
            await settled_shortly()
        # The first look at the number that lags writes once at most; the others wait.
        assert len(cluster.made("patch deployments")) - wrote <= 1
        monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)
        await bench.fleet.scale(1)
        await cluster.until(lambda: len(cluster.made("patch deployments")) > wrote + 1)


async def settled_shortly() -> None:
    await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("call", "status", "message", "reason"),
    [
        (
            "create deployments",
            403,
            'deployments.apps "x" is forbidden: exceeded quota: small, requested: count/deployments.apps=1, '
            "used: count/deployments.apps=0, limited: count/deployments.apps=0",
            "QuotaExceeded",
        ),
        (
            "create deployments",
            403,
            'deployments.apps "x" is forbidden: unable to create new content in namespace default because it is being '
            "terminated",
            "NamespaceTerminating",
        ),
        ("create deployments", 403, "you must not", "PodsRefused"),
        ("patch secrets", 422, "Secret is invalid: metadata.name", "InvalidSpec"),
        ("patch configmaps", 500, "etcd is away", "PodsRefused"),
    ],
)
async def test_a_refusal_has_its_reason_and_goes_when_its_cause_goes(
    cluster: Cluster, call: str, status: int, message: str, reason: str
) -> None:
    refused = cluster.fail(call, status, message)
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await bench.told(reason)
        assert await bench.fleet.failure()
        cluster.mend(refused)
        await cluster.until(lambda: bench.replicas == 1)
        await bench.told(None)


async def test_a_server_that_is_away_is_told_and_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(cluster) as bench:
        host = bench.api.client.configuration.host
        bench.api.client.configuration.host = "http://127.0.0.1:1"
        await bench.fleet.scale(1)  # returns at once, whatever the server does
        await bench.told("WaitingForStore")
        bench.api.client.configuration.host = host
        await cluster.until(lambda: bench.replicas == 1)
        await bench.told(None)


async def test_what_nobody_foresaw_is_told_and_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(cluster) as bench:
        with monkeypatch.context() as broken:
            broken.setattr(module, "at_creation", lambda deployment: deployment["no such field"])
            await bench.fleet.scale(1)
            await bench.told("WorkersFailing")
        await cluster.until(lambda: bench.replicas == 1)
        await bench.told(None)
        assert [kind for kind, _, _ in bench.log.lines].count("exception") >= 1


async def test_why_pods_do_not_run_is_told_until_they_do(cluster: Cluster) -> None:
    kubelet = Kubelet(cluster)
    kubelet.ready = False
    try:
        async with running(cluster) as bench:
            await bench.fleet.scale(1)
            pod = (await cluster.until(lambda: cluster.all("pods")))[0]
            name = pod["metadata"]["name"]
            unschedulable = {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
            }
            cluster.set_status("pods", name, {"phase": "Pending", "conditions": [unschedulable]})
            await bench.told("Unschedulable")
            kubelet.ready = True
            cluster.set_status("deployments", NAME, {"readyReplicas": 1})
            await bench.told(None)
    finally:
        await kubelet.close()


async def test_pods_that_were_just_asked_for_are_not_looked_into(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 60.0)
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        await settled()
    assert cluster.made("list pods") == []


async def test_somebody_outside_owns_the_number_within_its_bounds(cluster: Cluster) -> None:
    async with running(cluster, workers={"scaling": "External", "maxReplicas": 3}) as bench:
        bench.fleet.follow(2)
        await settled()
        assert bench.replicas is None, "there is nothing to do yet"
        assert (bench.fleet.wants(0), bench.fleet.wants(1)) == (0, 2)
        await bench.fleet.scale(2)
        await cluster.until(lambda: bench.replicas == 2)
        bench.fleet.follow(50)
        assert bench.fleet.wants(1) == 3
        await settled()
        assert bench.replicas == 2, "the engine has found no room for more yet"
        await bench.fleet.scale(3)
        await cluster.until(lambda: bench.replicas == 3)
        bench.fleet.follow(0)
        await cluster.until(lambda: bench.replicas == 0)
        bench.fleet.follow(None)
        assert bench.fleet.wants(1) == 1
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        bench.fleet.follow(2)
        await bench.fleet.scale(0)
        await cluster.until(lambda: bench.replicas == 0)


async def test_it_is_waited_until_a_number_is_reached_or_not_any_more(cluster: Cluster) -> None:
    async with running(cluster) as bench:
        await bench.fleet.scale(1)
        await cluster.until(lambda: bench.replicas == 1)
        refused = cluster.fail("patch deployments", 500, "not now")
        await bench.fleet.scale(0)
        stop = asyncio.Event()
        waiting = asyncio.create_task(bench.fleet.settled(stop))
        await settled()
        assert not waiting.done()
        cluster.mend(refused)
        await asyncio.wait_for(waiting, 60)
        assert bench.replicas == 0
        await bench.fleet.settled(stop)
