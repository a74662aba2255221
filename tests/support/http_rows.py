"""Attempts at rows and executors for them, for tests of whatever sends rows over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from aiohttp import web

from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.executors.secrets import SecretReader

JOB = {"namespace": "support", "name": "triage", "runId": "1"}


def attempt(seq: int = 1, *, number: int = 1, timeout: float = 10.0, key: Any = None, **row: Any) -> Attempt:
    """A try at row `seq`, whose columns are `row` and its own number."""
    return Attempt(
        seq=seq,
        row={"id": seq, **row},
        key=key,
        number=number,
        idempotency_key=f"support/triage/1/{seq}",
        request_id=f"triage-{seq}-{number}",
        timeout=timeout,
    )


def http_spec(url: str, **fields: Any) -> HttpSpec:
    """`spec.executor.http`, written as in a manifest."""
    if fields.get("method") != "GET":
        fields.setdefault("body", {"row": "{{ row.id }}"})
    return HttpSpec.model_validate({"url": url, **fields})


@contextlib.asynccontextmanager
async def http_executor(
    url: str, *, environ: Mapping[str, str] | None = None, options: Mapping[str, Any] | None = None, **fields: Any
) -> AsyncIterator[HttpExecutor]:
    """An open executor for a manifest's `fields`; `options` go to its constructor."""
    executor = HttpExecutor(
        spec=http_spec(url, **fields),
        job=JOB,
        secrets=SecretReader(environ=environ or {}, where="job.yaml"),
        where="job.yaml",
        **(options or {}),
    )
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()


class Mirror:
    """A server that writes down what it was asked and answers `answer`; `async with` it for its address."""

    def __init__(self, answer: Callable[[web.BaseRequest], web.StreamResponse] | None = None) -> None:
        self.seen: list[dict[str, Any]] = []
        self._answer = answer or (lambda _: web.json_response({"n": len(self.seen), "nested": {"label": "spam"}}))

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        self.seen.append(
            {
                "method": request.method,
                "path": request.raw_path,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": (await request.content.read()).decode(),
                "connection": id(request.transport),
            }
        )
        return self._answer(request)

    async def __aenter__(self) -> str:
        self._server = web.Server(self._handle, access_log=None)
        self._listener = await asyncio.get_running_loop().create_server(self._server, "127.0.0.1", 0)
        return f"http://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}"

    async def __aexit__(self, *exc: object) -> None:
        self._listener.close()
        await self._server.shutdown(0.1)
        await self._listener.wait_closed()
