"""Every example is what the program accepts, and the demo's table and manifest belong together."""

from __future__ import annotations

import csv
import hashlib
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.demo.run import MANIFEST, manifest_for, usable_port
from examples.textservice.service import Unusable, describe
from rowmill.spec import BatchJob, Place, check_available, load_manifest, load_manifest_file, parse_job
from rowmill.status import RunStatus
from rowmill_operator.kube.metrics import JobNumbers, JobsCollector
from rowmill_operator.kube.pod_template import WorkloadSettings, secret_references
from rowmill_operator.kube.workload import build_workload

EXAMPLES = Path(__file__).parents[2] / "examples"
TABLE = EXAMPLES / "data" / "us-airports.csv"
KUBERNETES = sorted((EXAMPLES / "kubernetes").glob("*.yaml"))
MANIFESTS = sorted(set(EXAMPLES.rglob("*.yaml")) - set(KUBERNETES))
SETTINGS = WorkloadSettings(
    image="registry.example/rowmill-worker:0.1.0",
    installation="rowmill",
    redis_url="redis://redis.example",
    postgres_dsn="postgresql://postgres.example/rowmill",
)


def test_there_are_examples() -> None:
    assert {"job.yaml", "inline-rows.yaml", "dedupe.yaml", "simulate.yaml"} <= {path.name for path in MANIFESTS}


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_valid_and_available(path: Path) -> None:
    job = load_manifest_file(path)
    check_available(job, where=str(path))
    source = job.spec.source
    if source.uri is not None:
        assert (path.parent / source.uri).is_file()


def test_every_manifest_has_a_name_of_its_own() -> None:
    names = [load_manifest_file(path).metadata.name for path in MANIFESTS]
    names += [job_in(path).metadata.name for path in KUBERNETES]
    assert len(set(names)) == len(names)


def objects_in(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text("utf-8")))


def job_in(path: Path) -> BatchJob:
    (job,) = (one for one in objects_in(path) if one["kind"] == "BatchJob")
    return parse_job(job, where=path.name)


def test_there_are_examples_for_a_cluster() -> None:
    assert {"csv-to-s3.yaml", "gpu.yaml", "keda.yaml", "webhook.yaml"} <= {path.name for path in KUBERNETES}


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.name)
def test_every_example_for_a_cluster_runs_there(path: Path) -> None:
    """Valid, available, its pods taken, and every Secret that it names stands beside it with the keys it names."""
    job = job_in(path)
    check_available(job, where=path.name, place=Place.CLUSTER)
    build_workload(job, uid="u", settings=SETTINGS)
    secrets = {one["metadata"]["name"]: one["stringData"] for one in objects_in(path) if one["kind"] == "Secret"}
    named = {job.spec.source.secret_name, job.spec.output.secret_name} - {None}
    references = secret_references(job)
    if (notify := job.spec.notify) is not None:
        values = [notify.url_from, notify.signing_key_from, *(one.value_from for one in notify.headers)]
        references += [one.secret_key_ref for one in values if one is not None]
    assert named | {one.name for one in references} == set(secrets)
    assert all(one.key in secrets[one.name] for one in references)


def test_the_gpu_is_the_model_servers() -> None:
    """Devices are not shared within a pod: the container that computes is the one that asks."""
    job = job_in(EXAMPLES / "kubernetes" / "gpu.yaml")
    pod = build_workload(job, uid="u", settings=SETTINGS).deployment["spec"]["template"]["spec"]
    asking = [
        one["name"]
        for one in [*pod["initContainers"], *pod["containers"]]
        if "nvidia.com/gpu" in one.get("resources", {}).get("limits", {})
    ]
    assert asking == ["model"]
    assert pod["nodeSelector"] == {"accelerator": "nvidia-l4"}
    assert [one["key"] for one in pod["tolerations"]] == ["nvidia.com/gpu"]


def scaled_object() -> Mapping[str, Any]:
    path = EXAMPLES / "kubernetes" / "keda.yaml"
    (found,) = (one for one in objects_in(path) if one["kind"] == "ScaledObject")
    spec: Mapping[str, Any] = found["spec"]
    return spec


def test_keda_scales_the_job_beside_it_within_its_bounds() -> None:
    job, scaled = job_in(EXAMPLES / "kubernetes" / "keda.yaml"), scaled_object()
    assert scaled["scaleTargetRef"] == {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "name": job.metadata.name,
    }
    assert job.spec.workers.scaling == "External"
    assert "replicas" not in objects_in(EXAMPLES / "kubernetes" / "keda.yaml")[0]["spec"]["workers"]
    assert scaled["maxReplicaCount"] == job.spec.workers.max_replicas


def test_keda_asks_for_a_metric_that_the_operator_has() -> None:
    job = job_in(EXAMPLES / "kubernetes" / "keda.yaml")
    (trigger,) = scaled_object()["triggers"]
    found = re.fullmatch(
        r'sum\((\w+)\{namespace="[\w-]+", name="([\w-]+)", state=~"([\w|]+)"\}\)', trigger["metadata"]["query"]
    )
    assert found is not None
    assert found[2] == job.metadata.name
    collector = JobsCollector(lambda: [JobNumbers("orders", job.metadata.name, "Running", RunStatus())])
    states = {s.labels["state"] for metric in collector.collect() for s in metric.samples if s.name == found[1]}
    assert set(found[3].split("|")) <= states


def test_the_table_is_the_one_whose_licence_stands_beside_it() -> None:
    digest = hashlib.sha256(TABLE.read_bytes()).hexdigest()
    assert f"`{digest}`" in (TABLE.parent / "LICENSE.md").read_text("utf-8")


def test_the_service_answers_all_of_the_table_but_the_places_without_a_city() -> None:
    refused, slugs = [], set()
    with TABLE.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        try:
            slugs.add(describe(row)["slug"])
        except Unusable as unusable:
            refused.append((row["city"], unusable.field))
    assert len(rows) >= 3000
    assert refused == [("NA", "city")] * 12
    assert len(slugs) > 0.99 * (len(rows) - len(refused))


def test_the_demo_changes_address_run_and_nothing_else() -> None:
    given = yaml.safe_load(MANIFEST.read_text("utf-8"))
    made = manifest_for(given, address="http://127.0.0.1:4711", run_id="20260101-000000")
    job = load_manifest(yaml.safe_dump(made), where="demo")
    assert job.spec.executor.http is not None
    assert job.spec.executor.http.url == "http://127.0.0.1:4711/v1/names"
    assert job.spec.run_id == "20260101-000000"
    assert job.spec.source.uri == str(TABLE.resolve())
    made["spec"]["executor"]["http"]["url"] = given["spec"]["executor"]["http"]["url"]
    made["spec"]["source"]["uri"] = given["spec"]["source"]["uri"]
    del made["spec"]["runId"]
    assert made == given


def test_a_port_that_is_taken_is_not_insisted_on() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert usable_port(port) == 0
    assert usable_port(port) == port
