"""The dify executor against a server that speaks Dify's API over a socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from rowmill.errors import InvalidInput
from rowmill.spec.executors import DifyExecutor as DifySpec
from rowmill_worker.executors.dify import DifyExecutor, DifyPreview
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.executors.secrets import SecretReader
from tests.support.dify_server import DifyServer, Plan
from tests.support.http_rows import JOB, Mirror, attempt

MODES = ("Streaming", "Blocking")
INPUTS = {"text": "{{ row.text }}"}


def spec_of(url: str, **fields: Any) -> DifySpec:
    return DifySpec.model_validate({"baseUrl": url, "apiKey": {"env": "DIFY_KEY"}, "inputs": INPUTS, **fields})


@contextlib.asynccontextmanager
async def executor_of(url: str, *, key: str = "app-1234", **fields: Any) -> AsyncIterator[DifyExecutor]:
    executor = DifyExecutor(
        spec=spec_of(url, **fields),
        job=JOB,
        secrets=SecretReader(environ={"DIFY_KEY": key}, where="job.yaml"),
        where="job.yaml",
    )
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()


async def failure(url: str, *, timeout: float = 20.0, **fields: Any) -> RowError:
    """How a row ends that cannot succeed."""
    async with executor_of(url, **fields) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt(text="a", timeout=timeout))
        assert executor.active_sessions == 0
    return caught.value


@pytest.mark.parametrize("mode", MODES)
async def test_a_workflow_is_run_and_its_outputs_are_the_result(mode: str) -> None:
    server = DifyServer()
    async with server as url, executor_of(url, responseMode=mode) as executor:
        one = attempt(7, text="some text")
        assert await executor.execute(one) == {"label": "SOME TEXT"}
        assert one.usage is not None
        assert (one.usage.requests, one.usage.input_tokens, one.usage.output_tokens) == (1, 0, 42)
    (asked,) = server.asked
    assert asked == {"inputs": {"text": "some text"}, "response_mode": mode.lower(), "user": "support/triage"}
    assert server.headers[0]["Idempotency-Key"] == "support/triage/1/7"
    assert server.headers[0]["X-Request-Id"] == "triage-7-1"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["chat", "advanced-chat", "completion"])
async def test_messages_give_their_answer_and_their_tokens(kind: str, mode: str) -> None:
    server = DifyServer(kind=kind)
    app = "Completion" if kind == "completion" else "Chat"
    fields: dict[str, Any] = {"app": app, "responseMode": mode, "files": [{"url": "http://x/{{ row.id }}.png"}]}
    if app == "Chat":
        fields["query"] = "What of {{ row.text }}?"
    async with server as url, executor_of(url, **fields) as executor:
        one = attempt(3, text="it")
        assert await executor.execute(one) == "Hello, world"
        assert one.usage is not None
        assert (one.usage.input_tokens, one.usage.output_tokens) == (11, 7)
    (asked,) = server.asked
    assert asked["files"] == [{"type": "image", "transfer_method": "remote_url", "url": "http://x/3.png"}]
    assert asked.get("query") == ("What of it?" if app == "Chat" else None)


async def test_an_agent_is_streamed_and_a_replaced_answer_is_the_last_one() -> None:
    server = DifyServer(kind="agent-chat", plan=lambda _: Plan(replaced="I may not say."))
    async with server as url, executor_of(url, app="Chat", query="?") as executor:
        assert await executor.execute(attempt(text="a")) == "I may not say."
    async with server as url:
        told = await failure(url, app="Chat", query="?", responseMode="Blocking")
    assert (told.error_class, told.retryable) == ("InvalidInputs", False)
    assert "Agent Chat App does not support blocking mode" in told.message


async def test_a_published_version_and_a_narrowed_result() -> None:
    server = DifyServer()
    version = "0b1c2d3e-0000-4000-8000-000000000000"
    async with server as url, executor_of(url, workflowId=version, result="data.outputs.label") as executor:
        assert await executor.execute(attempt(text="x")) == "X"
    assert server.paths == [f"/v1/workflows/{version}/run"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("status", "error", "error_class", "retryable"),
    [
        ("failed", "Variable x not found", "WorkflowFailed", False),
        ("failed", "[openai] Rate Limit Error, slow down", "WorkflowFailed", True),
        ("failed", "[openai] Server Unavailable Error, 503", "WorkflowFailed", True),
        ("stopped", None, "WorkflowStopped", False),
        ("exception", "odd", "WorkflowFailed", False),
        ("running", None, "InvalidAnswer", False),
    ],
)
async def test_a_run_that_failed_inside_is_a_failure(
    mode: str, status: str, error: str | None, error_class: str, retryable: bool
) -> None:
    async with DifyServer(plan=lambda _: Plan(status=status, error=error)) as url:
        told = await failure(url, responseMode=mode)
    assert (told.error_class, told.retryable) == (error_class, retryable)
    assert error is None or status != "failed" or error in told.message


@pytest.mark.parametrize("mode", MODES)
async def test_partial_success_is_what_the_manifest_says(mode: str) -> None:
    server = DifyServer(plan=lambda _: Plan(status="partial-succeeded", outputs={"a": 1}, error="node 2 failed"))
    async with server as url, executor_of(url, responseMode=mode) as executor:
        assert await executor.execute(attempt(text="a")) == {"a": 1}
    async with server as url:
        told = await failure(url, responseMode=mode, acceptPartial=False)
    assert (told.error_class, told.retryable) == ("WorkflowPartial", False)


async def test_a_workflow_that_waits_for_a_person_is_told_so() -> None:
    async with DifyServer(plan=lambda _: Plan(status="paused")) as url:
        told = await failure(url)
    assert (told.error_class, told.retryable) == ("WorkflowPaused", False)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    ("status", "code", "message", "error_class", "retryable"),
    [
        (400, "invalid_param", "text is required", "InvalidInputs", False),
        (400, "provider_not_initialize", "no credentials", "ProviderNotConfigured", False),
        (400, "provider_quota_exceeded", "exhausted", "QuotaExceeded", False),
        (400, "model_currently_not_support", "no", "ModelNotSupported", False),
        (400, "completion_request_error", "[x] Bad Request Error", "ModelFailed", False),
        (400, "completion_request_error", "[x] Rate Limit Error", "ModelFailed", True),
        (429, "rate_limit_error", "Too many requests", "RateLimited", True),
        (400, "something_new", "who knows", "DifyError", False),
    ],
)
async def test_error_codes_are_classed(
    late: bool, status: int, code: str, message: str, error_class: str, retryable: bool
) -> None:
    async with DifyServer(plan=lambda _: Plan(code=(status, code, message), late=late)) as url:
        told = await failure(url)
    assert (told.error_class, told.retryable) == (error_class, retryable)
    assert message in told.message


async def test_errors_that_say_no_more_than_their_status() -> None:
    plan = Plan(code=(500, "internal_server_error", "Internal Server Error"))
    async with DifyServer(plan=lambda _: plan) as url:
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("HTTP500", True)
        plan.late = True
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("DifyError", True)
        told = await failure(url, key="wrong")
        assert (told.error_class, told.retryable) == ("HTTP401", False)
        assert "spec.executor.dify.apiKey" in told.message
    plan.late, plan.headers, plan.code = False, {"Retry-After": "9"}, (429, "too_many_requests", "busy")
    async with DifyServer(plan=lambda _: plan) as url:
        told = await failure(url)
    assert told.retry_after == 9


async def test_the_wrong_kind_of_app_is_told() -> None:
    async with DifyServer(kind="chat") as url:
        told = await failure(url)
    assert told.error_class == "WrongApp"
    assert "spec.executor.dify.app" in told.message


async def test_a_stream_that_breaks_off_is_tried_again() -> None:
    async with DifyServer(plan=lambda _: Plan(cut=True)) as url:
        told = await failure(url)
    assert (told.error_class, told.retryable) == ("IncompleteAnswer", True)


async def test_a_run_that_nobody_waits_for_any_more_is_stopped() -> None:
    """Out of time, and cancelled: each tells Dify to stop the task, as the user that began it."""
    server = DifyServer(plan=lambda _: Plan(hold=True))
    async with server as url, executor_of(url, user="{{ row.text }}") as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt(text="ann", timeout=0.4))
        assert (caught.value.error_class, caught.value.retryable) == ("Timeout", True)
        async with asyncio.timeout(60):
            await server.stop_told.wait()
        server.stop_told.clear()
        task = asyncio.create_task(executor.execute(attempt(text="bob", timeout=60)))
        async with asyncio.timeout(60):
            while not executor.tasks:
                await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(60):
            await server.stop_told.wait()
    assert [user for _, user in server.stopped] == ["ann", "bob"]


async def test_answers_that_are_not_difys() -> None:
    async with Mirror(lambda _: web.Response(text="<html>welcome</html>", content_type="text/html")) as url:
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("InvalidAnswer", False)
    async with Mirror(lambda _: web.json_response({"hello": 1})) as url:
        told = await failure(url)
        assert (told.error_class, told.retryable) == ("InvalidAnswer", False)
        assert "spec.executor.dify.baseUrl" in told.message
        told = await failure(url, app="Chat", query="?", responseMode="Blocking")
        assert told.error_class == "InvalidAnswer"


async def test_a_huge_stream_is_cut_and_said_so() -> None:
    server = DifyServer(kind="chat", plan=lambda _: Plan(answer=("x" * 500_000,) * 25))
    async with server as url:
        told = await failure(url, app="Chat", query="?")
    assert (told.error_class, told.retryable) == ("AnswerTooLarge", False)
    assert "spec.executor.dify.result" in told.message


async def test_of_events_only_what_counts_is_read() -> None:
    """What a node tells may be anything; an end that cannot be read was paid for, and is not asked for again."""

    def stream(data: str) -> web.Response:
        lines = (
            'data: {"event": "node_finished", "task_id": 7, "data": ' + "[" * 200 + "]" * 200 + "}",
            'data: {"event": ["workflow_finished"]}',
            "data: 12",
            'data: {"event": "workflow_finished", "task_id": "t-1", "data": ' + data + "}",
        )
        return web.Response(text="\n\n".join(lines) + "\n\n", content_type="text/event-stream")

    ended = '{"status": "succeeded", "outputs": {"label": "a"}, "total_tokens": 3}'
    async with Mirror(lambda _: stream(ended)) as url, executor_of(url) as executor:
        one = attempt(text="a")
        assert await executor.execute(one) == {"label": "a"}
        assert one.usage is not None
        assert one.usage.output_tokens == 3
    async with Mirror(lambda _: stream("[" * 5000 + "]" * 5000)) as url:
        told = await failure(url)
    assert (told.error_class, told.retryable) == ("InvalidAnswer", False)
    assert "nested too deeply" in told.message


async def test_a_row_that_does_not_fit_is_not_sent() -> None:
    server = DifyServer()
    async with server as url, executor_of(url) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())  # no column `text`
    assert not caught.value.spent
    assert caught.value.message.startswith("spec.executor.dify.inputs.text")
    assert server.asked == []


async def test_a_key_that_is_missing_is_told_at_once() -> None:
    executor = DifyExecutor(
        spec=spec_of("http://x/v1"), job=JOB, secrets=SecretReader(environ={}, where="job.yaml"), where="job.yaml"
    )
    with pytest.raises(InvalidInput, match=r"spec\.executor\.dify\.apiKey\.env: .*DIFY_KEY is not set"):
        await executor.open()


def test_a_simulated_row_shows_what_would_be_sent_and_no_key() -> None:
    preview = DifyPreview(spec=spec_of("http://dify/v1/"), job=JOB)
    preview.open()
    shown = preview.render(attempt(text="abc"))
    assert shown["url"] == "http://dify/v1/workflows/run"
    assert shown["body"]["inputs"] == {"text": "abc"}
    assert shown["headers"]["Authorization"] == "[secret]"


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"app": "Chat"}, "query"),
        ({"query": "x"}, "goes with app Chat or Completion only"),
        ({"files": [{"url": "http://x"}]}, "goes with app Chat or Completion only"),
        ({"app": "Completion", "workflowId": "abc"}, "goes with app Workflow or Chat only"),
        ({"files": [{"url": "http://x", "type": "movie"}], "app": "Completion"}, "type"),
        ({"workflowId": "../x"}, "workflowId"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        spec_of("http://dify/v1", **fields)
