"""Object stores over a socket: a real S3-compatible server that checks keys and signatures.

What is written is whole or not there; what a person must mend is told from what passes; nothing of this process's own
identity is used for somebody else.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.row import Position
from rowmill.sources import Source, open_source, prune_cache
from rowmill.storage import AddressPolicy, ObjectStore, open_store
from tests.support.s3 import moto_process
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
    urllib.request.urlopen(request, timeout=60).close()


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with moto_process("127.0.0.1") as found:
        url = found["AWS_ENDPOINT_URL"]
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
