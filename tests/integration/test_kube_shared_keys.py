"""Dedupe over namespaces, by permission: from `kubectl apply` to one call at the endpoint, on real stores."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rowmill.outcome import State
from rowmill_operator.kube import naming
from rowmill_operator.kube.shared_keys import SharedKeys
from tests.support.endpoint import Behaviour, Endpoint, Plan
from tests.support.kube_cluster import Object, condition
from tests.support.kube_lab import KubeLab, batch_job, hurry, kube_lab, parsed

PERMITTED = SharedKeys.parse(json.dumps([{"group": "orders", "namespaces": ["shop", "billing"]}]), where="test")


def order(url: str, name: str, namespace: str, **spec: Any) -> Object:
    """A job that shares its keys with the installation."""
    http = {"url": url, "method": "POST", "body": {"row": "{{ row.id }}"}}
    return batch_job(
        name,
        namespace=namespace,
        mode="Run",
        executor={"http": http},
        key=["id"],
        dedupe={"scope": "Installation", "group": "orders"},
        **{"timeoutSeconds": 300, "source": {"rows": [{"id": "A17"}]}, "workers": {"maxReplicas": 1}, **spec},
    )


async def until_told(lab: KubeLab, body: Object, reason: str) -> Object:
    """Wait until this is the job's reason; the job."""
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    await lab.cluster.until(
        lambda: condition(lab.cluster.get("batchjobs", name, namespace), "Ready").get("reason") == reason
    )
    found = lab.cluster.get("batchjobs", name, namespace)
    assert found is not None
    return found


async def test_permitted_namespaces_make_one_call_of_a_key_and_others_none_at_all(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo", latency=0.2))) as endpoint,
        kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab,
        lab.operator(shared_keys=PERMITTED),
    ):
        jobs = [order(endpoint.url, f"order-{n}", ("shop", "billing")[n % 2]) for n in range(10)]
        stranger = order(endpoint.url, "order-0", "intern")
        for body in (*jobs[:5], stranger, *jobs[5:]):
            lab.cluster.put("batchjobs", body)
        for body in jobs:
            await until_told(lab, body, "Completed")
        await lab.cluster.until(lambda: not lab.cluster.all("pods"))
        refused = await until_told(lab, stranger, "DedupeNotPermitted")
        assert endpoint.stats()["calls"] == 1
        ends = [end for body in jobs for end in await lab.lab.outcomes(parsed(body))]
        assert Counter(end.state for end in ends) == {State.SUCCEEDED: 1, State.DEDUPLICATED: 9}
        assert len({end.result for end in ends}) == 1
        winner = next(n for n, end in enumerate(ends) if end.state is State.SUCCEEDED)
        told = {end.duplicate_of for end in ends if end.state is State.DEDUPLICATED}
        assert told == {f"{jobs[winner]['metadata']['namespace']}/order-{winner}/1#1"}

        assert refused["status"]["phase"] == "Invalid"
        assert condition(refused, "Stalled")["status"] == "True"
        assert (
            "the namespace intern may not share the keys of the group orders" in condition(refused, "Ready")["message"]
        )
        assert await lab.ledger.find_run(lab.lab.identity(parsed(stranger))) is None
        assert not [one for one in lab.cluster.all("deployments") if one["metadata"]["namespace"] == "intern"]
        assert "finalizers" not in refused["metadata"], "nothing holds up its deletion"


async def test_a_permission_that_is_taken_away_stops_the_run_and_given_again_it_goes_on(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    held = {str(n): [Behaviour("echo", held=True)] for n in range(5, 21)}
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo"), rows=held)) as endpoint,
        kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab,
    ):
        rows = [{"id": str(n)} for n in range(1, 21)]
        body = order(endpoint.url, "job", "shop", source={"rows": rows}, concurrency={"perWorker": 1}, shards=1)
        async with lab.operator(shared_keys=PERMITTED):
            lab.cluster.put("batchjobs", body)
            await endpoint.wait(calls=5)
        before = await lab.lab.record(parsed(body))
        async with lab.operator():
            job = await until_told(lab, body, "DedupeNotPermitted")
            await lab.cluster.until(lambda: lab.cluster.get("deployments", naming.workers_name("job"), "shop") is None)
            async with asyncio.timeout(90):
                while lab.cluster.all("pods"):
                    endpoint.release()  # what is in flight ends before its worker does
                    await asyncio.sleep(0.01)
            called = endpoint.stats()["calls"]
            assert 5 <= called < 20
            assert {end.seq for end in await lab.lab.outcomes(parsed(body))} == set(range(1, called + 1)), "all is kept"
            assert job["status"]["rows"]["total"] == 20, "what the run has done is still told"
        endpoint.play(Plan(default=Behaviour("echo")))
        async with lab.operator(shared_keys=PERMITTED):
            await until_told(lab, body, "Completed")
            await lab.cluster.until(lambda: not lab.cluster.all("pods"))
        assert endpoint.stats()["calls"] == 20, "nothing that had finished was called again"
        after = await lab.lab.record(parsed(body))
        assert (after.id, after.generation) == (before.id, before.generation)
