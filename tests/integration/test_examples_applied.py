"""The manifests of `examples/kubernetes/` as they stand, applied: an API server in memory, real stores, an S3 server.

Nothing of a manifest changes but the hosts that it names. Of its Secrets, whose values are to be replaced, the bucket's
gains the address of the S3 server. Pods are workers in this process, which have their Secrets as pods have them.
"""

from __future__ import annotations

import base64
import inspect
import io
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp.connector
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import trustme
import yaml
from aiohttp import web

from tests.support.examples import EXAMPLES, moved
from tests.support.kube_cluster import condition
from tests.support.kube_lab import KubeLab, hurry, kube_lab
from tests.support.s3 import moto_process, s3_client

HERE = ("127.0.0.0/8",)
FILES = "files.example.com"
Json = dict[str, Any]


class World:
    """What the manifests call: files and webhooks over https, services over http, in the test's own loop."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        self._tls = tls
        self.files: dict[str, bytes] = {}
        self.answers: dict[str, Callable[[Json], Any]] = {}
        """What a service answers to a body, by its path."""
        self.calls: list[tuple[str, str | None, Json]] = []
        """Path, Authorization and body of every call."""

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[tuple[str, str]]:
        """Host and port of the files and webhooks, and those of the services."""
        runner = web.ServerRunner(web.Server(self._handle, access_log=None), shutdown_timeout=0.2)
        await runner.setup()
        try:
            for tls in (self._tls, None):
                await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
            secure, plain = (f"127.0.0.1:{port}" for _, port in runner.addresses)
            yield secure, plain
        finally:
            await runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method != "POST":
            return web.Response(body=self.files[request.path], headers={"ETag": '"1"'})
        body = json.loads(await request.content.read())
        self.calls.append((request.path, request.headers.get("Authorization"), body))
        return web.json_response(self.answers[request.path](body))

    def called(self, path: str) -> list[Json]:
        return [body for called, _, body in self.calls if called == path]


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    # What a process trusts, aiohttp reads once, when it is imported: long ago, in this one.
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", ssl.create_default_context())
    return World(tls)


@pytest.fixture
async def lab(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    hurry(monkeypatch)
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab:
        yield lab


def manifest(name: str, hosts: Mapping[str, str]) -> str:
    """An example that names other hosts, each with its port where it has one."""
    text = (EXAMPLES / "kubernetes" / name).read_text("utf-8")
    for host, other in hosts.items():
        text = moved(text, host, other)
    return text


def apply(lab: KubeLab, text: str, *, bucket: Mapping[str, str] | None = None) -> str:
    """As `kubectl apply` does, with those of its objects that the operator reads; the job's name. `bucket` goes into
    the Secret that has a bucket's keys."""
    name = ""
    for one in yaml.safe_load_all(text):
        if one["kind"] == "BatchJob":
            name = one["metadata"]["name"]
            lab.cluster.put("batchjobs", one)
        elif one["kind"] == "Secret":
            given = one.pop("stringData")
            given |= bucket or {} if "AWS_REGION" in given else {}
            data = {key: base64.b64encode(value.encode()).decode() for key, value in given.items()}
            lab.cluster.put("secrets", {**one, "data": data})
    return name


async def test_a_table_goes_from_https_through_a_service_into_a_bucket(lab: KubeLab, world: World) -> None:
    """csv-to-s3.yaml: a task that was submitted and is done, with its failures told."""
    world.files["/tickets.csv"] = b"ticket_id,subject,body\n" + b"".join(
        b'T-%d,Subject %d,"a body, of %d"\n' % (n, n, n) for n in range(1, 41)
    )
    world.answers["/v1/classify"] = lambda body: {"label": body["subject"].replace("Subject", "label"), "score": 0.5}
    with moto_process("127.0.0.1") as keys:
        s3 = s3_client(keys)
        s3.create_bucket(Bucket="support-results", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
        async with world.serve() as (secure, plain), lab.operator(sources=HERE):
            text = manifest("csv-to-s3.yaml", {FILES: secure, "classifier.support.svc:8080": plain})
            name = apply(lab, text, bucket={"AWS_ENDPOINT_URL": keys["AWS_ENDPOINT_URL"]})
            job = await lab.until_phase("Complete", name)
            await lab.cluster.until(lambda: not lab.cluster.all("pods"))
        listed = [one["Key"] for one in s3.list_objects_v2(Bucket="support-results")["Contents"]]
        assert job["status"]["output"]["uri"] == "s3://support-results/triage/1/"
        (part,) = (key for key in listed if "/part-" in key)
        found = pq.read_table(io.BytesIO(s3.get_object(Bucket="support-results", Key=part)["Body"].read())).to_pylist()
    assert part.startswith("triage/1/")
    assert [(one["ticket_id"], one["state"], one["result"]) for one in found] == [
        (f"T-{n}", "Succeeded", f"label {n}") for n in range(1, 41)
    ]
    assert condition(job, "Complete")["reason"] == "Completed"
    assert job["status"]["rows"]["succeeded"] == 40
    assert {authorization for _, authorization, _ in world.calls} == {"Bearer replace-me"}
    assert sorted(body["text"] for body in world.called("/v1/classify")) == sorted(
        f"a body, of {n}" for n in range(1, 41)
    )


async def test_the_other_manifests_for_a_cluster_run(lab: KubeLab, world: World) -> None:
    """keda.yaml, whose workers are as many as KEDA says; gpu.yaml beside its model; webhook.yaml, which is told."""
    world.files["/orders.jsonl"] = b"".join(b'{"order_id": "O-%d"}\n' % n for n in range(1, 6))
    world.files["/leads.csv"] = b"lead_id,company\n1,Acme\n2,Globex\n"
    products = io.BytesIO()
    pq.write_table(pa.table({"sku": ["a", "b"], "title": ["Lamp", "Cup"], "description": ["bright", "blue"]}), products)
    world.files["/products.parquet"] = products.getvalue()
    world.answers["/v1/enrich"] = lambda body: {"enriched": body["order"]}
    world.answers["/v1/score"] = lambda body: {"score": len(body["company"])}
    world.answers["/v1/embeddings"] = lambda body: {"data": [{"embedding": [float(len(body["input"])), 0.5]}]}
    world.answers["/rowmill"] = lambda body: {}
    async with world.serve() as (secure, plain), lab.operator(sources=HERE, webhooks=HERE) as operator:
        keda = apply(lab, manifest("keda.yaml", {FILES: secure, "enricher.orders.svc:8080": plain}))
        gpu = apply(lab, manifest("gpu.yaml", {FILES: secure, "127.0.0.1:8000": plain}))
        hosts = {FILES: secure, "scorer.sales.svc:8080": plain, "hooks.example.com": secure}
        hook = apply(lab, manifest("webhook.yaml", hosts))
        await lab.until_phase("Complete", gpu)
        await lab.until_phase("Complete", hook)
        await lab.cluster.until(lambda: (lab.job(keda)["status"].get("rows") or {}).get("queued") == 5)
        assert world.called("/v1/enrich") == [], "nobody has said that there are to be workers"
        lab.cluster.edit("batchjobs", keda, {"spec": {"workers": {"replicas": 1}}})
        await lab.until_phase("Complete", keda)
        await operator.until(lambda: world.called("/rowmill"))
        await lab.cluster.until(lambda: not lab.cluster.all("pods"))
    assert sorted(body["order"] for body in world.called("/v1/enrich")) == [f"O-{n}" for n in range(1, 6)]
    assert sorted(body["input"] for body in world.called("/v1/embeddings")) == ["Cup: blue", "Lamp: bright"]
    assert sorted(body["company"] for body in world.called("/v1/score")) == ["Acme", "Globex"]
    (told,) = world.called("/rowmill")
    assert (told["event"], told["job"]["name"], told["rows"]["succeeded"]) == ("Complete", "score-leads", 2)


def test_every_example_for_a_cluster_is_applied() -> None:
    tests = (
        test_a_table_goes_from_https_through_a_service_into_a_bucket,
        test_the_other_manifests_for_a_cluster_run,
    )
    applied = re.findall(r'manifest\("([\w.-]+)"', "".join(map(inspect.getsource, tests)))
    assert sorted(applied) == sorted(path.name for path in (EXAMPLES / "kubernetes").glob("*.yaml"))
