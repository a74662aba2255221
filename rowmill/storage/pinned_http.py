"""http(s) under an address policy: each connection goes to an address that was judged, at each hop of a redirect.

The host is resolved once for each connection, every address of it is judged, and the socket is connected to one of
these addresses, never to the name. TLS still proves the name. Where the policy restricts, the environment's proxies are
not used: a proxy would resolve and connect by itself.
"""

from __future__ import annotations

import functools
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

from rowmill.storage.addresses import AddressPolicy


def _connected(policy: AddressPolicy, host: str, port: int, timeout: float | None) -> socket.socket:
    """A socket to the first address of `host` that answers, all of them allowed."""
    last: OSError | None = None
    for address in policy.checked(host, port):
        try:
            connection = socket.create_connection((address, port), timeout)
        except OSError as error:
            last = error
            continue
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    raise last if last is not None else OSError(f"{host} has no address")


class _PinnedConnection(http.client.HTTPConnection):
    def __init__(self, host: str, *, policy: AddressPolicy, **options: Any) -> None:
        super().__init__(host, **options)
        self._policy = policy

    def connect(self) -> None:
        self.sock = _connected(self._policy, self.host, self.port, self.timeout)


class _PinnedTlsConnection(http.client.HTTPSConnection):
    def __init__(self, host: str, *, policy: AddressPolicy, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(host, context=context, **options)
        self._policy = policy
        self._tls = context

    def connect(self) -> None:
        plain = _connected(self._policy, self.host, self.port, self.timeout)
        try:
            self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)
        except BaseException:
            plain.close()
            raise


class _PinnedHandler(urllib.request.HTTPHandler):
    def __init__(self, policy: AddressPolicy) -> None:
        super().__init__()
        self._policy = policy

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_PinnedConnection, policy=self._policy), req)


class _PinnedTlsHandler(urllib.request.HTTPSHandler):
    def __init__(self, policy: AddressPolicy) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._policy = policy

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        connection: Any = functools.partial(_PinnedTlsConnection, policy=self._policy, context=self._tls)
        return self.do_open(connection, req)


class SafeRedirects(urllib.request.HTTPRedirectHandler):
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


def http_opener(policy: AddressPolicy) -> urllib.request.OpenerDirector:
    """What opens http(s) addresses under `policy`, following redirects.

    `open` raises AddressRefused besides what urllib raises.
    """
    if not policy.restricted:
        return urllib.request.build_opener(SafeRedirects)
    return urllib.request.build_opener(
        urllib.request.ProxyHandler({}), _PinnedHandler(policy), _PinnedTlsHandler(policy), SafeRedirects
    )
