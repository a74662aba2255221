"""The CRD's CEL rules, each evaluated both ways, and each with its counterpart in what the operator checks."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.spec import frozen_changes, frozen_part, identity_of, parse_job
from rowmill.spec.crd import resource_schema
from rowmill.spec.frozen import FROZEN_ADVICE
from rowmill.spec.rules import ROOT_RULES, RULES
from tests.unit.crd_helpers import defaulted, holds, nodes, opaque, refused, stored

SCHEMA = resource_schema()
HTTP = {"url": "http://127.0.0.1/"}
FREEZING = [rule for rule in ROOT_RULES if "oldSelf" in rule.rule]


def resource(name: str = "triage", **spec: Any) -> dict[str, Any]:
    whole = {"source": {"uri": "https://h/a.csv"}, "executor": {"http": HTTP}} | copy.deepcopy(spec)
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": name},
        "spec": {field: value for field, value in whole.items() if value is not None},
    }


def http(**fields: Any) -> dict[str, Any]:
    return {"executor": {"http": HTTP | fields}}


def header(**fields: Any) -> dict[str, Any]:
    return http(headers=[{"name": "X-A"} | fields])


SECRET = {"env": "KEY"}
OPENAI = {"model": "m", "messages": [{"role": "user", "content": "x"}]}


def openai(**fields: Any) -> dict[str, Any]:
    return {"executor": {"openai": {"baseUrl": "http://o/v1"} | fields}}


BATCH = {"embeddings": {"model": "m", "text": "x"}}

HOOK = {"url": "https://h/"}
SECRET_KEY = {"secretKeyRef": {"name": "s", "key": "k"}}


def notify(**fields: Any) -> dict[str, Any]:
    return {"notify": HOOK | {"headers": [{"name": "X-A"} | fields]}}


WRONG: list[tuple[dict[str, Any], str, str]] = [
    # what is given, where it is told, how the message begins
    ({"source": {}}, "spec.source", "takes exactly one of uri, rows, configMap, query"),
    ({"source": {"uri": "a.csv", "rows": []}}, "spec.source", "takes exactly one of uri"),
    ({"source": {"uri": "https://me:pw@h/a.csv"}}, "spec.source", "uri holds a user or password"),
    ({"source": {"rows": [], "format": "CSV"}}, "spec.source", "format goes with uri or configMap only"),
    ({"source": {"uri": "https://h/a"}}, "spec.source", "format cannot be told from the suffix"),
    ({"source": {"uri": "https://h/a.txt?x=.csvx"}}, "spec.source", "format cannot be told from the suffix"),
    ({"source": {"configMap": {"name": "a", "key": "b"}}}, "spec.source", "format cannot be told from the suffix"),
    ({"source": {"uri": "https://h/a.csv", "secretName": "s"}}, "spec.source", "secretName goes with a uri in an obj"),
    ({"source": {"rows": [], "secretName": "s"}}, "spec.source", "secretName goes with a uri in an object store"),
    ({"executor": {}}, "spec.executor", "takes exactly one of http, openai"),
    ({"executor": {"http": HTTP, "python": {"function": "a:b"}}}, "spec.executor", "takes exactly one of http"),
    (header(), "spec.executor.http.headers[0]", "needs exactly one of value, valueFrom"),
    (header(value="x", valueFrom=SECRET), "spec.executor.http.headers[0]", "needs exactly one of value, valueFrom"),
    (header(name="Idempotency-KEY", value="x"), "spec.executor.http.headers[0]", "name is one that is set by Rowmill"),
    (header(name="authorization", value="Bearer x"), "spec.executor.http.headers[0]", "value: a secret never stands"),
    (header(valueFrom={}), "spec.executor.http.headers[0].valueFrom", "takes exactly one of secretKeyRef, env, file"),
    (
        header(valueFrom={"env": "A", "file": "b"}),
        "spec.executor.http.headers[0].valueFrom",
        "takes exactly one of sec",
    ),
    (
        http(headers=[{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]),
        "spec.executor.http",
        "headers name a header twice; set it once",
    ),
    (http(url="ftp://h/"), "spec.executor.http", "url is no http URL"),
    (http(url="h/{{ row.x }}"), "spec.executor.http", "url is no http URL"),
    (http(url="http://me:pw@h/{{ row.x }}"), "spec.executor.http", "url holds a user or password"),
    (
        {"executor": {"openai": OPENAI | {"baseUrl": "h/v1"}}},
        "spec.executor.openai",
        "baseUrl is no http URL",
    ),
    (
        {
            "executor": {
                "openai": {"baseUrl": "https://a@h", "model": "m", "messages": [{"role": "user", "content": "x"}]}
            }
        },
        "spec.executor.openai",
        "baseUrl holds a user or password",
    ),
    (openai(messages=OPENAI["messages"]), "spec.executor.openai", "model is missing, or stands beside"),
    ({"key": ["custom_id"]} | openai(endpoint="BatchLines", model="m"), "spec.executor.openai", "model is missing, or"),
    (openai(endpoint="BatchLines"), "spec", "key must be [custom_id] with endpoint BatchLines"),
    (openai(endpoint="BatchLines") | {"key": ["custom_id", "a"]}, "spec", "key must be [custom_id] with endpoint"),
    (
        openai(endpoint="Completions", model="m", prompt="x", jsonSchema={"schema": {}}),
        "spec.executor.openai",
        "jsonSchema goes with endpoint ChatCompletions or Responses only",
    ),
    (
        openai(**OPENAI, headers=[{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]),
        "spec.executor.openai",
        "headers name a header twice; set it once",
    ),
    ({"executor": {"dify": {"baseUrl": "h", "apiKey": SECRET}}}, "spec.executor.dify", "baseUrl is no http URL"),
    ({"executor": {"dify": {"baseUrl": "http://a@h", "apiKey": SECRET}}}, "spec.executor.dify", "baseUrl holds a user"),
    ({"executor": {"comfyui": {"url": "h", "workflow": {}}}}, "spec.executor.comfyui", "url is no http URL"),
    ({"executor": {"comfyui": {"url": "http://a@h", "workflow": {}}}}, "spec.executor.comfyui", "url holds a user"),
    (
        {"executor": {"comfyui": {"url": "http://h", "workflow": {}, "headers": [{"name": "a", "value": "1"}] * 2}}},
        "spec.executor.comfyui",
        "headers name a header twice; set it once",
    ),
    (
        {"executor": {"comfyui": {"url": "http://h", "workflow": {}, "store": {"uri": "made", "secretName": "s"}}}},
        "spec.executor.comfyui.store",
        "secretName goes with a uri in an object store",
    ),
    (
        {"executor": {"comfyui": {"url": "http://h", "workflow": {}, "store": {"uri": "s3://a@b/c"}}}},
        "spec.executor.comfyui.store",
        "uri holds a user or password",
    ),
    (
        {"executor": {"embeddings": {**BATCH["embeddings"], "batching": {"minSize": 65}}}},
        "spec.executor.embeddings.batching",
        "minSize is above maxSize; make minSize smaller or maxSize larger",
    ),
    (
        {"executor": {"python": {"function": "a:b", "batching": {"queueSize": 63}}}},
        "spec.executor.python.batching",
        "queueSize is below maxSize: no batch could fill",
    ),
    (
        {"executor": {"embeddings": {**BATCH["embeddings"], "device": "CPU", "dtype": "Float16"}}},
        "spec.executor.embeddings",
        "dtype is Float16, which a CPU",
    ),
    (
        {"mode": "Simulate", "simulate": {"latencyMilliseconds": {"min": 1}}},
        "spec.simulate.latencyMilliseconds",
        "min is",
    ),
    ({"concurrency": {"adaptive": {"min": 33}}}, "spec.concurrency.adaptive", "min is above max"),
    ({"retry": {"initialSeconds": 61}}, "spec.retry", "initialSeconds is above maxSeconds"),
    ({"workers": {"minReplicas": 11}}, "spec.workers", "minReplicas is above maxReplicas"),
    ({"output": {"uri": "s3://b/a"}}, "spec.output", "uri names no folder of the object store; end it in /"),
    ({"output": {"uri": "out.xlsx"}}, "spec.output", "uri: results are not written as Excel"),
    ({"output": {"uri": "s3://a:b@c/d/"}}, "spec.output", "uri holds a user or password"),
    ({"output": {"secretName": "s"}}, "spec.output", "secretName goes with a uri in an object store"),
    ({"dedupe": {}}, "spec", "key is missing, and dedupe needs it"),
    ({"key": ["a", "a"]}, "spec", "key names a column twice"),
    ({"budget": {}}, "spec.budget", "names nothing; set at least one of requests, tokens, cost"),
    ({"budget": {"tokens": 1}}, "spec", "budget.tokens counts nothing, as only openai and dify are told tokens"),
    ({"budget": {"cost": 1}}, "spec", "budget.cost counts nothing without a price"),
    ({"name": "n" * 64}, "", "metadata.name must be lower-case letters"),
    ({"name": "a.b"}, "", "metadata.name must be lower-case letters"),
    ({"notify": {}}, "spec.notify", "takes exactly one of url, urlFrom"),
    ({"notify": HOOK | {"urlFrom": SECRET_KEY}}, "spec.notify", "takes exactly one of url, urlFrom"),
    ({"notify": {"url": "ftp://h/"}}, "spec.notify", "url is no http URL"),
    ({"notify": {"url": "https://me:pw@h/"}}, "spec.notify", "url holds a user or password; send them by headers with"),
    (notify(), "spec.notify.headers[0]", "needs exactly one of value, valueFrom"),
    (notify(name="Webhook-Id", value="x"), "spec.notify.headers[0]", "name is one that is set by Rowmill"),
    (notify(name="authorization", value="x {{ y }}"), "spec.notify.headers[0]", "value: a secret never stands in a"),
    (
        {"notify": HOOK | {"headers": [{"name": "X-A", "value": "1"}, {"name": "x-a", "value": "2"}]}},
        "spec.notify",
        "headers name a header twice; set it once",
    ),
]

RIGHT: list[dict[str, Any]] = [
    {},
    {"source": {"rows": []}},
    {"source": {"uri": "https://h/a.CSV?x=1"}},
    {"source": {"uri": "https://h/a.csv/#there"}},
    {"source": {"uri": "https://h/@a/b.ndjson"}},
    {"source": {"uri": "https://h/a", "format": "CSV"}},
    {"source": {"uri": "S3://b/a.xlsx", "secretName": "s"}},
    {"source": {"configMap": {"name": "a", "key": "b.parquet"}}},
    {"source": {"configMap": {"name": "a", "key": "b"}, "format": "CSV"}},
    header(value="x"),
    header(valueFrom=SECRET),
    header(name="Authorization", valueFrom=SECRET),
    header(name="Authorization", value="Bearer {{ row.token }}"),
    http(headers=[{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]),
    http(url="HTTPS://h/{{ row.x }}@y"),
    http(url="{{ row.url }}"),
    {"executor": BATCH},
    {"executor": {"embeddings": {**BATCH["embeddings"], "dtype": "Float16", "batching": {"queueSize": 64}}}},
    {"executor": {"python": {"function": "a:b"}}},
    openai(**OPENAI, jsonSchema={"schema": {"type": "object"}}, headers=[{"name": "X-A", "value": "1"}]),
    openai(endpoint="Responses", model="m", input="x", jsonSchema={"schema": {}}),
    openai(endpoint="BatchLines") | {"key": ["custom_id"]},
    {"mode": "Simulate", "simulate": {"latencyMilliseconds": {"min": 5, "max": 5}}},
    {"concurrency": {"adaptive": {}}},
    {"retry": {"initialSeconds": 5, "maxSeconds": 5}},
    {"workers": {"minReplicas": 10}},
    {"budget": {"requests": 1}},
    {"budget": {"cost": "0.5"}, "pricing": {"perCall": "0.01"}},
    {"budget": {"cost": 5}, "pricing": {"perMillionInputTokens": 1}} | openai(**OPENAI),
    {"budget": {"tokens": 1}} | openai(**OPENAI),
    {"budget": {"tokens": 1}, "executor": {"dify": {"baseUrl": "http://d/v1", "apiKey": SECRET}}},
    {"output": {"uri": "gs://b/a/", "secretName": "s"}},
    {"output": {"uri": "out.xlsx", "format": "CSV"}},
    {"output": {"uri": "out/results.csv"}},
    {"key": ["a", "b"], "dedupe": {}},
    {"notify": HOOK | {"events": ["Complete", "Failed", "Suspended", "Stalled"]}},
    {"notify": {"urlFrom": SECRET_KEY, "signingKeyFrom": SECRET_KEY}},
    notify(name="Authorization", valueFrom=SECRET_KEY),
    notify(value="{{ stands as it is }}"),
    {"name": "n" * 63},
]


def broken(value: dict[str, Any], old: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    return [(path, rule["message"]) for path, rule in refused(value, SCHEMA, old=old)]


@pytest.mark.parametrize(("spec", "path", "told"), WRONG)
def test_what_a_rule_refuses_the_operator_refuses_too(spec: dict[str, Any], path: str, told: str) -> None:
    value = resource(**spec)
    ((where, message),) = broken(defaulted(value, SCHEMA))
    assert where == path
    assert message.startswith(told)
    with pytest.raises(InvalidInput) as caught:
        parse_job(value, where="t")
    assert any(line.startswith(f"t: {path or 'metadata'}") for line in caught.value.lines()), caught.value.lines()


@pytest.mark.parametrize("spec", RIGHT)
def test_what_is_right_passes_every_rule(spec: dict[str, Any]) -> None:
    value = resource(**spec)
    parse_job(value, where="t")
    assert broken(defaulted(value, SCHEMA)) == []


def test_every_rule_is_broken_by_some_case_above() -> None:
    told = tuple(told for _, _, told in WRONG)
    declared = {rule.message for rules in RULES.values() for rule in rules}
    declared |= {rule.message for rule in ROOT_RULES if rule not in FREEZING}
    assert {message for message in declared if not message.startswith(told)} == set()
    places = {(path, rule["rule"]) for path, node in nodes(SCHEMA) for rule in node.get("x-kubernetes-validations", ())}
    assert {rule for _, rule in places} == {r.rule for rs in (*RULES.values(), ROOT_RULES) for r in rs}


def test_messages_name_a_field_and_the_next_step_in_one_line() -> None:
    for rule in (r for rs in (*RULES.values(), ROOT_RULES) for r in rs):
        assert "\n" not in rule.message
        assert len(rule.message) < 200
        assert re.match(r"([a-z]+[A-Za-z.]*)( |:)", rule.message)
        assert re.search(r"; |exactly one of|: ", rule.message), rule.message


# What a run freezes


def begun(value: dict[str, Any], *, epoch: int = 1, run: str | None = None) -> dict[str, Any]:
    """The resource as stored, of a run that has been fed."""
    name = run or identity_of(parse_job(value, where="t"), installation="i").run_id
    return stored(value, SCHEMA) | {"status": {"run": {"id": name, "generation": 0, "epoch": epoch}}}


def frozen(value: dict[str, Any], old: dict[str, Any], paths: set[str] | None = None) -> set[str]:
    """What the freezing rules (of these paths) say of an edit."""
    now, before = opaque(value, SCHEMA), opaque(old, SCHEMA)
    rules = [rule for rule in FREEZING if paths is None or rule.message.split(" ")[0] in paths]
    assert rules
    return {rule.message for rule in rules if not holds(rule.rule, self=now, oldSelf=before)}


def edited(old: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    return stored(value, SCHEMA) | {"status": old["status"]}


def asked_of_operator(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the operator says of an edit of a run that has been fed; another run's manifest is none of its business."""
    old, new = (parse_job({**value, "status": None}, where="t") for value in (before, after))
    if identity_of(old, installation="i") != identity_of(new, installation="i"):
        return []
    return [problem.path for problem in frozen_changes(frozen_part(old.spec), frozen_part(new.spec))]


BEFORE: dict[str, Any] = {
    "source": {"uri": "https://h/a.csv", "limit": 5},
    "key": ["id"],
    "dedupe": {"group": "a"},
    **http(body={"text": "{{ row.x }}", "deep": [1, {"a": None}]}, headers=[{"name": "A", "value": "1"}]),
}
ROWS = {"source": {"rows": [{"a": 1}, {"a": None}]}}
CONFIG = {"source": {"configMap": {"name": "a", "key": "b.csv"}}}
QUERY = {"source": {"query": {"connection": {"name": "a", "key": "b"}, "sql": "SELECT 1"}}}
SIMULATED: dict[str, Any] = {
    **BEFORE,
    "mode": "Simulate",
    "simulate": {"errors": [{"class": "Timeout", "percent": 5}], "costPerRow": 0},
}

EMBEDDINGS: dict[str, Any] = {"executor": {"embeddings": {"model": "m", "text": "{{ row.x }}"}}}
FUNCTION: dict[str, Any] = {"executor": {"python": {"function": "a:b", "arguments": {"x": [1]}, "processes": 2}}}
GATHERED = openai(endpoint="Embeddings", model="m", input="{{ row.x }}", batching={"maxSize": 8})


def embeddings(**fields: Any) -> dict[str, Any]:
    return {"executor": {"embeddings": EMBEDDINGS["executor"]["embeddings"] | fields}}


def function(**fields: Any) -> dict[str, Any]:
    return {"executor": {"python": FUNCTION["executor"]["python"] | fields}}


def gathered(**fields: Any) -> dict[str, Any]:
    return {"executor": {"openai": GATHERED["executor"]["openai"] | fields}}


FROZEN: list[tuple[dict[str, Any], dict[str, Any], set[str]]] = [
    (BEFORE, {"source": {"uri": "https://h/b.csv"}}, {"spec.source.uri"}),
    (BEFORE, {"source": {"uri": "https://h/a.csv", "format": "JSONL"}}, {"spec.source.format"}),
    (BEFORE, ROWS, {"spec.source.uri", "spec.source.rows"}),
    (BEFORE | ROWS, {"source": {"rows": [{"a": 1}, {"a": 2}]}}, {"spec.source.rows"}),
    (BEFORE | ROWS, {"source": {"rows": [{"a": 1}]}}, {"spec.source.rows"}),
    (BEFORE | ROWS, {"source": {"rows": [{"a": 1}, {}]}}, {"spec.source.rows"}),
    (BEFORE | CONFIG, {"source": {"configMap": {"name": "a", "key": "c.csv"}}}, {"spec.source.configMap"}),
    (BEFORE | QUERY, CONFIG, {"spec.source.configMap", "spec.source.query"}),
    (BEFORE, {"key": ["id", "b"]}, {"spec.key"}),
    (BEFORE | {"key": ["a", "b"]}, {"key": ["b", "a"]}, {"spec.key"}),
    (BEFORE, http(body={"text": "{{ row.y }}", "deep": [1, {"a": None}]}), {"spec.executor"}),
    (BEFORE, http(body={"text": "{{ row.x }}", "deep": [1, {}]}), {"spec.executor"}),
    (BEFORE, {"executor": {"python": {"function": "a:b"}}}, {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(model="n", batching={"maxSize": 8}), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(text="{{ row.y }}"), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(revision="v1"), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(dtype="BFloat16"), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(device="CPU"), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(maxLength=9), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(onTooLong="Fail"), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, embeddings(normalize=False), {"spec.executor"}),
    (BEFORE | EMBEDDINGS, FUNCTION, {"spec.executor"}),
    (BEFORE | FUNCTION, function(function="a:c", processes=3), {"spec.executor"}),
    (BEFORE | FUNCTION, function(arguments={"x": [2]}), {"spec.executor"}),
    (BEFORE | GATHERED, gathered(batching=None), {"spec.executor"}),
    (BEFORE | GATHERED, gathered(model="n"), {"spec.executor"}),
    (BEFORE | GATHERED, gathered(parameters={"dimensions": 8}), {"spec.executor"}),
    (BEFORE | openai(**OPENAI), openai(**OPENAI | {"messages": [{"role": "user", "content": "y"}]}), {"spec.executor"}),
    (BEFORE, {"dedupe": {"group": "b"}}, {"spec.dedupe"}),
    (BEFORE, {"dedupe": None}, {"spec.dedupe"}),
    (BEFORE, {"shards": 5}, {"spec.shards"}),
    (BEFORE, {"timeoutSeconds": 61}, {"spec.timeoutSeconds"}),
    (SIMULATED, {"simulate": {"seed": 1}}, {"spec.simulate"}),
    (SIMULATED, {"simulate": None}, {"spec.simulate"}),
]

FREE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (BEFORE, {}),
    (BEFORE, {"source": {"uri": "https://h/a.csv", "limit": 7}}),
    (BEFORE, {"source": {"uri": "https://h/a.csv"}}),
    (BEFORE | {"source": {"uri": "s3://b/a.csv"}}, {"source": {"uri": "s3://b/a.csv", "secretName": "s"}}),
    (BEFORE, {"runId": "2", "source": {"uri": "https://h/b.csv"}, "shards": 7}),
    (BEFORE, {"mode": "Simulate", "shards": 7}),
    (BEFORE, {"simulate": {"seed": 1}}),
    (BEFORE, {"shards": 4, "timeoutSeconds": 60, "dedupe": {"group": "a", "ttlSeconds": 86400}}),
    (BEFORE, {"workers": {"maxReplicas": 3}, "suspend": True, "retryGeneration": 1, "limits": {"group": "g"}}),
    (BEFORE, {"retry": {"maxAttempts": 9}, "failurePolicy": {"maxFailedPercent": 1}, "concurrency": {"perWorker": 2}}),
    (SIMULATED, {"simulate": SIMULATED["simulate"] | {"costPerRow": "0"}}),
    (BEFORE | http(), http(headers=[], method="POST")),
    (BEFORE | {"key": None, "dedupe": None}, {"key": []}),
    (BEFORE | EMBEDDINGS, embeddings(batching={"maxSize": 256, "minSize": 4}, startTimeoutSeconds=60)),
    (BEFORE | FUNCTION, function(processes=None, batching={}, startTimeoutSeconds=60)),
    (BEFORE | GATHERED, gathered(batching={"maxSize": 9, "maxWaitMilliseconds": 0, "queueSize": 90})),
]


@pytest.mark.parametrize(("before", "change", "paths"), FROZEN)
def test_what_a_run_freezes_is_refused_by_the_field_that_changed(
    before: dict[str, Any], change: dict[str, Any], paths: set[str]
) -> None:
    old = begun(resource(**before))
    new = edited(old, resource(**(before | change)))
    assert {message for _, message in broken(new, old)} == {f"{path} {FROZEN_ADVICE}" for path in paths}
    assert {next(p for p in paths if path.startswith(p)) for path in asked_of_operator(old, new)} == paths


@pytest.mark.parametrize(("before", "change", "paths"), FROZEN)
def test_before_anything_was_fed_and_in_another_run_everything_may_change(
    before: dict[str, Any], change: dict[str, Any], paths: set[str]
) -> None:
    for old in (
        begun(resource(**before), epoch=0),
        begun(resource(**before), run="another"),
        begun(resource(**before)) | {"status": {}},
        begun(resource(**before)) | {"status": {"run": {"id": "1"}}},
    ):
        assert frozen(edited(old, resource(**(before | change))), old, paths) == set()
    bare = defaulted(resource(**before), SCHEMA)
    assert frozen(defaulted(resource(**(before | change)), SCHEMA), bare, paths) == set()
    renamed = resource(**(before | change | {"runId": "b"}))
    old = begun(resource(**before))
    assert frozen(edited(old, renamed), old, paths) == set()


@pytest.mark.parametrize(("before", "change"), FREE)
def test_what_the_operator_lets_change_the_rules_let_change(before: dict[str, Any], change: dict[str, Any]) -> None:
    old = begun(resource(**before))
    new = edited(old, resource(**(before | change)))
    assert asked_of_operator(old, new) == []
    assert broken(new, old) == []


def test_every_freezing_rule_is_broken_by_some_case_above() -> None:
    assert {rule.message.removesuffix(f" {FROZEN_ADVICE}") for rule in FREEZING} == set().union(
        *(p for *_, p in FROZEN)
    )


PARTS = st.fixed_dictionaries(
    {},
    optional={
        "runId": st.sampled_from(["1", "2"]),
        "mode": st.sampled_from(["Run", "Simulate"]),
        "shards": st.sampled_from([4, 5]),
        "key": st.sampled_from([[], ["a"], ["a", "b"]]),
        "timeoutSeconds": st.sampled_from([60, 61]),
        "suspend": st.booleans(),
        "simulate": st.sampled_from([{}, {"seed": 1}, {"costPerRow": "0"}, {"costPerRow": 0}]),
        "source": st.sampled_from([ROWS["source"], CONFIG["source"], {"uri": "a.csv"}, {"uri": "a.csv", "limit": 1}]),
        "executor": st.sampled_from(
            [
                {"http": HTTP},
                {"http": HTTP | {"method": "POST"}},
                {"http": HTTP | {"body": 1}},
                *(one["executor"] for one in (EMBEDDINGS, embeddings(batching={"maxSize": 8}), FUNCTION, function())),
                *(one["executor"] for one in (function(processes=9), GATHERED, gathered(batching={}))),
                *(one["executor"] for one in (gathered(batching=None), gathered(input="x"), gathered(result="model"))),
            ]
        ),
    },
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(before=PARTS, after=PARTS)
def test_no_rule_refuses_an_edit_that_the_operator_would_take(before: dict[str, Any], after: dict[str, Any]) -> None:
    old = begun(resource(**before))
    new = edited(old, resource(**after))
    if frozen(new, old):
        assert asked_of_operator(old, new) != []


# What a rule may cost

LIMIT = 10_000_000
"""Of one rule, in the API server's units; a whole definition may have ten times as much."""

UNBOUNDED = 3_145_728
"""Characters of a text that no schema bounds: metadata.name."""


def costs() -> Iterator[tuple[str, int]]:
    """The worst case of each rule, too high rather than too low: each text read is walked a tenth of a unit a byte and
    a quarter more for each character of a pattern; nested loops are multiplied, as are rules in lists."""

    def walk(node: dict[str, Any], path: str, times: int) -> Iterator[tuple[str, int]]:
        sizes = {p: _bytes(n) for p, n in nodes(node)} | {"metadata.name": UNBOUNDED}
        for rule in node.get("x-kubernetes-validations", ()):
            text = rule["rule"]
            reads = [sizes.get(p, 0) for p in re.findall(r"(?:self|oldSelf)\.([A-Za-z._]+)", text.replace("__", ""))]
            patterns = [len(p) for p in re.findall(r"matches\('([^']*)'\)", text)]
            lists = re.findall(r"self\.(\w+)\.(?:all|exists_one)\(", text)
            turn = sum(reads) // 10 * (1 + max(patterns, default=0) // 4) + 10 * len(reads) + 100
            turn += sum(_item_bytes(node, name, text) * 4 // 10 for name in set(lists))
            for name in lists:
                turn *= node["properties"][name]["maxItems"]
            yield f"{path}: {rule['message']}", turn * times
        for name, below in node.get("properties", {}).items():
            yield from walk(below, f"{path}.{name}", times)
        if "items" in node:
            yield from walk(node["items"], f"{path}[]", times * node["maxItems"])

    return walk(SCHEMA, "", 1)


def _bytes(node: dict[str, Any]) -> int:
    if node.get("type") == "string":
        return 4 * int(node.get("maxLength", 0)) or max(len(value) for value in node["enum"])
    return int(node.get("maxItems", 1))


def _item_bytes(node: dict[str, Any], name: str, rule: str) -> int:
    items = node["properties"][name]["items"]
    read = [items["properties"][field] for field in re.findall(r"\b[a-z]\.(\w+)\.", rule) if "properties" in items]
    return max(_bytes(item) for item in read or [items])


def test_what_the_rules_may_cost_is_far_below_what_an_api_server_allows() -> None:
    found = dict(costs())
    assert len(found) > 30
    assert {rule: cost for rule, cost in found.items() if cost > LIMIT // 2} == {}
    assert sum(found.values()) < 10 * LIMIT // 2


def test_a_rule_that_is_wrong_is_an_error_and_not_a_refusal() -> None:
    with pytest.raises(Exception, match="nothing"):
        holds("self.nothing > 1", self={})
