"""Downloads that break off go on where they stopped; what they may connect to; a cache that many share."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.row import Position
from rowmill.sources import Content, Source, cache, open_source, prune_cache
from rowmill.sources.cache import Cache, Validators
from rowmill.sources.download import fetched
from rowmill.storage import AddressPolicy
from tests.unit.sources_helpers import rows

BODY = b"a\n" + b"".join(b"%d\n" % i for i in range(20_000))
HERE = "127.0.0.3"
"""An address of this machine that the tests' policy allows; the others of loopback are refused."""

Answer = Callable[[dict[str, str]], bytes]


class Scripted:
    """A server that gives one scripted answer a connection, as raw bytes, and breaks off where the script ends.

    An answer that ends in RESET is cut by a TCP reset, so that what was not read yet may be lost to the client.
    """

    def __init__(self, address: str = HERE, *, tls: ssl.SSLContext | None = None) -> None:
        self._listener = socket.create_server((address, 0))
        self._tls = tls
        self.port = self._listener.getsockname()[1]
        self.url = f"{'https' if tls else 'http'}://{address}:{self.port}/t.csv"
        self.answers: list[Answer | bytes] = []
        self.asked: list[dict[str, str]] = []
        self.connections = 0
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Scripted:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def _serve(self) -> None:
        while not self.ended.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with contextlib.suppress(OSError), connection:
                connection.settimeout(10)
                if self._tls is not None:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                with connection:
                    self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        text = b""
        while b"\r\n\r\n" not in text:
            if not (piece := connection.recv(65_536)):
                return
            text += piece
        lines = text.decode().split("\r\n")[1:]
        asked = {k.lower(): v for k, _, v in (line.partition(": ") for line in lines) if k}
        self.asked.append(asked)
        script = self.answers.pop(0)
        answer = script if isinstance(script, bytes) else script(asked)
        connection.sendall(answer.removesuffix(RESET))
        if answer.endswith(RESET):
            # Only after the client has had what came before: a reset throws away what is still on its way.
            until(lambda: self.received >= len(answer) - len(RESET) - answer.index(b"\r\n\r\n") - 4)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    received = 0


RESET = b"<reset>"


def until(true: Callable[[], bool]) -> None:
    """Wait for another thread's work, briefly."""
    waited = threading.Event()
    for _ in range(2_000):
        if true():
            return
        waited.wait(0.005)
    raise AssertionError("it did not happen within 10 s")


def whole(body: bytes = BODY, *, etag: str | None = '"1"', send: int | None = None, **headers: str) -> bytes:
    lines = ["HTTP/1.1 200 OK", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"ETag: {etag}"] if etag else []
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body[:send]


def part(start: int, body: bytes = BODY, *, etag: str | None = '"1"', send: int | None = None) -> bytes:
    lines = [
        "HTTP/1.1 206 Partial Content",
        f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}",
        f"Content-Length: {len(body) - start}",
        "Connection: close",
    ]
    lines += [f"ETag: {etag}"] if etag else []
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body[start:][:send]


def status(line: str, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {line}", "Content-Length: 0", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted() as running:
        yield running


POLICY = AddressPolicy.tenants([HERE])


def content(url: str, folder: Path, **options: Any) -> bytes:
    policy = options.pop("policy", POLICY)
    with contextlib.closing(fetched(url, where=url, cache=Cache(folder), policy=policy, **options)) as copy:
        return copy.path.read_bytes()


def opened(uri: str | None, folder: Path, **options: Any) -> contextlib.closing[Source]:
    arguments: dict[str, Any] = {
        "rows": None,
        "format": None,
        "limit": None,
        "base": folder,
        "cache": folder / "cache",
        "policy": POLICY,
    }
    return contextlib.closing(open_source(uri=uri, **(arguments | options)))


# --- going on where it stopped -------------------------------------------------------------------------------------


def test_a_download_that_breaks_off_goes_on_behind_its_last_byte(server: Scripted, tmp_path: Path) -> None:
    server.answers = [whole(send=30_000), lambda asked: part(int(asked["range"][6:-1]), send=20_000), part(50_000)]
    for _ in range(2):
        with pytest.raises(PlaceUnavailable, match=r"t.csv: the download ended early.* goes on where it ended"):
            content(server.url, tmp_path)
    assert content(server.url, tmp_path) == BODY
    assert [(a.get("range"), a.get("if-range")) for a in server.asked] == [
        (None, None),
        ("bytes=30000-", '"1"'),
        ("bytes=50000-", '"1"'),
    ]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".content", ".json", ".lock"]


def test_after_a_reset_it_goes_on_behind_what_arrived(
    server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = cache._write_all

    def noted(file: Any, piece: bytes) -> None:
        write(file, piece)
        server.received += len(piece)

    monkeypatch.setattr(cache, "_write_all", noted)
    server.answers = [whole(send=30_000) + RESET, lambda asked: part(int(asked["range"][6:-1]))]
    with pytest.raises(PlaceUnavailable, match=f"{HERE} broke the connection; it is tried again"):
        content(server.url, tmp_path)
    assert content(server.url, tmp_path) == BODY
    assert server.asked[1]["range"] == "bytes=30000-"


OTHER = b"a\n" + b"x\n" * 30_000
SAME_SIZE = BODY.replace(b"1", b"2")


@pytest.mark.parametrize(
    "answers",
    [
        [whole(OTHER, etag='"2"')],  # it changed: the server sends all of it
        [status("416 Range Not Satisfiable"), whole(OTHER, etag='"2"')],
        [part(10_000, OTHER, etag='"2"'), whole(OTHER, etag='"2"')],  # not what was asked for
        [part(30_000, OTHER, etag='"2"'), whole(OTHER, etag='"2"')],  # of another content
        [part(30_000, BODY + b"1\n", etag='"1"'), whole(OTHER, etag='"2"')],  # of another length
        [part(30_000, SAME_SIZE, etag='"2"'), whole(OTHER, etag='"2"')],  # of the same length
    ],
)
def test_what_belongs_to_another_content_is_never_put_together(
    server: Scripted, tmp_path: Path, answers: list[Answer | bytes]
) -> None:
    server.answers = [whole(send=30_000), *answers]
    with pytest.raises(PlaceUnavailable):
        content(server.url, tmp_path)
    assert content(server.url, tmp_path) == OTHER


@pytest.mark.parametrize(
    ("headers", "goes_on"),
    [
        ({"etag": 'W/"1"'}, False),
        ({"etag": None}, False),
        (
            {"etag": None, "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Date": "Mon, 01 Jan 2024 00:00:01 GMT"},
            False,
        ),
        (
            {"etag": None, "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT", "Date": "Mon, 01 Jan 2024 00:01:00 GMT"},
            True,
        ),
        ({"etag": None, "Last_Modified": "never", "Date": "Mon, 01 Jan 2024 00:01:00 GMT"}, False),
    ],
)
def test_only_a_strong_validator_lets_it_go_on(
    server: Scripted, tmp_path: Path, headers: dict[str, Any], goes_on: bool
) -> None:
    server.answers = [
        whole(send=30_000, **headers),
        lambda asked: part(30_000, etag=None) if "range" in asked else whole(**headers),
    ]
    with pytest.raises(PlaceUnavailable):
        content(server.url, tmp_path)
    assert content(server.url, tmp_path) == BODY
    assert ("range" in server.asked[1]) == goes_on


def test_what_was_fetched_before_the_machine_restarted_is_not_trusted(
    server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system may have lost the end of the file, but not its length."""
    server.answers = [whole(send=30_000), whole()]
    with pytest.raises(PlaceUnavailable):
        content(server.url, tmp_path)
    monkeypatch.setattr(cache, "_boot", lambda: "another")
    assert content(server.url, tmp_path) == BODY
    assert "range" not in server.asked[1]


def test_a_server_that_never_sends_what_it_is_asked_for_is_given_up(server: Scripted, tmp_path: Path) -> None:
    server.answers = [whole(send=30_000), *[part(0)] * 3]
    with pytest.raises(PlaceUnavailable):
        content(server.url, tmp_path)
    with pytest.raises(PlaceUnavailable, match="it sends other parts than it is asked for"):
        content(server.url, tmp_path)


def test_a_download_that_nobody_wants_any_more_stops(server: Scripted, tmp_path: Path) -> None:
    server.answers = [whole(BODY * 20), lambda asked: part(int(asked["range"][6:-1]), BODY * 20)]
    with pytest.raises(PlaceUnavailable, match="told to stop"):
        content(server.url, tmp_path, stopped=lambda: True)
    assert content(server.url, tmp_path) == BODY * 20
    assert int(server.asked[1]["range"][6:-1]) < len(BODY * 20)


# --- what may be connected to --------------------------------------------------------------------------------------


def refused(uri: str, folder: Path, **options: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        opened(uri, folder, **options)
    assert caught.value.where == uri
    (problem,) = caught.value.problems
    assert problem.path == "spec.source.uri"
    return problem.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "127.1", "2130706433"])
@pytest.mark.parametrize("by", ["address", "redirect"])
def test_the_operator_itself_is_not_connected_to(server: Scripted, tmp_path: Path, host: str, by: str) -> None:
    with Scripted("127.0.0.1") as inner:
        target = f"http://{host}:{inner.port}/t.csv"
        server.answers = [status("302 Found", Location=target)]
        told = refused(target if by == "address" else server.url, tmp_path)
        assert "loopback" in told
        assert "sources.allowAddresses of the chart" in told
        assert inner.connections == 0


def test_metadata_services_are_not_connected_to_by_redirect(server: Scripted, tmp_path: Path) -> None:
    server.answers = [status("307 Temporary Redirect", Location="http://169.254.169.254/latest/t.csv")]
    assert "169.254.169.254 is a cloud's metadata service" in refused(server.url, tmp_path)


def test_redirects_to_where_is_allowed_are_followed(server: Scripted, tmp_path: Path) -> None:
    server.answers = [status("302 Found", Location="/other.csv"), whole()]
    with opened(server.url, tmp_path) as source:
        assert len(rows(source)) == 20_000


def test_a_name_that_resolves_elsewhere_a_moment_later_gains_nothing(
    server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve, asked = socket.getaddrinfo, []

    def rebinding(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host == "tables.example":
            asked.append(host)
            host = HERE if len(asked) == 1 else "127.0.0.1"
        return resolve(host, port, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    server.answers = [whole()]
    with Scripted("127.0.0.1") as inner:
        assert content(f"http://tables.example:{server.port}/t.csv", tmp_path) == BODY
        assert (server.connections, inner.connections, len(asked)) == (1, 0, 1)
        assert "tables.example resolves to 127.0.0.1" in refused(f"http://tables.example:{inner.port}/t.csv", tmp_path)
        assert inner.connections == 0


@pytest.mark.parametrize("restricted", [True, False])
def test_a_proxy_of_the_environment_is_used_only_where_everything_is_allowed(
    server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restricted: bool
) -> None:
    with Scripted("127.0.0.1") as proxy:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.delenv("no_proxy", raising=False)
        server.answers, proxy.answers = [whole()], [whole()]
        content(server.url, tmp_path, policy=POLICY if restricted else AddressPolicy.everything())
        assert (server.connections, proxy.connections) == ((1, 0) if restricted else (0, 1))


def test_files_of_the_operator_are_no_source(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a\n1\n")
    for uri in ("t.csv", str(tmp_path / "t.csv"), f"file://{tmp_path}/t.csv"):
        assert "files of the operator are no source" in refused(uri, tmp_path)


def test_the_certificate_still_proves_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    for name, good in ((HERE, True), ("127.0.0.9", False)):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(tls)
        with Scripted(tls=tls) as server:
            server.answers = [whole()]
            if good:
                assert content(server.url, tmp_path / "cache") == BODY
            else:
                assert f"the certificate of {HERE} is not trusted" in refused(server.url, tmp_path)
                assert server.asked == []


# --- the cache -----------------------------------------------------------------------------------------------------


def copy_of(folder: Path, name: str, size: int, *, max_bytes: int | None = None) -> None:
    with Cache(folder, max_bytes=max_bytes).fetching(name) as partial:
        partial.restart(Validators(length=size))
        partial.fill(iter([b"x" * size]))
        partial.publish(name, Validators(length=size))


def names(folder: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in folder.glob("*.content")}


def used_at(folder: Path, name: str, seconds: int) -> None:
    os.utime(folder / f"{name}.json", (seconds, seconds))


def test_pruning_keeps_what_was_used_last_and_what_is_held(tmp_path: Path) -> None:
    for i, name in enumerate("abcd"):
        copy_of(tmp_path, name, 1_000)
        used_at(tmp_path, name, 1_000 + i)
    held = Cache(tmp_path).held("a")
    assert held is not None
    used_at(tmp_path, "a", 1)
    assert prune_cache(tmp_path, max_bytes=2_500) == 2_000
    assert names(tmp_path) == {"a", "d"}
    assert prune_cache(tmp_path, max_bytes=0) == 1_000
    assert names(tmp_path) == {"a"}
    assert held.path.read_bytes() == b"x" * 1_000
    held.close()
    held.close()
    assert prune_cache(tmp_path, max_bytes=0) == 0
    assert list(tmp_path.iterdir()) == []
    assert prune_cache(tmp_path / "absent", max_bytes=0) == 0


def test_a_copy_that_was_replaced_goes_when_nobody_holds_it(tmp_path: Path) -> None:
    copy_of(tmp_path, "a", 1_000)
    old = Cache(tmp_path).held("a")
    assert old is not None
    copy_of(tmp_path, "a", 2_000)
    assert prune_cache(tmp_path, max_bytes=None) == 3_000
    assert old.path.stat().st_size == 1_000
    old.close()
    assert prune_cache(tmp_path, max_bytes=None) == 2_000
    new = Cache(tmp_path).held("a")
    assert new is not None
    assert new.path.stat().st_size == 2_000
    new.close()


def test_a_copy_in_place_that_is_not_described_yet_is_not_pruned(tmp_path: Path) -> None:
    """Whoever fetches may be between the two renames."""
    with Cache(tmp_path).fetching("a"):
        (tmp_path / "a-new.content").write_bytes(b"x")
        prune_cache(tmp_path, max_bytes=0)
        assert names(tmp_path) == {"a"}
    prune_cache(tmp_path, max_bytes=0)
    assert names(tmp_path) == set()


def test_a_new_table_takes_the_room_of_those_that_nobody_reads(tmp_path: Path) -> None:
    copy_of(tmp_path, "a", 600)
    copy_of(tmp_path, "b", 600, max_bytes=1_000)
    assert names(tmp_path) == {"b"}
    held = Cache(tmp_path).held("b")
    assert held is not None
    with pytest.raises(PlaceUnavailable, match=r"is full of tables that running jobs read \(600 of 1,000 bytes\)"):
        copy_of(tmp_path, "c", 600, max_bytes=1_000)
    assert list(tmp_path.glob("*.partial")) == [], "it does not stand in the way of others"
    held.close()
    copy_of(tmp_path, "c", 600, max_bytes=1_000)
    assert names(tmp_path) == {"c"}


@pytest.mark.parametrize("length", [True, False])
def test_a_table_larger_than_the_cache_is_refused(server: Scripted, tmp_path: Path, length: bool) -> None:
    body = b"a\n" + b"x" * (cache._ROOM_STEP_BYTES if not length else 5_000)
    server.answers = [whole(body) if length else b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body]
    told = refused(server.url, tmp_path, cache_bytes=4_000)
    assert "more than the 4,000 bytes that may be kept of all tables; split it" in told


def test_a_full_disk_is_waited_for(server: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.answers = [whole(), whole()]
    with monkeypatch.context() as patched:
        patched.setattr(cache, "_write_all", full)
        with pytest.raises(PlaceUnavailable, match="the disk of the cache is full; free some space"):
            content(server.url, tmp_path)
    assert list(tmp_path.glob("*.partial")) == []
    assert content(server.url, tmp_path) == BODY


def test_a_disk_with_too_little_room_is_told_before_it_is_full(tmp_path: Path) -> None:
    with pytest.raises(PlaceUnavailable, match=r"bytes free where 1,152,921,504,606,846,976 are needed"):
        Cache(tmp_path).make_room(2**60, for_one=2**60)


def test_whoever_finds_another_fetching_waits_and_tells(tmp_path: Path) -> None:
    with Cache(tmp_path).fetching("a"):
        with pytest.raises(PlaceUnavailable, match="another run is fetching the same table"):
            with Cache(tmp_path).fetching("a", wait=0.05):
                pass
    with Cache(tmp_path).fetching("a", wait=0.05):
        pass


def test_a_lock_that_was_pruned_while_waiting_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock
    pruned: list[bool] = []

    def prune_first(file: Any, how: int) -> None:
        if not pruned:
            pruned.append(True)
            (tmp_path / "a.lock").unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", prune_first)
    with Cache(tmp_path).fetching("a"):
        assert (tmp_path / "a.lock").exists()
        with pytest.raises(PlaceUnavailable):
            with Cache(tmp_path).fetching("a", wait=0.05):
                pass


# --- content at hand -----------------------------------------------------------------------------------------------


def given(folder: Path, data: bytes, name: str, **options: Any) -> contextlib.closing[Source]:
    return opened(None, folder, content=Content(data, name, "ConfigMap team/tables"), **options)


def test_a_table_of_a_config_map(tmp_path: Path) -> None:
    with given(tmp_path, b"a\n1\n2\n", "t.csv") as source:
        assert rows(source) == [{"a": "1"}, {"a": "2"}]
        fingerprint = source.fingerprint()
        assert next(iter(source.blocks(Position(2)))).entries[0].seq == 2
    with given(tmp_path, b'{"a": 1}\n', "table", format="JSONL") as source:
        assert rows(source) == [{"a": 1}]
    with given(tmp_path, b"a\n1\n3\n", "t.csv") as source:
        assert source.fingerprint() != fingerprint
    prune_cache(tmp_path / "cache", max_bytes=0)
    with given(tmp_path, b"a\n1\n2\n", "t.csv") as source:
        assert source.fingerprint() == fingerprint


@pytest.mark.parametrize(
    ("data", "name", "says"),
    [
        (b"", "t.csv", "ConfigMap team/tables: spec.source.configMap: the file is empty"),
        (b"a,a\n1,2\n", "t.csv", "ConfigMap team/tables: spec.source.configMap: the header names 'a' more than once"),
        (b"a\n", "table", "ConfigMap team/tables: spec.source.format: the format cannot be told"),
        (b"PAR1", "t.parquet", "ConfigMap team/tables: spec.source.configMap: "),
    ],
)
def test_a_config_map_that_holds_no_table(tmp_path: Path, data: bytes, name: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        given(tmp_path, data, name)
    assert str(caught.value).startswith(says)
    prune_cache(tmp_path / "cache", max_bytes=-1)
    assert names(tmp_path / "cache") == set(), "nobody holds what could not be opened"
