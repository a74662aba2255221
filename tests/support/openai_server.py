"""A server that speaks OpenAI's API over a socket: chat completions, completions, embeddings, responses.

By default it does what a small model server does: it answers the last words in capitals, a word a token; holds to
`max_tokens`, to its context and to a JSON schema; knows one model and, where it has a key, who may ask. `plan` may say
otherwise for a request. What it takes and what it answers is held against the types of the `openai` package in
`tests/unit/test_executor_openai_sdk.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

MODEL = "tiny-1"
CREATED = 1_750_000_000
Json = dict[str, Any]


@dataclass
class Reply:
    """What is answered in place of the model's words: `body` (JSON, or bytes as they stand) with a status.

    `stalls`: it never answers. `endless`: the body is sent again and again, for as long as anyone reads.
    """

    body: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    stalls: bool = False
    endless: bool = False


@dataclass(frozen=True)
class Asked:
    """A request as it came in; names of headers in lower case."""

    path: str
    headers: Mapping[str, str]
    body: Json


Plan = Callable[[Asked], Reply | None]


class OpenAIServer:
    """`async with` it for the address up to /v1. `context` is in words; without `key` anyone may ask."""

    def __init__(
        self, *, plan: Plan | None = None, key: str | None = None, context: int = 64, model: str = MODEL
    ) -> None:
        self._plan, self._key, self._context, self._model = plan, key, context, model
        self.asked: list[Asked] = []
        self.answered: list[tuple[str, int, Any]] = []

    async def __aenter__(self) -> str:
        app = web.Application(client_max_size=2**25)
        for name in ("chat/completions", "completions", "embeddings", "responses", "moderations"):
            app.router.add_post(f"/v1/{name}", self._answer)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.2)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        return f"http://{host}:{port}/v1"

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        asked = Asked(request.path, {n.lower(): v for n, v in request.headers.items()}, await request.json())
        self.asked.append(asked)
        reply = (self._plan(asked) if self._plan is not None else None) or self._reply(asked)
        self.answered.append((asked.path, reply.status, reply.body))
        headers = {"x-request-id": f"req_{len(self.asked)}", **reply.headers}
        if reply.stalls:
            await asyncio.Event().wait()
        if reply.endless:
            stream = web.StreamResponse(headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            while True:
                await stream.write(reply.body)
        if isinstance(reply.body, bytes):
            return web.Response(body=reply.body, status=reply.status, headers=headers)
        return web.json_response(reply.body, status=reply.status, headers=headers)

    def _reply(self, asked: Asked) -> Reply:
        if self._key is not None and asked.headers.get("authorization") != f"Bearer {self._key}":
            return Reply(error("Incorrect API key provided: sk-***.", code="invalid_api_key"), 401)
        if (model := asked.body.get("model")) != self._model:
            told = f"The model `{model}` does not exist or you do not have access to it."
            return Reply(error(told, code="model_not_found"), 404)
        given = _count(asked.body)
        if given > self._context:
            told = (
                f"This model's maximum context length is {self._context} tokens. However, your messages resulted in "
                f"{given} tokens. Please reduce the length of the messages."
            )
            return Reply(error(told, code="context_length_exceeded", param="messages"), 400)
        return Reply(_ANSWERS[asked.path.removeprefix("/v1/")](asked.body))


def error(
    message: str, *, code: str | None = None, kind: str = "invalid_request_error", param: str | None = None
) -> Json:
    """An error as OpenAI tells it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def chat(
    text: str | None,
    *,
    finish: str = "stop",
    refusal: str | None = None,
    tool_calls: list[Json] | None = None,
    tokens: tuple[int, int] = (7, 3),
) -> Json:
    """A chat completion with one choice."""
    message: Json = {"role": "assistant", "content": text, "refusal": refusal, "annotations": []}
    if tool_calls is not None:
        message["tool_calls"] = tool_calls
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": CREATED,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        "usage": _usage(*tokens),
        "service_tier": "default",
        "system_fingerprint": "fp_1",
    }


def tool_call(name: str = "look_up", arguments: str = '{"id": 1}') -> Json:
    """A call that a chat model asks for."""
    return {"id": "call_1", "type": "function", "function": {"name": name, "arguments": arguments}}


def response(
    text: str | None,
    *,
    status: str = "completed",
    incomplete: str | None = None,
    refusal: str | None = None,
    failed: Json | None = None,
    calls: tuple[Json, ...] = (),
    tokens: tuple[int, int] = (7, 3),
) -> Json:
    """A Response; its message stands beside a reasoning item, as with reasoning models."""
    content: list[Json] = []
    if text is not None:
        content.append({"type": "output_text", "text": text, "annotations": [], "logprobs": []})
    if refusal is not None:
        content.append({"type": "refusal", "refusal": refusal})
    output: list[Json] = [{"id": "rs_1", "type": "reasoning", "summary": []}, *calls]
    if content:
        state = "incomplete" if status == "incomplete" else "completed"
        output.append({"id": "msg_1", "type": "message", "role": "assistant", "status": state, "content": content})
    given, made = tokens
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": CREATED,
        "status": status,
        "error": failed,
        "incomplete_details": None if incomplete is None else {"reason": incomplete},
        "instructions": None,
        "metadata": {},
        "model": MODEL,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": given,
            "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
            "output_tokens": made,
            "output_tokens_details": {"reasoning_tokens": 1},
            "total_tokens": given + made,
        },
    }


def function_call() -> Json:
    """A call that a model asks for in a Response."""
    item = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look_up", "arguments": '{"id": 1}'}
    return {**item, "status": "completed"}


def embeddings(count: int, *, tokens: int = 7, backwards: bool = False) -> Json:
    """So many vectors, in the order of what was asked or the other way round."""
    data = [{"object": "embedding", "index": i, "embedding": [float(i), 0.5, -0.25]} for i in range(count)]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data[::-1] if backwards else data, "model": MODEL, "usage": usage}


def completions(*texts: str, finish: str = "stop", tokens: tuple[int, int] = (7, 3)) -> Json:
    """A completion with a choice a text."""
    choices = [{"index": i, "text": text, "logprobs": None, "finish_reason": finish} for i, text in enumerate(texts)]
    kind = "text_completion"
    return {
        "id": "cmpl-1",
        "object": kind,
        "created": CREATED,
        "model": MODEL,
        "choices": choices,
        "usage": _usage(*tokens),
    }


def _usage(given: int, made: int) -> Json:
    details = {"completion_tokens_details": {"reasoning_tokens": 0}, "prompt_tokens_details": {"cached_tokens": 2}}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made, **details}


def _words(value: Any) -> Iterator[str]:
    """Every text of a conversation, a prompt or an input."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _words(value.get("content") if "content" in value else value.get("text"))
    elif isinstance(value, list):
        for item in value:
            yield from _words(item)


def _asked(body: Json) -> Any:
    return next((body[name] for name in ("messages", "prompt", "input") if name in body), "")


def _count(body: Json) -> int:
    return sum(len(text.split()) for text in _words(_asked(body)))


def _spoken(body: Json, asked: Any, limit: int | None) -> tuple[str, str, tuple[int, int]]:
    """What is answered to `asked`, how it ended and the tokens of both."""
    words = list(_words(asked))
    schema = _schema_of(body)
    text = _instance(schema) if schema is not None else (words[-1] if words else "").upper()
    made = text.split()
    if limit is not None and len(made) > limit:
        return " ".join(made[:limit]), "length", (_count(body), limit)
    return text, "stop", (_count(body), len(made))


def _schema_of(body: Json) -> Json | None:
    response_format = body.get("response_format") or {}
    text_format = (body.get("text") or {}).get("format") or {}
    if response_format.get("type") == "json_schema":
        found: Json = response_format["json_schema"]["schema"]
        return found
    return text_format.get("schema") if text_format.get("type") == "json_schema" else None


def _instance(schema: Json) -> str:
    """The JSON of an object whose required properties have the emptiest values of their types."""
    empty = {"string": "x", "integer": 1, "number": 0.5, "boolean": True, "array": [], "object": {}, "null": None}
    properties = schema.get("properties", {})
    made = {n: (properties.get(n, {}).get("enum") or [empty[properties.get(n, {}).get("type", "null")]])[0]
            for n in schema.get("required", ())}  # fmt: skip
    return json.dumps(made)


def _chat(body: Json) -> Json:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    text, finish, tokens = _spoken(body, body["messages"], limit)
    answer = chat(text, finish=finish, tokens=tokens)
    answer["choices"] = [{**answer["choices"][0], "index": i} for i in range(body.get("n") or 1)]
    return answer


def _completions(body: Json) -> Json:
    prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
    texts = [_spoken(body, prompt, body.get("max_tokens", 16))[0] for prompt in prompts]
    return completions(*texts, tokens=(_count(body), sum(len(text.split()) for text in texts)))


def _embeddings(body: Json) -> Json:
    return embeddings(len(body["input"]) if isinstance(body["input"], list) else 1, tokens=_count(body), backwards=True)


def _responses(body: Json) -> Json:
    text, finish, tokens = _spoken(body, body["input"], body.get("max_output_tokens"))
    if finish == "length":
        return response(text, status="incomplete", incomplete="max_output_tokens", tokens=tokens)
    return response(text, tokens=tokens)


_ANSWERS: Mapping[str, Callable[[Json], Json]] = {
    "chat/completions": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
    "responses": _responses,
}
