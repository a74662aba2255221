"""What a manifest may say of an OpenAI-compatible server, and what it is told otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill.spec import parse_job
from rowmill.spec.answer_schema import compiled_schema, schema_findings
from rowmill.spec.executors.openai import MAX_MESSAGES
from rowmill.spec.templates import columns_used

SECRET = [{"name": "api-key", "valueFrom": {"env": "K"}}]
TALK = [{"role": "user", "content": "{{ row.text }}"}]


def manifest(key: list[str] | None = None, **openai: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "triage"},
        "spec": {
            "source": {"rows": []},
            "key": key or [],
            "executor": {"openai": {"baseUrl": "http://m/v1", "model": "m"} | openai},
        },
    }


def chat(**fields: Any) -> dict[str, Any]:
    return manifest(messages=TALK, **fields)


@pytest.mark.parametrize(
    "given",
    [
        chat(),
        manifest(messages="{{ row.talk }}"),
        manifest(messages=[{"role": "{{ row.role }}", "content": [{"type": "text", "text": "x"}], "name": "a"}]),
        manifest(
            messages=[{"role": "assistant", "tool_calls": []}, {"role": "tool", "content": "x", "tool_call_id": "1"}]
        ),
        chat(parameters={"n": 2}, result="choices[].message.content"),
        chat(parameters={"n": 1, "stream": False, "background": None}),
        chat(apiKey={"env": "K"}, headers=[{"name": "api-key", "valueFrom": {"env": "K"}}]),
        manifest(
            endpoint="Responses", input=TALK, jsonSchema={"schema": {}}, parameters={"text": {"verbosity": "low"}}
        ),
        manifest(endpoint="Responses", input="x", parameters={"prompt": {"id": "pmpt_1"}}),
        manifest(endpoint="Completions", prompt=["{{ row.a }}", "x"], accept=["Length"]),
        manifest(endpoint="Embeddings", input="{{ row.text }}"),
        manifest(endpoint="Embeddings", input="{{ row.text }}", batching={"maxSize": 128}, headers=SECRET),
        manifest(["custom_id"], endpoint="BatchLines", model=None, accept=[]),
    ],
)
def test_what_is_right(given: dict[str, Any]) -> None:
    parse_job(given, where="t")


AT = "spec.executor.openai"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (manifest(), [f"{AT}.messages: is missing, and endpoint ChatCompletions needs it"]),
        (manifest(messages=[]), [f"{AT}.messages: is missing, and endpoint ChatCompletions needs it"]),
        (
            chat(model=None),
            [f"{AT}.model: is missing, and endpoint ChatCompletions needs it; name the model as the server does"],
        ),
        (chat(input="x"), [f"{AT}.input: goes with endpoint Embeddings or Responses only; leave it out"]),
        (
            manifest(endpoint="Embeddings", messages=TALK),
            [
                f"{AT}.messages: goes with endpoint ChatCompletions only; leave it out",
                f"{AT}.input: is missing, and endpoint Embeddings needs it",
            ],
        ),
        (
            manifest(messages="hi"),
            [f"{AT}.messages: must be a list of objects with role and content, or one template that is such a list"],
        ),
        (
            manifest(
                messages=[
                    "hi",
                    {"content": "x"},
                    {"role": "king", "content": "x"},
                    {"role": "user"},
                    {"role": "user", "content": 5},
                ]
            ),
            [
                f"{AT}.messages[0]: must be an object with role and content",
                f"{AT}.messages[1].role: must be one of system, developer, user, assistant, tool",
                f"{AT}.messages[2].role: must be one of system, developer, user, assistant, tool",
                f"{AT}.messages[3].content: is missing; write what is said",
                f"{AT}.messages[4].content: must be a text or a list of parts",
            ],
        ),
        (manifest(messages=TALK * (MAX_MESSAGES + 1)), [f"{AT}.messages: has 1,025 messages; at most 1,024"]),
        (
            chat(parameters={"model": "x", "messages": [], "stream": True, "background": True, "n": 3}),
            [
                f"{AT}.parameters.model: is set by model; leave it out here",
                f"{AT}.parameters.messages: is set by messages; leave it out here",
                f"{AT}.parameters.stream: cannot be set: answers are taken whole; leave it out",
                f"{AT}.parameters.background: cannot be set: an answer is waited for; leave it out",
                f"{AT}.parameters.n: asks for several answers, and a row has one result; set ",
            ],
        ),
        (
            chat(jsonSchema={"schema": {}}, parameters={"response_format": {}}),
            [f"{AT}.parameters.response_format: is set by jsonSchema; leave one of them out"],
        ),
        (
            manifest(endpoint="Responses", input="x", jsonSchema={"schema": {}}, parameters={"text": {"format": {}}}),
            [f"{AT}.parameters.text: is set by jsonSchema; leave one of them out"],
        ),
        (
            manifest(endpoint="Completions", prompt="x", jsonSchema={"schema": {}}),
            [f"{AT}.jsonSchema: goes with endpoint ChatCompletions or Responses only; leave it out"],
        ),
        (
            manifest(endpoint="Embeddings", input="x", accept=["Length"]),
            [f"{AT}.accept: goes with endpoints that answer text; leave it out"],
        ),
        (chat(batching={}), [f"{AT}.batching: goes with endpoint Embeddings only; leave it out"]),
        (
            manifest(
                endpoint="Embeddings",
                input=["{{ row.a }}"],
                batching={},
                model="{{ row.m }}",
                parameters={"user": ["{{ row.u }}"]},
                headers=[{"name": "X-A", "value": "{{ row.a }}"}],
            ),
            [
                f"{AT}.input: is a list, and with batching each row has one text; leave one of them out",
                *(
                    f"{AT}.{n}: holds a template, and with batching rows sha"
                    for n in ("model", "parameters", "headers")
                ),
            ],
        ),
        (chat(accept=["Length", "Length"]), [f'{AT}.accept: names "Length" twice; name it once']),
        (chat(baseUrl="http://{{ row.host }}/v1"), [f"{AT}.baseUrl: takes no template; one job has one server"]),
        (
            chat(apiKey={"env": "K"}, headers=[{"name": "AUTHORIZATION", "valueFrom": {"env": "K"}}]),
            [f"{AT}.headers[0].name: AUTHORIZATION is already set by apiKey; set it once"],
        ),
        (
            manifest(["custom_id"], endpoint="BatchLines", parameters={"n": 1}, jsonSchema={"schema": {}}),
            [
                f"{AT}.{name}: stands in the body of each line with endpoint BatchLines; leave it out"
                for name in ("model", "parameters", "jsonSchema")
            ],
        ),
        (
            manifest(["id"], endpoint="BatchLines", model=None),
            ["spec.key: must be [custom_id] with endpoint BatchLines; by it results are told apart"],
        ),
        (
            chat(jsonSchema={"schema": {"type": "objekt"}}),
            [f"{AT}.jsonSchema.schema.type: is no JSON schema: 'objekt' is not"],
        ),
        (manifest(messages=[{"role": "user", "content": "{{ row. }}"}]), [f"{AT}.messages[0].content: "]),
        (
            chat(parameters={"temperature": "{{ nothing }}"}),
            [f"{AT}.parameters.temperature: the template cannot be used: "],
        ),
        (chat(result="choices["), [f"{AT}.result: "]),
    ],
)
def test_what_is_wrong_is_told_in_a_line_each(given: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_job(given, where="t")
    lines = caught.value.lines()
    assert len(lines) == len(told), lines
    for line, begin in zip(sorted(lines), sorted(told), strict=True):
        assert line.startswith(f"t: {begin}")


def test_columns_are_found_in_every_part_of_a_request() -> None:
    given = chat(
        model="{{ row.model }}",
        parameters={"metadata": {"team": "{{ row.team }}"}},
        headers=[{"name": "X-A", "value": "{{ row.a }}"}],
        jsonSchema={"schema": {"description": "{{ row.never }}"}},
    )
    assert {use.column for use in columns_used(parse_job(given, where="t"))} == {"model", "text", "team", "a"}


@pytest.mark.parametrize(
    ("schema", "place", "told"),
    [
        ({"properties": {"a": {"type": 5}}}, ("properties", "a", "type"), "is no JSON schema"),
        ({"pattern": "("}, ("pattern",), "is no JSON schema"),
        ({"$ref": "http://169.254.169.254/latest"}, ("$ref",), "leads out of the schema"),
        ({"properties": {"a": {"$ref": "other.json"}}}, ("properties", "a", "$ref"), "leads out of the schema"),
        (
            {"items": {"$ref": "#/$defs/x"}, "$defs": {"y": {}}},
            ("items", "$ref"),
            "names #/$defs/x, and the schema has nothing",
        ),
        ({"allOf": [{"$ref": "#"}]}, (), "refers to itself without end"),
        ({"a": [1]} | {"not": {"$ref": "#/a/0"}}, ("not", "$ref"), "names #/a/0, and the schema has nothing"),
    ],
)
def test_schemas_that_cannot_be_applied(schema: dict[str, Any], place: tuple[str, ...], told: str) -> None:
    ((where, text),) = schema_findings(schema)
    assert where == place
    assert text.startswith(told)


def test_schemas_that_can_be_applied() -> None:
    tree = {
        "type": "object",
        "properties": {"$ref": {"type": "string"}, "below": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["below"],
        "$defs": {"a/b": {"enum": [1]}},
        "anyOf": [{"$ref": "#/$defs/a~1b"}, {"type": "object"}],
    }
    assert schema_findings(tree) == []
    misfit = compiled_schema(tree)
    assert misfit({"below": [{"below": []}], "$ref": "x"}) is None
    assert misfit({"below": [{}]}) == "$.below[0]: 'below' is a required property"
    deep: dict[str, Any] = {"below": []}
    for _ in range(2_000):
        deep = {"below": [deep]}
    assert misfit(deep) == "it is nested too deeply to be checked"
