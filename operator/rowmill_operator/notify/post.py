"""One POST to a webhook, on behalf of somebody else.

Every connection goes to an address that `AddressPolicy` has judged: the name is resolved in a thread, each of its
addresses is judged, and the socket is connected to one of them, never to the name. Redirects are not followed, the
environment's proxies not used where the policy restricts. Of the answer only its status and `Retry-After` are read:
what stands in it is nobody's business (it might be the answer of something that only the operator can reach).

Whatever happens becomes an `Answer`; nothing of the target's address but its host, and no header, stands in it.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Mapping
from concurrent.futures import Executor as ThreadPool
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from rowmill.storage import AddressPolicy
from rowmill.storage.addresses import AddressRefused
from rowmill_operator.notify.content import BODY_BYTES
from rowmill_operator.notify.schedule import Answer, retry_after_of
from rowmill_operator.notify.target import Target, signature

TRY_SECONDS: Final = 10.0
"""From the first look-up of the name to the answer's headers."""

AT_ONCE: Final = 8
"""Tries at the same time, over all jobs."""

USER_AGENT: Final = "rowmill"


class Poster:
    """`policy` judges addresses, in `threads`; `slots` bounds the tries over all jobs; `wall` is the time of day."""

    def __init__(
        self,
        *,
        policy: AddressPolicy,
        threads: ThreadPool,
        slots: asyncio.Semaphore,
        wall: Callable[[], float],
        timeout: float = TRY_SECONDS,
    ) -> None:
        self._policy = policy
        self._threads = threads
        self._slots = slots
        self._wall = wall
        self._timeout = timeout

    async def post(self, target: Target, body: Mapping[str, Any], *, uid: str, request_id: str) -> Answer:
        """Send `body` once; how that ended. Waiting for a slot does not count against the time of the try."""
        content = json.dumps(body, separators=(",", ":")).encode()  # ASCII, so that a cut character harms nobody
        if len(content) > BODY_BYTES:
            return Answer(problem=f"the notification is larger than {BODY_BYTES:,} bytes", lasting=True)
        headers = {
            **target.headers,
            "Content-Type": "application/json",
            "User-Agent": USER_AGENT,
            "Idempotency-Key": uid,
            "X-Request-Id": request_id,
        }
        async with self._slots:
            if target.key is not None:
                headers |= signature(target.key, uid=uid, timestamp=int(self._wall()), body=content)
            try:
                return await self._try(target, content, headers)
            except AddressRefused as error:
                return Answer(problem=str(error), lasting=True)
            except TimeoutError:
                return Answer(problem=f"it does not answer within {self._timeout:g} s")
            except aiohttp.ClientConnectorCertificateError:
                return Answer(
                    problem="its certificate is not trusted; see who issued it, and for which name", lasting=True
                )
            except aiohttp.ClientConnectorDNSError:
                return Answer(problem="its name does not resolve; see that it is written right")
            except aiohttp.ClientConnectorError as error:
                return Answer(problem=f"it cannot be connected to ({error.os_error.strerror or 'no reason is known'})")
            except aiohttp.ClientResponseError:
                return Answer(problem="what answers there speaks no HTTP; see that address and port are right")
            except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError, ValueError):
                return Answer(problem="its address or a header cannot be sent; correct it", lasting=True)
            except (aiohttp.ClientError, OSError) as error:
                return Answer(problem=f"the connection ended before an answer came ({type(error).__name__})")

    async def _try(self, target: Target, content: bytes, headers: Mapping[str, str]) -> Answer:
        url = URL(target.url)
        async with asyncio.timeout(self._timeout):
            host = url.raw_host or ""
            if _like_an_address(host):  # the client connects to such a host without asking a resolver
                await self._checked(host, url.port or 0)
            connector = aiohttp.TCPConnector(
                resolver=_Judged(self._checked), use_dns_cache=False, force_close=True, limit=1
            )
            session = aiohttp.ClientSession(
                connector=connector,
                trust_env=not self._policy.restricted,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),
            )
            async with session:
                answer = await session.post(url, data=content, headers=headers, allow_redirects=False)
                answer.close()
                asked = retry_after_of(answer.headers.get("Retry-After"), wall=self._wall())
                return Answer.of_status(answer.status, retry_after=asked)

    async def _checked(self, host: str, port: int) -> list[str]:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._policy.checked, host, port)


class _Judged(AbstractResolver):
    """Resolves to addresses that were judged: those, and no others, are connected to."""

    def __init__(self, checked: Callable[[str, int], Any]) -> None:
        self._checked = checked

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found: list[str] = await self._checked(host, port)
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in found
        ]

    async def close(self) -> None:
        """Nothing is kept."""


def _like_an_address(host: str) -> bool:
    """Whether a host is, or might be taken for, an address: `127.0.0.1`, `::1`, and `127.1` or `2130706433` too."""
    return ":" in host or host.replace(".", "").isdigit()
