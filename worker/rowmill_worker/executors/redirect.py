"""Where a redirect leads, and what it may carry there. Pure.

Bounds: at most `MAX_REDIRECTS` hops, all within the attempt's one timeout, all one attempt. 307 and 308 keep method
and body; 303 becomes a GET without body, and so does a POST on 301 or 302, as clients have long done.

To another origin (host, port or scheme; plain http to https of the same host is no change) only what describes the
request goes along: nothing that came by reference, no Authorization, no Cookie, no other header of the manifest, for
a literal X-Api-Key is a secret too. Idempotency-Key and X-Request-Id do go along, where Rowmill made them: they hold
no secret, and a paid call that was moved must still be told from a new one. What was taken off stays off on later hops.
"""

from __future__ import annotations

from typing import Final

from multidict import CIMultiDict
from yarl import URL

from rowmill_worker.executors.advice import HTTP, Advice
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.executors.request import Request

MAX_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

_GOES_ANYWHERE: Final = frozenset(
    {"accept", "accept-language", "content-type", "idempotency-key", "user-agent", "x-request-id"}
)
_OF_THE_BODY: Final = ("Content-Type", "Content-Encoding", "Content-Language")


def follow(request: Request, status: int, location: str | None, *, hop: int, advice: Advice = HTTP) -> Request:
    """The request that a redirect asks for; `hop` counts the redirects of this attempt, this one among them, from 1.

    Raises RowError, not retryable: TooManyRedirects, or InvalidRedirect for a place that cannot be called.
    """
    if hop > MAX_REDIRECTS:
        raise RowError(
            "TooManyRedirects",
            f"{request.origin} was the {MAX_REDIRECTS + 1}th in a row to redirect; "
            f"set {advice.url} to the final address",
            retryable=False,
        )
    target = _target(request, status, location, advice)
    method, body, headers = request.method, request.body, request.headers
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, body = "GET", None
        headers = headers.copy()
        for name in _OF_THE_BODY:
            headers.popall(name, None)
    if not same_origin(request.url, target):
        headers = CIMultiDict(
            (name, value)
            for name, value in headers.items()
            if name.lower() in _GOES_ANYWHERE and name.lower() not in request.bound
        )
    return request._replace(method=method, url=target, headers=headers, body=body)


def same_origin(source: URL, target: URL) -> bool:
    """Whether what may go to `source` may go to `target`: the same origin, or http moved to https on one host."""
    if source.origin() == target.origin():
        return True
    return (
        source.raw_host == target.raw_host
        and (source.scheme, target.scheme) == ("http", "https")
        and source.is_default_port()
        and target.is_default_port()
    )


def _target(request: Request, status: int, location: str | None, advice: Advice) -> URL:
    if not location:
        raise _invalid(request, status, "does not say where to", advice)
    try:
        target = request.url.join(URL(location))
        if target.scheme in ("http", "https") and target.raw_host:
            # A user named by the redirect would become an Authorization of its making.
            return target.with_user(None)
    except ValueError:
        pass
    raise _invalid(request, status, "to something that is no http or https address", advice)


def _invalid(request: Request, status: int, what: str, advice: Advice) -> RowError:
    return RowError(
        "InvalidRedirect",
        f"{request.origin} redirects ({status}) {what}; check {advice.url}",
        retryable=False,
    )
