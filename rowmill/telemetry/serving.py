"""A small HTTP server for probes and metrics, the same for every process of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from rowmill.telemetry.metrics import exposition


@asynccontextmanager
async def serve_probes(
    *,
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    not_alive: Callable[[], str | None] = lambda: None,
    documents: Mapping[str, Callable[[], dict[str, Any]]] | None = None,
) -> AsyncIterator[int]:
    """Serve for the length of the block; yields the port (a free one where 0 was asked for).

    `/healthz` is 200 while the event loop turns and `not_alive` says nothing, `/readyz` 200 or 503 with what
    `not_ready` says is missing, `/metrics` for Prometheus, and each path of `documents` a JSON object.
    """

    def probe(missing: Callable[[], str | None]) -> Callable[[web.Request], Any]:
        async def answer(_: web.Request) -> web.Response:
            why = missing()
            return web.Response(text=f"{why or 'ok'}\n", status=503 if why else 200)

        return answer

    def document(make: Callable[[], dict[str, Any]]) -> Callable[[web.Request], Any]:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response(make())

        return answer

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", probe(not_alive)),
            web.get("/readyz", probe(not_ready)),
            web.get("/metrics", metrics),
            *(web.get(path, document(make)) for path, make in (documents or {}).items()),
        ]
    )
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
