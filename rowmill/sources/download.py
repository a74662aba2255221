"""A table behind http(s), fetched once into a cache folder and read from there.

States of a cached copy: none → partial (a temporary name that no reader knows) → content in place (renamed) →
described (a small file beside it, which names the content's inode, size and time). Failure at each step:

* killed while fetching: the partial file is never read and is removed by a later fetch once it is a day old;
* killed between the two renames: the description does not fit the content, which is fetched again;
* two processes at once: each fetches under a name of its own, the last rename wins, both contents are whole.

Invariant: a content is used only if its description fits it and the server just confirmed that ETag, modification
time and length are still those of the description.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from rowmill.errors import InvalidInput
from rowmill.sources.files import READ_BYTES, SOURCE_PATH

SOCKET_TIMEOUT_SECONDS = 30.0
"""Longest wait for a connection, and for more of an answer."""

_PATIENCE_SECONDS = 60.0
_SLOWEST_BYTES_PER_SECOND = 16_384
_PARTIAL_SECONDS = 86_400.0


class _Copy(msgspec.Struct, frozen=True):
    """What is known of a cached content: what the server said of it, and what tells that it is that very file."""

    etag: str | None
    last_modified: str | None
    length: int | None
    inode: int
    size: int
    mtime_ns: int


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) only, and never from https to http."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        scheme = urlsplit(newurl).scheme
        if scheme not in ("http", "https"):
            fp.close()
            raise urllib.error.URLError("it redirects to something that is no http address")
        if scheme == "http" and urlsplit(req.full_url).scheme == "https":
            fp.close()
            raise urllib.error.URLError("it redirects from https to an unprotected address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def fetched(
    url: str,
    *,
    where: str,
    cache: Path,
    timeout: float = SOCKET_TIMEOUT_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Path:
    """The path of `url`'s content in `cache`, fetched anew unless the copy there is still the server's.

    Blocks. `timeout` (seconds) bounds each wait on the network; a server slower than 16 KiB/s on average is given
    up after a minute. Raises InvalidInput when the content cannot be had whole.
    """
    name = hashlib.blake2b(url.encode(), digest_size=20).hexdigest()
    content, description = cache / f"{name}.content", cache / f"{name}.json"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(cache)
        copy = _described(content, description)
        with _answer(url, copy, timeout) as answer:
            if answer is None or (copy is not None and _same(copy, answer.headers)):
                return content
            _store(answer, content, description, timeout, clock)
    except urllib.error.HTTPError as error:
        error.close()
        raise _invalid(where, _of_status(error.code)) from None
    except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
        raise _invalid(where, _reason(error, url)) from None
    return content


@contextlib.contextmanager
def _answer(url: str, copy: _Copy | None, timeout: float) -> Any:
    """The server's answer, or None when it says that `copy` still holds."""
    request = urllib.request.Request(url, headers={"User-Agent": "rowmill", "Accept": "*/*"})
    if copy is not None and copy.etag:
        request.add_header("If-None-Match", copy.etag)
    if copy is not None and copy.last_modified:
        request.add_header("If-Modified-Since", copy.last_modified)
    opener = urllib.request.build_opener(_SafeRedirects)
    try:
        answer = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != 304 or copy is None:
            raise
        error.close()
        yield None
        return
    with answer:
        yield answer


def _store(answer: Any, content: Path, description: Path, timeout: float, clock: Callable[[], float]) -> None:
    length = _length(answer.headers)
    began, size = clock(), 0
    descriptor, partial = tempfile.mkstemp(prefix=content.stem + ".", suffix=".partial", dir=content.parent)
    try:
        with open(descriptor, "wb") as file:
            while piece := answer.read1(READ_BYTES):
                file.write(piece)
                size += len(piece)
                if clock() - began > _PATIENCE_SECONDS + size / _SLOWEST_BYTES_PER_SECOND:
                    raise TimeoutError
            file.flush()
            os.fsync(file.fileno())
            status = os.fstat(file.fileno())
        if length is not None and size != length:
            raise http.client.IncompleteRead(b"", length - size)
        copy = _Copy(
            etag=answer.headers.get("ETag"),
            last_modified=answer.headers.get("Last-Modified"),
            length=length,
            inode=status.st_ino,
            size=size,
            mtime_ns=status.st_mtime_ns,
        )
        os.replace(partial, content)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise
    beside = Path(partial)
    beside.write_bytes(msgspec.json.encode(copy))
    os.replace(beside, description)


def _described(content: Path, description: Path) -> _Copy | None:
    """What the cache holds, if it holds it whole."""
    try:
        copy = msgspec.json.decode(description.read_bytes(), type=_Copy)
        status = content.stat()
    except (OSError, msgspec.DecodeError):
        return None
    fits = (copy.inode, copy.size, copy.mtime_ns) == (status.st_ino, status.st_size, status.st_mtime_ns)
    return copy if fits else None


def _same(copy: _Copy, headers: Any) -> bool:
    """Whether a full answer's headers say that its content is the copy's. Length alone says too little."""
    said = (headers.get("ETag"), headers.get("Last-Modified"), _length(headers))
    return bool(said[0] or said[1]) and said == (copy.etag, copy.last_modified, copy.length)


def _length(headers: Any) -> int | None:
    text = headers.get("Content-Length")
    chunked = "chunked" in (headers.get("Transfer-Encoding") or "").lower()
    return int(text) if text and text.isascii() and text.isdigit() and not chunked else None


def _remove_leftovers(cache: Path) -> None:
    """Partial files of fetches that were killed; a day is longer than any fetch may take to touch its own."""
    for partial in cache.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > _PARTIAL_SECONDS:
                partial.unlink()


def _invalid(where: str, message: str) -> InvalidInput:
    return InvalidInput.one(where, SOURCE_PATH, message)


def _of_status(code: int) -> str:
    reason = http.client.responses.get(code, "unknown status")
    if code in (401, 403, 407):
        advice = "the address must be readable without credentials, or carry them in a signed query"
    elif code < 500 and code != 429:
        advice = "correct the address"
    else:
        advice = "try again when the server has recovered"
    return f"the server answered {code} {reason}; {advice}"


def _reason(error: Exception, url: str) -> str:
    host = urlsplit(url).hostname or "the server"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, socket.gaierror):
        return f"the host {host} does not resolve; correct the address or check the network"
    if isinstance(cause, TimeoutError):
        return f"{host} did not answer in time, or sends too slowly; try again later"
    if isinstance(cause, http.client.IncompleteRead):
        return "the download ended early, so that the table is truncated; try again"
    if isinstance(cause, ConnectionRefusedError):
        return f"{host} refuses the connection; correct the address or start the server"
    if isinstance(cause, OSError) and cause.strerror:
        return f"{host} cannot be read from, or the cache not be written: {re.sub(r'^.*?[]] ', '', cause.strerror)}"
    return f"{host} cannot be read from ({cause if isinstance(cause, str) else type(cause).__name__})"
