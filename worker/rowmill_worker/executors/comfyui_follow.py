"""When to look whether a prompt has ended: told by the server over a websocket, or by the clock.

A socket only gives the hint to look; what is true stands in the queue and the history, which are asked over HTTP. So
nothing depends on the socket: messages that were lost while it was away, that never came (prompts of a worker that is
gone are told to its socket), or that came twice, make a look late or needless, never an end wrong.

    away → connecting → connected → away (broken, refused, closed) → after a delay: connecting …

Each change wakes everybody who waits: a socket that went is replaced by the clock at once, one that came may have
missed messages. There is one socket a worker, under one client id; where another takes the id over, the server closes
nothing and tells the other: the clock goes on, slowly, while a socket is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Final, Generic, NamedTuple, TypeVar

import aiohttp
import msgspec
from yarl import URL

from rowmill_worker.executors.caller import shared_connector

CONNECT_SECONDS: Final = 10.0
HEARTBEAT_SECONDS: Final = 20.0
MAX_MESSAGE_BYTES: Final = 67_108_864
"""Previews of images come over the socket too; a larger one ends the connection, and the clock goes on."""

T = TypeVar("T")


class Pace(NamedTuple):
    """Seconds between looks: from `first`, doubled up to `longest`; `told` while a socket tells. Seconds until the
    socket is tried again: from `retry`, doubled up to `retry_longest`."""

    first: float = 0.5
    longest: float = 5.0
    told: float = 15.0
    retry: float = 0.5
    retry_longest: float = 30.0


USUAL_PACE: Final = Pace()


class Watch:
    """Somebody's waiting for one prompt."""

    def __init__(self, follower: Follower, *, own: bool) -> None:
        self._follower, self._own = follower, own
        self.event = asyncio.Event()
        self._interval = follower.pace.first

    async def wait(self) -> None:
        """Until there is reason to look."""
        pace = self._follower.pace
        seconds = pace.told if self._own and self._follower.connected else self._interval
        self._interval = min(self._interval * 2, pace.longest)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.event.wait()
                self._interval = pace.first
        self.event.clear()


class Follower:
    """The worker's socket and those who wait. `open` starts it, `close` ends it; `rng` draws the delays' jitter."""

    def __init__(
        self,
        *,
        client_id: str,
        pace: Pace,
        rng: random.Random,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
    ) -> None:
        self.client_id, self.pace = client_id, pace
        self._rng = rng
        self._connector_factory = connector_factory
        self._watches: dict[str, set[Watch]] = {}
        self._task: asyncio.Task[None] | None = None
        self.connected = False
        self.connections = 0
        """Sockets that there were so far."""

    def open(self, base: URL, headers: Mapping[str, str]) -> None:
        """Connect, and go on connecting, in the background; again is nothing."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(base, headers))

    async def close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=CONNECT_SECONDS)

    @contextlib.contextmanager
    def watch(self, prompt: str, *, own: bool) -> Any:
        """A `Watch` for a prompt; `own`: submitted under this client id, so that the socket tells of it."""
        watch = Watch(self, own=own)
        self._watches.setdefault(prompt, set()).add(watch)
        try:
            yield watch
        finally:
            rest = self._watches[prompt]
            rest.discard(watch)
            if not rest:
                del self._watches[prompt]

    async def _run(self, base: URL, headers: Mapping[str, str]) -> None:
        delay = self.pace.retry
        async with self._session() as session:
            while True:
                try:
                    async with self._socket(session, base, headers) as socket:
                        delay = self.pace.retry
                        self._changed(connected=True)
                        async for message in socket:
                            if message.type is aiohttp.WSMsgType.TEXT:
                                self._told(message.data)
                except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
                    pass  # no socket is needed; the clock goes on
                finally:
                    if self.connected:
                        self._changed(connected=False)
                await asyncio.sleep(delay * (0.5 + self._rng.random()))
                delay = min(delay * 2, self.pace.retry_longest)

    @contextlib.asynccontextmanager
    async def _session(self) -> AsyncIterator[aiohttp.ClientSession]:
        async with aiohttp.ClientSession(
            connector=self._connector_factory(),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session:
            yield session

    @contextlib.asynccontextmanager
    async def _socket(
        self, session: aiohttp.ClientSession, base: URL, headers: Mapping[str, str]
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        async with asyncio.timeout(CONNECT_SECONDS):
            socket = await session.ws_connect(
                (base / "ws").with_query(clientId=self.client_id),
                headers=headers,
                heartbeat=HEARTBEAT_SECONDS,
                max_msg_size=MAX_MESSAGE_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CONNECT_SECONDS),
            )
        try:
            yield socket
        finally:
            await socket.close()

    def _changed(self, *, connected: bool) -> None:
        self.connected = connected
        self.connections += connected
        for watches in self._watches.values():
            for watch in watches:
                watch.event.set()

    def _told(self, text: str) -> None:
        try:
            message = msgspec.json.decode(text)
        except (msgspec.MsgspecError, RecursionError):
            return
        data = message.get("data") if isinstance(message, dict) else None
        # The message that comes when the history has it; those about the end itself come a moment too soon.
        if isinstance(data, dict) and message.get("type") == "executing" and data.get("node") is None:
            for watch in self._watches.get(str(data.get("prompt_id")), ()):
                watch.event.set()


class Shared(Generic[T]):
    """One fetch at a time, for many who ask: each is answered by one that began after it had asked."""

    def __init__(self) -> None:
        self._running: asyncio.Task[T] | None = None
        self._next: asyncio.Task[T] | None = None

    async def get(self, fetch: Callable[[], Awaitable[T]]) -> T:
        """What `fetch` gives, or that of another who asked meanwhile. Raises what it raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._after(self._running, fetch))
            self._next.add_done_callback(_seen)
        return await asyncio.shield(self._next)

    async def close(self) -> None:
        """End what runs."""
        tasks = [task for task in (self._running, self._next) if task is not None and not task.done()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _after(self, before: asyncio.Task[T] | None, fetch: Callable[[], Awaitable[T]]) -> T:
        if before is not None:
            await asyncio.wait([before])
        self._running, self._next = self._next, None
        return await fetch()


def _seen(task: asyncio.Task[Any]) -> None:
    # Whoever asked may be gone; a failure that nobody waits for is none.
    if not task.cancelled():
        task.exception()
