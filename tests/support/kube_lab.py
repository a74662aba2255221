"""The operator's parts in the test's own loop, on the API server of `kube_cluster` and on real stores.

Wired as the operator's process wires them, but for kopf: what it hands over, `KubeLab` hands over, listed at the start
and then event by event. `Kubelet` does for Deployments what Kubernetes does: pods, which are workers in this loop where
a test wants rows to flow.
"""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from kubernetes.aio import client
from prometheus_client import CollectorRegistry

from rowmill.ledger import Ledger
from rowmill.spec import BatchJob, load_manifest
from rowmill.storage import AddressPolicy
from rowmill.tasks import end_tasks
from rowmill.telemetry.metrics import EngineMetrics
from rowmill.window import Window
from rowmill_operator.kube import controller, deletion, execution, fleet, hub, remains, stores, sweep, writer
from rowmill_operator.kube.api import KubeApi, path_of
from rowmill_operator.kube.controller import JobController
from rowmill_operator.kube.events import EventRecorder
from rowmill_operator.kube.hub import Deployments, Hub
from rowmill_operator.kube.metrics import JobsCollector, OperatorMetrics
from rowmill_operator.kube.notices import NotifyTools
from rowmill_operator.kube.pod_template import JOB_KEY, SECRETS_DIR, WorkloadSettings
from rowmill_operator.kube.runner import RunTools
from rowmill_operator.kube.shared_keys import SharedKeys
from rowmill_operator.kube.stores import Stores
from rowmill_operator.kube.tools import Tools
from rowmill_operator.notify import Poster
from tests.support.inprocess import INSTALLATION, Lab
from tests.support.kube_cluster import Cluster, Object, condition

IMAGE = "example.org/rowmill-worker:1"
NOBODY = SharedKeys()
"""Nobody may share dedupe keys over namespaces: the chart's default."""


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every pause of the operator's be short: what is tested waits for events, and so need nobody wait."""
    for module in (controller, deletion, execution):
        monkeypatch.setattr(module, "RETRY_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(remains, "PODS_GONE_SECONDS", 0.05)
    monkeypatch.setattr(fleet, "RETRY_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(fleet, "SETTLE_SECONDS", 0.3)
    monkeypatch.setattr(fleet, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(fleet, "SETTLED_POLL_SECONDS", 0.05)
    monkeypatch.setattr(hub, "RESTART_SECONDS", (0.05, 0.2))
    monkeypatch.setattr(stores, "AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(sweep, "SWEEP_SECONDS", 0.1)
    for pause in ("BETWEEN_SECONDS", "COUNTS_SECONDS", "WORDING_SECONDS"):
        monkeypatch.setattr(writer, pause, 0.05)
    monkeypatch.setattr(writer, "BACKOFF_SECONDS", (0.05, 0.2))


class Noted:
    """A log that is kept, bound fields and all."""

    def __init__(self, lines: list[tuple[str, str, dict[str, Any]]] | None = None, **bound: Any) -> None:
        self.lines = lines if lines is not None else []
        self._bound = bound

    def bind(self, **fields: Any) -> Noted:
        return Noted(self.lines, **{**self._bound, **fields})

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append(("debug", event, {**self._bound, **fields}))

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append(("info", event, {**self._bound, **fields}))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, {**self._bound, **fields}))

    def error(self, event: str, **fields: Any) -> None:
        self.lines.append(("error", event, {**self._bound, **fields}))

    def exception(self, event: str, **fields: Any) -> None:
        self.lines.append(("exception", event, {**self._bound, **fields}))

    def said(self, event: str) -> list[dict[str, Any]]:
        return [fields for _, said, fields in self.lines if said == event]


def api_of(cluster: Cluster, *, called: Callable[[str, str, int], None] = lambda *_: None) -> KubeApi:
    return KubeApi(client.ApiClient(configuration=client.Configuration(host=cluster.url)), called=called)


def batch_job(name: str = "job", *, rows: int = 4, namespace: str = "default", **spec: Any) -> Object:
    """A manifest of inline rows that no server has to execute."""
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "mode": "Simulate",
            "source": {"rows": [{"id": str(n)} for n in range(1, rows + 1)]},
            "executor": {"http": {"url": "http://nowhere.example/", "method": "POST"}},
            "timeoutSeconds": 5,
            **spec,
        },
    }


def parsed(body: Mapping[str, Any]) -> BatchJob:
    return load_manifest(json.dumps({k: v for k, v in body.items() if k != "status"}), where="test")


class Kubelet:
    """Brings pods to what Deployments ask for. `lab`: they are workers; without one they are only there.

    `ready` False: pods never become so (they wait). `linger`: pods of a Deployment that is gone stay until it is set.
    """

    def __init__(self, cluster: Cluster, *, lab: Lab | None = None) -> None:
        self._cluster = cluster
        self._lab = lab
        self.ready = True
        self.linger: asyncio.Event | None = None
        self.most: dict[str, int] = {}
        """The greatest number of pods that each Deployment has had."""
        self.made: dict[str, int] = {}
        """How many pods were ever started, by Deployment."""
        self._woken: dict[tuple[str, str], asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        cluster.seen.append(self._saw)

    def _saw(self, resource: str, kind: str, body: Object) -> None:
        if resource != "deployments":
            return
        key = (body["metadata"]["namespace"], body["metadata"]["name"])
        if key not in self._woken:
            self._woken[key] = asyncio.Event()
            self._tasks.append(asyncio.create_task(self._keep(*key), name=f"kubelet {key}"))
        self._woken[key].set()

    async def close(self) -> None:
        await end_tasks(self._tasks)

    async def _keep(self, namespace: str, name: str) -> None:
        pods: list[tuple[str, AsyncExitStack]] = []
        try:
            while True:
                self._woken[namespace, name].clear()
                live = self._cluster.get("deployments", name, namespace)
                wanted = live["spec"].get("replicas", 1) if live else 0
                if live is None and self.linger is not None:
                    await self.linger.wait()
                while len(pods) > wanted:
                    pod, stack = pods.pop()
                    await stack.aclose()
                    self._cluster.vanish("pods", pod, namespace=namespace)
                while len(pods) < wanted and live is not None:
                    pods.append(await self._start(live))
                self.most[name] = max(self.most.get(name, 0), len(pods))
                ready = len(pods) if self.ready else 0
                live = self._cluster.get("deployments", name, namespace)
                if live is not None and (live.get("status") or {}).get("readyReplicas", 0) != ready:
                    self._cluster.set_status("deployments", name, {"readyReplicas": ready}, namespace=namespace)
                await self._woken[namespace, name].wait()
        finally:
            for _, stack in pods:
                await stack.aclose()

    async def _start(self, deployment: Object) -> tuple[str, AsyncExitStack]:
        metadata, template = deployment["metadata"], deployment["spec"]["template"]
        pod = f"{metadata['name']}-{secrets.token_hex(4)}"
        phase = "Running" if self.ready else "Pending"
        body = {"metadata": {"name": pod, "labels": template["metadata"]["labels"]}, "spec": template["spec"]}
        self._cluster.put("pods", {**body, "status": {"phase": phase}}, namespace=metadata["namespace"])
        self.made[metadata["name"]] = self.made.get(metadata["name"], 0) + 1
        stack = AsyncExitStack()
        if self._lab is not None and self.ready:
            mounted = next(v["configMap"]["name"] for v in template["spec"]["volumes"] if "configMap" in v)
            config_map = self._cluster.get("configmaps", mounted, metadata["namespace"])
            assert config_map is not None, f"the pod mounts the ConfigMap {mounted}, which is not there"
            job = load_manifest(config_map["data"][JOB_KEY], where=mounted)
            mounts = self._secrets(self._lab.folder / "pods" / pod, metadata["namespace"], template)
            await stack.enter_async_context(self._lab.worker(job, environ={SECRETS_DIR: str(mounts)}))
        return pod, stack

    def _secrets(self, folder: Path, namespace: str, template: Object) -> Path:
        """The folder where a pod has the keys of Secrets that its volumes name."""
        for volume in template["spec"]["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                secret = source["secret"]
                data = (self._cluster.get("secrets", secret["name"], namespace) or {}).get("data", {})
                for item in secret["items"]:
                    if item["key"] in data:
                        path = folder / item["path"]
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(base64.b64decode(data[item["key"]]))
                    else:
                        assert secret.get("optional"), f"the pod waits for {item['key']} of the Secret {secret['name']}"
        return folder


class Operator:
    """One operator that leads. `close` ends it as SIGTERM does. Webhooks may be at `webhooks` (CIDRs), sources and
    output at `sources`.

    `shared_keys` is the permission to share dedupe keys over namespaces.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        folder: Path,
        redis_url: str,
        postgres_dsn: str,
        worker_image: str,
        webhooks: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        shared_keys: SharedKeys = NOBODY,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.cluster = cluster
        self.log = Noted()
        self.registry = CollectorRegistry()
        self.metrics = OperatorMetrics(self.registry)
        self.api = api_of(cluster, called=self.metrics.called)
        self.stores = Stores(redis_url=redis_url, postgres_dsn=postgres_dsn, now=loop.time)
        self.deployments = Deployments()
        self.pools = [ThreadPoolExecutor(2) for _ in range(3)]
        self.events = EventRecorder(
            send=lambda namespace, body: self.api.create(path_of("events", namespace), body),
            instance="operator-0",
            log=self.log,
            now=loop.time,
            wall=time.time,
            token=lambda: secrets.token_hex(8),
            wrote=self.metrics.event_written,
        )
        self.tools = Tools(
            api=self.api,
            stores=self.stores,
            events=self.events,
            installation=INSTALLATION,
            workload=WorkloadSettings(
                image=worker_image, installation=INSTALLATION, redis_url=redis_url, postgres_dsn=postgres_dsn
            ),
            live=self.deployments.get,
            run=RunTools(
                api=self.api,
                threads=self.pools[0],
                fetchers=self.pools[1],
                uploaders=self.pools[2],
                uploads=asyncio.Semaphore(2),
                cache=folder,
                cache_bytes=2**20,
                policy=AddressPolicy.tenants(sources),
                ambient=False,
                metrics=EngineMetrics(self.registry),
                log=self.log,
            ),
            notify=NotifyTools(
                Poster(
                    policy=AddressPolicy.tenants(webhooks),
                    threads=self.pools[1],
                    slots=asyncio.Semaphore(2),
                    wall=time.time,
                ),
                self.metrics.notified,
            ),
            now=loop.time,
            wall=time.time,
            log=self.log,
            wrote=self.metrics.status_written,
            reconciled=self.metrics.reconciled,
            shared_keys=shared_keys,
        )
        self.make: Callable[[Mapping[str, Any]], JobController] = lambda body: JobController(body, tools=self.tools)
        self.hub = Hub(make=lambda body: self.make(body), log=self.log)
        self.registry.register(JobsCollector(lambda: [one.numbers for one in self.hub.controllers]))
        self._helpers: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._helpers = [asyncio.create_task(self.events.run(), name="events")]
        for body in self.cluster.all("deployments"):
            self.deployments.saw(None, body)
        self.cluster.seen.append(self._saw)
        for body in self.cluster.all("batchjobs"):
            self.hub.saw(None, body)

    def _saw(self, resource: str, kind: str, body: Object) -> None:
        if resource == "deployments":
            self.deployments.saw(kind, body)
        elif resource == "batchjobs":
            self.hub.saw(kind, body)

    def controller(self, name: str = "job") -> JobController:
        return next(one for one in self.hub.controllers if one.name == name)

    async def until(self, reached: Callable[[], Any], *, within: float = 90.0) -> Any:
        """Wait for what is no change of the cluster's; what `reached` returned."""
        async with asyncio.timeout(within):
            while not (found := reached()):
                await asyncio.sleep(0.01)
        return found

    def sample(self, metric: str, /, **labels: str) -> float | None:
        return self.registry.get_sample_value(metric, labels)

    async def close(self) -> None:
        if self._saw in self.cluster.seen:
            self.cluster.seen.remove(self._saw)
        await self.hub.close()
        await end_tasks(self._helpers)
        await self.stores.close()
        await self.api.close()
        for pool in self.pools:
            pool.shutdown(wait=False, cancel_futures=True)


class KubeLab:
    """A cluster, its stores, and operators on it."""

    def __init__(self, cluster: Cluster, *, lab: Lab, kubelet: Kubelet, redis_url: str, postgres_dsn: str) -> None:
        self.cluster = cluster
        self.lab = lab
        self.kubelet = kubelet
        self.redis_url = redis_url
        self.postgres_dsn = postgres_dsn

    @property
    def ledger(self) -> Ledger:
        return self.lab.ledger

    @property
    def window(self) -> Window:
        return self.lab.window

    @asynccontextmanager
    async def operator(
        self,
        *,
        worker_image: str = IMAGE,
        redis_url: str | None = None,
        postgres_dsn: str | None = None,
        webhooks: tuple[str, ...] = (),
        sources: tuple[str, ...] = (),
        shared_keys: SharedKeys = NOBODY,
    ) -> AsyncIterator[Operator]:
        operator = Operator(
            self.cluster,
            folder=self.lab.folder,
            redis_url=redis_url or self.redis_url,
            postgres_dsn=postgres_dsn or self.postgres_dsn,
            worker_image=worker_image,
            webhooks=webhooks,
            sources=sources,
            shared_keys=shared_keys,
        )
        operator.start()
        try:
            yield operator
        finally:
            await operator.close()

    def job(self, name: str = "job") -> Object:
        found = self.cluster.get("batchjobs", name)
        assert found is not None, f"there is no BatchJob {name} any more"
        return found

    async def until_reason(self, reason: str, name: str = "job", *, within: float = 90.0) -> Object:
        """Wait until the job's Ready condition has this reason; the job."""
        await self.cluster.until(
            lambda: condition(self.cluster.get("batchjobs", name), "Ready").get("reason") == reason, within=within
        )
        return self.job(name)

    async def until_phase(self, phase: str, name: str = "job", *, within: float = 90.0) -> Object:
        """Wait until the status of the present generation tells this phase; the job."""

        def reached() -> bool:
            job = self.cluster.get("batchjobs", name) or {}
            status = job.get("status") or {}
            seen = status.get("observedGeneration") == (job.get("metadata") or {}).get("generation")
            return bool(seen and status.get("phase") == phase)

        await self.cluster.until(reached, within=within)
        return self.job(name)

    async def keys(self) -> list[str]:
        """What Redis holds."""
        import redis.asyncio as redis

        async with redis.Redis.from_url(self.redis_url, decode_responses=True) as connection:
            return sorted(await connection.keys("*"))


@asynccontextmanager
async def kube_lab(folder: Path, *, redis_url: str, postgres_dsn: str, workers: bool = True) -> AsyncIterator[KubeLab]:
    """A cluster for the length of the block. `workers`: its pods execute rows."""
    async with AsyncExitStack() as ends:
        cluster = await ends.enter_async_context(Cluster())
        ledger = await Ledger.connect(postgres_dsn, application_name="rowmill kube lab", connections=6)
        ends.push_async_callback(ledger.close)
        await ledger.migrate()
        window = await Window.connect(redis_url, connections=50)
        ends.push_async_callback(window.close)
        lab = Lab(ledger, window, folder)
        kubelet = Kubelet(cluster, lab=lab if workers else None)
        ends.push_async_callback(kubelet.close)
        yield KubeLab(cluster, lab=lab, kubelet=kubelet, redis_url=redis_url, postgres_dsn=postgres_dsn)
