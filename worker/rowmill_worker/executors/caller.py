"""One call over HTTP: a session of its own, redirects followed, the answer bounded, every failure classed.

What every executor that speaks HTTP shares. Before sending, a connector that was closed is replaced, and the call goes
out as if nothing had been: no attempt spent. Once bytes may have left, a failure is a failed attempt, told by its
class; a request is never sent twice (aiohttp's own quiet resending of idempotent methods on a kept connection is off:
it would be a call that nobody counts).

Every call has a session of its own, which no other row can close, on the pod's one connector, which keeps connections
and names. The connector has no limit: concurrency is bounded before, by the gate, so that nobody ever waits for a
connection inside the row's timeout.
"""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from rowmill_worker.executors import answer as answers
from rowmill_worker.executors import classify, redirect
from rowmill_worker.executors.advice import HTTP, Advice
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.executors.request import Request
from rowmill_worker.executors.secrets import Redactor

DNS_CACHE_SECONDS: Final = 300
KEEPALIVE_SECONDS: Final = 15.0
_CLOSE_SECONDS: Final = 5.0
_MAX_REBUILDS: Final = 3
_EXCERPT_BYTES: Final = 4096
_DRAIN_BYTES: Final = 65_536  # an error's page read to its end keeps the connection; a longer one is not worth it
_STREAMED_BYTES: Final = 262_144  # a larger body is written in pieces, so that it does not hold up the loop
_NO_TYPE: Final = ("Content-Type",)  # aiohttp would call no body at all an octet-stream
_NEVER_ROUNDED: Final = 1e9  # aiohttp rounds timeouts above this up to whole seconds

Reader = Callable[[aiohttp.ClientResponse, Request], Awaitable[bytes]]
"""Reads the body of a success, bounded; what it returns becomes the answer's body."""

Refusal = Callable[[answers.Answer, str, float | None], RowError | None]
"""Classes an answer that is no success: the answer with the beginning of its body, the same as text without secrets,
and the seconds that it asked to wait. None leaves it to its status."""


def shared_connector() -> aiohttp.TCPConnector:
    """The one connector of a pod: unbounded (the gate bounds), names cached for 300 s, connections kept."""
    return aiohttp.TCPConnector(limit=0, ttl_dns_cache=DNS_CACHE_SECONDS, keepalive_timeout=KEEPALIVE_SECONDS)


def any_2xx(status: int) -> bool:
    """Whether a status is a success where nothing else is said."""
    return 200 <= status < 300


class Caller:
    """Sends requests on one connector, until `close`.

    `redactor` takes secrets out of what messages tell of an answer; `advice` names the manifest's fields in them.
    `wall_clock` (seconds since the epoch) serves Retry-After dates. `succeeded` says which statuses are successes,
    `refusal` classes what is none of them.
    """

    def __init__(
        self,
        *,
        redactor: Redactor,
        advice: Advice = HTTP,
        succeeded: Callable[[int], bool] = any_2xx,
        refusal: Refusal | None = None,
        wall_clock: Callable[[], float] = time.time,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
        max_answer_bytes: int = answers.MAX_ANSWER_BYTES,
    ) -> None:
        self._redactor = redactor
        self._advice = advice
        self._succeeded = succeeded
        self._refusal = refusal
        self._wall_clock = wall_clock
        self._connector_factory = connector_factory
        self._max_answer_bytes = max_answer_bytes
        self._cookies = aiohttp.DummyCookieJar()
        self._connector: aiohttp.BaseConnector | None = connector_factory()
        self._timeout = _timeout_of(60.0)
        self._active = 0
        self._rebuilt = 0
        self._closed = False

    @property
    def active_sessions(self) -> int:
        """Sessions that are open right now: one a call in flight."""
        return self._active

    @property
    def rebuilt_connectors(self) -> int:
        """How often the connector was found closed and replaced."""
        return self._rebuilt

    async def close(self) -> None:
        """Close the connections; waits at most five seconds for them."""
        self._closed = True
        connector, self._connector = self._connector, None
        if connector is not None:
            try:
                await asyncio.wait_for(connector.close(), _CLOSE_SECONDS)
            except TimeoutError:
                return  # the sockets go with the process

    async def send(self, request: Request, *, timeout: float, read: Reader | None = None) -> answers.Answer:
        """Send once, follow redirects, and return the answer of a success; `timeout` (seconds) bounds it all.

        `read` takes the body in place of the reading of all of it, event by event say. Raises RowError: for any other
        answer one of class `HTTP<status>`.
        """
        if self._closed:
            raise RuntimeError("execute is called between open and close")
        deadline = time.monotonic() + timeout
        reply = await self._call(request, timeout, timeout, read)
        hop = 0
        while reply.status in redirect.REDIRECTS and not self._succeeded(reply.status):
            hop += 1
            request = redirect.follow(
                request, reply.status, reply.headers.get("Location"), hop=hop, advice=self._advice
            )
            left = deadline - time.monotonic()
            reply = await self._call(request, max(left, 0.001), timeout, read)
        if not self._succeeded(reply.status):
            raise self._refused(request, reply)
        return reply

    async def _call(self, request: Request, left: float, timeout: float, read: Reader | None) -> answers.Answer:
        """One request and its answer, within `left` seconds; `timeout` is the whole attempt's, for messages."""
        bound = self._timeout
        if bound.total != left:
            bound = self._timeout = _timeout_of(left)  # that of the last call, which is nearly always the next one's
        body: Any = request.body
        large = body is not None and len(body) > _STREAMED_BYTES
        # One coroutine from here to aiohttp: each more would be resumed for every piece that comes.
        for _ in range(_MAX_REBUILDS):
            session = self._session(bound)
            self._active += 1
            response = None
            try:
                response = await session.request(
                    request.method,
                    request.url,
                    headers=request.headers,
                    data=io.BytesIO(body) if large else body,
                    skip_auto_headers=_NO_TYPE if body is None else None,
                    allow_redirects=False,
                )
                status = response.status
                content = b""
                if self._succeeded(status):
                    content = await (read or self._read)(response, request)
                elif status not in redirect.REDIRECTS:
                    content = await _beginning(response)
                return answers.Answer(request.url, status, response.reason, response.headers, content)
            except RowError:
                raise
            except Exception as exc:
                if classify.closed_before_sending(exc):
                    continue
                failure = classify.from_exception(exc, origin=request.origin, timeout=timeout, advice=self._advice)
                if failure is None:
                    raise
                raise failure from exc
            finally:
                if response is not None:
                    response.release()
                self._active -= 1
                session.detach()
        raise RowError(
            "SessionClosed",
            f"the connections of this worker were closed {_MAX_REBUILDS} times before the call to {request.origin} "
            "was sent",
            retryable=True,
            spent=False,
        )

    def _session(self, bound: aiohttp.ClientTimeout) -> aiohttp.ClientSession:
        connector = self._connector
        if connector is None or connector.closed:
            connector = self._connector = self._connector_factory()
            self._rebuilt += 1
        session = aiohttp.ClientSession(
            connector=connector, connector_owner=False, cookie_jar=self._cookies, timeout=bound
        )
        # By default a GET or PUT on a kept connection that drops is sent again without a word.
        session._retry_connection = False
        return session

    async def _read(self, response: aiohttp.ClientResponse, request: Request) -> bytes:
        # The declared length is that of the compressed answer, hence the count besides.
        limit = self._max_answer_bytes
        if (response.content_length or 0) > limit:
            raise answers.too_large(limit, what=f"the answer of {request.origin}", advice=self._advice)
        chunk = await response.content.readany()
        if len(chunk) <= limit and response.content.at_eof():
            return chunk
        chunks = [chunk]
        size = len(chunk)
        while chunk:
            if size > limit:
                raise answers.too_large(limit, what=f"the answer of {request.origin}", advice=self._advice)
            chunk = await response.content.readany()
            chunks.append(chunk)
            size += len(chunk)
        return b"".join(chunks)

    def _refused(self, request: Request, reply: answers.Answer) -> RowError:
        excerpt = reply.body[: _EXCERPT_BYTES + self._redactor.longest * 4].decode("utf-8", "replace")
        excerpt = self._redactor.redact(excerpt)
        retry_after = classify.parse_retry_after(reply.headers.get("Retry-After"), now=self._wall_clock())
        told = None if self._refusal is None else self._refusal(reply, excerpt, retry_after)
        return told or classify.from_status(
            reply.status,
            self._redactor.redact(reply.reason or ""),
            origin=request.origin,
            excerpt=excerpt,
            retry_after=retry_after,
            advice=self._advice,
        )


def _timeout_of(seconds: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, ceil_threshold=_NEVER_ROUNDED)


async def _beginning(response: aiohttp.ClientResponse) -> bytes:
    """The first bytes of an error's text. That it breaks off changes nothing: the status has said it already."""
    content = bytearray()
    try:
        while len(content) < _DRAIN_BYTES and (chunk := await response.content.readany()):
            content += chunk
    except (aiohttp.ClientError, OSError):
        pass
    return bytes(content)
