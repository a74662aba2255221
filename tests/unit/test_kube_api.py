"""The few calls to the Kubernetes API, on an API server in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from rowmill.errors import RowmillError
from rowmill_operator.kube import api as module
from rowmill_operator.kube.api import GROUPS, ApiAway, ApiError, KubeApi, path_of, resource_of
from tests.support.kube_cluster import Cluster
from tests.support.kube_lab import api_of

JOB = path_of("batchjobs", "default", "job")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with Cluster() as cluster:
        yield cluster


@pytest.fixture
def counted() -> list[tuple[str, str, int]]:
    return []


@pytest.fixture
async def api(cluster: Cluster, counted: list[tuple[str, str, int]]) -> AsyncIterator[KubeApi]:
    api = api_of(cluster, called=lambda *call: counted.append(call))
    yield api
    await api.close()


async def test_every_verb(cluster: Cluster, api: KubeApi, counted: list[tuple[str, str, int]]) -> None:
    made = await api.create(path_of("batchjobs", "default"), {"metadata": {"name": "job"}, "spec": {"a": 1, "b": 2}})
    assert (await api.get(JOB))["metadata"]["uid"] == made["metadata"]["uid"]
    assert (await api.merge(JOB, {"spec": {"a": None, "c": [1]}}))["spec"] == {"b": 2, "c": [1]}
    changed = await api.change(JOB, [{"op": "add", "path": "/spec/b", "value": 3}])
    assert changed["spec"]["b"] == 3
    await api.merge(f"{JOB}/status", {"status": {"phase": "Running"}})
    applied = await api.apply(path_of("secrets", "default", "s"), {"metadata": {"name": "s"}}, manager="rowmill")
    assert applied["metadata"]["name"] == "s"
    listed = await api.get(path_of("batchjobs", "default"), limit="5", labelSelector="")
    assert [one["spec"] for one in listed["items"]] == [{"b": 3, "c": [1]}]
    bare = await api.get_metadata(path_of("batchjobs", "default"))
    assert [list(one) for one in bare["items"]] == [["metadata"]]
    await api.delete(JOB)
    assert cluster.get("batchjobs", "job") is None
    assert counted == [
        ("POST", "batchjobs", 200),
        ("GET", "batchjobs", 200),
        ("PATCH", "batchjobs", 200),
        ("PATCH", "batchjobs", 200),
        ("PATCH", "batchjobs/status", 200),
        ("PATCH", "secrets", 200),
        ("GET", "batchjobs", 200),
        ("GET", "batchjobs", 200),
        ("DELETE", "batchjobs", 200),
    ]
    [apply] = [call for call in cluster.calls if call.resource == "secrets"]
    assert apply.params == {"fieldManager": "rowmill", "force": "true"}
    assert apply.content_type == "application/apply-patch+yaml"


async def test_what_is_deleted_is_deleted_once_and_only_that(cluster: Cluster, api: KubeApi) -> None:
    await api.delete(JOB)
    cluster.put("batchjobs", {"metadata": {"name": "job"}})
    await api.delete(JOB, uid="another")
    assert cluster.get("batchjobs", "job") is not None
    cluster.fail("delete batchjobs", 403, "you must not")
    with pytest.raises(ApiError, match="you must not") as refused:
        await api.delete(JOB)
    assert refused.value.status == 403


async def test_a_refusal_says_what_was_asked_and_why(
    cluster: Cluster, api: KubeApi, counted: list[tuple[str, str, int]]
) -> None:
    cluster.fail("get batchjobs", 403, "exceeded quota: small")
    with pytest.raises(ApiError) as refused:
        await api.get(JOB)
    assert refused.value.status == 403
    assert str(refused.value) == f"GET {JOB}: exceeded quota: small"
    assert counted == [("GET", "batchjobs", 403)]


async def test_a_refusal_that_is_no_json_is_told_as_it_is(cluster: Cluster, api: KubeApi) -> None:
    cluster.server["get", JOB] << 502 << b"<html>bad gateway</html>" << {"Retry-After": "7"}
    with pytest.raises(ApiError, match="<html>bad gateway") as refused:
        await api.get(JOB)
    assert refused.value.status == 502
    assert refused.value.headers["Retry-After"] == "7"


async def test_an_answer_that_is_no_object_is_an_empty_one(cluster: Cluster, api: KubeApi) -> None:
    cluster.server["get", JOB] << b"[1]"
    assert await api.get(JOB) == {}


async def test_a_server_that_says_nothing_is_away(
    cluster: Cluster, api: KubeApi, counted: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.1)
    cluster.held = asyncio.Event()
    with pytest.raises(ApiAway, match="does not answer GET /apis/rowmill"):
        await api.get(JOB)
    assert counted == [("GET", "batchjobs", 0)]


async def test_a_server_that_is_not_there_is_away(
    api: KubeApi, counted: list[tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api.client.configuration, "host", "http://127.0.0.1:1")
    for call in (api.get(JOB), api.create(JOB, {}), api.merge(JOB, {}), api.delete(JOB)):
        with pytest.raises(ApiAway):
            await call
    assert {status for _, _, status in counted} == {0}


async def test_a_kubeconfig_leads_in(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(cluster.kubeconfig())
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    api = await KubeApi.connect()
    try:
        cluster.put("batchjobs", {"metadata": {"name": "job"}})
        assert (await api.get(JOB))["kind"] == "BatchJob"
    finally:
        await api.close()


async def test_without_a_way_in_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubernetes.aio.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "nothing"))
    with pytest.raises(RowmillError, match="Set KUBECONFIG"):
        await KubeApi.connect()


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        (path_of("batchjobs", "default", "job"), "batchjobs"),
        (path_of("batchjobs", "default", "job", "status"), "batchjobs/status"),
        (path_of("pods", "default") + "?limit=1", "pods"),
        (path_of("deployments", "namespaces", "scale", "scale"), "deployments/scale"),
        ("/apis/rowmill.dev/v1alpha1/batchjobs", "batchjobs"),
        ("/api/v1/namespaces/default", "namespaces"),
        ("/apis/rowmill.dev/v1alpha1", "other"),
    ],
)
def test_the_resource_that_a_path_names(path: str, resource: str) -> None:
    assert resource_of(path) == resource


def test_paths_are_quoted() -> None:
    assert path_of("secrets", "a/b", "c?d") == "/api/v1/namespaces/a%2Fb/secrets/c%3Fd"
    assert set(GROUPS) == {
        *("batchjobs", "configmaps", "deployments", "events", "leases", "networkpolicies", "pods", "secrets"),
    }
