"""What kopf watches on an API server in memory, and the operator's process around it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.tasks import end_tasks
from rowmill_operator.kube import naming
from rowmill_operator.kube import watch as module
from rowmill_operator.kube.watch import Watch, watch_registry
from tests.support.kube_cluster import Cluster
from tests.support.kube_lab import Noted, api_of, batch_job


@pytest.fixture
async def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cluster]:
    monkeypatch.setattr(module, "SERVED_SECONDS", 0.05)
    async with Cluster() as cluster:
        (tmp_path / "config").write_text(cluster.kubeconfig())
        monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
        yield cluster


class Watching:
    """A watch, and what it handed over."""

    def __init__(self, cluster: Cluster, *, namespaces: tuple[str, ...] = ()) -> None:
        self.jobs: asyncio.Queue[tuple[str | None, str]] = asyncio.Queue()
        self.deployments: asyncio.Queue[tuple[str | None, str]] = asyncio.Queue()
        self.unserved, self.signals = asyncio.Event(), 0
        self.log = Noted()
        self.api = api_of(cluster)
        self.watch = Watch(
            api=self.api,
            make_registry=lambda: watch_registry(jobs=self._into(self.jobs), deployments=self._into(self.deployments)),
            namespaces=namespaces,
            unserved=self.unserved.set,
            signals=self._signals,
            log=self.log,
        )
        self.stop = asyncio.Event()
        self.task = asyncio.create_task(self.watch.run(self.stop))

    @staticmethod
    def _into(queue: asyncio.Queue[tuple[str | None, str]]) -> Any:
        return lambda kind, body: queue.put_nowait(
            (kind, f"{body['metadata']['namespace']}/{body['metadata']['name']}")
        )

    def _signals(self) -> None:
        self.signals += 1

    async def next(self, queue: asyncio.Queue[tuple[str | None, str]]) -> tuple[str | None, str]:
        return await asyncio.wait_for(queue.get(), 60)

    async def end(self) -> None:
        self.stop.set()
        try:
            await asyncio.wait_for(asyncio.shield(self.task), 60)
        finally:
            await end_tasks([self.task])
            await self.api.close()


async def test_jobs_and_the_deployments_of_workers_are_handed_over(cluster: Cluster) -> None:
    cluster.put("batchjobs", batch_job("first"))
    cluster.put("deployments", {"metadata": {"name": "somebody-elses"}})
    watching = Watching(cluster)
    try:
        assert await watching.next(watching.jobs) == (None, "default/first")
        await cluster.until(lambda: cluster.watched("batchjobs") and cluster.watched("deployments"))
        cluster.put("batchjobs", batch_job("second"))
        assert await watching.next(watching.jobs) == ("ADDED", "default/second")
        cluster.edit("batchjobs", "second", {"spec": {"suspend": True}})
        assert await watching.next(watching.jobs) == ("MODIFIED", "default/second")
        cluster.delete("batchjobs", "second")
        assert await watching.next(watching.jobs) == ("DELETED", "default/second")
        cluster.put("deployments", {"metadata": {"name": "another"}})
        cluster.put("deployments", {"metadata": {"name": "workers", "labels": naming.labels("first")}})
        assert await watching.next(watching.deployments) == ("ADDED", "default/workers")
        assert watching.deployments.empty()
        assert watching.watch.missing is None
        assert watching.signals, "kopf sets its own handlers of signals"
        # Nothing of kopf's own is left on what is watched.
        metadata = (cluster.get("batchjobs", "first") or {})["metadata"]
        assert not metadata.get("finalizers")
        assert not metadata.get("annotations")
    finally:
        await watching.end()
    assert [str(call) for call in cluster.calls if call.verb in ("patch", "create")] == []


async def test_only_the_namespaces_that_are_named_are_watched(cluster: Cluster) -> None:
    watching = Watching(cluster, namespaces=("mine",))
    try:
        await cluster.until(lambda: cluster.watched("batchjobs"))
        cluster.put("batchjobs", batch_job("theirs"))
        body = batch_job("ours", namespace="mine")
        cluster.put("batchjobs", body)
        assert await watching.next(watching.jobs) == ("ADDED", "mine/ours")
        assert watching.jobs.empty()
    finally:
        await watching.end()


async def test_a_definition_may_come_go_and_come_again(cluster: Cluster) -> None:
    cluster.unserve("batchjobs")
    watching = Watching(cluster)
    try:
        async with asyncio.timeout(60):
            while "not served" not in (watching.watch.missing or ""):
                await asyncio.sleep(0.01)
        assert not watching.unserved.is_set(), "there was nothing to forget"
        cluster.serve("batchjobs")
        cluster.put("batchjobs", batch_job("one"))
        assert (await watching.next(watching.jobs))[1] == "default/one"
        await cluster.until(lambda: cluster.watched("batchjobs"))
        cluster.unserve("batchjobs")
        await asyncio.wait_for(watching.unserved.wait(), 60)
        async with asyncio.timeout(60):
            while "not served" not in (watching.watch.missing or ""):
                await asyncio.sleep(0.01)
        cluster.serve("batchjobs")
        cluster.put("batchjobs", batch_job("two"))
        while (found := await watching.next(watching.jobs))[1] != "default/two":
            assert found[1] == "default/one"
        warned = watching.log.said("the API server serves no BatchJobs: install the CustomResourceDefinition")
        assert len(warned) == 2, "once each time"
    finally:
        await watching.end()


async def test_a_server_that_does_not_answer_says_nothing_of_what_is_served(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching = Watching(cluster)
    try:
        await cluster.until(lambda: cluster.watched("batchjobs"))
        monkeypatch.setattr(watching.api.client.configuration, "host", "http://127.0.0.1:1")
        await asyncio.wait({watching.task}, timeout=0.3)
        assert not watching.unserved.is_set()
        assert not watching.task.done()
    finally:
        await watching.end()


async def test_one_that_waits_for_the_definition_can_be_told_to_stop(cluster: Cluster) -> None:
    cluster.unserve("batchjobs")
    watching = Watching(cluster)
    await watching.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_the_process_ends_by_a_signal_after_kopf_has_started(
    cluster: Cluster, tmp_path: Path, redis_url: str, postgres_dsn: str, number: signal.Signals
) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rowmill_operator.kube.main"),
        env={
            **{name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "PYTHONPATH")},
            "KUBECONFIG": str(tmp_path / "config"),
            "ROWMILL_REDIS_URL": redis_url,
            "ROWMILL_POSTGRES_DSN": postgres_dsn,
            "ROWMILL_WORKER_IMAGE": "example.org/worker:1",
            "ROWMILL_CACHE_DIR": str(tmp_path),
            "ROWMILL_HTTP_PORT": "0",
            "POD_NAME": "operator-0",
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    output = asyncio.create_task(process.stdout.read())
    try:
        await cluster.until(lambda: cluster.watched("batchjobs"), within=90)
        cluster.put("batchjobs", batch_job())
        await cluster.until(lambda: _phase(cluster) == "Running", within=90)
        process.send_signal(number)
        code = await asyncio.wait_for(process.wait(), 60)
        assert code == 0, (await output).decode()
        said = (await output).decode()
        assert "stopped; workers go on" in said
        assert "Traceback" not in said
        lease = cluster.get("leases", "rowmill-operator")
        assert lease is not None
        assert lease["spec"].get("holderIdentity") is None, "the next one need not wait"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await output


def _phase(cluster: Cluster) -> Any:
    return ((cluster.get("batchjobs", "job") or {}).get("status") or {}).get("phase")


def test_settings_that_cannot_be_used_end_the_process_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rowmill_operator.kube.main import main

    monkeypatch.setenv("ROWMILL_THREADS", "many")
    assert main() == 2
    said = capsys.readouterr().err
    assert "ROWMILL_THREADS" in said
    assert "ROWMILL_REDIS_URL" in said
