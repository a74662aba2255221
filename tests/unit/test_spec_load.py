"""A manifest that is right is read as it stands; one that is wrong is told everything that is wrong, line by line."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill.spec import BatchJob, load_manifest, load_manifest_file, parse_job
from rowmill.spec.yaml_text import MAX_BYTES

HEAD = """\
apiVersion: rowmill.dev/v1alpha1
kind: BatchJob
metadata: {name: triage}
spec:
  source: {uri: tickets.csv}
  executor: {http: {url: 'http://127.0.0.1/'}}
"""
HTTP = HEAD.rsplit("  executor", 1)[0] + "  executor:\n    http:\n"

WHOLE = """\
apiVersion: rowmill.dev/v1alpha1
kind: BatchJob
metadata: {name: triage-tickets, namespace: support, labels: {team: a}, uid: 123, managedFields: [1]}
spec:
  runId: "1"
  mode: Simulate
  simulate:
    seed: 7
    latencyMilliseconds: {min: 1, max: 20}
    errors: [{class: HTTP503, percent: 5, retryable: true}]
    costPerRow: "0.0025"
  source: {uri: "https://files.example/tickets.csv", format: CSV, limit: 100}
  key: [ticket_id]
  executor:
    http:
      url: http://triage.support.svc/v1/triage
      method: PUT
      headers:
        - {name: Authorization, valueFrom: {secretKeyRef: {name: triage, key: token}}}
        - {name: X-Lang, value: "{{ row.lang }}"}
      query: {v: 2, tags: [a, b]}
      body: {text: "{{ row.subject }}", keep: null}
      result: label
      successCodes: [200, 404]
  output: {uri: "s3://bucket/triage/", format: Parquet, include: [Succeeded, Failed], columns: [ticket_id]}
  timeoutSeconds: 61
  concurrency: {perWorker: 4, acquireTimeoutSeconds: 301, adaptive: {min: 2, max: 33}}
  limits: {group: triage, maxInFlight: 10, requestsPerMinute: 600, tokensPerMinute: 200000}
  retry: {maxAttempts: 6, initialSeconds: 2, maxSeconds: 61}
  retryGeneration: 1
  dedupe: {scope: Installation, group: orders, ttlSeconds: 86401, onFailed: Share}
  workers:
    minReplicas: 1
    maxReplicas: 11
    rowsPerWorker: 501
    nodeSelector: {disk: ssd}
    tolerations: [{key: gpu}]
    resources: {limits: {cpu: 1}}
    gpu: {count: 2, resource: nvidia.com/gpu}
    podTemplate: {spec: {}}
  shards: 5
  failurePolicy: {maxFailedPercent: 5, minProcessedRows: 201}
  suspend: true
  completionTargetSeconds: 3600
  activeDeadlineSeconds: 7200
  ttlSecondsAfterFinished: 0
  resultsRetentionSeconds: 2592001
status: {phase: Running}
"""


def problems(text: str) -> list[str]:
    with pytest.raises(InvalidInput) as caught:
        load_manifest(text, where="job.yaml")
    lines = caught.value.lines()
    assert all(line.startswith("job.yaml: ") for line in lines)
    return [line.removeprefix("job.yaml: ") for line in lines]


def test_every_field_of_the_design_is_read() -> None:
    job = load_manifest(WHOLE, where="job.yaml")
    spec = job.spec
    assert (job.metadata.name, job.metadata.namespace) == ("triage-tickets", "support")
    assert (spec.run_id, spec.mode, spec.shards, spec.suspend) == ("1", "Simulate", 5, True)
    assert spec.simulate is not None
    assert spec.simulate.cost_per_row == Decimal("0.0025")
    assert spec.simulate.cost(3) == Decimal("0.0075")
    assert (spec.simulate.latency_milliseconds.min, spec.simulate.errors[0].error_class) == (1, "HTTP503")
    assert (spec.source.kind, spec.source.limit, spec.source.effective_format) == ("uri", 100, "CSV")
    assert spec.key == ("ticket_id",)
    http = spec.executor.http
    assert http is not None
    assert (spec.executor.kind, spec.executor.chosen) == ("http", http)
    assert (http.method, http.result, http.success_codes) == ("PUT", "label", (200, 404))
    assert http.body == {"text": "{{ row.subject }}", "keep": None}
    assert http.headers[0].value_from is not None
    assert http.headers[0].value_from.secret_key_ref is not None
    assert http.headers[0].value_from.secret_key_ref.key == "token"
    assert (spec.output.format, spec.output.include, spec.output.columns) == (
        "Parquet",
        ("Succeeded", "Failed"),
        ("ticket_id",),
    )
    assert (spec.timeout_seconds, spec.concurrency.per_worker, spec.concurrency.acquire_timeout_seconds) == (61, 4, 301)
    assert spec.concurrency.adaptive is not None
    assert spec.concurrency.adaptive.max == 33
    assert spec.limits is not None
    assert (spec.limits.group, spec.limits.tokens_per_minute) == ("triage", 200_000)
    assert (spec.retry.max_attempts, spec.retry.initial_seconds, spec.retry.max_seconds) == (6, 2, 61)
    assert spec.retry_generation == 1
    assert spec.dedupe is not None
    assert (spec.dedupe.scope, spec.dedupe.ttl_seconds, spec.dedupe.on_failed) == ("Installation", 86_401, "Share")
    assert (spec.workers.min_replicas, spec.workers.rows_per_worker, spec.workers.node_selector) == (
        1,
        501,
        {"disk": "ssd"},
    )
    assert spec.workers.gpu is not None
    assert spec.workers.gpu.count == 2
    assert spec.failure_policy is not None
    assert spec.failure_policy.max_failed_percent == 5
    assert (spec.completion_target_seconds, spec.active_deadline_seconds) == (3600, 7200)
    assert (spec.ttl_seconds_after_finished, spec.results_retention_seconds) == (0, 2_592_001)


def test_defaults() -> None:
    job = load_manifest(HEAD, where="job.yaml")
    spec = job.spec
    assert (job.metadata.namespace, spec.run_id, spec.mode) == ("default", "1", "Run")
    assert (spec.timeout_seconds, spec.shards, spec.retry_generation, spec.suspend) == (60, 4, 0, False)
    assert (spec.retry.max_attempts, spec.retry.initial_seconds, spec.retry.max_seconds) == (5, 1, 60)
    assert (spec.concurrency.per_worker, spec.concurrency.acquire_timeout_seconds) == (None, 300)
    assert (spec.workers.min_replicas, spec.workers.max_replicas, spec.workers.rows_per_worker) == (0, 10, 500)
    assert spec.output.include == ("Succeeded", "Failed", "Deduplicated")
    assert spec.output.effective_format == "JSONL"
    assert [spec.limits, spec.dedupe, spec.failure_policy, spec.simulate, spec.concurrency.adaptive] == [None] * 5
    assert spec.executor.http is not None
    assert (spec.executor.http.method, spec.executor.http.body, spec.executor.http.success_codes) == (
        "POST",
        None,
        None,
    )


def test_a_job_cannot_be_changed_and_goes_round_by_json() -> None:
    job = load_manifest(WHOLE, where="job.yaml")
    with pytest.raises(ValueError, match="frozen"):
        job.spec.shards = 9
    again = parse_job(job.model_dump(mode="json", by_alias=True, exclude_none=True), where="x")
    assert again == job
    assert load_manifest(job.model_dump_json(by_alias=True, exclude_unset=True), where="x") == job
    assert BatchJob.model_validate(job.model_dump()) == job  # by attribute names


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ("  runId: 1\n", ['spec.runId: must be text, not the number 1; quote it: "1" (line 7)']),
        ("  runId: true\n", ['spec.runId: must be text, not true; quote it: "true" (line 7)']),
        ("  runId: ''\n", ["spec.runId: is empty; write something, or leave the field out (line 7)"]),
        (
            "  runId: a b\n",
            [
                "spec.runId: must be letters, digits, -, _ and ., beginning and ending with a letter or digit; "
                'it is the text "a b" (line 7)'
            ],
        ),
        ("  mode: run\n", ['spec.mode: must be Run or Simulate, not the text "run" (line 7)']),
        (
            "  timeoutSeconds: 5s\n  timeOutSeconds: 3\n  timeout_seconds: 3\n",
            [
                'spec.timeoutSeconds: must be a whole number, not the text "5s" (line 7)',
                "spec.timeOutSeconds: unknown field; did you mean `timeoutSeconds`? (line 8)",
                "spec.timeout_seconds: unknown field; did you mean `timeoutSeconds`? (line 9)",
            ],
        ),
        ("  retry_generation: 1\n", ["spec.retry_generation: unknown field; did you mean `retryGeneration`? (line 7)"]),
        ("  shards: 0\n", ["spec.shards: must be 1 or more, not the number 0 (line 7)"]),
        ("  shards: 4.0\n", ["spec.shards: must be a whole number, not the number 4.0 (line 7)"]),
        ("  shards: '4'\n", ['spec.shards: must be a whole number, not the text "4" (line 7)']),
        ("  shards: true\n", ["spec.shards: must be a whole number, not true (line 7)"]),
        ("  suspend: 1\n", ["spec.suspend: must be true or false, not the number 1 (line 7)"]),
        (
            "  suspend:\n",
            ["spec.suspend: has nothing after the colon; write true or false, or leave the field out (line 7)"],
        ),
        ("  key: id\n", ['spec.key: must be a list, not the text "id" (line 7)']),
        ("  key: [a, a]\n", ['spec.key: names "a" twice; name it once (line 7)']),
        ("  retry: [1]\n", ["spec.retry: must be a mapping (fields, indented below it), not a list (line 7)"]),
        (
            "  retry: {initialSeconds: 70}\n",
            [
                "spec.retry.initialSeconds: is 70, above maxSeconds, which is 60 (its default); "
                "make initialSeconds smaller or maxSeconds larger (line 7)"
            ],
        ),
        (
            "  dedupe: {}\n",
            ["spec.key: is missing, and dedupe needs it; name the columns by which rows are the same (line 4)"],
        ),
        ("  failurePolicy: {}\n", ["spec.failurePolicy.maxFailedPercent: is missing; this field is required (line 7)"]),
        (
            "  simulate:\n    costPerRow: 1.5e-12\n    errors:\n"
            "    - {class: HTTP503, percent: 60}\n    - {class: x, percent: 60}\n",
            [
                "spec.simulate.costPerRow: must be from 0 to 999999999999, with at most 9 digits after the point "
                "(line 8)",
                "spec.simulate.errors: are 120 percent of the calls together; at most 100 (line 9)",
                "spec.simulate.errors[1].class: must be a name in CamelCase, such as HTTP503 or Timeout; "
                'it is the text "x" (line 11)',
            ],
        ),
        (
            "  output: {format: Excel, include: [], incl: 3}\n",
            [
                'spec.output.format: must be CSV, JSONL or Parquet, not the text "Excel" (line 7)',
                "spec.output.include: must have at least 1 item (line 7)",
                "spec.output.incl: unknown field; did you mean `include`? (line 7)",
            ],
        ),
        (
            "  output: {uri: a.xlsx}\n",
            ["spec.output.uri: results are not written as Excel; end it in .csv, .jsonl or .parquet (line 7)"],
        ),
        ("  workers: {nodeSelector: {a: 1}}\n", None),
        ("  concurrency: {perWorker: 1025}\n", None),
    ],
)
def test_wrong_fields(more: str, told: list[str] | None) -> None:
    found = problems(HEAD + more)
    if told is None:
        assert len(found) == 1
    else:
        assert found == told


@pytest.mark.parametrize(
    ("http", "told"),
    [
        ("url: ftp://x", ["url: is no http URL; write http://host/path or https://host/path (line 8)"]),
        ("url: 'http://'", ["url: has no host; write https://host/path (line 8)"]),
        (
            "url: 'http://x:99999/'",
            ["url: is not a URL; write scheme://host/path, with a port from 1 to 65535 if any (line 8)"],
        ),
        ("url: 'http://u:s3cret@x/'", ["url: holds a user or password; a secret never stands in a manifest (line 8)"]),
        (
            "url: 'http://u:s3cret@x/{{ row.x }}'",
            ["url: holds a user or password; send them by headers with valueFrom (line 8)"],
        ),
        ("url: 'http://x/a b'", ["url: holds white space; take it out, or write %20 (line 8)"]),
        (
            "url: 'http://x/'\n      method: GET\n      body: {}",
            ["body: a GET request has no body; use query, or method POST (line 10)"],
        ),
        (
            "url: 'http://x/'\n      query: {a: {b: 1}}",
            ["query.a: must be a text, a number, true, false, or a list of these (line 9)"],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: X, value: a}, {name: x, value: b}]",
            ["headers[1].name: x is already set by headers[0]; set it once (line 9)"],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: X}]",
            ["headers[0]: needs exactly one of value, valueFrom; none is set (line 9)"],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: X, value: a, valueFrom: {env: A, file: b}}]",
            [
                "headers[0]: needs exactly one of value, valueFrom; both value and valueFrom are set (line 9)",
                "headers[0].valueFrom: takes exactly one of secretKeyRef, env, file; both env and file are set "
                "(line 9)",
            ],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: Authorization, value: Bearer s3cret}]",
            [
                "headers[0].value: a secret never stands in a manifest; write valueFrom with secretKeyRef, env or file "
                "(line 9)"
            ],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: X, valueFrom: s3cret}]",
            ["headers[0].valueFrom: must be a mapping (fields, indented below it), not a text (line 9)"],
        ),
        (
            "url: 'http://x/'\n      headers: [{name: idempotency-KEY, value: a}]",
            ["headers[0].name: idempotency-KEY is set by Rowmill; leave it out (line 9)"],
        ),
        (
            "url: 'http://{{ row.h'\n      result: 'a['\n      body:\n        text: '{{ rwo.x }}'\n"
            "        l: ['{{ row.x | uper }}']\n"
            "      methd: 3",
            [
                "url: the template does not compile: unexpected end of template, expected 'end of print statement'; "
                "an expression is written {{ row.column }} (line 8)",
                "result: not a JMESPath expression: it ends too early; a field of the answer is written name or "
                "outer.inner or list[0].name (line 9)",
                'body.text: the template cannot be used: there is no name "rwo": the names are row, key, seq, job; '
                "a column is written row.rwo (line 11)",
                'body.l[0]: the template cannot be used: there is no filter "uper"; did you mean "upper"? (line 12)',
                "methd: unknown field; did you mean `method`? (line 13)",
            ],
        ),
    ],
)
def test_wrong_http_executors(http: str, told: list[str]) -> None:
    found = problems(f"{HTTP}      {http}\n")
    assert found == [f"spec.executor.http.{line}" for line in told]
    assert "s3cret" not in "\n".join(found)


@pytest.mark.parametrize(
    "url", ["{{ row.url }}", "http://x/{{ row.a b }}", "https://{{ row.host }}/{{ row.x | quote }}?a=1"]
)
def test_urls_with_templates(url: str) -> None:
    text = f"{HTTP}      url: '{url}'\n"
    if "a b" in url:
        assert "does not compile" in problems(text)[0]
    else:
        load_manifest(text, where="x")


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{}", "spec.source: needs exactly one of uri, rows, configMap, query; none is set (line 5)"),
        (
            "{uri: a.csv, rows: []}",
            "spec.source: takes exactly one of uri, rows, configMap, query; both uri and rows are set (line 5)",
        ),
        ("{uri: a.txt}", "spec.source.format: cannot be told from the suffix of the name"),
        ("{rows: [], format: CSV}", "spec.source.format: goes with uri or configMap only; leave it out (line 5)"),
        ("{uri: 'https:///a.csv'}", "spec.source.uri: has no host; write https://host/path (line 5)"),
        ("{uri: 'https://u:p@h/a.csv'}", "spec.source.uri: holds a user or password"),
        (
            "{rows: [3]}",
            "spec.source.rows[0]: must be a mapping (fields, indented below it), not the number 3 (line 5)",
        ),
        ("{rows: [{'': 3}]}", "spec.source.rows[0]: has a column whose name is empty"),
        ("{uri: a.csv, limit: 0}", "spec.source.limit: must be 1 or more, not the number 0 (line 5)"),
    ],
)
def test_wrong_sources(source: str, told: str) -> None:
    (found,) = problems(HEAD.replace("{uri: tickets.csv}", source))
    assert found.startswith(told)


def test_two_executors_and_none() -> None:
    both = HEAD.replace("executor: {", "executor: {python: {function: 'a:b'}, ")
    assert problems(both) == [
        "spec.executor: takes exactly one of http, openai, dify, comfyui, embeddings, python; "
        "both http and python are set (line 6)"
    ]


def test_somebody_elses_resource_is_told_in_a_line_or_two() -> None:
    assert problems("apiVersion: apps/v1\nkind: Deployment\nspec: {x: 1}\n") == [
        'apiVersion: must be rowmill.dev/v1alpha1, not the text "apps/v1"',
        'kind: must be BatchJob, not the text "Deployment"',
    ]
    assert problems("a: 1\n") == [
        "apiVersion: is missing; write apiVersion: rowmill.dev/v1alpha1",
        "kind: is missing; write kind: BatchJob",
    ]
    assert problems("- 1\n") == ["is a list, not a BatchJob; it begins with apiVersion: rowmill.dev/v1alpha1"]


def test_names_follow_dns() -> None:
    found = problems(HEAD.replace("{name: triage}", "{name: Tri_age, namespace: -x, nmae: a}"))
    assert [line.split(":")[0] for line in found] == ["metadata.name", "metadata.namespace", "metadata.nmae"]


def test_very_many_problems_are_told_in_part() -> None:
    text = HEAD + "".join(f"  unknown{i}: 1\n" for i in range(300))
    found = problems(text)
    assert len(found) == 51
    assert found[-1] == "and 250 problems more; mend these first"


def test_values_too_deep_or_too_many_in_a_body() -> None:
    assert problems(f"{HTTP}      url: 'http://x/'\n      body: {'[' * 40}{']' * 40}\n") == [
        "spec.executor.http.body: is nested deeper than 32 levels; make it flatter (line 9)"
    ]


def test_files(tmp_path: Path) -> None:
    def told(content: bytes | None, name: str = "job.yaml") -> str:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(InvalidInput) as caught:
            load_manifest_file(path)
        (line,) = caught.value.lines()
        assert line.startswith(f"{path}: ")
        return line.removeprefix(f"{path}: ")

    assert told(None, "absent.yaml") == "there is no such file; check the path"
    assert told(None, "") == "is a folder; name a manifest file in it"
    assert told(b"a: b\nc: \xff") == "line 2: is not UTF-8; save the file as UTF-8"
    assert told(b"") == "the file is empty; a BatchJob begins with apiVersion: rowmill.dev/v1alpha1"
    assert told("ä".encode() * MAX_BYTES).startswith("the file is larger than 1,048,576 bytes")
    good = tmp_path / "good.yaml"
    good.write_bytes(b"\xef\xbb\xbf" + HEAD.encode())
    assert load_manifest_file(good) == load_manifest(HEAD, where="x")


def test_a_resource_of_the_cluster_is_checked_alike() -> None:
    value: dict[str, Any] = {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "a"},
        "spec": 3,
    }
    with pytest.raises(InvalidInput) as caught:
        parse_job(value, where="support/a")
    assert caught.value.lines() == ["support/a: spec: must be a mapping (fields, indented below it), not the number 3"]
