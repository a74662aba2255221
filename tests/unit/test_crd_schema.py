"""The CRD: fresh, structural, described, bounded; what the API server makes of a manifest means the same as before."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from rowmill.errors import InvalidInput
from rowmill.spec import executor_digest, frozen_part, json_schema, parse_job
from rowmill.spec.base import PATTERNS
from rowmill.spec.crd import NAME, crd, crd_yaml, main, resource_schema
from rowmill.spec.job import BatchJob
from rowmill.spec.job_status import JobStatus
from tests.unit.crd_helpers import defaulted, nodes, pruned, schema_problems

ROOT = Path(__file__).parents[2]
FILES = {ROOT / "crds" / f"{NAME}.yaml": True, ROOT / "crds" / "without-rules" / f"{NAME}.yaml": False}
SCHEMA = resource_schema()
PLAIN = resource_schema(rules=False)

SECRET = {"secretKeyRef": {"name": "keys", "key": "token"}}
EXECUTORS: dict[str, dict[str, Any]] = {
    "http": {
        "url": "http://127.0.0.1/{{ row.id | quote }}",
        "headers": [{"name": "Authorization", "valueFrom": SECRET}, {"name": "X-Language", "value": "{{ row.l }}"}],
        "query": {"lang": ["{{ row.l }}", None]},
        "body": {"text": "{{ row.text }}", "keep": None, "share": 0.25, "deep": [{"a": [1, True, None]}]},
        "successCodes": [200, 404],
    },
    "openai": {
        "baseUrl": "http://vllm/v1",
        "apiKey": {"env": "KEY"},
        "model": "m",
        "messages": [{"role": "user", "content": [{"type": "text", "text": "{{ row.text }}"}]}],
        "parameters": {"temperature": 0.5},
        "headers": [{"name": "X-Team", "value": "{{ row.team }}"}],
        "jsonSchema": {"schema": {"type": "object", "properties": {"label": {"enum": ["a", None]}}}},
        "accept": ["Length"],
        "result": "@",
    },
    "dify": {"baseUrl": "http://dify/v1", "apiKey": {"file": "key"}},
    "comfyui": {
        "url": "http://comfy:8188",
        "workflow": {"1": {"class_type": "A", "inputs": {"text": "{{ row.text }}"}}},
        "store": {"uri": "s3://bucket/images/", "secretName": "store"},
    },
    "embeddings": {"model": "m", "text": "{{ row.text }}", "batching": {"minSize": 4}},
    "python": {"function": "a.b:c", "arguments": {"x": "{{ row.x }}"}},
}
SPECS: list[dict[str, Any]] = [
    {},
    {"source": {"uri": "s3://bucket/a.parquet", "secretName": "store", "limit": 5}},
    {"source": {"configMap": {"name": "tables", "key": "a.csv"}}},
    {"source": {"query": {"connection": {"name": "db", "key": "dsn"}, "sql": "SELECT 1 ORDER BY 1"}}},
    {"source": {"uri": "https://h/a", "format": "CSV"}, "runId": "2.b", "retryGeneration": 3},
    {"mode": "Simulate"},
    {"mode": "Simulate", "simulate": {}},
    {
        "mode": "Simulate",
        "simulate": {
            "seed": 7,
            "latencyMilliseconds": {"max": 20},
            "errors": [{"class": "HTTP503", "percent": 10}],
            "costPerRow": "0.0025",
        },
    },
    {"key": ["id"], "dedupe": {}},
    {
        "notify": {
            "url": "https://h/",
            "headers": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
        }
    },
    {"notify": {"urlFrom": {"secretKeyRef": {"name": "s", "key": "k"}}, "events": ["Stalled"]}},
    {"output": {"uri": "s3://bucket/out/", "secretName": "store", "include": ["Failed"], "columns": ["b", "a"]}},
    {"concurrency": {"perWorker": 5, "adaptive": {}}, "limits": {"group": "g", "maxInFlight": 5}},
    {"workers": {"gpu": {}, "nodeSelector": {"a": "b"}, "tolerations": [{"key": "k", "operator": "Exists"}]}},
    {"workers": {"scaling": "External", "resources": {"limits": {"cpu": 1}}, "podTemplate": {"spec": {"x": [None]}}}},
    {"pricing": {"perCall": "0.002"}, "budget": {"requests": 5, "cost": "0.5"}},
    {"pricing": {"perMillionInputTokens": 1}},
    {"failurePolicy": {"maxFailedPercent": 5}, "ttlSecondsAfterFinished": 0, "activeDeadlineSeconds": 60},
    {"executor": {"http": {"url": "http://127.0.0.1/"}}},
    {"executor": {"embeddings": {"model": "m", "text": "{{ row.text }}", "batching": {"maxSize": 8}}}},
    {"executor": {"embeddings": {"model": "m", "text": "{{ row.text }}"}}},
    {"executor": {"python": {"function": "a.b:c"}}},
    {"executor": {"python": {"function": "a.b:c", "batching": {}}}},
    {
        "executor": {
            "dify": {
                "baseUrl": "http://dify/v1",
                "apiKey": {"env": "K"},
                "app": "Chat",
                "query": "{{ row.text }}",
                "files": [{"url": "{{ row.photo }}"}],
            }
        }
    },
    {"executor": {"openai": {"baseUrl": "http://o/v1", "endpoint": "BatchLines"}}, "key": ["custom_id"]},
    {"executor": {"openai": {"baseUrl": "http://o/v1", "endpoint": "Embeddings", "model": "m", "input": ["x", "y"]}}},
    {
        "executor": {
            "openai": {"baseUrl": "http://o/v1", "endpoint": "Embeddings", "model": "m", "input": "x", "batching": {}}
        }
    },
    *({"executor": {kind: given}} for kind, given in EXECUTORS.items()),
]


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "triage", "namespace": "support"},
        "spec": copy.deepcopy(
            {"source": {"rows": [{"id": 1, "none": None}]}, "executor": {"http": EXECUTORS["http"]}} | spec
        ),
    }


def examples() -> list[dict[str, Any]]:
    files = sorted((ROOT / "examples").rglob("*.yaml"))
    documents = [one for p in files for one in yaml.safe_load_all(p.read_text("utf-8"))]
    return [one for one in documents if one["kind"] == "BatchJob"]


def test_the_files_are_fresh() -> None:
    stale = [str(p.relative_to(ROOT)) for p, rules in FILES.items() if p.read_text("utf-8") != crd_yaml(rules=rules)]
    assert stale == [], "write them anew: make crds"


def test_the_same_models_give_the_same_bytes_well_below_what_etcd_takes() -> None:
    text = crd_yaml()
    assert text == crd_yaml()
    assert len(text.encode()) < 262_144
    assert yaml.safe_load(text) == json.loads(json.dumps(crd())), "YAML and what it is written from say the same"


def test_one_definition_differs_from_the_other_by_its_rules_alone() -> None:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: without(inner) for name, inner in value.items() if name != "x-kubernetes-validations"}
        return [without(item) for item in value] if isinstance(value, list) else value

    assert without(SCHEMA) == PLAIN
    assert "x-kubernetes-validations" not in crd_yaml(rules=False)


@pytest.mark.parametrize("schema", [SCHEMA, PLAIN], ids=["rules", "without-rules"])
def test_the_schema_is_structural_described_and_bounded(schema: dict[str, Any]) -> None:
    assert schema_problems(schema) == []
    assert len(list(nodes(schema))) > 150


@pytest.mark.parametrize(
    ("spoilt", "told"),
    [
        ({"$ref": "#/x"}, "has $ref"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "has an anyOf"),
        ({"additionalProperties": False}, "properties and additionalProperties"),
        ({"type": ["string", "null"]}, "has the type"),
        ({"required": ["nothing"]}, "requires what it does not declare"),
        ({"description": ""}, "has no description"),
        ({"default": {"unknown": 1}}, "has a default that is pruned"),
    ],
)
def test_a_schema_that_kubernetes_would_refuse_is_noticed(spoilt: dict[str, Any], told: str) -> None:
    schema = copy.deepcopy(SCHEMA)
    schema["properties"]["spec"]["properties"]["retry"] |= spoilt
    try:
        problems = schema_problems(schema)
    except TypeError:  # an unhashable type
        problems = ["spec.retry: has the type"]
    assert any(p.startswith("spec.retry: ") and told in p for p in problems), problems


def test_every_field_of_the_models_is_in_the_schema_and_no_other() -> None:
    known = json_schema()

    def names(node: dict[str, Any]) -> dict[str, Any]:
        node = known["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
        node = node | next((names_of for names_of in node.get("anyOf", []) if names_of.get("type") != "null"), {})
        if "$ref" in node:
            return names({"$ref": node["$ref"]})
        if "items" in node:
            return names(node["items"])
        return {name: names(below) for name, below in node.get("properties", {}).items()}

    def written(node: dict[str, Any]) -> dict[str, Any]:
        if "items" in node:
            return written(node["items"])
        return {name: written(below) for name, below in node.get("properties", {}).items()}

    spec = SCHEMA["properties"]["spec"]
    assert written(spec) == names(known["properties"]["spec"])
    assert set(SCHEMA["properties"]["status"]["properties"]) == {f.alias for f in JobStatus.model_fields.values()}
    assert {path for path, node in nodes(spec) if node.get("pattern") not in (None, *PATTERNS)} == set()


@pytest.mark.parametrize("given", [*[manifest(**spec) for spec in SPECS], *examples()])
def test_what_the_api_server_stores_means_the_same_as_what_was_applied(given: dict[str, Any]) -> None:
    stored = defaulted(pruned(given, SCHEMA | {"x-kubernetes-preserve-unknown-fields": False}), SCHEMA)
    stored["metadata"] = {**given["metadata"], "uid": "1", "generation": 1}
    before, after = (parse_job(value, where="test").spec for value in (given, json.loads(json.dumps(stored))))
    assert after == before
    assert frozen_part(after) == frozen_part(before)
    assert executor_digest(after) == executor_digest(before)
    assert defaulted(stored, SCHEMA) == stored, "stored again it stays as it is"
    jsonschema.Draft7Validator(SCHEMA).validate(stored)


def test_every_default_of_the_schema_is_written_by_some_manifest_above() -> None:
    written: set[str] = set()

    def look(value: Any, schema: dict[str, Any], path: str) -> None:
        if isinstance(value, dict):
            for name, below in schema.get("properties", {}).items():
                if name not in value and "default" in below:
                    written.add(f"{path}.{name}")
                look(value.get(name, below.get("default")), below, f"{path}.{name}")
        elif isinstance(value, list):
            for item in value:
                look(item, schema.get("items", {}), f"{path}[]")

    for spec in SPECS:
        look(manifest(**spec), SCHEMA, "")
    declared = {f".{path}" for path, node in nodes(SCHEMA) if "default" in node}
    assert declared - written == set()
    assert len(declared) > 50


def test_a_null_is_dropped_where_the_models_take_it_for_nothing() -> None:
    given = manifest(dedupe=None, source={"rows": [{"a": None}], "limit": None, "format": None}, failurePolicy=None)
    given["spec"]["executor"]["http"]["body"] = None
    stored = defaulted(given, SCHEMA)
    assert stored["spec"]["source"] == {"rows": [{"a": None}]}
    assert "dedupe" not in stored["spec"]
    assert frozen_part(parse_job(stored, where="t").spec) == frozen_part(parse_job(given, where="t").spec)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"runId": "-"}, "spec.runId"),
        ({"runId": 1}, "spec.runId"),
        ({"shards": 0}, "spec.shards"),
        ({"shards": 257}, "spec.shards"),
        ({"shards": "4"}, "spec.shards"),
        ({"mode": "run"}, "spec.mode"),
        ({"suspend": "no"}, "spec.suspend"),
        ({"key": "id"}, "spec.key"),
        ({"key": ["x" * 257]}, "spec.key[0]"),
        ({"timeoutSeconds": 1.5}, "spec.timeoutSeconds"),
        ({"retry": []}, "spec.retry"),
        ({"source": {"rows": [1]}}, "spec.source.rows[0]"),
        ({"source": {"rows": [{}] * 10_001}}, "spec.source.rows"),
        ({"source": {"configMap": {"name": "A", "key": "b.csv"}}}, "spec.source.configMap.name"),
        ({"executor": {"http": {}}}, "spec.executor.http"),
        ({"executor": {"http": {"url": "http://h/", "successCodes": []}}}, "spec.executor.http.successCodes"),
        ({"executor": {"http": {"url": "http://h/", "query": {str(i): 1 for i in range(65)}}}}, "spec.executor.http.q"),
        ({"workers": {"nodeSelector": {"a": 1}}}, "spec.workers.nodeSelector"),
        ({"workers": {"replicas": -1}}, "spec.workers.replicas"),
        ({"output": {"include": ["All"]}}, "spec.output.include[0]"),
        ({"mode": "Simulate", "simulate": {"costPerRow": "1e3x"}}, "spec.simulate.costPerRow"),
        ({"budget": {"requests": 0}}, "spec.budget.requests"),
        ({"budget": {"requests": 1.5}}, "spec.budget.requests"),
        ({"budget": {"cost": "-1"}, "pricing": {"perCall": 1}}, "spec.budget.cost"),
        ({"budget": {"cost": "0.0000000001"}, "pricing": {"perCall": 1}}, "spec.budget.cost"),
        ({"budget": {"cost": "1,5"}, "pricing": {"perCall": 1}}, "spec.budget.cost"),
        ({"pricing": {"perCall": "free"}}, "spec.pricing.perCall"),
    ],
)
def test_schema_and_models_refuse_the_same(spec: dict[str, Any], path: str) -> None:
    given = manifest(**spec)
    (error, *_) = jsonschema.Draft7Validator(SCHEMA).iter_errors(given)
    found = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path).lstrip(".")
    assert path.startswith(found) or found.startswith(path)
    with pytest.raises(InvalidInput, match=re.escape(path)):
        parse_job(given, where="test")


def test_the_status_that_the_documentation_shows_fits_its_schema() -> None:
    status = {
        "observedGeneration": 1,
        "phase": "Running",
        "conditions": [
            {
                "type": "Ready",
                "status": "False",
                "observedGeneration": 1,
                "lastTransitionTime": "2026-01-01T10:00:00Z",
                "reason": "Running",
                "message": "rows are on their way",
            }
        ],
        "run": {"id": "1~simulate", "generation": 0, "epoch": 1},
        "rows": {"total": 120000, "queued": 9000, "running": 24, "succeeded": 80000, "failed": 12, "retried": 31},
        "done": "80012/120000",
        "progress": "66%",
        "successRate": "99.98%",
        "rowsPerMinute": 5400,
        "startTime": "2026-01-01T09:00:00+00:00",
        "estimatedCompletionTime": "2026-01-01T10:00:00.5Z",
        "workers": {"desired": 8, "ready": 8, "image": "worker@sha256:0", "selector": "rowmill.dev/job=triage"},
        "output": {"uri": "s3://bucket/triage/1/", "parts": 3, "failures": "s3://bucket/triage/1/failures.jsonl"},
        "errors": [{"class": "HTTP429", "count": 31, "exampleRow": 4711}],
        "spend": {
            "requests": 80043,
            "inputTokens": 9000000,
            "outputTokens": 120000,
            "cost": "1.422",
            "projected": {"rows": 120000, "requests": 120047, "cost": "2.1327"},
        },
    }
    JobStatus.model_validate(status, by_alias=True, by_name=False)
    schema = SCHEMA["properties"]["status"]
    jsonschema.Draft7Validator(schema).validate(status)
    assert pruned(status, schema) == status
    assert defaulted(status, schema) == status, "nothing is written into a status beside what Rowmill writes"


def test_columns_and_scale_lead_to_fields_that_are_there() -> None:
    (version,) = crd()["spec"]["versions"]
    known = {f".{path}" for path, _ in nodes(SCHEMA)}
    conditions = '.status.conditions[?(@.type=="Ready")]'
    for column in version["additionalPrinterColumns"]:
        path = column["jsonPath"].replace(conditions, ".status.conditions[]")
        assert path in known | {".metadata.creationTimestamp"}, path
    assert set(version["subresources"]["scale"].values()) <= known
    shown = [column["name"] for column in version["additionalPrinterColumns"] if not column.get("priority")]
    assert shown == ["Phase", "Done", "Percent", "Failed", "Workers", "Rate", "Age"]
    assert crd()["spec"]["names"]["shortNames"] == ["bj"]


def test_the_command_writes_a_file_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "deep" / "crd.yaml"
    assert main([str(path), "--without-rules"]) == 0
    assert path.read_text("utf-8") == crd_yaml(rules=False)
    assert main([]) == 0
    assert capsys.readouterr().out == crd_yaml()
    with pytest.raises(SystemExit, match="1"):
        main([str(path / "below")])
    assert f"{path / 'below'} cannot be written: " in capsys.readouterr().err


def test_the_resource_is_the_one_that_the_models_read() -> None:
    assert set(SCHEMA["properties"]) == {field.alias or name for name, field in BatchJob.model_fields.items()}
