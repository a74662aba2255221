"""What a status or an exception means for the row: its class, whether trying again can help, words for a person.

Pure: nothing here sends, sleeps or reads a clock. Two questions decide `retryable`: may the very same request meet
another answer a little later (an overloaded server, a cut connection, a name server's hiccup), or is it the request,
the credentials or the address that must change first? Only the former is retried. In doubt about the *transport* the
row is retried (attempts are bounded); in doubt about the *request* it is not (each try may be paid for).
"""

from __future__ import annotations

import errno
import re
import ssl
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp.http_exceptions import ContentEncodingError

from rowmill_worker.backoff import MAX_RETRY_AFTER
from rowmill_worker.executors.advice import HTTP, Advice
from rowmill_worker.executors.protocol import RowError

EXCERPT_CHARS: Final = 300
"""Characters of an answer that may stand in a message."""

_SECONDS: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?")

_TRANSIENT: Final = frozenset({408, 425, 429})
# These 5xx speak of the request (not implemented, version, negotiation loops), not of the server's condition.
_PERMANENT_5XX: Final = frozenset({501, 505, 506, 508, 510})
# Permanent by themselves; with a Retry-After the endpoint itself says that the refusal passes: a lock, a quota told
# as 403, an idempotency key whose first call still runs.
_TRANSIENT_WHEN_ASKED_BACK: Final = frozenset({403, 409, 413, 423})


def is_transient(status: int, *, asked_back: bool = False) -> bool:
    """Whether a status (outside 2xx) may pass by itself; `asked_back` says that it came with a valid Retry-After."""
    if status in _TRANSIENT or (asked_back and status in _TRANSIENT_WHEN_ASKED_BACK):
        return True
    return status >= 500 and status not in _PERMANENT_5XX


def parse_retry_after(value: str | None, *, now: float) -> float | None:
    """Seconds to wait by a Retry-After header: delay-seconds or an HTTP-date, from 0 to `MAX_RETRY_AFTER`.

    `now` is the time in seconds since the epoch. What cannot be understood, or is negative, is None; a date that
    has passed is 0.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), MAX_RETRY_AFTER)
    try:
        when = parsedate_to_datetime(text)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        seconds = (when - datetime.fromtimestamp(now, UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), MAX_RETRY_AFTER)


def shorten(text: str, limit: int = EXCERPT_CHARS) -> str:
    """`text` on one line, printable, at most `limit` characters."""
    flat = " ".join("".join(c if c.isprintable() else " " for c in text[: limit * 8]).split())
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def from_status(
    status: int,
    reason: str | None,
    *,
    origin: str,
    excerpt: str = "",
    retry_after: float | None = None,
    advice: Advice = HTTP,
) -> RowError:
    """The failure that an answer outside 2xx is: class `HTTP<status>`.

    `origin` is scheme, host and port; `excerpt` is the beginning of the answer's text, already free of secrets.
    """
    if not reason:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = ""
    message = f"{origin} answered {status} {shorten(reason, 60)}".rstrip()
    if 200 <= status < 300 and advice.accepted:
        message += f"; it is not among {advice.accepted}"
    elif hint := advice.hints.get(status):
        message += f"; {hint}"
    if retry_after is not None:
        message += f"; it asked to wait {retry_after:g} s"
    if excerpt := shorten(excerpt):
        message += f"; its answer began: {excerpt}"
    retryable = is_transient(status, asked_back=retry_after is not None)
    return RowError(f"HTTP{status}", message, retryable=retryable, retry_after=retry_after)


def closed_before_sending(exc: BaseException) -> bool:
    """Whether the session or connector was found closed before a byte was sent, so that no attempt was spent.

    aiohttp has no class of its own for either; a test holds these texts against the installed version.
    """
    if type(exc) is RuntimeError:
        return str(exc) == "Session is closed"
    return type(exc) is aiohttp.ClientConnectionError and str(exc).startswith("Connector is closed")


def from_exception(exc: Exception, *, origin: str, timeout: float, advice: Advice = HTTP) -> RowError | None:
    """The failure that an exception of the call is, or None where it is not the call's (a defect: let it be seen).

    `timeout` is the bound of the call in seconds, for the message.
    """
    if isinstance(exc, TimeoutError) and not isinstance(exc, aiohttp.ClientConnectorError):
        return _timeout(origin, timeout)
    if isinstance(exc, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return RowError(
            "InvalidURL",
            f"the rendered URL is not one that can be called; check {advice.url} and this row's columns",
            retryable=False,
            spent=False,
        )
    if isinstance(exc, aiohttp.ClientConnectorError):
        return _from_connecting(exc, origin=origin, timeout=timeout, advice=advice)
    if isinstance(exc, aiohttp.ServerDisconnectedError | ConnectionError):
        return _connection_reset(origin)
    if isinstance(exc, aiohttp.ClientPayloadError):
        if isinstance(exc.__cause__, ContentEncodingError):
            return RowError(
                "InvalidAnswer",
                f"the answer of {origin} cannot be decompressed as its Content-Encoding says",
                retryable=False,
            )
        return incomplete_answer(origin)
    if isinstance(exc, aiohttp.ClientResponseError):
        # Raised for what is no HTTP at all; a status of the endpoint's own never comes this way.
        return RowError(
            "InvalidHTTP",
            f"{origin} answered something that is not HTTP ({shorten(exc.message, 120)}); "
            f"check host and port in {advice.url}",
            retryable=True,
        )
    if isinstance(exc, OSError):
        return _from_os_error(exc, origin=origin, timeout=timeout)
    if isinstance(exc, aiohttp.ClientConnectionError):
        return _connection_reset(origin)
    if isinstance(exc, aiohttp.ClientError):
        return RowError("ConnectionFailed", f"the call to {origin} failed: {type(exc).__name__}", retryable=True)
    return None


def incomplete_answer(origin: str) -> RowError:
    """An answer that ended before its end: retried, since the transport and not the row is at fault."""
    return RowError(
        "IncompleteAnswer",
        f"{origin} began an answer and closed the connection before its end",
        retryable=True,
    )


def _connection_reset(origin: str) -> RowError:
    return RowError(
        "ConnectionReset",
        f"{origin} closed the connection before it had answered; whether it did the work is not known",
        retryable=True,
    )


def _timeout(origin: str, timeout: float) -> RowError:
    return RowError(
        "Timeout",
        f"no complete answer from {origin} within {timeout:g} s; "
        "raise spec.timeoutSeconds or lower spec.concurrency.perWorker",
        retryable=True,
    )


def _from_connecting(exc: aiohttp.ClientConnectorError, *, origin: str, timeout: float, advice: Advice) -> RowError:
    if isinstance(exc, aiohttp.ClientConnectorDNSError):
        return RowError(
            "NameNotResolved",
            f"the host name of {origin} does not resolve ({shorten(exc.os_error.strerror or 'unknown', 80)}); "
            f"check {advice.url} and the name servers",
            # A name server's hiccup looks the same as a name that is wrong.
            retryable=True,
        )
    if isinstance(exc, aiohttp.ClientConnectorCertificateError):
        cause = exc.certificate_error
        why = getattr(cause, "verify_message", "") or type(cause).__name__
        return RowError(
            "CertificateError",
            f"the certificate of {origin} is not trusted ({shorten(why, 120)}); "
            "correct the endpoint's certificate or install its authority in the worker (SSL_CERT_FILE)",
            retryable=False,
        )
    if isinstance(exc, aiohttp.ClientConnectorSSLError):
        reason = exc.os_error.reason if isinstance(exc.os_error, ssl.SSLError) else None
        return RowError(
            "TLSError",
            f"no TLS connection with {origin} ({shorten(reason or 'handshake failed', 80)}); check scheme and port",
            retryable=True,
        )
    return _from_os_error(exc.os_error, origin=origin, timeout=timeout)


_UNREACHABLE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.EADDRNOTAVAIL}
)
_RESET: Final = frozenset({errno.ECONNRESET, errno.EPIPE, errno.ECONNABORTED, errno.ESHUTDOWN})
_ERRNO_IN_TEXT: Final = re.compile(r"\[Errno (\d+)\]")


def _from_os_error(exc: OSError, *, origin: str, timeout: float) -> RowError:
    number = exc.errno
    if number is None and (found := _ERRNO_IN_TEXT.search(str(exc))):
        # A host with several addresses fails with one error that only quotes those of its addresses.
        number = int(found.group(1))
    if number == errno.ECONNREFUSED:
        return RowError(
            "ConnectionRefused",
            f"{origin} refuses connections; check that the service runs and listens on this port",
            retryable=True,
        )
    if isinstance(exc, TimeoutError) or number == errno.ETIMEDOUT:
        return _timeout(origin, timeout)
    if number in _RESET:
        return _connection_reset(origin)
    if number in _UNREACHABLE:
        return RowError(
            "HostUnreachable",
            f"no route to {origin}; check the address, the network and network policies",
            retryable=True,
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return RowError(
            "TooManyOpenFiles",
            "the worker has no file descriptor left for a connection; raise its limit (ulimit -n) or lower "
            "spec.concurrency.perWorker",
            retryable=True,
        )
    return RowError(
        "ConnectionFailed",
        f"no connection to {origin}: {shorten(exc.strerror or type(exc).__name__, 120)}",
        retryable=True,
    )
