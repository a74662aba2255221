"""What follows from a manifest alone: what is frozen, keys, columns, what this build runs, slots of a worker."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.spec import (
    BadKey,
    BatchJob,
    Place,
    canonical_key,
    check_available,
    default_in_flight,
    effective_concurrency,
    executor_digest,
    frozen_changes,
    frozen_part,
    key_value,
    missing_columns,
    not_available,
    parse_job,
    slot_bounds,
)

HTTP = {"url": "http://127.0.0.1/", "body": {"text": "{{ row.subject }}", "keep": None}}


def job(**spec: Any) -> BatchJob:
    executor = spec.pop("executor", {"http": HTTP})
    source = spec.pop("source", {"uri": "tickets.csv"})
    return parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage"},
            "spec": {"source": source, "executor": executor, **spec},
        },
        where="test",
    )


def changed(**spec: Any) -> list[str]:
    before, after = frozen_part(job().spec), frozen_part(job(**spec).spec)
    stored = json.loads(json.dumps(before))
    return [f"{p.path}: {p.message}" for p in frozen_changes(stored, after)]


ADVICE = "is frozen for a run: change spec.runId to start a new one, or set it back"


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"source": {"uri": "other.csv"}}, "spec.source.uri"),
        ({"source": {"uri": "tickets.csv", "format": "JSONL"}}, "spec.source.format"),
        ({"key": ["id"]}, "spec.key"),
        ({"executor": {"http": {**HTTP, "url": "http://127.0.0.1/2"}}}, "spec.executor.http.url"),
        ({"executor": {"http": {**HTTP, "body": {"text": "x", "keep": None}}}}, "spec.executor.http.body.text"),
        ({"executor": {"http": {**HTTP, "body": {"text": "{{ row.subject }}"}}}}, "spec.executor.http.body.keep"),
        ({"shards": 5}, "spec.shards"),
        ({"timeoutSeconds": 61}, "spec.timeoutSeconds"),
        ({"mode": "Simulate"}, "spec.mode"),
        ({"key": ["id"], "dedupe": {}}, "spec.dedupe"),
    ],
)
def test_frozen_fields(spec: dict[str, Any], path: str) -> None:
    assert f"{path}: {ADVICE}" in changed(**spec)


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"source": {"uri": "tickets.csv", "limit": 5}},
        {"timeoutSeconds": 60, "shards": 4, "mode": "Run"},
        {"simulate": {"seed": 3}},
        {"retry": {"maxAttempts": 1}, "retryGeneration": 2, "suspend": True},
        {"workers": {"maxReplicas": 3}, "concurrency": {"perWorker": 9}, "limits": {"group": "a"}},
        {"failurePolicy": {"maxFailedPercent": 1}, "activeDeadlineSeconds": 3, "resultsRetentionSeconds": 60},
        {"output": {"uri": "x.csv"}, "ttlSecondsAfterFinished": 5, "completionTargetSeconds": 60},
    ],
)
def test_fields_that_may_change(spec: dict[str, Any]) -> None:
    assert changed(**spec) == []


TUNED: list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    # an executor, what of it is free, what is not
    (
        {"embeddings": {"model": "m", "text": "x"}},
        {"batching": {"maxSize": 8, "queueSize": 99}, "startTimeoutSeconds": 9},
        {"text": "y"},
    ),
    (
        {"python": {"function": "a:b"}},
        {"batching": {"maxSize": 8}, "processes": 3, "startTimeoutSeconds": 9},
        {"arguments": {"x": 1}},
    ),
    (
        {"openai": {"baseUrl": "http://o/v1", "endpoint": "Embeddings", "model": "m", "input": "x", "batching": {}}},
        {"batching": {"maxSize": 8, "maxWaitMilliseconds": 0}},
        {"batching": None},
    ),
]


@pytest.mark.parametrize(("executor", "free", "shaping"), TUNED, ids=lambda value: next(iter(value)))
def test_how_rows_are_gathered_is_free_also_for_runs_that_have_recorded_it(
    executor: dict[str, Any], free: dict[str, Any], shaping: dict[str, Any]
) -> None:
    (kind, fields) = next(iter(executor.items()))
    before, tuned, other = (job(executor={kind: {**fields, **some}}).spec for some in ({}, free, shaping))
    assert frozen_changes(frozen_part(before), frozen_part(tuned)) == []
    assert executor_digest(tuned) == executor_digest(before)
    # What an older version recorded: all of the executor.
    older = frozen_part(before) | {
        "executor": before.executor.model_dump(mode="json", by_alias=True, exclude_none=True)
    }
    assert older != frozen_part(before)
    for now in (before, tuned):
        assert frozen_changes(json.loads(json.dumps(older)), frozen_part(now)) == []
    (change,) = frozen_changes(older, frozen_part(other))
    assert change.path == f"spec.executor.{kind}.{next(iter(shaping))}" + (".x" if kind == "python" else "")
    assert executor_digest(other) != executor_digest(before)


def test_inline_rows_are_frozen_by_digest() -> None:
    first = frozen_part(job(source={"rows": [{"a": "secret cell", "b": None}]}).spec)
    assert "secret cell" not in json.dumps(first)
    other = frozen_part(job(source={"rows": [{"a": "another", "b": None}]}).spec)
    assert [p.path for p in frozen_changes(first, other)] == ["spec.source.rows"]


def test_simulate_is_frozen_in_mode_simulate_only() -> None:
    one = frozen_part(job(mode="Simulate", simulate={"seed": 1, "costPerRow": 0.5}).spec)
    two = frozen_part(job(mode="Simulate", simulate={"seed": 2, "costPerRow": "0.5"}).spec)
    assert [p.path for p in frozen_changes(one, two)] == ["spec.simulate.seed"]


def test_very_many_changes_are_told_in_part() -> None:
    one = frozen_part(job(executor={"http": {"url": "http://x/", "body": {str(i): 1 for i in range(99)}}}).spec)
    two = frozen_part(job(executor={"http": {"url": "http://x/", "body": {str(i): 2 for i in range(99)}}}).spec)
    assert len(frozen_changes(one, two)) == 20


def test_the_executor_digest_names_what_shapes_a_result() -> None:
    base = executor_digest(job().spec)
    assert len(base) == 32
    assert executor_digest(job(concurrency={"perWorker": 9}, retry={"maxAttempts": 2}, shards=9).spec) == base
    reordered = {"body": dict(reversed(HTTP["body"].items())), "url": HTTP["url"], "method": "POST"}  # type: ignore[attr-defined]
    assert executor_digest(job(executor={"http": reordered}).spec) == base
    for change in ({"url": "http://127.0.0.2/"}, {"method": "PUT"}, {"body": {"text": "x"}}, {"result": "a"}):
        assert executor_digest(job(executor={"http": {**HTTP, **change}}).spec) != base
    assert executor_digest(job(mode="Simulate").spec) != base


@pytest.mark.parametrize(
    ("key", "row", "text"),
    [
        ([], {"a": 1}, None),
        (["a"], {"a": 1}, "1"),
        (["a"], {"a": "1"}, '"1"'),
        (["a"], {"a": "ä"}, '"ä"'),
        (["a"], {"a": None}, "null"),
        (["b", "a"], {"a": 1, "b": "x"}, '["x",1]'),
        (["a"], {"a": {"y": 1, "x": [2.5]}}, '{"x":[2.5],"y":1}'),
    ],
)
def test_keys(key: list[str], row: dict[str, Any], text: str | None) -> None:
    spec = job(key=key).spec
    assert canonical_key(spec, row) == text
    assert json.loads(text or "null") == key_value(spec, row)


@given(
    row=st.fixed_dictionaries({"a": st.text() | st.integers() | st.none(), "b": st.text()}),
    other=st.fixed_dictionaries({"a": st.text() | st.integers() | st.none(), "b": st.text()}),
)
def test_equal_keys_are_one_and_different_keys_are_two(row: dict[str, Any], other: dict[str, Any]) -> None:
    spec = job(key=["a", "b"]).spec
    same = canonical_key(spec, row) == canonical_key(spec, other)
    assert same == (row == other)
    assert canonical_key(spec, copy.deepcopy(row)) == canonical_key(spec, row)


@pytest.mark.parametrize(
    ("spec", "row", "told"),
    [
        ({"key": ["tikcet"]}, {"ticket": 1}, 'no column "tikcet", which spec.key names; did you mean "ticket"?'),
        ({"key": ["a"]}, {"a": "s3cret" * 200}, "takes 1,202 bytes, and 1,024 are allowed"),
        ({"key": ["a"]}, {"a": float("nan")}, "is no JSON value"),
        ({"key": ["a"]}, {"a": "\ud800"}, "is no JSON value"),
        ({"key": ["a"], "dedupe": {}}, {"a": ""}, "is empty"),
        ({"key": ["a", "b"], "dedupe": {}}, {"a": "", "b": None}, "is empty"),
    ],
)
def test_rows_without_a_usable_key(spec: dict[str, Any], row: dict[str, Any], told: str) -> None:
    with pytest.raises(BadKey) as caught:
        canonical_key(job(**spec).spec, row)
    assert told in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_key_partly_empty_is_a_key() -> None:
    assert canonical_key(job(key=["a", "b"], dedupe={}).spec, {"a": "", "b": 1}) == '["",1]'


def test_missing_columns_are_found_wherever_they_are_named() -> None:
    http = {
        "url": "http://h/{{ row.ID }}",
        "headers": [{"name": "X-Lang", "value": "{{ row.lang }}"}, {"name": "X-Key", "valueFrom": {"env": "A"}}],
        "query": {"q": "{{ row['two words'] }}"},
        "body": {"a": ["{{ row.subject }}", "{{ row.gone | default('') }}", "{{ row.opt if row.opt is defined }}"]},
    }
    found = missing_columns(
        job(executor={"http": http}, key=["id", "nokey"], output={"columns": ["noout"]}), ["id", "subject", "Lang"]
    )
    assert [f"{p.path}: {p.message}" for p in found] == [
        'spec.executor.http.url: the source has no column "ID"; did you mean "id"?',
        'spec.executor.http.headers[0].value: the source has no column "lang"; did you mean "Lang"?',
        'spec.executor.http.query.q: the source has no column "two words"; it has id, subject, Lang',
        'spec.key[1]: the source has no column "nokey"; it has id, subject, Lang',
        'spec.output.columns[0]: the source has no column "noout"; it has id, subject, Lang',
    ]


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"source": {"configMap": {"name": "a", "key": "b.csv"}}}, "spec.source.configMap: source configMap is"),
        (
            {"source": {"query": {"connection": {"name": "a", "key": "b"}, "sql": "x"}}},
            "spec.source.query: source query is",
        ),
        ({"source": {"uri": "ftp://b/a.csv"}}, "spec.source.uri: source scheme ftp:// is"),
        ({"output": {"uri": "https://b/a.csv"}}, "spec.output.uri: output to https:// is"),
    ],
)
def test_what_this_build_does_not_run_is_refused_by_name(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_available(job(**spec), where="job.yaml")
    (line,) = caught.value.lines()
    assert line.startswith(f"job.yaml: {told} not available in this build; ")


@pytest.mark.parametrize(
    "spec",
    [
        {"source": {"uri": "https://h/a.csv"}},
        {"source": {"rows": [{"a": 1}]}},
        {"output": {"uri": "out/results.parquet"}},
        {"source": {"uri": "s3://b/a.csv"}, "output": {"uri": "gs://b/results/"}},
        {"workers": {"gpu": {}, "nodeSelector": {"a": "b"}, "podTemplate": {"x": 1}}, "completionTargetSeconds": 60},
        {"mode": "Simulate", "key": ["a"], "dedupe": {}, "failurePolicy": {"maxFailedPercent": 1}},
    ],
)
def test_what_this_build_runs(spec: dict[str, Any]) -> None:
    assert not_available(job(**spec)) == []


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"source": {"uri": "data/a.csv"}}, "spec.source.uri: is a path, and the operator reads no files; put the"),
        ({"source": {"uri": "file:///a.csv"}}, "spec.source.uri: is a path, and the operator reads no files; put the"),
        (
            {"source": {"uri": "ftp://h/a.csv"}},
            "spec.source.uri: source scheme ftp:// is not available in this build; ",
        ),
        ({"output": {"uri": "out.csv"}}, "spec.output.uri: is a path, and pods keep no files; take a folder in an"),
        ({"output": {"uri": "https://h/o/"}}, "spec.output.uri: output to https:// is not available in this build; "),
        (
            {"source": {"query": {"connection": {"name": "a", "key": "b"}, "sql": "x"}}},
            "spec.source.query: source query is not available in this build; take configMap or rows or uri",
        ),
    ],
)
def test_what_a_cluster_does_not_run_is_refused_with_what_it_does(spec: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_available(job(**{"source": {"rows": [{"a": 1}]}, **spec}), where="default/j", place=Place.CLUSTER)
    (line,) = caught.value.lines()
    assert line.startswith(f"default/j: {told}")


@pytest.mark.parametrize(
    "spec",
    [
        {"source": {"rows": [{"a": 1}]}},
        {"source": {"configMap": {"name": "a", "key": "b.csv"}}},
        *({"source": {"uri": f"{scheme}://b/a.csv"}} for scheme in ("http", "https", "s3", "gs", "az", "abfs")),
        *({"output": {"uri": f"{scheme}://b/results/"}} for scheme in ("s3", "gs", "az", "abfs")),
    ],
)
def test_what_a_cluster_runs(spec: dict[str, Any]) -> None:
    assert not_available(job(**{"source": {"rows": [{"a": 1}]}, **spec}), Place.CLUSTER) == []


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (
            {"uri": "s3://b"},
            ["spec.output.uri: names no folder of the object store; end it in /, as s3://bucket/prefix/"],
        ),
        ({"uri": "gs://b/results.csv"}, ["spec.output.uri: names no folder of the object store; end it in /, as s3:"]),
        ({"secretName": "store"}, ["spec.output.secretName: goes with a uri in an object store (s3://, gs://, az://)"]),
        ({"uri": "o.csv", "secretName": "store"}, ["spec.output.secretName: goes with a uri in an object store (s3"]),
        ({"uri": "s3://b/p/", "secretName": "store"}, []),
        ({"uri": "out/"}, []),
    ],
)
def test_an_object_store_takes_results_into_a_folder(output: dict[str, Any], told: list[str]) -> None:
    if not told:
        assert job(output=output).spec.output.uri == output["uri"]
        return
    with pytest.raises(InvalidInput) as caught:
        job(output=output)
    assert [line.split(": ", 1)[1][: len(t)] for line, t in zip(caught.value.lines(), told, strict=True)] == told


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ({}, "JSONL"),
        ({"uri": "a.csv"}, "CSV"),
        ({"uri": "a.csv", "format": "Parquet"}, "Parquet"),
        ({"uri": "s3://b/a.csv/"}, "JSONL"),
        ({"uri": "s3://b/a.csv/", "format": "CSV"}, "CSV"),
    ],
)
def test_the_name_of_a_folder_tells_no_format(output: dict[str, Any], told: str) -> None:
    assert job(output=output).spec.output.effective_format == told


def test_credentials_of_the_source_go_with_an_object_store_and_may_change_within_a_run() -> None:
    with pytest.raises(InvalidInput, match=r"spec\.source\.secretName: goes with a uri in an object store"):
        job(source={"uri": "https://h/a.csv", "secretName": "store"})
    before, after = (job(source={"uri": "s3://b/a.csv", "secretName": n}).spec for n in ("old", "new"))
    bare = job(source={"uri": "s3://b/a.csv"}).spec
    assert frozen_part(before) == frozen_part(after) == frozen_part(bare)


@pytest.mark.parametrize(
    ("spec", "environ", "slots"),
    [
        ({}, {}, 3),
        ({}, {"MAX_CONCURRENT_REQUESTS": " 8 "}, 8),
        ({}, {"MAX_CONCURRENT_REQUESTS": ""}, 3),
        ({"concurrency": {"perWorker": 512}}, {"MAX_CONCURRENT_REQUESTS": "8"}, 512),
        ({"concurrency": {"perWorker": 512}}, {"MAX_CONCURRENT_REQUESTS": "nonsense"}, 512),
        ({"limits": {"group": "a"}}, {"MAX_CONCURRENT_REQUESTS": "64"}, 5),
        ({"limits": {"group": "a"}}, {}, 3),
        ({"limits": {"group": "a"}, "concurrency": {"perWorker": 64}}, {}, 64),
        ({"limits": {"group": "a", "maxInFlight": 2}}, {}, 2),
        ({"concurrency": {"adaptive": {"min": 4}}}, {}, 4),
        ({"concurrency": {"adaptive": {"max": 8}, "perWorker": 12}}, {}, 8),
        ({"limits": {"group": "a", "maxInFlight": 20}}, {"MAX_CONCURRENT_REQUESTS": "64"}, 20),
    ],
)
def test_slots_of_a_worker(spec: dict[str, Any], environ: dict[str, str], slots: int) -> None:
    assert effective_concurrency(job(**spec).spec, environ, "http") == slots


@pytest.mark.parametrize(
    ("spec", "bounds"),
    [
        ({"concurrency": {"perWorker": 6}}, (6, 6)),
        ({"concurrency": {"perWorker": 6, "adaptive": {"min": 2, "max": 20}}}, (2, 20)),
        ({"concurrency": {"adaptive": {"min": 2, "max": 20}}, "limits": {"group": "a", "maxInFlight": 9}}, (2, 9)),
        ({"concurrency": {"adaptive": {"min": 4}}, "limits": {"group": "a", "maxInFlight": 2}}, (2, 2)),
    ],
)
def test_slots_that_a_worker_may_come_to_have(spec: dict[str, Any], bounds: tuple[int, int]) -> None:
    assert slot_bounds(job(**spec).spec, {}) == bounds


def test_comfyui_bears_more_in_flight() -> None:
    assert (default_in_flight("http"), default_in_flight("comfyui")) == (5, 10)
    spec = job(limits={"group": "a"}).spec
    assert effective_concurrency(spec, {"MAX_CONCURRENT_REQUESTS": "64"}, "comfyui") == 10


@pytest.mark.parametrize("text", ["0", "-1", "many", "3.5", "1025", "9" * 30, "٣"])
def test_a_variable_that_is_no_number_of_slots(text: str) -> None:
    with pytest.raises(InvalidInput, match="MAX_CONCURRENT_REQUESTS: must be a whole number from 1 to 1024"):
        effective_concurrency(job().spec, {"MAX_CONCURRENT_REQUESTS": text}, "http")
