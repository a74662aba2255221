"""The Dify double held against a client that others wrote (dify-client-python): what it says is what they can read."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from dify_client import Client, errors, models

from tests.support.dify_server import DifyServer, Plan

USER = "ann"


async def called(server: DifyServer, call: Any, *, key: str = "app-1234") -> Any:
    """What the other client makes of a call, on a thread of its own."""
    async with server as url:
        return await asyncio.to_thread(call, Client(api_key=key, api_base=url))


@pytest.mark.parametrize("mode", [models.ResponseMode.BLOCKING, models.ResponseMode.STREAMING])
async def test_a_workflow(mode: models.ResponseMode) -> None:
    request = models.WorkflowsRunRequest(inputs={"text": "abc"}, response_mode=mode, user=USER)

    def call(client: Client) -> Any:
        answer = client.run_workflows(request)
        return answer if mode is models.ResponseMode.BLOCKING else list(answer)[-1]

    last = await called(DifyServer(), call)
    data = (
        last.data
        if mode is models.ResponseMode.BLOCKING
        else models.WorkflowFinishedData.model_validate(last.data, from_attributes=True)
    )
    assert (data.status, data.outputs, data.total_tokens) == (models.WorkflowStatus.SUCCEEDED, {"label": "ABC"}, 42)


@pytest.mark.parametrize("mode", [models.ResponseMode.BLOCKING, models.ResponseMode.STREAMING])
async def test_a_message(mode: models.ResponseMode) -> None:
    chat = models.ChatRequest(query="?", response_mode=mode, user=USER, auto_generate_name=False)
    plain = models.CompletionRequest(inputs={}, response_mode=mode, user=USER)

    def text(answer: Any) -> str:
        if mode is models.ResponseMode.BLOCKING:
            assert answer.metadata.usage.prompt_tokens == 11
            return str(answer.answer)
        events = [
            event for event in answer if event.event in (models.StreamEvent.MESSAGE, models.StreamEvent.MESSAGE_END)
        ]
        assert events[-1].metadata.usage.completion_tokens == 7
        return "".join(event.answer for event in events[:-1])

    assert await called(DifyServer(kind="chat"), lambda c: text(c.chat_messages(chat))) == "Hello, world"
    assert await called(DifyServer(kind="completion"), lambda c: text(c.completion_messages(plain))) == "Hello, world"


async def test_refusals_and_stopping() -> None:
    request = models.WorkflowsRunRequest(inputs={}, response_mode=models.ResponseMode.BLOCKING, user=USER)
    server = DifyServer(plan=lambda _: Plan(code=(400, "provider_quota_exceeded", "used up")))
    with pytest.raises(errors.DifyProviderQuotaExceeded):
        await called(server, lambda client: client.run_workflows(request))
    with pytest.raises(errors.DifyAPIError) as caught:
        await called(DifyServer(), lambda client: client.run_workflows(request), key="wrong")
    assert caught.value.status == 401
    late = DifyServer(plan=lambda _: Plan(code=(400, "completion_request_error", "no"), late=True))
    streamed = request.model_copy(update={"response_mode": models.ResponseMode.STREAMING})
    last = await called(late, lambda client: list(client.run_workflows(streamed))[-1])
    assert (last.event, last.code) == (models.StreamEvent.ERROR, "completion_request_error")
    server = DifyServer()
    stopped = await called(server, lambda client: client.stop_workflows("t-1", models.StopRequest(user=USER)))
    assert (stopped.result, server.stopped) == ("success", [("t-1", USER)])
