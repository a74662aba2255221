"""What is sent to object stores, seen at a socket: nothing of this process's own identity, and no end of an upload that
broke off; and a refusal is told from a failure.
"""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.storage import AddressPolicy, open_store

MEGABYTE = 1_048_576


def _take_body(handler: BaseHTTPRequestHandler) -> None:
    """Read what the client sends to its end: an answer before that would reset the connection."""
    if handler.headers.get("Transfer-Encoding") != "chunked":
        handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        return
    while size := int(handler.rfile.readline().partition(b";")[0], 16):
        handler.rfile.read(size + 2)
    while handler.rfile.readline().strip():
        pass


class _Told(ThreadingHTTPServer):
    """Notes the requests, answers each with `status` and nothing else."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _TellingHandler)
        self.status = 404
        self.seen: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _TellingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Told

    def _any(self) -> None:
        _take_body(self)
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def _told() -> Iterator[_Told]:
    with _Told() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def told() -> Iterator[_Told]:
    with _told() as running:
        yield running


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[_Told]:
    """An operator with an identity of its own in every way that the libraries know; what it points to is noted."""
    with _told() as running:
        home = tmp_path / "home"
        (home / ".aws").mkdir(parents=True)
        (home / ".aws" / "credentials").write_text(
            "[default]\naws_access_key_id = OPERATORFILE\naws_secret_access_key = operatorfile\n"
        )
        for name, value in {
            "HOME": str(home),
            "AWS_ACCESS_KEY_ID": "OPERATOR",
            "AWS_SECRET_ACCESS_KEY": "operator",
            "AWS_SESSION_TOKEN": "operator",
            "AWS_ENDPOINT_URL": running.url,
            "AWS_ENDPOINT_URL_S3": running.url,
            "AWS_EC2_METADATA_SERVICE_ENDPOINT": running.url,
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": running.url,
            "GCE_METADATA_ROOT": running.url.removeprefix("http://"),
            "AZURE_TENANT_ID": "operator",
            "AZURE_CLIENT_ID": "operator",
            "AZURE_CLIENT_SECRET": "operator",
            "AZURE_AUTHORITY_HOST": running.url,
            "IDENTITY_ENDPOINT": running.url,
            "IDENTITY_HEADER": "operator",
        }.items():
            monkeypatch.setenv(name, value)
        yield running


ENDPOINTS = {
    "s3://tables/x": "AWS_ENDPOINT_URL",
    "gs://tables/x": "STORAGE_EMULATOR_HOST",
    "az://tables/x": "AZURE_STORAGE_ENDPOINT",
}


@pytest.mark.parametrize("uri", ENDPOINTS)
@pytest.mark.parametrize("ambient", [False, True])
def test_nothing_of_the_operators_identity_is_used(told: _Told, elsewhere: _Told, uri: str, ambient: bool) -> None:
    """With a Secret that holds no keys, requests go unsigned: ambient credentials are no fallback for it either."""
    secret = {ENDPOINTS[uri]: told.url, "AZURE_STORAGE_ACCOUNT": "account"}
    store = open_store(uri, credentials=secret, ambient=ambient, policy=AddressPolicy.everything())
    with contextlib.suppress(InvalidInput):
        store.info()
    assert told.seen
    assert [authorization for _, _, authorization in told.seen if authorization] == []
    assert elsewhere.seen == []


@pytest.mark.parametrize(
    ("uri", "keys", "signed"),
    [
        ("s3://tables/x", {"AWS_ACCESS_KEY_ID": "TENANT", "AWS_SECRET_ACCESS_KEY": "t"}, "Credential=TENANT/"),
        ("az://tables/x", {"AZURE_STORAGE_KEY": "dGVuYW50"}, "SharedKey account:"),
        ("az://tables/x", {"AZURE_STORAGE_SAS_TOKEN": "sig=abc"}, None),
    ],
)
def test_explicit_keys_are_the_only_ones(
    told: _Told, elsewhere: _Told, uri: str, keys: dict[str, str], signed: str | None
) -> None:
    secret = {ENDPOINTS[uri]: told.url, "AZURE_STORAGE_ACCOUNT": "account"} | keys
    store = open_store(uri, credentials=secret, ambient=True, policy=AddressPolicy.everything())
    with contextlib.suppress(InvalidInput):
        store.info()
    assert told.seen
    for _, path, authorization in told.seen:
        if signed is None:
            assert authorization is None
            assert "sig=abc" in path
        else:
            assert signed in (authorization or "")
    assert elsewhere.seen == []


def test_ambient_credentials_are_used_when_allowed_and_no_secret_is_named(
    elsewhere: _Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the two tests above can fail."""
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    store = open_store("s3://tables/x", credentials=None, ambient=True, policy=AddressPolicy.everything())
    assert store.info() is None
    assert elsewhere.seen
    assert all("Credential=OPERATOR/" in (authorization or "") for _, _, authorization in elsewhere.seen)


@pytest.mark.parametrize(
    ("uri", "status", "person"),
    [
        *((uri, status, True) for uri in ENDPOINTS for status in (401, 403)),
        ("s3://tables/x", 503, False),  # the others' libraries repeat for a minute before they tell
        ("s3://tables/x", 429, False),
    ],
)
def test_a_refusal_is_told_from_a_failure(told: _Told, uri: str, status: int, person: bool) -> None:
    told.status = status
    secret = {ENDPOINTS[uri]: told.url, "AZURE_STORAGE_ACCOUNT": "account"}
    store = open_store(uri, credentials=secret, ambient=False, policy=AddressPolicy.everything())
    with pytest.raises(InvalidInput if person else PlaceUnavailable) as caught:
        store.info()
    assert ("denies access" in str(caught.value)) == person


class _BreaksOff(BaseHTTPRequestHandler):
    """Takes the first part of an upload, refuses the second one, and would complete it with what it has."""

    protocol_version = "HTTP/1.1"
    server: _Told

    def _any(self) -> None:
        _take_body(self)
        self.server.seen.append((self.command, self.path, None))
        body = b""
        if self.path.endswith("uploads"):
            body = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
        self.send_response(403 if "partNumber=2" in self.path else 200)
        self.send_header("ETag", '"e"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _any

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("megabytes", [25, 45])
def test_an_upload_that_fails_in_its_middle_is_never_completed(told: _Told, megabytes: int) -> None:
    """Not even when the library's stream is collected."""
    told.RequestHandlerClass = _BreaksOff
    store = open_store(
        "s3://tables/out",
        credentials={"AWS_ENDPOINT_URL": told.url},
        ambient=False,
        policy=AddressPolicy.everything(),
        field="spec.output",
    )
    out = store.open_output("x")
    for _ in range(megabytes):
        out.write(b"x" * MEGABYTE)
    with pytest.raises(InvalidInput, match="writing x: S3 denies access"):
        out.close()
    out.close()
    gc.collect()
    paths = [path for _, path, _ in told.seen]
    assert any("partNumber=1" in path for path in paths)
    assert any("partNumber=2" in path for path in paths)
    assert [path for command, path, _ in told.seen if command == "POST" and not path.endswith("uploads")] == []
