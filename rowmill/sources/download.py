"""A table behind http(s) or in an object store, fetched once into a cache folder and read from there.

    ask (is the copy still the server's?) → fetch, going on behind what an earlier attempt left → check → publish

Failure at each step: whatever breaks the connection or is refused for now raises PlaceUnavailable, and what was fetched
stays for the next attempt, which goes on behind its last byte if the server confirms, by the validator that it gave,
that the content is the same. What a person must mend raises InvalidInput. See `cache` for what a crash leaves.

Invariant: a copy is used only if the server just confirmed, to these credentials, that ETag, modification time and
length are still those of the copy.
"""

from __future__ import annotations

import contextlib
import email.utils
import errno
import hashlib
import http.client
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.sources.cache import Cache, CacheFailed, CacheTooSmall, HeldCopy, Partial, Validators
from rowmill.sources.files import READ_BYTES, SOURCE_PATH
from rowmill.storage import AddressPolicy, AddressRefused, ObjectStore
from rowmill.storage.pinned_http import http_opener

SOCKET_TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection, and for more of an answer."""

_PATIENCE_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 16_384
_LONGEST_RETRY_AFTER = 300.0
_OBJECT_READ_BYTES = 4 * 1024 * 1024
_STRONG_AFTER_SECONDS = 60.0
_PASSING = (408, 423, 425, 429)
_LASTING = (501, 505, 506, 508, 510)

Stopped = Callable[[], bool]
"""Asked between pieces: whether nobody wants the table any more."""


def fetched(
    url: str,
    *,
    where: str,
    cache: Cache,
    policy: AddressPolicy,
    timeout: float = SOCKET_TIMEOUT_SECONDS,
    stopped: Stopped = lambda: False,
    clock: Callable[[], float] = time.monotonic,
) -> HeldCopy:
    """`url`'s content in `cache`, fetched anew unless the copy there is still the server's. Close it.

    Blocks. `timeout` (seconds) bounds each wait on the network; a server slower than 16 KiB/s on average is given up
    after a minute. Raises InvalidInput, PlaceUnavailable.
    """
    name = Cache.name_of(url)
    opener = http_opener(policy)
    with _told(url, where), cache.fetching(name) as partial:
        copy = cache.held(name)
        try:
            for _ in range(3):  # what an earlier attempt left may turn out to be of no use
                found = _ask(url, copy=copy, partial=partial, opener=opener, timeout=timeout)
                with found as answer:
                    if answer is None:
                        assert copy is not None
                        held, copy = copy, None
                        return held
                    if _taken(answer, partial, pieces=_pieces(answer, stopped, clock), name=name):
                        return _published(cache, name)
            raise PlaceUnavailable("it sends other parts than it is asked for")
        finally:
            if copy is not None:
                copy.close()


def fetched_object(
    store: ObjectStore,
    *,
    where: str,
    cache: Cache,
    credentials: Mapping[str, str] | None,
    stopped: Stopped = lambda: False,
) -> HeldCopy:
    """The object that `store`'s address names, in `cache`, fetched anew unless the copy there is still the store's.

    `credentials` tell whose view of the address it is; the store is asked with them each time. Blocks. Raises
    InvalidInput, PlaceUnavailable.
    """
    view = hashlib.blake2b(repr(sorted((credentials or {}).items())).encode(), digest_size=20).hexdigest()
    name = Cache.name_of(f"{store.uri}\n{view}")
    with _told(store.uri, where):
        info = store.info()
        if info is None:
            raise store.absent()
        validators = Validators(etag=info.version, length=info.size)
        with cache.fetching(name) as partial:
            copy = cache.held(name)
            if copy is not None:
                if copy.validators == validators:
                    return copy
                copy.close()
            if partial.validators != validators or partial.size > info.size:
                partial.restart(validators)
            with store.open_input() as stream:
                stream.seek(partial.size)
                partial.fill(_object_pieces(stream, stopped))
            if partial.size != info.size or store.info() != info:
                partial.discard()
                raise PlaceUnavailable("the object was changed while it was fetched; it is fetched anew")
            partial.publish(name, validators)
            return _published(cache, name)


def kept(content: bytes, *, where: str, cache: Cache) -> HeldCopy:
    """`content` as a copy in `cache`. Raises InvalidInput, PlaceUnavailable."""
    name = Cache.name_of(f"content {hashlib.blake2b(content, digest_size=32).hexdigest()}")
    with _told("", where), cache.fetching(name) as partial:
        copy = cache.held(name)
        if copy is not None:
            return copy
        validators = Validators(length=len(content))
        partial.restart(validators)
        partial.fill(iter([content]))
        partial.publish(name, validators)
        return _published(cache, name)


def _published(cache: Cache, name: str) -> HeldCopy:
    copy = cache.held(name)
    if copy is None:
        raise PlaceUnavailable("the copy was pruned at once: the cache is too small for the tables in use")
    return copy


@contextlib.contextmanager
def _ask(
    url: str, *, copy: HeldCopy | None, partial: Partial, opener: urllib.request.OpenerDirector, timeout: float
) -> Iterator[Any]:
    """The server's answer, or None when it says that `copy` still holds."""
    request = urllib.request.Request(url, headers={"User-Agent": "rowmill", "Accept": "*/*"})
    known = copy.validators if copy is not None else Validators()
    resuming = partial.size > 0 and partial.if_range is not None
    if resuming:
        request.add_header("Range", f"bytes={partial.size}-")
        request.add_header("If-Range", str(partial.if_range))
    else:
        if known.etag:
            request.add_header("If-None-Match", known.etag)
        if known.last_modified:
            request.add_header("If-Modified-Since", known.last_modified)
    try:
        answer = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and resuming:
            answer = error
        elif error.code == 304 and copy is not None and not resuming:
            error.close()
            yield None
            return
        else:
            raise
    with answer:
        if answer.status == 200 and copy is not None and _same(known, answer.headers):
            yield None
        else:
            yield answer


def _taken(answer: Any, partial: Partial, *, pieces: Iterator[bytes], name: str) -> bool:
    """Take what the answer sends. False when what there is and what it sends do not fit: then ask again from the start.

    Raises IncompleteRead when it ends early; what came stays.
    """
    if answer.status == 206:
        if not _continues(partial, answer.headers):
            partial.discard()
            return False
    elif answer.status == 200:
        validators = Validators(
            etag=answer.headers.get("ETag"),
            last_modified=answer.headers.get("Last-Modified"),
            length=_length(answer.headers),
        )
        partial.restart(validators, if_range=_if_range(validators, answer.headers))
    elif answer.status == 416:
        partial.discard()
        return False
    else:
        raise urllib.error.HTTPError(answer.url, answer.status, "", answer.headers, None)
    assert partial.validators is not None
    partial.fill(pieces)
    length = partial.validators.length
    if length is not None and partial.size != length:
        if partial.size > length:
            partial.discard()
        raise http.client.IncompleteRead(b"", length - partial.size)
    partial.publish(name, partial.validators)
    return True


def _continues(partial: Partial, headers: Any) -> bool:
    """Whether a 206 holds what comes behind the partial's last byte, of the same content, up to its end."""
    said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", (headers.get("Content-Range") or "").strip())
    known = partial.validators
    if said is None or known is None or int(said[1]) != partial.size:
        return False
    total = int(said[2]) + 1 if said[3] == "*" else int(said[3])
    if (known.length is not None and total != known.length) or int(said[2]) + 1 != total:
        return False
    return headers.get("ETag") in (None, known.etag)


def _if_range(validators: Validators, headers: Any) -> str | None:
    """What to ask for the rest by: a strong validator, or None."""
    if validators.etag:
        return None if validators.etag.startswith("W/") else validators.etag
    modified = _seconds(validators.last_modified)
    now = _seconds(headers.get("Date"))
    # A time of whole seconds tells two contents apart only some while after it.
    strong = modified is not None and now is not None and now - modified >= _STRONG_AFTER_SECONDS
    return validators.last_modified if strong else None


def _pieces(answer: Any, stopped: Stopped, clock: Callable[[], float]) -> Iterator[bytes]:
    began, size = clock(), 0
    while piece := answer.read1(READ_BYTES):
        yield piece
        size += len(piece)
        if clock() - began > _PATIENCE_SECONDS + size / _SLOWEST_BYTES_PER_SECOND:
            raise TimeoutError
        if stopped():
            raise PlaceUnavailable("the download was told to stop")


def _object_pieces(stream: BinaryIO | Any, stopped: Stopped) -> Iterator[bytes]:
    while piece := stream.read(_OBJECT_READ_BYTES):
        yield piece
        if stopped():
            raise PlaceUnavailable("the download was told to stop")


def _same(known: Validators, headers: Any) -> bool:
    """Whether a full answer's headers say that its content is the copy's. Length alone says too little."""
    said = Validators(headers.get("ETag"), headers.get("Last-Modified"), _length(headers))
    return bool(said.etag or said.last_modified) and said == known


def _length(headers: Any) -> int | None:
    text = headers.get("Content-Length")
    chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
    return int(text) if text and text.isascii() and text.isdigit() and not chunked else None


def _seconds(date: str | None) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() if date else None
    except ValueError:
        return None


@contextlib.contextmanager
def _told(url: str, where: str) -> Iterator[None]:
    """Errors as a person reads them, with the place (without its query: it may hold a signature)."""
    shown = url.partition("?")[0] if "://" in url and not url.startswith(("s3:", "gs:", "az:", "abfs")) else where
    try:
        yield
    except InvalidInput:
        raise
    except PlaceUnavailable as error:
        if str(error).startswith(shown):
            raise
        raise PlaceUnavailable(f"{shown}: {error}", retry_after=error.retry_after) from None
    except (AddressRefused, CacheFailed) as error:
        raise InvalidInput.one(where, SOURCE_PATH, str(error)) from None
    except CacheTooSmall as error:
        raise InvalidInput.one(
            where, SOURCE_PATH, f"{error}; split it, or ask the platform team for a larger cache"
        ) from None
    except urllib.error.HTTPError as error:
        retry_after = _retry_after(error)
        error.close()
        if _passes(error.code):
            raise PlaceUnavailable(f"{shown}: {_of_status(error.code)}", retry_after=retry_after) from None
        raise InvalidInput.one(where, SOURCE_PATH, _of_status(error.code)) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        passes, reason = _reason(error, urlsplit(url).hostname or "the server")
        if passes:
            raise PlaceUnavailable(f"{shown}: {reason}") from None
        raise InvalidInput.one(where, SOURCE_PATH, reason) from None


def _passes(code: int) -> bool:
    return code in _PASSING or (code >= 500 and code not in _LASTING)


def _of_status(code: int) -> str:
    reason = http.client.responses.get(code, "unknown status")
    if code in (401, 403, 407):
        advice = "the address must be readable without credentials, or carry them in a signed query"
    elif _passes(code):
        advice = "it is tried again"
    else:
        advice = "correct the address"
    return f"the server answered {code} {reason}; {advice}"


def _retry_after(error: urllib.error.HTTPError) -> float | None:
    """Seconds that the server asks to wait, at most five minutes."""
    text = (error.headers.get("Retry-After") or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), _LONGEST_RETRY_AFTER)
    until = _seconds(text)
    return min(max(0.0, until - time.time()), _LONGEST_RETRY_AFTER) if until is not None else None


def _reason(error: Exception, host: str) -> tuple[bool, str]:
    """Whether it passes by itself, and what happened."""
    cause: Any = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        if cause.errno == socket.EAI_AGAIN:
            return True, f"the name servers do not answer for {host} now; it is tried again"
        return False, f"the host {host} does not resolve; correct the address or check the network"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return False, f"the certificate of {host} is not trusted ({cause.verify_message}); correct the address"
    if isinstance(cause, TimeoutError):
        return True, f"{host} did not answer in time, or sends too slowly; it is tried again"
    if isinstance(cause, http.client.IncompleteRead):
        return True, "the download ended early, so that the table is truncated; it goes on where it ended"
    if isinstance(cause, ConnectionRefusedError):
        return True, f"{host} refuses the connection; it is tried again. Is the address right, and the server up?"
    if isinstance(cause, http.client.RemoteDisconnected | ConnectionError):
        return True, f"{host} broke the connection; it is tried again"
    if isinstance(cause, OSError) and cause.errno in (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN):
        return True, f"there is no way to {host}; it is tried again. Check the address, and network policies"
    if isinstance(cause, ssl.SSLError):
        return True, f"{host} does not speak TLS as expected; it is tried again. Is the port one for https?"
    if isinstance(cause, OSError) and cause.strerror:
        return True, f"{host} cannot be read from: {cause.strerror}; it is tried again"
    return False, f"{host} cannot be read from ({cause if isinstance(cause, str) else type(cause).__name__})"
