"""A controller a resource, kept alive; and what the watch no longer shows, swept away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rowmill.tasks import end_tasks
from rowmill_operator.kube import hub as module
from rowmill_operator.kube import sweep
from rowmill_operator.kube.api import ApiError
from rowmill_operator.kube.hub import Deployments, Hub
from rowmill_operator.kube.sweep import listed, sweep_gone
from tests.support.kube_cluster import Cluster
from tests.support.kube_lab import Noted, api_of, hurry


class Double:
    """A controller that says what it is told. It fails `failing` times, and ends when gone or stopped."""

    def __init__(self, body: Any, *, failing: int = 0, stubborn: bool = False) -> None:
        self.uid, self.name = body["metadata"]["uid"], body["metadata"]["name"]
        self.heard: list[str] = []
        self.runs = 0
        self._failing, self._stubborn = failing, stubborn
        self._over = asyncio.Event()
        self.running = asyncio.Event()

    def saw(self, body: Any) -> None:
        self.heard.append(f"saw {body['metadata'].get('generation', 1)}")

    def gone(self) -> None:
        self.heard.append("gone")
        self._over.set()

    def stop(self) -> None:
        self.heard.append("stop")
        if not self._stubborn:
            self._over.set()

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self._failing:
            raise ZeroDivisionError("nobody foresaw it")
        self.running.set()
        await self._over.wait()


class Bench:
    def __init__(self, **given: Any) -> None:
        self.made: list[Double] = []
        self.log = Noted()

        def make(body: Any) -> Any:
            double = Double(body, **given)
            self.made.append(double)
            return double

        self.hub = Hub(make=make, log=self.log)


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)


def body(uid: str = "u", name: str = "job", generation: int = 1) -> dict[str, Any]:
    return {"metadata": {"uid": uid, "name": name, "namespace": "default", "generation": generation}}


async def emptied(hub: Hub) -> None:
    async with asyncio.timeout(60):
        while hub.controllers:
            await asyncio.sleep(0.005)


async def test_one_controller_a_resource_from_the_first_sight_to_the_last() -> None:
    bench = Bench()
    bench.hub.saw(None, body())
    bench.hub.saw("MODIFIED", body(generation=2))
    bench.hub.saw("ADDED", body("v", "other"))
    assert [one.uid for one in bench.made] == ["u", "v"]
    bench.hub.saw("DELETED", body(generation=2))
    assert bench.made[0].heard == ["saw 2", "gone"]
    async with asyncio.timeout(60):
        while len(bench.hub.controllers) == 2:
            await asyncio.sleep(0.005)
    assert bench.hub.controllers == [bench.made[1]]
    bench.hub.saw("DELETED", body("unknown"))
    await bench.hub.close()


async def test_a_resource_made_anew_has_a_controller_of_its_own() -> None:
    bench = Bench()
    bench.hub.saw(None, body("old"))
    bench.hub.saw("DELETED", body("old"))
    bench.hub.saw("ADDED", body("new"))
    assert [one.uid for one in bench.made] == ["old", "new"]
    assert bench.made[1].heard == []
    await bench.hub.close()


async def test_a_controller_that_fails_is_begun_again_and_no_other_notices() -> None:
    bench = Bench(failing=2)
    bench.hub.saw(None, body())
    double = bench.made[0]
    await asyncio.wait_for(double.running.wait(), 60)
    assert double.runs == 3
    assert [one["job"] for one in bench.log.said("a job's controller failed; it is started again")] == ["job", "job"]
    assert bench.hub.controllers == [double], "it is the same one, and knows what it knew"
    await bench.hub.close()


async def test_closing_stops_everybody_and_lets_nobody_in() -> None:
    bench = Bench()
    for uid in "abc":
        bench.hub.saw(None, body(uid))
    await bench.made[2].running.wait()
    await bench.hub.close()
    assert [one.heard for one in bench.made] == [["stop"]] * 3
    assert bench.hub.controllers == []
    bench.hub.saw("ADDED", body("late"))
    assert len(bench.made) == 3


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.05)
    bench = Bench(stubborn=True)
    bench.hub.saw(None, body())
    await bench.made[0].running.wait()
    await asyncio.wait_for(bench.hub.close(), 60)
    assert bench.hub.controllers == []


async def test_closing_does_not_wait_for_a_controller_that_is_to_be_begun_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "RESTART_SECONDS", (600.0, 600.0))
    bench = Bench(failing=9)
    bench.hub.saw(None, body())
    async with asyncio.timeout(60):
        while not bench.log.lines:
            await asyncio.sleep(0.005)
    await asyncio.wait_for(bench.hub.close(), 60)


def test_deployments_are_remembered_as_they_were_seen_last() -> None:
    seen = Deployments()
    seen.saw(None, body("d"))
    assert seen.get("default", "job") == body("d")
    seen.saw("MODIFIED", body("d", generation=2))
    assert (seen.get("default", "job") or {})["metadata"]["generation"] == 2
    seen.saw("DELETED", body("d", generation=2))
    assert seen.get("default", "job") is None
    seen.saw("DELETED", body("d"))


# -- what the watch says nothing of


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


async def test_resources_that_are_gone_unseen_are_found_by_the_list(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "PAGE", "2")
    api = api_of(cluster)
    bench = Bench()
    for n in range(5):
        cluster.put("batchjobs", {"metadata": {"name": f"job-{n}", "uid": f"u{n}"}})
        bench.hub.saw(None, body(f"u{n}"))
    sweeping = asyncio.create_task(sweep_gone(bench.hub, api=api, namespaces=(), log=bench.log))
    try:
        refused = cluster.fail("list batchjobs", 500, "not now")
        await cluster.until(lambda: len(cluster.made("list batchjobs")) > 1)
        assert len(bench.hub.controllers) == 5, "a list that cannot be read says nothing"
        cluster.vanish("batchjobs", "job-3", silent=True)
        cluster.mend(refused)
        async with asyncio.timeout(60):
            while len(bench.hub.controllers) == 5:
                await asyncio.sleep(0.005)
        assert sorted(one.uid for one in bench.hub.controllers) == ["u0", "u1", "u2", "u4"]
        tokens = {call.params.get("continue") for call in cluster.made("list batchjobs")}
        assert {None, "2"} <= tokens, "page by page"
    finally:
        await end_tasks([sweeping])
        await bench.hub.close()
        await api.close()


async def test_a_list_is_of_the_namespaces_that_are_watched(cluster: Cluster) -> None:
    api = api_of(cluster)
    try:
        for namespace in ("a", "b", "c"):
            cluster.put("batchjobs", {"metadata": {"name": "job", "uid": namespace}}, namespace=namespace)
        assert await listed(api, ("a", "c")) == {"a", "c"}
        assert await listed(api, ()) == {"a", "b", "c"}
        failure = cluster.fail("list batchjobs", 403, "you must not")
        with pytest.raises(ApiError):
            await listed(api, ("a",))
        cluster.mend(failure)
        cluster.unserve("batchjobs")
        assert await listed(api, ()) == set(), "the definition is gone, and every resource with it"
    finally:
        await api.close()
