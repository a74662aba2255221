"""The service that `row_overhead` and `executor_overhead` call: reads a request, answers what is ready. In a process of
its own, so that only the caller's CPU is measured.

    python -m bench.endpoint

The first line of its output is its port; it ends when its standard input does. Its paths are those of an
OpenAI-compatible server, of Dify and of ComfyUI (whose prompts have ended as soon as they are submitted); any other
answers a small JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import uvloop
from aiohttp import web

ANSWER = b'{"label": "billing", "confidence": 0.93, "tokens": {"prompt": 41, "completion": 3}}'

CHAT = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_750_000_000,
        "model": "tiny",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "billing", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 41, "completion_tokens": 3, "total_tokens": 44},
    }
).encode()

_TOLD = {"task_id": "0f7b1c5e-0000-4000-8000-000000000001", "workflow_run_id": "0f7b1c5e-0000-4000-8000-000000000002"}
_RUN = {"id": _TOLD["workflow_run_id"], "workflow_id": "0f7b1c5e-0000-4000-8000-000000000003", "created_at": 1}
_ENDED = {
    **_RUN,
    "status": "succeeded",
    "outputs": {"label": "billing"},
    "error": None,
    "elapsed_time": 0.25,
    "total_tokens": 44,
    "total_steps": 3,
    "finished_at": 2,
}
_NODE = {"id": "n", "node_id": "1", "node_type": "llm", "title": "LLM", "index": 1, "created_at": 1}
RUN = json.dumps({**_TOLD, "data": _ENDED}).encode()
EVENTS = [
    b"event: ping\n\n",
    *(
        f"data: {json.dumps({'event': name, **_TOLD, 'data': data})}\n\n".encode()
        for name, data in (
            ("workflow_started", {**_RUN, "inputs": {}}),
            ("node_started", _NODE),
            ("node_finished", {**_NODE, "status": "succeeded", "outputs": {"text": "billing"}}),
            ("workflow_finished", _ENDED),
        )
    ),
]
"""A workflow's stream: five writes, each of which the caller may get by itself."""


ENTRY = {
    "outputs": {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}},
    "status": {"status_str": "success", "completed": True, "messages": []},
    "meta": {},
}
"""Of a prompt in ComfyUI's history."""


class Service:
    """What answers; it keeps the prompts that ComfyUI was given."""

    def __init__(self) -> None:
        self._ended: set[str] = set()

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        asked = await request.read()
        if request.path == "/v1/workflows/run":
            return await _workflow(request, json.loads(asked))
        if request.path.startswith("/comfyui/"):
            return await self._comfyui(request, request.path.removeprefix("/comfyui/"), asked)
        return web.Response(
            body=CHAT if request.path.endswith("/completions") else ANSWER, content_type="application/json"
        )

    async def _comfyui(self, request: web.BaseRequest, route: str, asked: bytes) -> web.StreamResponse:
        if route == "ws":
            socket = web.WebSocketResponse()
            await socket.prepare(request)
            async for _ in socket:
                pass
            return socket
        if route == "prompt":
            prompt = json.loads(asked)["prompt_id"]
            self._ended.add(prompt)
            return web.json_response({"prompt_id": prompt, "number": len(self._ended), "node_errors": {}})
        if route == "queue":
            return web.json_response({"queue_running": [], "queue_pending": []})
        prompt = route.removeprefix("history/")
        return web.json_response({prompt: ENTRY} if prompt in self._ended else {})


async def _workflow(request: web.BaseRequest, asked: dict[str, Any]) -> web.StreamResponse:
    if asked["response_mode"] == "blocking":
        return web.Response(body=RUN, content_type="application/json")
    stream = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await stream.prepare(request)
    for event in EVENTS:
        await stream.write(event)
    return stream


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = web.Server(Service().answer, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", 0, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.shutdown(1.0)


if __name__ == "__main__":
    uvloop.run(_serve())
