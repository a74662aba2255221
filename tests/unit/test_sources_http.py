"""http(s): fetched whole, once, and again only when the server has something new; errors that a person can use."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.sources import Source, open_source
from rowmill.sources.cache import Cache, HeldCopy
from rowmill.sources.download import fetched
from rowmill.storage import AddressPolicy
from tests.unit.sources_helpers import rows

CSV = b"a\n1\n2\n"


class Server(ThreadingHTTPServer):
    """Answers with what the test sets; counts requests and bodies sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body = CSV
        self.headers: dict[str, str] = {}
        self.status = 200
        self.length: int | None = -1  # -1: the body's own
        self.conditional = True
        self.requests: list[str] = []
        self.bodies = 0
        self.chunked_cut = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/t.csv?signed=1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        state = self.server
        state.requests.append(self.path)
        etag = state.headers.get("ETag")
        stamp = state.headers.get("Last-Modified")
        unchanged = (etag and self.headers.get("If-None-Match") == etag) or (
            not etag and stamp and self.headers.get("If-Modified-Since") == stamp
        )
        status = 304 if unchanged and state.conditional and state.status == 200 else state.status
        self.send_response(status)
        for name, value in state.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        self.close_connection = True
        if status == 304:
            self.end_headers()
            return
        if state.chunked_cut:
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"%x\r\n" % 100 + state.body)
            return
        if state.length is not None:
            self.send_header("Content-Length", str(len(state.body) if state.length == -1 else state.length))
        self.end_headers()
        state.bodies += 1
        self.wfile.write(state.body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


OPENED: list[Source] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Sources hold their copy in the cache until they are closed."""
    yield
    while OPENED:
        OPENED.pop().close()


def opened(url: str, cache: Path, **options: Any) -> Source:
    source = open_source(uri=url, rows=None, format=None, limit=None, base=Path("/nowhere"), cache=cache, **options)
    OPENED.append(source)
    return source


def get(url: str, cache: Path, **options: Any) -> HeldCopy:
    return fetched(url, where=url, cache=Cache(cache), policy=AddressPolicy.everything(), **options)


def away(url: str, cache: Path, **options: Any) -> PlaceUnavailable:
    """What is raised where waiting helps; it says where, without what the query may hold."""
    with pytest.raises(PlaceUnavailable) as caught:
        opened(url, cache, **options)
    assert str(caught.value).startswith(url.partition("?")[0])
    assert "signed=1" not in str(caught.value)
    return caught.value


def message(url: str, cache: Path) -> str:
    with pytest.raises(InvalidInput) as caught:
        opened(url, cache)
    assert caught.value.where == url
    assert caught.value.problems[0].path == "spec.source.uri"
    return caught.value.problems[0].message


@pytest.mark.parametrize("header", ["ETag", "Last-Modified"])
@pytest.mark.parametrize("conditional", [True, False])
def test_fetched_once_while_the_server_confirms_it(
    server: Server, tmp_path: Path, header: str, conditional: bool
) -> None:
    first, second = {"ETag": '"1"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}[header], '"2"'
    server.headers, server.conditional, server.body = {header: first}, conditional, b"a\n" + b"x\n" * 3_000
    assert len(rows(opened(server.url, tmp_path))) == 3_000
    server.body = b"a\n" + b"y\n" * 3_000  # not to be seen: the server says that nothing changed
    assert rows(opened(server.url, tmp_path))[0] == {"a": "x"}
    assert len(server.requests) == 2
    server.headers = {header: second if header == "ETag" else "Tue, 02 Jan 2024 00:00:00 GMT"}
    assert rows(opened(server.url, tmp_path))[0] == {"a": "y"}
    assert server.requests[0] == "/t.csv?signed=1"


def test_without_a_validator_or_with_another_length_it_is_fetched_again(server: Server, tmp_path: Path) -> None:
    assert rows(opened(server.url, tmp_path)) == [{"a": "1"}, {"a": "2"}]
    server.body = b"a\n3\n4\n"
    assert rows(opened(server.url, tmp_path)) == [{"a": "3"}, {"a": "4"}]
    server.headers, server.conditional = {"ETag": '"1"'}, False
    opened(server.url, tmp_path)
    server.body = b"a\n5\n"
    assert rows(opened(server.url, tmp_path)) == [{"a": "5"}]


def test_a_cached_copy_that_is_not_what_was_fetched_is_not_used(server: Server, tmp_path: Path) -> None:
    server.headers = {"ETag": '"1"'}
    opened(server.url, tmp_path)
    (content,) = tmp_path.glob("*.content")
    content.write_bytes(b"a\n1\n")
    assert rows(opened(server.url, tmp_path)) == [{"a": "1"}, {"a": "2"}]
    (description,) = tmp_path.glob("*.json")
    description.write_text("{")
    assert rows(opened(server.url, tmp_path)) == [{"a": "1"}, {"a": "2"}]
    assert server.bodies == 3


@pytest.mark.parametrize("damage", ["length", "chunked"])
def test_a_truncated_download_is_an_error_and_never_read(server: Server, tmp_path: Path, damage: str) -> None:
    server.headers = {"ETag": '"1"'}
    server.length, server.chunked_cut = (len(CSV) + 10, False) if damage == "length" else (None, True)
    assert "ended early" in str(away(server.url, tmp_path))
    assert list(tmp_path.glob("*.content")) == []
    server.length, server.chunked_cut = -1, False
    assert rows(opened(server.url, tmp_path)) == [{"a": "1"}, {"a": "2"}]


def test_a_truncated_download_leaves_the_former_copy_alone(server: Server, tmp_path: Path) -> None:
    server.headers = {"ETag": '"1"'}
    opened(server.url, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    server.headers, server.length = {"ETag": '"2"'}, 1000
    assert "ended early" in str(away(server.url, tmp_path))
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir() if ".partial" not in path.name}
    assert after == before


@pytest.mark.parametrize(
    ("status", "says"),
    [(404, "404 Not Found; correct the address"), (403, "signed query"), (410, "correct"), (501, "correct")],
)
def test_what_the_server_refuses_is_said(server: Server, tmp_path: Path, status: int, says: str) -> None:
    server.status = status
    assert says in message(server.url, tmp_path)


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504, 599])
def test_what_passes_is_waited_for(server: Server, tmp_path: Path, status: int) -> None:
    server.status, server.headers = status, {"Retry-After": "7"}
    error = away(server.url, tmp_path)
    assert f"the server answered {status}" in str(error)
    assert error.retry_after == 7.0
    server.status, server.headers = 200, {}
    assert rows(opened(server.url, tmp_path)) == [{"a": "1"}, {"a": "2"}]


@pytest.mark.parametrize(
    ("said", "waits"),
    [("999999999999999", 300.0), ("soon", None), ("-1", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)
def test_a_retry_after_is_bounded(server: Server, tmp_path: Path, said: str, waits: float | None) -> None:
    server.status, server.headers = 503, {"Retry-After": said}
    assert away(server.url, tmp_path).retry_after == waits


def test_a_304_that_nobody_asked_for_is_an_error(server: Server, tmp_path: Path) -> None:
    server.status = 304
    assert "304" in message(server.url, tmp_path)


def test_redirects_are_followed_but_not_to_files(server: Server, tmp_path: Path) -> None:
    server.status, server.headers = 302, {"Location": "file:///etc/hostname"}
    message(server.url, tmp_path)
    server.headers = {"Location": "ftp://127.0.0.1/t.csv"}
    assert "no http address" in message(server.url, tmp_path)
    server.headers = {"Location": server.url}
    message(server.url, tmp_path)


def test_a_host_that_does_not_resolve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "the host tables.invalid does not resolve" in message("http://tables.invalid/t.csv", tmp_path)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/t.csv"
        assert "refuses the connection" in str(away(url, tmp_path))


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/t.csv"
        with pytest.raises(PlaceUnavailable, match="did not answer in time"):
            get(url, tmp_path, timeout=0.05)


def test_a_server_that_drips_is_given_up(server: Server, tmp_path: Path) -> None:
    times = iter(range(0, 10**9, 61))
    clock: Callable[[], float] = lambda: float(next(times))  # noqa: E731 - a minute and a second pass at each look
    with pytest.raises(PlaceUnavailable, match="sends too slowly"):
        get(server.url, tmp_path, clock=clock)
    assert list(tmp_path.glob("*.content")) == []


def test_a_cache_that_cannot_be_written_is_said(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "cache" in message(server.url, tmp_path / "file")


def test_fetches_at_once_leave_one_whole_copy(server: Server, tmp_path: Path) -> None:
    server.body = b"a\n" + b"x\n" * 100_000
    server.headers = {"ETag": '"1"'}
    found: list[bytes] = []

    def fetch() -> None:
        with contextlib.closing(get(server.url, tmp_path)) as copy:
            found.append(copy.path.read_bytes())

    threads = [threading.Thread(target=fetch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [server.body] * 4
    assert server.bodies == 1
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".content", ".json", ".lock"]
