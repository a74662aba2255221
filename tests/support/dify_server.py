"""A server that speaks Dify's service API over a socket: workflows, chat and completion apps, blocking and streaming.

Its routes, checks, error codes and shapes are those of Dify's own controllers and task pipelines; an independent client
(dify-client-python) is held against it in the tests. What a run comes to is `plan`'s to say, by the request's inputs.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import web


@dataclass
class Plan:
    """What a run comes to. `hold` keeps it running until it is stopped; `cut` ends the stream before its end."""

    status: str = "succeeded"
    outputs: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    answer: tuple[str, ...] = ("Hello", ", world")
    replaced: str | None = None
    code: tuple[int, str, str] | None = None
    """An error in place of the run: status, code, message. In a stream that has begun when `late`."""
    late: bool = False
    hold: bool = False
    cut: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


class DifyServer:
    """`async with` it for the address up to /v1. `kind` is workflow, chat, agent-chat, advanced-chat or completion."""

    def __init__(
        self, *, kind: str = "workflow", key: str = "app-1234", plan: Callable[[Mapping[str, Any]], Plan] | None = None
    ) -> None:
        self.kind, self.key = kind, key
        self.plan = plan or (lambda asked: Plan(outputs={"label": str(asked["inputs"].get("text", "")).upper()}))
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Mapping[str, str]] = []
        self.paths: list[str] = []
        self.stopped: list[tuple[str, str]] = []
        self.stop_told = asyncio.Event()

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_post("/v1/workflows/run", self._workflow)
        app.router.add_post("/v1/workflows/{version}/run", self._workflow)
        app.router.add_post("/v1/chat-messages", self._message)
        app.router.add_post("/v1/completion-messages", self._message)
        for route in ("workflows/tasks", "chat-messages", "completion-messages"):
            app.router.add_post(f"/v1/{route}/{{task}}/stop", self._stop)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def __aexit__(self, *_: object) -> None:
        self.stop_told.set()
        await self._runner.cleanup()

    # -- what every route checks first

    async def _checked(self, request: web.Request) -> dict[str, Any] | web.Response:
        if request.headers.get("Authorization") != f"Bearer {self.key}":
            return _error(401, "unauthorized", "Access token is invalid")
        asked = await request.json()
        self.asked.append(asked)
        self.headers.append(request.headers)
        self.paths.append(request.path)
        if not asked.get("user"):
            return _error(400, "invalid_param", "Arg user must be provided.")
        if not isinstance(asked.get("inputs"), dict):
            return _error(400, "invalid_param", "inputs is required")
        if asked.get("response_mode") not in (None, "blocking", "streaming"):
            return _error(400, "invalid_param", "response_mode must be blocking or streaming")
        found: dict[str, Any] = asked
        return found

    async def _stop(self, request: web.Request) -> web.Response:
        self.stopped.append((request.match_info["task"], (await request.json())["user"]))
        self.stop_told.set()
        return web.json_response({"result": "success"})

    # -- workflows

    async def _workflow(self, request: web.Request) -> web.StreamResponse:
        asked = await self._checked(request)
        if isinstance(asked, web.Response):
            return asked
        if self.kind != "workflow":
            return _error(400, "not_workflow_app", "Please check if your app mode matches the right API route.")
        plan = self.plan(asked)
        if plan.code is not None and not plan.late:
            return _error(*plan.code, headers=plan.headers)
        run = {"id": str(uuid4()), "workflow_id": str(uuid4()), "created_at": 1_700_000_000}
        task = str(uuid4())
        data = {
            **run,
            "status": plan.status,
            "outputs": dict(plan.outputs),
            "error": plan.error,
            "elapsed_time": 0.25,
            "total_tokens": 42,
            "total_steps": 3,
            "finished_at": 1_700_000_001,
        }
        if asked.get("response_mode") != "streaming":
            if plan.hold:
                await self.stop_told.wait()
            return web.json_response({"task_id": task, "workflow_run_id": run["id"], "data": data})
        told = {"task_id": task, "workflow_run_id": run["id"]}
        node = {"id": str(uuid4()), "node_id": "n1", "node_type": "llm", "title": "LLM", "index": 1, "created_at": 1}
        ended = {**node, "status": "succeeded", "elapsed_time": 0.1, "finished_at": 2, "outputs": {"text": "…"}}
        events: list[dict[str, Any]] = [
            {"event": "workflow_started", **told, "data": {**run, "inputs": asked["inputs"]}},
            {"event": "node_started", **told, "data": node},
            {"event": "text_chunk", **told, "data": {"text": "part", "from_variable_selector": ["n1", "text"]}},
            {"event": "node_finished", **told, "data": ended},
        ]
        last = {"event": "workflow_finished", **told, "data": data}
        if plan.status == "paused":
            last = {"event": "workflow_paused", **told, "data": {"workflow_run_id": run["id"], "reasons": []}}
        return await self._streamed(request, plan, events, last)

    # -- messages

    async def _message(self, request: web.Request) -> web.StreamResponse:
        asked = await self._checked(request)
        if isinstance(asked, web.Response):
            return asked
        if request.path.endswith("completion-messages"):
            if self.kind != "completion":
                return _error(400, "app_unavailable", "App unavailable, please check your app configurations.")
        elif self.kind not in ("chat", "agent-chat", "advanced-chat"):
            return _error(400, "not_chat_app", "Please check if your app mode matches the right API route.")
        elif not isinstance(asked.get("query"), str):
            return _error(400, "invalid_param", "query is required")
        if self.kind == "agent-chat" and asked.get("response_mode") != "streaming":
            return _error(400, "invalid_param", "Agent Chat App does not support blocking mode")
        plan = self.plan(asked)
        if plan.code is not None and not plan.late:
            return _error(*plan.code, headers=plan.headers)
        usage = {
            "prompt_tokens": 11,
            "completion_tokens": 7,
            "total_tokens": 18,
            **{
                f"{side}_{what}": "0.001"
                for side in ("prompt", "completion")
                for what in ("unit_price", "price_unit", "price")
            },
            "total_price": "0.002",
            "currency": "USD",
            "latency": 0.5,
        }
        told = {"task_id": str(uuid4()), "message_id": str(uuid4()), "created_at": 1_700_000_000}
        told["id"] = told["message_id"]
        if self.kind != "completion":
            told["conversation_id"] = str(uuid4())
        whole = plan.replaced if plan.replaced is not None else "".join(plan.answer)
        if asked.get("response_mode") != "streaming":
            mode = {"agent-chat": "chat", "advanced-chat": "advanced-chat"}.get(self.kind, self.kind)
            body = {"event": "message", **told, "mode": mode, "answer": whole, "metadata": {"usage": usage}}
            return web.json_response(body)
        name = "agent_message" if self.kind == "agent-chat" else "message"
        events: list[dict[str, Any]] = [{"event": name, **told, "answer": part} for part in plan.answer]
        if plan.replaced is not None:
            events.append({"event": "message_replace", **told, "answer": plan.replaced})
        return await self._streamed(
            request, plan, events, {"event": "message_end", **told, "metadata": {"usage": usage}}
        )

    async def _streamed(
        self, request: web.Request, plan: Plan, events: list[dict[str, Any]], last: dict[str, Any]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        await response.write(b"event: ping\n\n")
        for event in events:
            line = f"data: {json.dumps(event)}\n\n".encode()
            await response.write(line[:7])  # a chunk of the network ends where it likes
            await response.write(line[7:])
        if plan.hold:
            await self.stop_told.wait()
        if plan.late and plan.code is not None:
            status, code, message = plan.code
            last = {"event": "error", "task_id": last["task_id"], "status": status, "code": code, "message": message}
        if not plan.cut:
            await response.write(f"data: {json.dumps(last)}\n\n".encode())
        return response


def _error(status: int, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"code": code, "message": message, "status": status}, status=status, headers=headers)
