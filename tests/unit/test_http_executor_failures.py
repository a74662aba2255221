"""Every way in which a call can fail has its class, says whether trying again can help, and leaves nothing open."""

import asyncio
import datetime
import errno
import socket
import ssl
from email.utils import format_datetime
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from rowmill_worker.backoff import MAX_RETRY_AFTER
from rowmill_worker.executors import classify
from rowmill_worker.executors.protocol import RowError
from tests.support.endpoint import Behaviour, Endpoint, Plan
from tests.support.http_rows import attempt, http_executor

TRANSIENT = {408, 425, 429, 500, 502, 503, 504, 507, 520, 524, 529, 599}
PERMANENT = {304, 400, 401, 402, 403, 404, 405, 409, 410, 413, 414, 415, 418, 422, 423, 451, 501, 505}


async def failure(behaviour: Behaviour, *, timeout: float = 10.0, **fields: Any) -> RowError:
    """What one call to a server that behaves so raises."""
    async with Endpoint(plan=Plan(default=behaviour)) as endpoint, http_executor(endpoint.url, **fields) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt(timeout=timeout))
        assert executor.active_sessions == 0
        assert endpoint.stats()["calls"] == 1  # one attempt is one call
    return caught.value


@pytest.mark.parametrize("status", sorted(TRANSIENT | PERMANENT))
async def test_a_status_is_its_own_class(status: int) -> None:
    error = await failure(Behaviour("ok", status=status, body={"error": "what went wrong"}))
    assert error.error_class == f"HTTP{status}"
    assert error.retryable == (status in TRANSIENT)
    assert error.spent
    assert f"answered {status}" in error.message
    if status != 304:
        assert "what went wrong" in error.message


@pytest.mark.parametrize(
    ("kind", "error_class"),
    [
        ("close_unread", "ConnectionReset"),
        ("close_read", "ConnectionReset"),
        ("reset", "ConnectionReset"),
        ("close_mid", "IncompleteAnswer"),
        ("half", "IncompleteAnswer"),
        ("half_chunked", "IncompleteAnswer"),
        ("garbage", "InvalidHTTP"),
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET", "PUT"])
async def test_a_cut_connection_is_one_failed_attempt_worth_another(kind: str, error_class: str, method: str) -> None:
    error = await failure(Behaviour(kind), method=method)
    assert (error.error_class, error.retryable, error.spent) == (error_class, True, True)


@pytest.mark.parametrize("kind", ["close_read", "reset", "close_unread"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "POST"])
async def test_a_kept_connection_that_drops_is_not_quietly_asked_again(kind: str, method: str) -> None:
    plan = Plan(choose=lambda row, nth: Behaviour(kind) if row == "2" else None)
    async with Endpoint(plan=plan) as endpoint:
        async with http_executor(endpoint.url + "?row={{ row.id }}", method=method) as executor:
            await executor.execute(attempt(1))
            with pytest.raises(RowError, match="ConnectionReset"):
                await executor.execute(attempt(2))
        assert endpoint.stats()["calls"] == 2


async def test_an_answer_without_length_that_breaks_off_is_incomplete() -> None:
    error = await failure(Behaviour("half_unframed", body='{"row": "1", "la'))
    assert (error.error_class, error.retryable) == ("IncompleteAnswer", True)


async def test_an_endpoint_that_never_answers_is_left_after_the_timeout() -> None:
    started = asyncio.get_running_loop().time()
    error = await failure(Behaviour("hang"), timeout=0.05)
    assert asyncio.get_running_loop().time() - started < 5
    assert (error.error_class, error.retryable, error.spent) == ("Timeout", True, True)
    assert "within 0.05 s" in error.message


async def test_an_answer_that_never_ends_is_left_after_the_timeout() -> None:
    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n[1,")
        await reader.read(-1)
        writer.close()

    server = await asyncio.start_server(stall, "127.0.0.1", 0)
    async with server, http_executor(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as executor:
        with pytest.raises(RowError, match="Timeout"):
            await executor.execute(attempt(timeout=0.05))


async def test_a_status_is_known_even_when_its_text_breaks_off() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 50\r\nRetry-After: 7\r\n\r\nwait")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(cut, "127.0.0.1", 0)
    async with server, http_executor(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/") as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
    assert (caught.value.error_class, caught.value.retry_after) == ("HTTP503", 7)


async def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        async with http_executor(f"http://{host}:{port}/v1") as executor:
            with pytest.raises(RowError) as caught:
                await executor.execute(attempt())
        error = caught.value
        assert (error.error_class, error.retryable, error.spent) == ("ConnectionRefused", True, True)
        assert f"http://{host}:{port} refuses connections" in error.message


async def test_a_name_that_does_not_resolve() -> None:
    class Nameless(aiohttp.abc.AbstractResolver):
        async def resolve(self, host: str, port: int = 0, family: Any = 0) -> list[Any]:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def close(self) -> None:
            return None

    options = {"connector_factory": lambda: aiohttp.TCPConnector(limit=0, resolver=Nameless())}
    async with http_executor("http://triage.nowhere.invalid/v1", options=options) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
    error = caught.value
    assert (error.error_class, error.retryable) == ("NameNotResolved", True)
    assert "http://triage.nowhere.invalid does not resolve (Name or service not known)" in error.message
    assert "check spec.executor.http.url" in error.message


async def test_a_certificate_that_is_not_trusted_ends_the_row() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)

    async def answer(request: web.BaseRequest) -> web.Response:
        return web.Response()

    handler = web.Server(answer, access_log=None)
    server = await asyncio.get_running_loop().create_server(handler, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    try:
        async with http_executor(f"https://localhost:{port}/") as executor:
            with pytest.raises(RowError) as caught:
                await executor.execute(attempt())
    finally:
        server.close()
        await handler.shutdown(0.1)
    error = caught.value
    assert (error.error_class, error.retryable) == ("CertificateError", False)
    assert "certificate" in error.message


async def test_https_to_a_port_that_speaks_http() -> None:
    async with Endpoint() as endpoint, http_executor(endpoint.url.replace("http:", "https:")) as executor:
        with pytest.raises(RowError) as caught:
            await executor.execute(attempt())
    assert (caught.value.error_class, caught.value.retryable) == ("TLSError", True)
    assert "check scheme and port" in caught.value.message


async def test_an_answer_compressed_wrongly_ends_the_row() -> None:
    error = await failure(Behaviour("raw", body="not gzip", headers={"Content-Encoding": "gzip"}))
    assert (error.error_class, error.retryable) == ("InvalidAnswer", False)


async def test_the_wait_that_was_asked_for_is_carried() -> None:
    now = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC)
    in_ninety = format_datetime(now + datetime.timedelta(seconds=90), usegmt=True)
    for value, expected in (("7", 7.0), (in_ninety, 90.0), ("soon", None), ("-5", None)):
        error = await failure(
            Behaviour("ok", status=429, headers={"Retry-After": value}), options={"wall_clock": now.timestamp}
        )
        assert (error.error_class, error.retryable, error.retry_after) == ("HTTP429", True, expected)
        assert ("it asked to wait" in error.message) == (expected is not None)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("", None),
        ("0", 0.0),
        (" 12 ", 12.0),
        ("1.5", 1.5),
        ("99999999", MAX_RETRY_AFTER),
        ("9" * 5000, None),
        ("-1", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("٣", None),
        ("Fri, 01 May 2026 12:00:30 GMT", 30.0),
        ("Fri, 01 May 2026 14:00:30 +0200", 30.0),
        ("Fri, 01 May 2026 11:59:00 GMT", 0.0),
        ("Fri, 01 May 2099 12:00:00 GMT", MAX_RETRY_AFTER),
        ("Friday", None),
        ("Fri, 99 May 2026 12:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_and_bounded(value: str | None, seconds: float | None) -> None:
    now = datetime.datetime(2026, 5, 1, 12, 0, tzinfo=datetime.UTC).timestamp()
    assert classify.parse_retry_after(value, now=now) == seconds


@given(st.text())
def test_no_retry_after_breaks_the_parser(value: str) -> None:
    seconds = classify.parse_retry_after(value, now=1e9)
    assert seconds is None or 0 <= seconds <= MAX_RETRY_AFTER


@given(status=st.integers(300, 599), reason=st.none() | st.text(), excerpt=st.text(max_size=5000))
def test_a_message_is_one_short_line(status: int, reason: str | None, excerpt: str) -> None:
    error = classify.from_status(status, reason, origin="http://triage", excerpt=excerpt)
    assert error.error_class == f"HTTP{status}"
    assert len(error.message.splitlines()) == 1
    assert len(error.message) < 600


@pytest.mark.parametrize("status", [403, 409, 413, 423])
def test_a_refusal_that_names_its_end_is_transient(status: int) -> None:
    assert not classify.from_status(status, None, origin="x").retryable
    assert classify.from_status(status, None, origin="x", retry_after=3.0).retryable


@pytest.mark.parametrize("status", [400, 401, 404, 501])
def test_other_refusals_are_not(status: int) -> None:
    assert not classify.from_status(status, None, origin="x", retry_after=3.0).retryable


@pytest.mark.parametrize(
    ("exc", "error_class"),
    [
        (TimeoutError(), "Timeout"),
        (OSError(errno.ETIMEDOUT, "timed out"), "Timeout"),
        (aiohttp.ServerTimeoutError(), "Timeout"),
        (aiohttp.ClientOSError(errno.ECONNRESET, "reset"), "ConnectionReset"),
        (aiohttp.ClientOSError(errno.EPIPE, "broken"), "ConnectionReset"),
        (aiohttp.ClientConnectionResetError("closing"), "ConnectionReset"),
        (aiohttp.ClientConnectionError("Connection closed"), "ConnectionReset"),
        (OSError(errno.EHOSTUNREACH, "no route"), "HostUnreachable"),
        (OSError(errno.EMFILE, "too many"), "TooManyOpenFiles"),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('::1', 1)"), "ConnectionRefused"),
        (OSError(errno.EACCES, "denied"), "ConnectionFailed"),
        (aiohttp.ClientError("something new"), "ConnectionFailed"),
    ],
)
def test_what_the_network_raises_is_retried(exc: Exception, error_class: str) -> None:
    error = classify.from_exception(exc, origin="http://triage", timeout=5)
    assert error is not None
    assert (error.error_class, error.retryable, error.spent) == (error_class, True, True)


def test_a_defect_of_our_own_is_not_blamed_on_the_endpoint() -> None:
    assert classify.from_exception(KeyError("x"), origin="http://triage", timeout=5) is None


async def test_what_aiohttp_says_of_closed_things_is_known() -> None:
    session = aiohttp.ClientSession()
    await session.close()
    connector = aiohttp.TCPConnector()
    on_closed = aiohttp.ClientSession(connector=connector, connector_owner=False)
    await connector.close()
    for closed in (session, on_closed):
        with pytest.raises((RuntimeError, aiohttp.ClientConnectionError)) as caught:
            await closed.get("http://127.0.0.1:9/")
        assert classify.closed_before_sending(caught.value)
    on_closed.detach()
    assert not classify.closed_before_sending(RuntimeError("another"))
    assert not classify.closed_before_sending(aiohttp.ClientConnectionError("Connection closed"))
