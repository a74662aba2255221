"""A server that speaks ComfyUI's routes over a socket: prompts, queue, history, files, and the websocket.

Its checks, error types, shapes and the order in which it tells things are those of ComfyUI's own server.py and
execution.py; an independent client (comfy-api-simplified) is held against it in the tests. Prompts run one at a time.
What one comes to is `plan`'s to say; nothing is drawn.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from aiohttp import WSCloseCode, web

MODELS = ["sd_xl_base_1.0.safetensors", "flux1-dev.safetensors"]
OUTPUT_CLASSES = {"SaveImage", "PreviewImage", "PreviewAny"}
REQUIRED: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPTextEncode": ("text", "clip"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "KSampler": ("model", "seed", "positive"),
    "VAEDecode": ("samples", "vae"),
    "SaveImage": ("images",),
    "PreviewImage": ("images",),
    "PreviewAny": ("source",),
}


@dataclass
class Plan:
    """What a prompt comes to. `hold` keeps it running until it is interrupted or released."""

    error: tuple[str, str] | None = None
    """Type and message of the exception in its sampler."""
    cached: bool = False
    hold: bool = False
    bytes: int = 0
    """Size of its image; 0: that of a small PNG."""


@dataclass
class Item:
    number: int
    id: str
    prompt: dict[str, Any]
    extra: dict[str, Any]
    outputs: list[str]
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    def told(self) -> list[Any]:
        return [self.number, self.id, self.prompt, self.extra, self.outputs]


class ComfyUIServer:
    """`async with` it for its address. `takes_ids`: a client may choose a prompt's id, as with newer servers."""

    def __init__(
        self,
        *,
        plan: Callable[[Mapping[str, Any]], Plan] | None = None,
        takes_ids: bool = True,
        sockets: bool = True,
        previews: bool = True,
    ) -> None:
        self.plan = plan or (lambda prompt: Plan())
        self.takes_ids, self.sockets, self.previews = takes_ids, sockets, previews
        self.asked: list[dict[str, Any]] = []
        """Bodies of submissions that were taken."""
        self.calls: list[tuple[str, str, Mapping[str, str]]] = []
        self.refuse: Callable[[web.Request], web.StreamResponse | None] = lambda request: None
        """Answers in place of the server: a proxy before it."""
        self.stalled = False
        """Whether files begin and do not go on."""
        self.chunked = False
        """Whether files come without their length."""
        self.stalled_submit = False
        """Whether a submission is read, and nothing follows."""
        self.lose_answers = False
        """Whether a submission is taken and the connection cut in place of the answer."""
        self.pending: list[Item] = []
        self.running: dict[str, Item] = {}
        self.history: dict[str, dict[str, Any]] = {}
        self.files: dict[tuple[str, str, str], bytes] = {}
        self.open_sockets: dict[str, web.WebSocketResponse] = {}
        self.deaf = False
        """Whether messages are kept back."""
        self.released = asyncio.Event()
        self.changed = asyncio.Event()
        self._number = 0
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    # -- life

    async def __aenter__(self) -> str:
        app = web.Application(middlewares=[self._front], client_max_size=1 << 26)
        for prefix in ("", "/api"):
            app.router.add_post(f"{prefix}/prompt", self._submit)
            app.router.add_get(f"{prefix}/prompt", self._exec_info)
            app.router.add_get(f"{prefix}/queue", self._queue)
            app.router.add_post(f"{prefix}/queue", self._change_queue)
            app.router.add_get(f"{prefix}/history", self._histories)
            app.router.add_get(f"{prefix}/history/{{id}}", self._history)
            app.router.add_post(f"{prefix}/interrupt", self._interrupt)
            app.router.add_get(f"{prefix}/view", self._view)
            app.router.add_get(f"{prefix}/ws", self._socket)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._task = asyncio.create_task(self._run())
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.drop_sockets()
        await self._runner.cleanup()

    async def drop_sockets(self) -> None:
        for socket in list(self.open_sockets.values()):
            await socket.close(code=WSCloseCode.GOING_AWAY)

    def forget(self) -> None:
        """What a restart does to queue and history."""
        for item in self.running.values():
            item.interrupted.set()
        self.pending.clear()
        self.running.clear()
        self.history.clear()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait until it is so."""
        async with asyncio.timeout(60):
            while not reached():
                self.changed.clear()
                await self.changed.wait()

    def release(self) -> None:
        self.released.set()

    # -- routes

    @web.middleware
    async def _front(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append((request.method, request.path_qs, request.headers))
        self.changed.set()
        answer = self.refuse(request)
        if answer is not None:
            return answer
        found: web.StreamResponse = await handler(request)
        return found

    async def _submit(self, request: web.Request) -> web.Response:
        asked = json.loads(await request.read())
        if self.stalled_submit:
            await asyncio.Event().wait()
        number = float(asked.get("number", self._number))
        self._number += 1
        if "prompt" not in asked:
            missing = _error("no_prompt", "No prompt provided", "No prompt provided")
            return web.json_response({"error": missing, "node_errors": {}}, status=400)
        error, outputs, node_errors = self._validated(asked["prompt"])
        if error is not None:
            return web.json_response({"error": error, "node_errors": node_errors}, status=400)
        self.asked.append(asked)
        id_ = str(asked["prompt_id"]) if self.takes_ids and "prompt_id" in asked else str(uuid4())
        extra = dict(asked.get("extra_data") or {})
        if "client_id" in asked:
            extra["client_id"] = asked["client_id"]
        self.pending.append(Item(int(number), id_, asked["prompt"], extra, outputs))
        self._work.set()
        self.changed.set()
        await self._send("status", self._status())
        if self.lose_answers and request.transport is not None:
            request.transport.close()
        return web.json_response({"prompt_id": id_, "number": number, "node_errors": node_errors})

    def _validated(self, prompt: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str], dict[str, Any]]:
        outputs = []
        for node, content in prompt.items():
            kind = content.get("class_type")
            if kind not in REQUIRED:
                message = f"Node '{kind}' not found. The custom node may not be installed."
                return _error("missing_node_type", message, f"Node ID '#{node}'", {"node_id": node}), [], {}
            if kind in OUTPUT_CLASSES:
                outputs.append(node)
        if not outputs:
            return _error("prompt_no_outputs", "Prompt has no outputs", ""), [], {}
        errors: dict[str, Any] = {}
        good = []
        for output in outputs:
            bad = {node: found for node in _upstream(prompt, output) if (found := _node_errors(prompt[node]))}
            for node, found in bad.items():
                told = errors.setdefault(
                    node, {"errors": found, "dependent_outputs": [], "class_type": prompt[node]["class_type"]}
                )
                told["dependent_outputs"].append(output)
            if not bad:
                good.append(output)
        if not good:
            return _error("prompt_outputs_failed_validation", "Prompt outputs failed validation", ""), [], errors
        return None, good, errors

    async def _exec_info(self, request: web.Request) -> web.Response:
        return web.json_response(self._status()["status"])

    async def _queue(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "queue_running": [item.told() for item in self.running.values()],
                "queue_pending": [item.told() for item in self.pending],
            }
        )

    async def _change_queue(self, request: web.Request) -> web.Response:
        asked = await request.json()
        if asked.get("clear"):
            self.pending.clear()
        self.pending = [item for item in self.pending if item.id not in asked.get("delete", ())]
        return web.Response(status=200)

    async def _histories(self, request: web.Request) -> web.Response:
        most = int(request.query.get("max_items", len(self.history)))
        return web.json_response(dict(list(self.history.items())[-most:] if most else []))

    async def _history(self, request: web.Request) -> web.Response:
        id_ = request.match_info["id"]
        return web.json_response({id_: self.history[id_]} if id_ in self.history else {})

    async def _interrupt(self, request: web.Request) -> web.Response:
        body = await request.read()
        asked = json.loads(body) if body else {}
        for item in self.running.values():
            if not self.takes_ids or asked.get("prompt_id") in (None, item.id):
                item.interrupted.set()
        return web.Response(status=200)

    async def _view(self, request: web.Request) -> web.StreamResponse:
        query = request.query
        key = (query.get("filename", ""), query.get("subfolder", ""), query.get("type", "output"))
        if key not in self.files:
            return web.Response(status=404)
        headers = {"Content-Disposition": f'filename="{key[0]}"', "Content-Type": "image/png"}
        if self.chunked:
            response = web.StreamResponse(headers=headers)
            response.enable_chunked_encoding()
            await response.prepare(request)
            await response.write(self.files[key])
            return response
        if self.stalled:
            response = web.StreamResponse(headers={**headers, "Content-Length": str(len(self.files[key]))})
            await response.prepare(request)
            await response.write(self.files[key][:10])
            await asyncio.Event().wait()
        return web.Response(body=self.files[key], headers=headers)

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not self.sockets:
            return web.Response(status=404)
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        sid = request.query.get("clientId") or uuid4().hex
        self.open_sockets[sid] = socket
        self.changed.set()
        with contextlib.suppress(ConnectionError):
            await socket.send_json({"type": "status", "data": {**self._status(), "sid": sid}})
        try:
            async for _ in socket:
                pass
        finally:
            if self.open_sockets.get(sid) is socket:
                del self.open_sockets[sid]
            self.changed.set()
        return socket

    # -- execution

    def _status(self) -> dict[str, Any]:
        return {"status": {"exec_info": {"queue_remaining": len(self.pending) + len(self.running)}}}

    async def _send(self, kind: str, data: dict[str, Any], sid: str | None = None) -> None:
        if self.deaf:
            return
        for name, socket in list(self.open_sockets.items()):
            if sid is None or name == sid:
                with contextlib.suppress(ConnectionError):
                    await socket.send_json({"type": kind, "data": data})

    async def _run(self) -> None:
        while True:
            while not self.pending:
                self._work.clear()
                await self._work.wait()
            item = self.pending.pop(0)
            self.running[item.id] = item
            self.changed.set()
            await self._execute(item)

    async def _execute(self, item: Item) -> None:
        sid = item.extra.get("client_id")
        told = {"prompt_id": item.id}
        messages: list[Any] = []

        async def tell(kind: str, data: dict[str, Any]) -> None:
            messages.append([kind, {**data, **told, "timestamp": 1}])
            if sid is not None:
                await self._send(kind, {**data, **told}, sid)

        plan = self.plan(item.prompt)
        await tell("execution_start", {})
        await tell("execution_cached", {"nodes": list(item.prompt) if plan.cached else []})
        outputs: dict[str, Any] = {}
        failed = False
        sampler = next((node for node, it in item.prompt.items() if it["class_type"] == "KSampler"), item.outputs[0])
        if plan.hold:
            waits = {asyncio.ensure_future(event.wait()) for event in (self.released, item.interrupted)}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        where = {"node_id": sampler, "node_type": item.prompt[sampler]["class_type"], "executed": []}
        if item.interrupted.is_set():
            failed = True
            await tell("execution_interrupted", where)
        elif plan.error is not None:
            failed = True
            raised = {"exception_type": plan.error[0], "exception_message": plan.error[1], "traceback": ["…"]}
            await tell("execution_error", {**where, **raised, "current_inputs": {}, "current_outputs": []})
        elif not plan.cached:
            for node in item.outputs:
                if sid is not None:
                    await self._send("executing", {"node": node, "display_node": node, **told}, sid)
                    with contextlib.suppress(ConnectionError, KeyError):
                        if self.previews:
                            await self.open_sockets[sid].send_bytes(struct.pack(">II", 1, 2) + b"a preview")
                outputs[node] = self._output(item, node, plan)
                if sid is not None:
                    await self._send(
                        "executed", {"node": node, "display_node": node, "output": outputs[node], **told}, sid
                    )
        if not failed:
            await tell("execution_success", {})
        if self.running.pop(item.id, None) is None:
            return  # it was restarted meanwhile
        status = {
            "status_str": "error" if failed else "success",
            "completed": not failed,
            "messages": messages,
        }
        self.history[item.id] = {"prompt": item.told(), "outputs": outputs, "status": status, "meta": {}}
        self.changed.set()
        if sid is not None:
            await self._send("executing", {"node": None, **told}, sid)
        await self._send("status", self._status())

    def _output(self, item: Item, node: str, plan: Plan) -> dict[str, Any]:
        content = item.prompt[node]
        if content["class_type"] == "PreviewAny":
            return {"text": [str(content["inputs"]["source"])]}
        folder = "output" if content["class_type"] == "SaveImage" else "temp"
        prefix = str(content["inputs"].get("filename_prefix", "ComfyUI"))
        subfolder, _, name = prefix.rpartition("/")
        name = f"{name}_{len(self.files) + 1:05}_.png"
        text = json.dumps([it["inputs"].get("text") for it in item.prompt.values()])
        self.files[(name, subfolder, folder)] = b"x" * plan.bytes if plan.bytes else png(text)
        return {"images": [{"filename": name, "subfolder": subfolder, "type": folder}], "animated": [False]}


def png(text: str) -> bytes:
    """A black pixel, with a text in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"tEXt", b"prompt\0" + text.encode("ascii"))
        + chunk(b"IDAT", zlib.compress(b"\0\0"))
        + chunk(b"IEND", b"")
    )


def workflow(text: str = "{{ row.text }}", **nodes: Any) -> dict[str, Any]:
    """A workflow in API format: a model, a text, a sampler whose seed is the row's number, a saved image."""
    made = {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": MODELS[0]}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["4", 1]}},
        "3": {
            "class_type": "KSampler",
            "inputs": {"seed": "{{ row.id | int }}", "steps": 20, "model": ["4", 0], "positive": ["6", 0]},
        },
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "orders/a"}},
        **nodes,
    }
    return {node: {**content, "_meta": {"title": content["class_type"]}} for node, content in made.items()}


def _error(kind: str, message: str, details: str, extra: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"type": kind, "message": message, "details": details, "extra_info": extra or {}}


def _upstream(prompt: dict[str, Any], node: str) -> list[str]:
    found, pending = [], [node]
    while pending:
        one = pending.pop()
        if one in found or one not in prompt:
            continue
        found.append(one)
        pending += [v[0] for v in prompt[one]["inputs"].values() if isinstance(v, list) and len(v) == 2]
    return found


def _node_errors(content: dict[str, Any]) -> list[dict[str, Any]]:
    errors = []
    inputs = content["inputs"]
    for name in REQUIRED[content["class_type"]]:
        if name not in inputs:
            errors.append(_error("required_input_missing", "Required input is missing", name, {"input_name": name}))
    model = inputs.get("ckpt_name")
    if model is not None and model not in MODELS:
        details = f"ckpt_name: '{model}' not in {MODELS}"
        extra = {"input_name": "ckpt_name", "input_config": [MODELS], "received_value": model}
        errors.append(_error("value_not_in_list", "Value not in list", details, extra))
    seed = inputs.get("seed")
    if isinstance(seed, int) and seed < 0:
        details, extra = "seed", {"input_name": "seed", "received_value": seed}
        errors.append(_error("value_smaller_than_min", "Value -1 smaller than min of 0", details, extra))
    return errors
