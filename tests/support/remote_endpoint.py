"""An endpoint in a process of its own, as a test sees it: started by `spawn`, steered over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientTimeout

from tests.support.nursery import Child, nursery


class RemoteEndpoint:
    """An endpoint in a process of its own, steered over HTTP. Made by `spawn`."""

    def __init__(self, port: int, log: Path | None, process: Child, session: ClientSession) -> None:
        self.port, self.log, self.process = port, log, process
        self._session = session

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    async def stats(self) -> dict[str, Any]:
        return await self._ask("GET", "stats")

    async def play(self, plan: Mapping[str, Any]) -> None:
        await self._ask("POST", "plan", json=plan)

    async def hold(self) -> None:
        await self._ask("POST", "hold")

    async def release(self) -> None:
        await self._ask("POST", "release")

    async def wait(
        self, *, in_flight: int = 0, calls: int = 0, idle: bool = False, all_held: bool = False, timeout: float = 90.0
    ) -> dict[str, Any]:
        params = {
            "in_flight": in_flight,
            "calls": calls,
            "idle": int(idle),
            "all_held": int(all_held),
            "timeout": timeout,
        }
        return await self._ask("GET", "wait", params=params)

    async def _ask(self, method: str, what: str, **kwargs: Any) -> dict[str, Any]:
        async with self._session.request(method, f"{self.url}_/{what}", **kwargs) as response:
            if response.status == 504:
                raise TimeoutError(f"the endpoint waited in vain; it has {await response.text()}")
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer


@contextlib.asynccontextmanager
async def spawn(
    *, plan: Mapping[str, Any] | None = None, log: Path | None = None, port: int = 0
) -> AsyncIterator[RemoteEndpoint]:
    """Run an endpoint in a process of its own until the block is left."""
    arguments = ["--port", str(port), "--plan", json.dumps(plan or {})]
    if log is not None:
        arguments += ["--log", str(log)]
    reading, writing = os.pipe()
    try:
        process = nursery().bear("endpoint", arguments, environ=os.environ, output=writing, errors=2)
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    try:
        given = await _port_told(reading)
        async with ClientSession(timeout=ClientTimeout(total=120)) as session:
            yield RemoteEndpoint(given, log, process, session)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 60)


async def _port_told(reading: int) -> int:
    """The first line of a pipe's other end; closes the pipe."""
    with os.fdopen(reading, "rb") as file:
        line = await asyncio.wait_for(asyncio.to_thread(file.readline), 60)
    assert line, "the endpoint ended before it listened; it said why on standard error"
    return int(line)
