"""Table E: concurrency that tunes itself, a whole run against an endpoint that serves eight calls at once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiohttp import web

from tests.support.inprocess import lab, manifest

KNEE = 8
CALL_SECONDS = 0.1


@pytest.mark.slow
async def test_the_slots_find_the_knee_and_health_adds_up(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    places = asyncio.Semaphore(KNEE)

    async def answer(request: web.BaseRequest) -> web.Response:
        await request.read()
        async with places:
            await asyncio.sleep(CALL_SECONDS)
        return web.json_response({"ok": True})

    server = web.Server(answer, access_log=None)
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/"
    limits: list[int] = []
    try:
        async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores:
            adaptive = {"adaptive": {"min": 1, "max": 64}}
            job = manifest(url, rows=900, concurrency=adaptive, retry={"maxAttempts": 1})
            driving = asyncio.create_task(stores.drive(job))
            async with stores.worker(job) as worker:
                assert worker.gate.limit == 3, "it begins where any worker does"
                while not driving.done():
                    numbers = worker.numbers()
                    assert numbers["available_slots"] + numbers["processing_count"] == numbers["max_concurrent"]
                    limits.append(numbers["max_concurrent"])
                    await asyncio.wait([driving], timeout=0.05)
                status = await driving
    finally:
        listener.close()
        await server.shutdown(1.0)
    assert status.succeeded == 900
    late = limits[len(limits) // 2 :]
    assert 0.7 * KNEE <= sum(late) / len(late) <= 1.5 * KNEE, limits
