"""What a row becomes for an OpenAI-compatible server, and what its answers become, over a real socket."""

from __future__ import annotations

import json
import ssl
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web

from rowmill.errors import InvalidInput
from rowmill.spec import load_manifest_file
from rowmill_worker.executors.caller import shared_connector
from rowmill_worker.executors.openai import OpenAIExecutor, OpenAIPreview
from rowmill_worker.executors.openai_request import address, holds_many
from rowmill_worker.executors.protocol import Usage
from rowmill_worker.executors.secrets import SecretReader
from tests.support.http_rows import JOB, attempt
from tests.support.openai_rows import KEY, failure, openai_executor, openai_spec
from tests.support.openai_server import (
    Json,
    OpenAIServer,
    Reply,
    chat,
    completions,
    function_call,
    response,
    tool_call,
)

SCHEMA = {
    "type": "object",
    "properties": {"label": {"type": "string"}, "score": {"type": "number"}},
    "required": ["label", "score"],
    "additionalProperties": False,
}


async def test_a_row_becomes_a_conversation_with_its_own_types() -> None:
    messages = [
        {"role": "system", "content": "You triage tickets of {{ job.name }}."},
        {"role": "user", "content": [{"type": "text", "text": "{{ row.text }}"}, {"type": "text", "text": "and"}]},
    ]
    server = OpenAIServer(key=KEY)
    async with (
        server as url,
        openai_executor(
            url,
            apiKey={"env": "KEY"},
            messages=messages,
            parameters={"temperature": "{{ row.t }}", "max_tokens": 8, "stop": ["\n"]},
            headers=[{"name": "X-Team", "value": "{{ row.team }}"}],
        ) as executor,
    ):
        row = attempt(4, text="my printer burns", t=0.5, team="blue")
        assert await executor.execute(row) == "AND"
        assert row.usage == Usage(requests=1, input_tokens=9, output_tokens=1)
    (asked,) = server.asked
    assert asked.path == "/v1/chat/completions"
    assert asked.body == {
        "model": "tiny-1",
        "messages": [
            {"role": "system", "content": "You triage tickets of triage."},
            {
                "role": "user",
                "content": [{"type": "text", "text": "my printer burns"}, {"type": "text", "text": "and"}],
            },
        ],
        "temperature": 0.5,
        "max_tokens": 8,
        "stop": ["\n"],
    }
    assert asked.headers["idempotency-key"] == "support/triage/1/4"
    assert asked.headers["x-request-id"] == "triage-4-1"
    assert asked.headers["x-team"] == "blue"


async def test_each_endpoint_has_its_own_request_and_result() -> None:
    server = OpenAIServer()
    row: Json = {"text": "hello there", "texts": ["a b", "c"], "tokens": [1, 2, 3]}
    cases: list[tuple[Json, Any, Json]] = [
        ({"endpoint": "Completions"}, "HELLO THERE", {"prompt": "hello there"}),
        ({"endpoint": "Completions", "prompt": "{{ row.texts }}"}, ["A B", "C"], {"prompt": ["a b", "c"]}),
        ({"endpoint": "Embeddings"}, [0.0, 0.5, -0.25], {"input": "hello there"}),
        (
            {"endpoint": "Embeddings", "input": ["{{ row.text }}", "x"]},
            [[0.0, 0.5, -0.25], [1.0, 0.5, -0.25]],
            {"input": ["hello there", "x"]},
        ),
        ({"endpoint": "Embeddings", "input": ["{{ row.text }}"]}, [[0.0, 0.5, -0.25]], {"input": ["hello there"]}),
        ({"endpoint": "Responses"}, "HELLO THERE", {"input": "hello there", "stream": False}),
        (
            {"endpoint": "Responses", "input": [{"role": "user", "content": "{{ row.text }}"}]},
            "HELLO THERE",
            {"input": [{"role": "user", "content": "hello there"}], "stream": False},
        ),
        (
            {"messages": "{{ row.talk }}", "model": "{{ row.model }}"},
            "HI",
            {"messages": [{"role": "user", "content": "hi"}]},
        ),
        ({"result": "usage.total_tokens"}, 4, {"messages": [{"role": "user", "content": "hello there"}]}),
        (
            {"parameters": {"n": 2}, "result": "choices[].message.content"},
            ["HELLO THERE", "HELLO THERE"],
            {"messages": [{"role": "user", "content": "hello there"}], "n": 2},
        ),
    ]
    async with server as url:
        for fields, result, body in cases:
            async with openai_executor(url, **fields) as executor:
                one = attempt(talk=[{"role": "user", "content": "hi"}], model="tiny-1", **row)
                assert await executor.execute(one) == result, fields
                assert server.asked[-1].body == {"model": "tiny-1", **body}
                assert one.usage is not None
                assert (one.usage.requests, one.usage.input_tokens > 0) == (1, True)


@pytest.mark.parametrize("endpoint", ["ChatCompletions", "Responses"])
async def test_a_schema_is_asked_for_and_the_result_is_its_json(endpoint: str) -> None:
    server = OpenAIServer()
    schema = {"name": "triage", "schema": SCHEMA}
    parameters = {"text": {"verbosity": "low"}} if endpoint == "Responses" else {}
    async with (
        server as url,
        openai_executor(url, endpoint=endpoint, jsonSchema=schema, parameters=parameters) as executor,
    ):
        assert await executor.execute(attempt(text="x")) == {"label": "x", "score": 0.5}
    wanted = {"name": "triage", "schema": SCHEMA, "strict": True}
    body = server.asked[0].body
    if endpoint == "Responses":
        assert body["text"] == {"verbosity": "low", "format": {"type": "json_schema", **wanted}}
    else:
        assert body["response_format"] == {"type": "json_schema", "json_schema": wanted}


@pytest.mark.parametrize(
    ("text", "error_class", "told"),
    [
        ("Sure! Here it is: {", "InvalidJSON", r"spec\.executor\.openai\.jsonSchema asks for.* it began: Sure!"),
        ('```json\n{"label": "a"}\n```', "InvalidJSON", "it began: ```json"),
        ('{"label": "a"}', "SchemaMismatch", r"\$: 'score' is a required property"),
        ('{"label": "a", "score": "high"}', "SchemaMismatch", r"\$\.score: 'high' is not of type 'number'"),
        ('{"label": 1' + ', "a": {"b": 1}' * 9 + "}", "SchemaMismatch", "jsonSchema.schema"),
        ("[" * 100_000, "InvalidJSON", "not JSON"),
        ('{"label": "a", "score": NaN}', "InvalidJSON", "not JSON"),
    ],
)
async def test_an_answer_that_is_not_of_the_schema_fails_for_good(text: str, error_class: str, told: str) -> None:
    async with (
        OpenAIServer(plan=lambda _: Reply(chat(text))) as url,
        openai_executor(url, jsonSchema={"schema": SCHEMA}) as executor,
    ):
        row = attempt(text="x")
        error = await failure(executor, row)
    assert (error.error_class, error.retryable, error.spent) == (error_class, False, True)
    with pytest.raises(AssertionError, match=told):
        raise AssertionError(error.message)
    assert row.usage == Usage(requests=1, input_tokens=7, output_tokens=3)


ENDINGS: list[tuple[str, Any, str, str, Any]] = [
    ("ChatCompletions", chat("cut of", finish="length"), "OutputTruncated", "Length", "cut of"),
    ("ChatCompletions", chat("bad", finish="content_filter"), "ContentFiltered", "ContentFilter", "bad"),
    ("ChatCompletions", chat(None, finish="content_filter"), "ContentFiltered", "ContentFilter", None),
    ("ChatCompletions", chat(None, refusal="I cannot."), "Refused", "Refusal", {"refusal": "I cannot."}),
    (
        "ChatCompletions",
        chat(None, finish="tool_calls", tool_calls=[tool_call()]),
        "ToolCalls",
        "ToolCalls",
        [tool_call()],
    ),
    ("ChatCompletions", chat(None, finish="stop", tool_calls=[tool_call()]), "ToolCalls", "ToolCalls", [tool_call()]),
    ("Completions", completions("cut of", finish="length"), "OutputTruncated", "Length", "cut of"),
    ("Completions", completions("x", finish="content_filter"), "ContentFiltered", "ContentFilter", "x"),
    (
        "Responses",
        response("cut of", status="incomplete", incomplete="max_output_tokens"),
        "OutputTruncated",
        "Length",
        "cut of",
    ),
    (
        "Responses",
        response(None, status="incomplete", incomplete="max_output_tokens"),
        "OutputTruncated",
        "Length",
        None,
    ),
    (
        "Responses",
        response("x", status="incomplete", incomplete="content_filter"),
        "ContentFiltered",
        "ContentFilter",
        "x",
    ),
    ("Responses", response(None, refusal="I cannot."), "Refused", "Refusal", {"refusal": "I cannot."}),
    ("Responses", response(None, calls=(function_call(),)), "ToolCalls", "ToolCalls", [function_call()]),
]


@pytest.mark.parametrize(("endpoint", "answer", "error_class", "ending", "result"), ENDINGS)
async def test_endings_are_told_apart_and_may_be_accepted(
    endpoint: str, answer: Json, error_class: str, ending: str, result: Any
) -> None:
    async with OpenAIServer(plan=lambda _: Reply(answer)) as url:
        async with openai_executor(url, endpoint=endpoint) as executor:
            row = attempt(text="x")
            error = await failure(executor, row)
            assert (error.error_class, error.retryable) == (error_class, False)
            assert f"by spec.executor.openai.accept: [{ending}]" in error.message
            assert row.usage == Usage(requests=1, input_tokens=7, output_tokens=3)
        others = {"Length", "ContentFilter", "Refusal", "ToolCalls"} - {ending}
        async with openai_executor(url, endpoint=endpoint, accept=sorted(others)) as executor:
            assert (await failure(executor, attempt(text="x"))).error_class == error_class
        async with openai_executor(url, endpoint=endpoint, accept=[ending]) as executor:
            assert await executor.execute(attempt(text="x")) == result


@pytest.mark.parametrize(
    ("endpoint", "answer", "error_class", "retryable"),
    [
        ("ChatCompletions", chat("x", finish="abort"), "AnswerAborted", True),
        ("ChatCompletions", chat("x", finish="insufficient_system_resource"), "AnswerAborted", True),
        ("Responses", response(None, status="cancelled"), "AnswerAborted", True),
        (
            "Responses",
            response(None, status="failed", failed={"code": "server_error", "message": "boom"}),
            "ResponseFailed",
            True,
        ),
        (
            "Responses",
            response(None, status="failed", failed={"code": "invalid_prompt", "message": "no"}),
            "ResponseFailed",
            False,
        ),
        ("Responses", response(None, status="queued"), "InvalidAnswer", False),
        ("Responses", response(None), "InvalidAnswer", False),
        ("ChatCompletions", {**chat("x"), "choices": []}, "InvalidAnswer", False),
        ("ChatCompletions", {"choices": [{"index": 0}]}, "InvalidAnswer", False),
        ("ChatCompletions", ["x"], "InvalidAnswer", False),
        ("ChatCompletions", {"id": "x"}, "InvalidAnswer", False),
        ("Completions", {"choices": [{"text": 5}]}, "InvalidAnswer", False),
        ("Embeddings", {"data": [{"index": 0}]}, "InvalidAnswer", False),
        ("Embeddings", {"data": "x"}, "InvalidAnswer", False),
        ("Embeddings", b"<html>gateway</html>", "InvalidAnswer", False),
        ("ChatCompletions", b"data: {}\n\ndata: [DONE]\n\n", "InvalidAnswer", False),
        ("ChatCompletions", {"error": {"message": "upstream broke", "code": 502}}, "HTTP502", True),
        ("ChatCompletions", {"error": {"message": "bad", "code": 400}}, "HTTP400", False),
        ("ChatCompletions", {"error": "no such model x"}, "HTTP500", True),
    ],
)
async def test_a_success_over_http_that_is_none_is_a_failure(
    endpoint: str, answer: Any, error_class: str, retryable: bool
) -> None:
    async with (
        OpenAIServer(plan=lambda _: Reply(answer)) as url,
        openai_executor(url, endpoint=endpoint) as executor,
    ):
        row = attempt(text="x")
        error = await failure(executor, row)
    assert (error.error_class, error.retryable) == (error_class, retryable), error.message
    assert row.usage is not None
    assert row.usage.requests == 1


async def test_endings_that_nobody_knows_count_as_finished_and_parts_are_put_together() -> None:
    for answer, result in [
        (chat("fine", finish="eos_token"), "fine"),
        (chat(""), ""),
        (chat([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), "ab"),  # type: ignore[arg-type]
        ({"choices": [{"message": {"content": "bare"}}]}, "bare"),
    ]:
        async with OpenAIServer(plan=lambda _, a=answer: Reply(a)) as url, openai_executor(url) as executor:  # type: ignore[misc]
            assert await executor.execute(attempt(text="x")) == result


async def test_usage_is_read_in_every_shape_and_never_trusted_blindly() -> None:
    for told, expected in [
        ({"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}, (5, 2)),
        ({"input_tokens": 5, "output_tokens": 2}, (5, 2)),
        ({"prompt_tokens": 5, "total_tokens": 5}, (5, 0)),
        ({"prompt_tokens": 5, "total_tokens": 9}, (5, 4)),
        ({"total_tokens": 9}, (9, 0)),
        ({"completion_tokens": 2, "total_tokens": 9}, (7, 2)),
        ({"prompt_tokens": -5, "completion_tokens": True}, (0, 0)),
        ({"prompt_tokens": "5", "completion_tokens": 1e300}, (0, 0)),
        (None, (0, 0)),
        ("many", (0, 0)),
    ]:
        answer = {**chat("x"), "usage": told}
        async with OpenAIServer(plan=lambda _, a=answer: Reply(a)) as url, openai_executor(url) as executor:  # type: ignore[misc]
            row = attempt(text="x")
            await executor.execute(row)
            assert row.usage is not None
            assert (row.usage.input_tokens, row.usage.output_tokens) == expected, told


async def test_a_row_that_makes_no_request_is_not_sent() -> None:
    server = OpenAIServer()
    cases: list[tuple[Json, Json, str]] = [
        ({"messages": "{{ row.talk }}"}, {"talk": "hi"}, r"messages: it renders to no list"),
        ({"messages": "{{ row.talk }}"}, {"talk": []}, r"messages: it renders to no list"),
        ({"messages": "{{ row.talk }}"}, {"talk": ["hi"]}, r"messages\[0\]: it renders to no object with a role"),
        ({"model": "{{ row.model }}"}, {"model": None, "text": "x"}, r"model: it renders to no text"),
        ({"model": "{{ row.model }}"}, {"model": 5, "text": "x"}, r"model: it renders to no text"),
        ({}, {}, r'messages\[0\]\.content: .*"text"'),
        ({"endpoint": "Embeddings"}, {"text": None}, r"input: it renders to nothing"),
        ({"endpoint": "Completions"}, {"text": {"a": 1}}, r"prompt: it renders to neither a text nor a list"),
        ({"parameters": {"seed": "{{ row.seed }}"}}, {"text": "x"}, r'parameters\.seed: .*"seed"'),
    ]
    async with server as url:
        for fields, row, told in cases:
            async with openai_executor(url, **fields) as executor:
                one = attempt(**row)
                error = await failure(executor, one)
                assert (error.error_class, error.retryable, error.spent) == ("TemplateError", False, False)
                with pytest.raises(AssertionError, match=rf"spec\.executor\.openai\.{told}"):
                    raise AssertionError(error.message)
                assert one.usage is None
    assert server.asked == []


async def test_an_answer_that_never_ends_or_is_too_large_costs_its_row_alone() -> None:
    def plan(asked: Any) -> Reply | None:
        text = asked.body["messages"][0]["content"]
        return {
            "stall": Reply(stalls=True),
            "endless": Reply(b'{"a": "' + b"x" * 65_536, endless=True),
            "large": Reply(chat("x" * 60_000)),
            "nul": Reply(chat("a\0b")),
        }.get(text)

    options = {"max_answer_bytes": 1_000_000, "max_result_bytes": 50_000}
    async with OpenAIServer(plan=plan) as url, openai_executor(url, options=options) as executor:
        ends = {}
        for text in ("stall", "endless", "large", "nul"):
            row = attempt(text=text, timeout=0.2 if text == "stall" else 30.0)
            error = await failure(executor, row)
            ends[text] = (error.error_class, error.retryable, row.usage and row.usage.requests)
            assert executor.active_sessions == 0
        assert "spec.executor.openai.result" in error.message
        assert await executor.execute(attempt(text="still there")) == "STILL THERE"
    assert ends == {
        "stall": ("Timeout", True, 1),
        "endless": ("AnswerTooLarge", False, 1),
        "large": ("AnswerTooLarge", False, 1),
        "nul": ("InvalidText", False, 1),
    }


async def test_a_certificate_that_is_not_trusted_and_a_server_that_is_away() -> None:
    trusted, other = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.issue_cert("127.0.0.1").configure_cert(context)
    client = ssl.create_default_context()
    trusted.configure_trust(client)
    runner = web.AppRunner(web.Application(), access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    port = runner.addresses[0][1]
    try:
        options = {"connector_factory": lambda: aiohttp.TCPConnector(ssl=client)}
        async with openai_executor(f"https://127.0.0.1:{port}/v1", options=options) as executor:
            row = attempt(text="x")
            error = await failure(executor, row)
            assert (error.error_class, error.retryable) == ("CertificateError", False)
            assert row.usage == Usage(requests=0)
    finally:
        await runner.cleanup()
    async with openai_executor(f"http://127.0.0.1:{port}/v1") as executor:
        row = attempt(text="x")
        assert (await failure(executor, row)).error_class == "ConnectionRefused"
        assert row.usage == Usage(requests=0)


async def test_the_preview_shows_the_request_and_no_secret() -> None:
    fields: Json = {"apiKey": {"env": "KEY"}, "jsonSchema": {"schema": SCHEMA}}
    preview = OpenAIPreview(spec=openai_spec("http://m.invalid/v1", **fields), job=JOB)
    preview.open()
    shown = preview.render(attempt(text="x"))
    assert shown["url"] == "http://m.invalid/v1/chat/completions"
    assert shown["headers"]["Authorization"] == "[secret]"
    server = OpenAIServer()
    async with server as url, openai_executor(url, **fields) as executor:
        await executor.execute(attempt(text="x"))
    assert server.asked[0].body == shown["body"]
    assert server.asked[0].headers["authorization"] == f"Bearer {KEY}"


async def test_what_is_missing_is_told_before_the_first_row() -> None:
    spec = openai_spec("http://m.invalid/v1", apiKey={"env": "NOT_THERE"})
    executor = OpenAIExecutor(spec=spec, job=JOB, secrets=SecretReader(environ={}), where="job.yaml")
    with pytest.raises(InvalidInput, match=r"spec\.executor\.openai\.apiKey\.env: .*NOT_THERE is not set"):
        await executor.open()
    await executor.close()


async def test_a_key_that_is_a_whole_header_is_taken_as_it_is() -> None:
    server = OpenAIServer(key="abcdefgh")
    async with (
        server as url,
        openai_executor(url, environ={"KEY": "Bearer abcdefgh"}, apiKey={"env": "KEY"}) as executor,
    ):
        assert await executor.execute(attempt(text="x")) == "X"


async def test_the_tokens_that_a_row_may_cost_are_never_reckoned_too_low() -> None:
    server = OpenAIServer()
    async with server as url:
        cases: list[tuple[Json, int]] = [
            ({"parameters": {"max_tokens": 9}}, 9),
            ({"parameters": {"max_tokens": 9, "max_completion_tokens": 7}}, 7),
            ({"parameters": {"max_tokens": 9, "n": 3}, "result": "@"}, 27),
            ({}, 4_096),
            ({"parameters": {"max_tokens": "{{ row.most }}"}}, 5),
            ({"endpoint": "Responses", "parameters": {"max_output_tokens": 9}}, 9),
            ({"endpoint": "Embeddings"}, 0),
        ]
        for fields, most in cases:
            async with openai_executor(url, **fields) as executor:
                row = attempt(text="ä b c", most=5)
                reckoned = sum(executor.estimate(row))
                await executor.execute(row)
                assert row.usage is not None
                sent = json.dumps(server.asked[-1].body, ensure_ascii=False, separators=(",", ":")).encode()
                assert reckoned == len(sent) + most
                assert reckoned >= row.usage.input_tokens + row.usage.output_tokens
                assert executor.estimate(attempt()) == (0, 0)


async def test_the_examples_run_on_a_server_that_has_their_model() -> None:
    examples = Path(__file__).parents[2] / "examples"
    server = OpenAIServer(model="Qwen/Qwen3-8B")
    async with server as url:
        job = load_manifest_file(examples / "openai.yaml")
        assert job.spec.executor.openai is not None
        fields = job.spec.executor.openai.model_dump(by_alias=True, exclude_none=True) | {"url": url}
        del fields["baseUrl"]
        async with openai_executor(**fields) as executor:
            for row in job.spec.source.rows or ():
                assert await executor.execute(attempt(**row)) == {"urgency": "low", "topic": "x"}
        lines = load_manifest_file(examples / "openai-batch.yaml").spec
        assert lines.executor.openai is not None
        assert lines.executor.openai.endpoint == "BatchLines"
        rows = [json.loads(text) for text in (examples / str(lines.source.uri)).read_text("utf-8").splitlines()]
        async with openai_executor(url, endpoint="BatchLines") as executor:
            for row in rows:
                assert (await executor.execute(attempt(**row)))["status_code"] == 200
    assert len(server.asked) == 5
    assert server.asked[0].body["messages"][1]["content"].startswith("Ticket T-1: The printer")


def test_addresses_keep_their_query() -> None:
    assert str(address("http://h/v1/", "/embeddings")) == "http://h/v1/embeddings"
    assert (
        str(address("http://h:8/openai/v1?api-version=1", "/completions"))
        == "http://h:8/openai/v1/completions?api-version=1"
    )


def test_a_list_of_tokens_is_one_text() -> None:
    for value, many in [("a", False), (["a"], True), ([1, 2], False), ([[1], [2]], True), ([{"role": "user"}], False)]:
        assert holds_many(json.dumps({"model": "m", "input": value}).encode(), "input") is many
    assert not holds_many(b"no json", "input")


async def test_a_connector_that_was_closed_costs_no_attempt() -> None:
    connectors = []

    def factory() -> aiohttp.TCPConnector:
        connectors.append(shared_connector())
        return connectors[-1]

    async with OpenAIServer() as url, openai_executor(url, options={"connector_factory": factory}) as executor:
        await executor.execute(attempt(text="a"))
        await connectors[-1].close()
        assert await executor.execute(attempt(text="b")) == "B"
    assert len(connectors) == 2
