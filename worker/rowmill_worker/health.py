"""What a worker answers over HTTP: is it alive, is it ready, how busy is it, its metrics.

`/healthz` 200 while the event loop turns · `/readyz` 200 once rows could be executed (503 says what is missing) ·
`/health` JSON with max_concurrent, available_slots, processing_count, active_sessions, waiting, where
available_slots + processing_count = max_concurrent, always · `/metrics` for Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client import CollectorRegistry

from rowmill.telemetry.serving import serve_probes


def serve_health(
    *,
    host: str,
    port: int,
    registry: CollectorRegistry,
    not_ready: Callable[[], str | None],
    numbers: Callable[[], dict[str, Any]],
) -> AbstractAsyncContextManager[int]:
    """Serve for the length of the block; yields the port (a free one where 0 was asked for)."""
    return serve_probes(host=host, port=port, registry=registry, not_ready=not_ready, documents={"/health": numbers})
