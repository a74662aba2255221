"""Runs a Dify app for each row.

    rendered → sent → run begun (a task) → ended: succeeded | partial-succeeded | failed | stopped | paused

HTTP tells only that a run ended: whether it succeeded stands inside the answer, and a workflow that failed there is a
failed attempt. A stream is put together to the very answer that a blocking call gets, so that `result` and everything
after it knows one shape. A run whose row ran out of time, or whose worker stops, goes on at the server and may go on
costing: where its task is known (streaming tells it first) it is stopped there, by a call of its own that nobody waits
for longer than a few seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from rowmill.spec.executors import DifyExecutor as DifySpec
from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill_worker.executors import answer as answers
from rowmill_worker.executors.advice import TOO_MANY, Advice
from rowmill_worker.executors.caller import Caller, shared_connector
from rowmill_worker.executors.dify_answers import Stream, outcome_of, refusal_of, usage_of
from rowmill_worker.executors.http import compiled_search
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.executors.request import Request, RequestTemplate
from rowmill_worker.executors.secrets import Redactor, SecretReader

PATH: Final = "spec.executor.dify"
STOP_SECONDS: Final = 5.0
"""How long a run that nobody waits for may take to be stopped."""
MAX_STREAM_BYTES: Final = 67_108_864
"""Bytes of a stream that are read; most of them are events of nodes that nobody keeps."""

ADVICE: Final = Advice(
    url=f"{PATH}.baseUrl",
    result=f"{PATH}.result",
    hints={
        401: f"check the app's key in {PATH}.apiKey",
        403: "check in Dify that the app exists and that its API is enabled",
        404: f"check {PATH}.baseUrl (it ends in /v1) and {PATH}.workflowId",
        413: "an input is too large for the app",
        429: TOO_MANY,
    },
)


def request_template(
    spec: DifySpec, *, job: Mapping[str, Any], secrets: SecretReader | None, where: str
) -> RequestTemplate:
    """How a row's request is rendered. Raises InvalidInput."""
    body: dict[str, Any] = {
        "inputs": spec.inputs,
        "response_mode": "streaming" if spec.response_mode == "Streaming" else "blocking",
        "user": spec.user,
    }
    if spec.app != "Workflow":
        if spec.query is not None:
            body["query"] = spec.query
        if spec.files:
            body["files"] = [
                {"type": file.type, "transfer_method": "remote_url", "url": file.url} for file in spec.files
            ]
    if spec.app == "Chat":
        body["auto_generate_name"] = False  # a call of a model for a title that nobody reads
        if spec.workflow_id is not None:
            body["workflow_id"] = spec.workflow_id
    route = {"Workflow": "/workflows/run", "Chat": "/chat-messages", "Completion": "/completion-messages"}[spec.app]
    if spec.app == "Workflow" and spec.workflow_id is not None:
        route = f"/workflows/{spec.workflow_id}/run"
    plain = HttpSpec.model_construct(url=spec.base_url.rstrip("/") + route, method="POST", headers=(), body=body)
    return RequestTemplate(
        spec=plain, job=job, secrets=secrets, where=where, path=PATH, bearer=spec.api_key, body_path=PATH
    )


class DifyExecutor:
    """`spec.executor.dify`. See `rowmill_worker.executors.protocol.Executor`."""

    def __init__(
        self,
        *,
        spec: DifySpec,
        job: Mapping[str, Any],
        secrets: SecretReader,
        where: str = "",
        wall_clock: Callable[[], float] = time.time,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
        max_answer_bytes: int = answers.MAX_ANSWER_BYTES,
    ) -> None:
        self._spec = spec
        self._job = job
        self._secrets = secrets
        self._where = where
        self._wall_clock = wall_clock
        self._connector_factory = connector_factory
        self._max_answer_bytes = max_answer_bytes
        self._template: RequestTemplate | None = None
        self._caller: Caller | None = None
        self._redactor = Redactor(())
        self._search: Callable[[Any], Any] | None = None
        self._streams: set[Stream] = set()
        self._stopping: set[asyncio.Task[None]] = set()

    @property
    def tasks(self) -> frozenset[str]:
        """Tasks at Dify that rows wait for right now, as far as their streams have told them."""
        return frozenset(stream.task_id for stream in self._streams if stream.task_id is not None)

    @property
    def active_sessions(self) -> int:
        """Sessions that are open right now: one a call in flight, and one a run that is being stopped."""
        return 0 if self._caller is None else self._caller.active_sessions

    async def open(self) -> None:
        """Compile the templates, read the key, make the connector. Raises InvalidInput."""
        self._template = request_template(self._spec, job=self._job, secrets=self._secrets, where=self._where)
        self._redactor = self._secrets.redactor()
        usual = "data.outputs" if self._spec.app == "Workflow" else "answer"
        self._search = compiled_search(self._spec.result or usual, path=f"{PATH}.result", where=self._where)
        self._caller = Caller(
            redactor=self._redactor,
            advice=ADVICE,
            refusal=refusal_of,
            wall_clock=self._wall_clock,
            connector_factory=self._connector_factory,
            max_answer_bytes=self._max_answer_bytes,
        )

    async def close(self) -> None:
        """Close the connections; runs that are being stopped get at most five seconds."""
        if self._stopping:
            await asyncio.wait(set(self._stopping), timeout=STOP_SECONDS)
        for task in set(self._stopping):
            task.cancel()
        if self._caller is not None:
            await self._caller.close()

    async def execute(self, attempt: Attempt) -> Any:
        """Run the app once and return its result. Raises RowError."""
        if self._template is None or self._caller is None:
            raise RuntimeError("execute is called between open and close")
        request = self._template.render(attempt)
        attempt.usage = Usage(requests=1)
        read = self._read if self._spec.response_mode == "Streaming" else None
        reply = await self._caller.send(request, timeout=attempt.timeout, read=read)
        value = answers.value_of(reply, wanted=True, redact=self._redactor.redact)
        attempt.usage = usage_of(value)
        outcome_of(
            value,
            app=self._spec.app,
            accept_partial=self._spec.accept_partial,
            origin=request.origin,
            redact=self._redactor.redact,
        )
        result = self._search(value) if self._search is not None else value
        answers.require_storable(result, advice=ADVICE)
        return result

    async def _read(self, response: aiohttp.ClientResponse, request: Request) -> bytes:
        """A stream as the answer that a blocking call gets."""
        if response.content_type != "text/event-stream":  # an error, or a proxy's page: told by what it holds
            return await _all_of(response, self._max_answer_bytes, request.origin)
        stream = Stream(
            workflow=self._spec.app == "Workflow",
            max_bytes=MAX_STREAM_BYTES,
            max_kept=self._max_answer_bytes,
            origin=request.origin,
            redact=self._redactor.redact,
            advice=ADVICE,
        )
        self._streams.add(stream)
        try:
            while not stream.ended and (chunk := await response.content.readany()):
                stream.feed(chunk)
        except (TimeoutError, asyncio.CancelledError):
            self._stop_later(stream.task_id, request)
            raise
        finally:
            self._streams.discard(stream)
        return msgspec.json.encode(stream.answer())

    def _stop_later(self, task_id: str | None, request: Request) -> None:
        if task_id is None or self._caller is None:
            return
        task = asyncio.create_task(self._stop(self._caller, task_id, request))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    async def _stop(self, caller: Caller, task_id: str, request: Request) -> None:
        route = {"Workflow": "workflows/tasks", "Chat": "chat-messages", "Completion": "completion-messages"}
        user = msgspec.json.decode(request.body or b"{}").get("user")
        base = self._spec.base_url.rstrip("/")
        headers: CIMultiDict[str] = request.headers.copy()
        stop = request._replace(
            url=URL(f"{base}/{route[self._spec.app]}/{task_id}/stop"),
            headers=headers,
            body=msgspec.json.encode({"user": user}),
        )
        try:
            await caller.send(stop, timeout=STOP_SECONDS)
        except RowError:
            return  # nothing more can be done from here; the row's own failure is what is told


async def _all_of(response: aiohttp.ClientResponse, limit: int, origin: str) -> bytes:
    content = bytearray()
    while chunk := await response.content.readany():
        content += chunk
        if len(content) > limit:
            raise answers.too_large(limit, what=f"the answer of {origin}", advice=ADVICE)
    return bytes(content)


class DifyPreview:
    """How a row would be sent to Dify. See `rowmill_worker.executors.simulate.Preview`."""

    def __init__(self, *, spec: DifySpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._template: RequestTemplate | None = None

    def open(self) -> None:
        self._template = request_template(self._spec, job=self._job, secrets=None, where=self._where)
        compiled_search(self._spec.result, path=f"{PATH}.result", where=self._where)

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._template is not None, "opened"
        return self._template.render(attempt).describe()
