"""A receiver of notifications on a real socket: what came, and the answers that were asked for."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web


@dataclass(frozen=True)
class Told:
    """A request as it came."""

    path: str
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def key(self) -> str:
        return self.headers["Idempotency-Key"]

    @property
    def event(self) -> str:
        return str(self.body["event"])


@dataclass(frozen=True)
class Reply:
    """An answer; `silent`: none is ever given."""

    status: int = 200
    headers: Mapping[str, str] | None = None
    silent: bool = False


class Webhook:
    """An `async with` block is its life. `replies` are given in turn, then `usual`."""

    def __init__(self, *replies: int | Reply, usual: int | Reply = 200) -> None:
        self.replies = deque(replies)
        self.usual = usual
        self.told: list[Told] = []
        self._changed = asyncio.Event()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    async def __aenter__(self) -> Webhook:
        self._server = web.Server(self._handle, handler_cancellation=True, access_log=None)
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(self._server, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._listener.close()
        await self._server.shutdown(timeout=0.1)
        await self._listener.wait_closed()

    async def until(self, calls: int, *, within: float = 120.0) -> list[Told]:
        """Wait until so many have come; all that have."""
        async with asyncio.timeout(within):
            while len(self.told) < calls:
                self._changed.clear()
                await self._changed.wait()
        return self.told

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        raw = await request.content.read()
        self.told.append(Told(request.path, request.headers, raw))
        self._changed.set()
        reply = self.replies.popleft() if self.replies else self.usual
        if isinstance(reply, int):
            reply = Reply(reply)
        if reply.silent:
            await asyncio.Event().wait()
        return web.Response(status=reply.status, headers=reply.headers, text="what stands here is not read")
