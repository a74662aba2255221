"""One operator leads at a time, and gives the lead back: on an API server in memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from kubernetes.aio.leaderelection import leaderelection

from rowmill.errors import RowmillError
from rowmill.tasks import end_tasks
from rowmill_operator.kube import leader
from rowmill_operator.kube.api import KubeApi
from rowmill_operator.kube.leader import LeaseLost, lead
from tests.support.kube_cluster import Cluster
from tests.support.kube_lab import Noted, api_of

pytestmark = pytest.mark.usefixtures("_short")

FASTER = 15


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shortest times that the client takes, and its clock made faster."""
    monkeypatch.setattr(leader, "LEASE_SECONDS", 5)
    monkeypatch.setattr(leader, "RENEW_SECONDS", 4)
    monkeypatch.setattr(leader, "RETRY_SECONDS", 1)
    sleep = lambda seconds: asyncio.sleep(seconds / FASTER)  # noqa: E731
    clock = SimpleNamespace(sleep=sleep, create_task=asyncio.create_task)
    monkeypatch.setattr(leaderelection, "asyncio", clock)
    monkeypatch.setattr(leaderelection, "time", SimpleNamespace(time=lambda: time.time() * FASTER))


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


@pytest.fixture
async def api(cluster: Cluster) -> AsyncIterator[KubeApi]:
    api = api_of(cluster)
    yield api
    await api.close()


class Candidate:
    """An operator that wants to lead; `leads` is set while it does."""

    def __init__(self, api: KubeApi, name: str) -> None:
        self.leads, self.stop = asyncio.Event(), asyncio.Event()
        self.ended_work = False
        self.log = Noted()
        leading = lead(self._work, api=api, name="it", namespace="system", identity=name, stop=self.stop, log=self.log)
        self.task = asyncio.create_task(leading)

    async def _work(self) -> None:
        self.leads.set()
        try:
            await self.stop.wait()
            self.ended_work = True
        finally:
            self.leads.clear()


def holder(cluster: Cluster) -> str | None:
    lease = cluster.get("leases", "it", "system")
    return None if lease is None else lease["spec"].get("holderIdentity")


async def test_the_second_takes_over_at_once_when_the_first_gives_back(cluster: Cluster, api: KubeApi) -> None:
    first = Candidate(api, "first")
    await asyncio.wait_for(first.leads.wait(), 60)
    second = Candidate(api, "second")
    await cluster.until(lambda: second.log.said("waiting for the lease"))
    looked = len(cluster.made("get leases"))
    await cluster.until(lambda: len(cluster.made("get leases")) > looked + 6)
    assert not second.leads.is_set()
    first.stop.set()
    await asyncio.wait_for(first.task, 60)
    assert first.ended_work
    # Sooner than the Lease would have run out.
    await asyncio.wait_for(second.leads.wait(), 0.9 * 5 / FASTER)
    assert holder(cluster) == "second"
    second.stop.set()
    await second.task
    assert holder(cluster) is None


async def test_the_second_takes_over_when_the_first_is_dead(cluster: Cluster, api: KubeApi) -> None:
    cluster.put("leases", {"metadata": {"name": "it"}, "spec": _held_by("dead")}, namespace="system")
    second = Candidate(api, "second")
    await asyncio.wait_for(second.leads.wait(), 60)
    assert holder(cluster) == "second"
    second.stop.set()
    await second.task


async def test_a_lease_that_cannot_be_renewed_ends_the_work(cluster: Cluster, api: KubeApi) -> None:
    first = Candidate(api, "first")
    await asyncio.wait_for(first.leads.wait(), 60)
    cluster.fail(lambda call: call.resource == "leases" and call.verb == "put", 500, "no")
    with pytest.raises(LeaseLost, match="begins anew as a follower"):
        await asyncio.wait_for(first.task, 60)
    assert not first.leads.is_set()
    assert not first.ended_work


async def test_a_server_that_is_away_for_a_moment_costs_no_lead(
    cluster: Cluster, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An API server that is restarted does not end every operator."""
    first = Candidate(api, "first")
    await asyncio.wait_for(first.leads.wait(), 60)
    monkeypatch.setattr(api.client.configuration, "host", "http://127.0.0.1:1")
    await asyncio.wait({first.task}, timeout=0.15)
    monkeypatch.setattr(api.client.configuration, "host", cluster.url)
    renewed = len(cluster.made("put leases"))
    await cluster.until(lambda: len(cluster.made("put leases")) > renewed + 2)
    assert first.leads.is_set()
    first.stop.set()
    await first.task


async def test_a_server_that_says_nothing_costs_the_lead_in_time(
    cluster: Cluster, api: KubeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leader, "CALL_SECONDS", 0.2)
    first = Candidate(api, "first")
    await asyncio.wait_for(first.leads.wait(), 60)
    cluster.held = asyncio.Event()
    # Giving back is not answered either; it has a bound of its own.
    monkeypatch.setattr("rowmill_operator.kube.api.TIMEOUT_SECONDS", 0.2)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(first.task, 60)


async def test_one_that_waits_can_be_told_to_stop(cluster: Cluster, api: KubeApi) -> None:
    cluster.put("leases", {"metadata": {"name": "it"}, "spec": _held_by("another")}, namespace="system")
    second = Candidate(api, "second")
    await cluster.until(lambda: len(cluster.made("get leases")) > 2)
    second.stop.set()
    await asyncio.wait_for(second.task, 60)
    assert holder(cluster) == "another"


async def test_what_the_work_raises_is_raised_and_the_lease_given_back(cluster: Cluster, api: KubeApi) -> None:
    async def work() -> None:
        raise RowmillError("a part of ours failed")

    stop = asyncio.Event()
    with pytest.raises(RowmillError, match="a part of ours failed"):
        await lead(work, api=api, name="it", namespace="system", identity="me", stop=stop, log=Noted())
    assert holder(cluster) is None


async def test_a_lease_that_another_took_is_not_given_back(cluster: Cluster, api: KubeApi) -> None:
    first = Candidate(api, "first")
    await asyncio.wait_for(first.leads.wait(), 60)
    cluster.fail(lambda call: call.resource == "leases" and call.verb == "put", 409, "no")
    cluster.edit("leases", "it", {"spec": {"holderIdentity": "another"}}, namespace="system")
    first.stop.set()
    await asyncio.wait({first.task}, timeout=60)
    await end_tasks([first.task])
    assert holder(cluster) == "another"


def _held_by(name: str) -> dict[str, object]:
    return {
        "holderIdentity": name,
        "leaseDurationSeconds": 2,
        "acquireTime": "2027-01-15T08:00:00.000000Z",
        "renewTime": "2027-01-15T08:00:00.000000Z",
    }
