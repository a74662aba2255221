"""Object stores over a socket: a real S3-compatible server that checks keys and signatures.

What is written is whole or not there; what a person must mend is told from what passes; nothing of this process's own
identity is used for somebody else.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from moto.server import ThreadedMotoServer

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.row import Position
from rowmill.sources import Source, open_source, prune_cache
from rowmill.storage import AddressPolicy, ObjectStore, open_store
from tests.unit.sources_helpers import assert_resumes, rows

BUCKET = "tables"
MEGABYTE = 1_048_576


@dataclass
class S3:
    """A running server, a client with all rights, and keys that it knows."""

    url: str
    client: Any
    keys: dict[str, str]

    def put(self, key: str, body: bytes) -> None:
        self.client.put_object(Bucket=BUCKET, Key=key, Body=body)

    def keys_there(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]

    def store(self, uri: str, **keys: str) -> ObjectStore:
        return open_store(
            uri, credentials=self.keys | keys, ambient=False, policy=AddressPolicy.everything(), field="spec.output"
        )


def _checks_signatures(url: str, *, after: int) -> None:
    """How many requests are served before keys are asked for."""
    request = urllib.request.Request(
        f"{url}/moto-api/reset-auth", data=str(after).encode(), headers={"Content-Type": "text/plain"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        url = f"http://{host}:{port}"
        options = {"endpoint_url": url, "region_name": "us-east-1"}
        root = {"aws_access_key_id": "root", "aws_secret_access_key": "root"}
        iam = boto3.client("iam", **options, **root)
        iam.create_user(UserName="tenant")
        policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
        iam.put_user_policy(UserName="tenant", PolicyName="all", PolicyDocument=json.dumps(policy))
        made = iam.create_access_key(UserName="tenant")["AccessKey"]
        keys = {"AWS_ACCESS_KEY_ID": made["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"]}
        client = boto3.client(
            "s3",
            **options,
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
        )
        _checks_signatures(url, after=0)
        yield S3(url, client, keys | {"AWS_ENDPOINT_URL": url, "AWS_REGION": "us-east-1"})
    finally:
        running.stop()


@pytest.fixture
def s3(server: S3) -> Iterator[S3]:
    """The server with one empty bucket."""
    server.client.create_bucket(Bucket=BUCKET)
    yield server
    for key in server.keys_there():
        server.client.delete_object(Bucket=BUCKET, Key=key)
    for upload in server.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []):
        server.client.abort_multipart_upload(Bucket=BUCKET, Key=upload["Key"], UploadId=upload["UploadId"])
    server.client.delete_bucket(Bucket=BUCKET)


# --- writing and reading -------------------------------------------------------------------------------------------


def test_put_read_list_delete(s3: S3) -> None:
    store = s3.store(f"s3://{BUCKET}/triage/")
    store.put("1/part-1.csv", b"a\n1\n")
    store.put("1/part-2.csv", b"")
    store.put("2/part-1.csv", b"b")
    assert s3.keys_there() == ["triage/1/part-1.csv", "triage/1/part-2.csv", "triage/2/part-1.csv"]
    assert [(o.path, o.size) for o in store.list()] == [("1/part-1.csv", 4), ("1/part-2.csv", 0), ("2/part-1.csv", 1)]
    assert [o.path for o in store.list("1/part-")] == ["1/part-1.csv", "1/part-2.csv"]
    assert store.list("3/") == []
    with store.open_input("1/part-1.csv") as file:
        assert (file.seek(2), file.read(), file.seek(0), file.readline()) == (2, b"1\n", 0, b"a\n")
    assert store.exists("2/part-1.csv")
    assert not store.exists("2")
    store.delete("2/part-1.csv")
    store.delete("2/part-1.csv")
    assert not store.exists("2/part-1.csv")
    assert store.info("2/part-1.csv") is None


def test_an_object_of_many_parts_is_there_only_when_closed(s3: S3, tmp_path: Path) -> None:
    store = s3.store(f"s3://{BUCKET}/out")
    content = os.urandom(MEGABYTE) * 25
    with store.open_output("big.bin") as out:
        for i in range(25):
            out.write(content[i * MEGABYTE : (i + 1) * MEGABYTE])
        assert s3.keys_there() == []
    assert s3.keys_there() == ["out/big.bin"]
    found = s3.client.get_object(Bucket=BUCKET, Key="out/big.bin")
    assert found["Body"].read() == content
    assert found["ETag"].strip('"').endswith("-3"), "it went up in parts"


def test_an_abandoned_upload_leaves_nothing(s3: S3) -> None:
    store = s3.store(f"s3://{BUCKET}/out")

    def write_and_fail() -> None:
        with store.open_output("b") as out:
            out.write(b"x" * 12 * MEGABYTE)
            raise RuntimeError("the writer fails")

    out = store.open_output("a")
    out.write(b"x" * 12 * MEGABYTE)
    out.abandon()
    out.abandon()
    out.close()
    with pytest.raises(RuntimeError, match="the writer fails"):
        write_and_fail()
    forgotten = store.open_output("c")
    forgotten.write(b"x")
    del forgotten
    assert s3.keys_there() == []
    assert s3.client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_a_version_changes_with_the_content_within_a_second(s3: S3) -> None:
    store = s3.store(f"s3://{BUCKET}/t.csv")
    s3.put("t.csv", b"a\n1\n")
    first = store.info()
    s3.put("t.csv", b"a\n2\n")
    second = store.info()
    assert first is not None
    assert second is not None
    assert (first.size, second.size) == (4, 4)
    assert first.version != second.version
    assert store.info() == second


# --- what goes wrong -----------------------------------------------------------------------------------------------


def _everything_of(store: ObjectStore) -> dict[str, Any]:
    def write() -> None:
        with store.open_output("x") as out:
            out.write(b"x" * 11 * MEGABYTE)

    return {
        "read": lambda: store.open_input("x").close(),
        "put": lambda: store.put("x", b"x"),
        "write": write,
    }


@pytest.mark.parametrize("action", ["read", "put", "write"])
def test_a_bucket_that_is_not_there(s3: S3, action: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        _everything_of(s3.store("s3://no-such-bucket/out"))[action]()
    assert caught.value.where == "s3://no-such-bucket/out"
    (problem,) = caught.value.problems
    assert problem.path == "spec.output.uri"
    assert "bucket no-such-bucket" in problem.message


@pytest.mark.parametrize(
    "wrong",
    [
        {"AWS_SECRET_ACCESS_KEY": "wrong-secret"},
        {"AWS_ACCESS_KEY_ID": "AKIAWRONG"},
        {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
    ],
)
@pytest.mark.parametrize("action", ["read", "put", "write"])
def test_wrong_or_no_keys(s3: S3, action: str, wrong: dict[str, str]) -> None:
    s3.put("out/x", b"x")
    store = s3.store(f"s3://{BUCKET}/out", **wrong)
    with pytest.raises(InvalidInput) as caught:
        _everything_of(store)[action]()
    (problem,) = caught.value.problems
    assert problem.path == "spec.output.secretName"
    assert f"S3 denies access to the bucket {BUCKET}" in problem.message
    for secret in (*s3.keys.values(), *wrong.values()):
        if secret and secret not in ("us-east-1", s3.url):
            assert secret not in str(caught.value) + repr(store)


def test_a_store_that_is_away_is_waited_for() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        store = open_store(
            "s3://tables/x",
            credentials={"AWS_ENDPOINT_URL": endpoint},
            ambient=False,
            policy=AddressPolicy.everything(),
        )
        with pytest.raises(PlaceUnavailable, match="S3 cannot be used for now: its host refuses the connection"):
            store.info()


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


# --- as a source ---------------------------------------------------------------------------------------------------


def opened(s3: S3, key: str, cache: Path, *, bucket: str = BUCKET, **keys: str) -> contextlib.closing[Source]:
    return contextlib.closing(
        open_source(
            uri=f"s3://{bucket}/{key}",
            rows=None,
            format=None,
            limit=None,
            base=Path("/nowhere"),
            cache=cache,
            credentials=s3.keys | keys,
            ambient=False,
            policy=AddressPolicy.tenants(["127.0.0.1"]),
        )
    )


def test_a_table_of_each_kind(s3: S3, tmp_path: Path) -> None:
    table = [{"a": str(i), "b": "x" * 50} for i in range(5_000)]
    s3.put("dir/t.csv", ("a,b\n" + "".join(f"{r['a']},{r['b']}\n" for r in table)).encode())
    s3.put("dir/t.jsonl", "".join(json.dumps(r) + "\n" for r in table).encode())
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "t.parquet")
    s3.put("dir/t.parquet", (tmp_path / "t.parquet").read_bytes())
    for name in ("t.csv", "t.jsonl", "t.parquet"):
        with opened(s3, f"dir/{name}", tmp_path / "cache") as source:
            assert rows(source) == table
            assert_resumes(source, max_rows=1_700)


def test_a_changed_object_is_another_table_and_is_fetched_anew(s3: S3, tmp_path: Path) -> None:
    s3.put("t.csv", b"a\n1\n")
    with opened(s3, "t.csv", tmp_path) as before:
        first = before.fingerprint()
        s3.put("t.csv", b"a\n2\n")
        with opened(s3, "t.csv", tmp_path) as after:
            assert rows(after) == [{"a": "2"}]
            assert after.fingerprint() != first
        assert rows(before) == [{"a": "1"}], "a run that is under way keeps its copy"
        prune_cache(tmp_path, max_bytes=0)
        assert rows(before) == [{"a": "1"}], "pruning leaves what is in use"
    prune_cache(tmp_path, max_bytes=0)
    assert list(tmp_path.iterdir()) == []


def test_no_object_no_bucket_no_keys_no_address(s3: S3, tmp_path: Path) -> None:
    s3.put("t.csv", b"a\n1\n")
    with pytest.raises(InvalidInput, match=r"spec.source.uri: there is no such object"):
        opened(s3, "absent.csv", tmp_path)
    with pytest.raises(InvalidInput, match=r"spec.source.uri: the bucket no-such-bucket does not exist"):
        opened(s3, "t.csv", tmp_path, bucket="no-such-bucket")
    with pytest.raises(InvalidInput, match=r"secretName: .* denies access"):
        opened(s3, "t.csv", tmp_path, AWS_SECRET_ACCESS_KEY="wrong")
    with pytest.raises(InvalidInput, match=r"AWS_ENDPOINT_URL: 127.0.0.2 is a loopback address"):
        opened(s3, "t.csv", tmp_path, AWS_ENDPOINT_URL="http://127.0.0.2:1")


def test_a_copy_is_not_handed_to_whoever_may_not_read_the_object(s3: S3, tmp_path: Path) -> None:
    s3.put("t.csv", b"a\n1\n")
    with opened(s3, "t.csv", tmp_path) as source:
        assert list(source.blocks(Position()))
    with pytest.raises(InvalidInput, match="denies access"):
        opened(s3, "t.csv", tmp_path, AWS_ACCESS_KEY_ID="", AWS_SECRET_ACCESS_KEY="")
