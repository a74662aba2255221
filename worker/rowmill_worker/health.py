"""What a worker answers over HTTP: is it alive, is it ready, how busy is it, its metrics.

`/healthz` 200 while the event loop turns · `/readyz` 200 once rows could be executed (503 says what is missing) ·
`/health` JSON with max_concurrent, available_slots, processing_count, active_sessions, waiting, where
available_slots + processing_count = max_concurrent, always · `/metrics` for Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from prometheus_client import CollectorRegistry

from rowmill.telemetry.metrics import exposition


@asynccontextmanager
async def serve_health(
    *,
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    numbers: Callable[[], dict[str, Any]],
) -> Any:
    """Serve for the length of the block; yields the port (a free one where 0 was asked for)."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        missing = not_ready()
        return web.Response(text=f"{missing or 'ok'}\n", status=503 if missing else 200)

    async def health(_: web.Request) -> web.Response:
        return web.json_response(numbers())

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=exposition(registry), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes(
        [
            web.get("/healthz", healthz),
            web.get("/readyz", readyz),
            web.get("/health", health),
            web.get("/metrics", metrics),
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
