"""Stores: files of one's own machine, addresses and keys that cannot be used, what failures mean; no secret is told."""

from __future__ import annotations

import errno
import gc
import io
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.storage import AddressPolicy, ObjectStore, is_object_uri, open_store
from rowmill.storage.clients import Credentials
from rowmill.storage.faults import fault
from rowmill.storage.place import Kind, Place, place_of

HERE = AddressPolicy.everything()


def store(uri: str | Path, policy: AddressPolicy = HERE, /, **keys: str) -> ObjectStore:
    return open_store(str(uri), credentials=keys or None, ambient=False, policy=policy, field="spec.output")


# --- files ---------------------------------------------------------------------------------------------------------


def test_files_below_a_folder(tmp_path: Path) -> None:
    here = store(tmp_path / "out")
    assert here.list() == []
    here.put("1/a.csv", b"a\n1\n")
    with here.open_output("1/b.csv") as out:
        out.write(b"b")
        out.write(b"\n")
        assert not here.exists("1/b.csv")
    with here.open_output("1/empty") as out:
        pass
    assert [(o.path, o.size) for o in here.list()] == [("1/a.csv", 4), ("1/b.csv", 2), ("1/empty", 0)]
    assert [o.path for o in here.list("1/b")] == ["1/b.csv"]
    with here.open_input("1/a.csv") as file:
        assert file.readlines() == [b"a\n", b"1\n"]
        assert file.seek(-2, io.SEEK_END) == 2
        assert file.read() == b"1\n"
    first = here.info("1/a.csv")
    here.put("1/a.csv", b"a\n2\n")
    assert here.info("1/a.csv") != first
    assert not here.exists("1")
    here.delete("1/a.csv")
    here.delete("1/a.csv")
    assert here.info("1/a.csv") is None
    assert sorted(path.name for path in (tmp_path / "out" / "1").iterdir()) == ["b.csv", "empty"]
    assert store(f"file://{tmp_path}/out").exists("1/b.csv")


def test_what_is_abandoned_or_forgotten_leaves_nothing(tmp_path: Path) -> None:
    here = store(tmp_path / "out")
    out = here.open_output("a")
    out.write(b"x")
    out.abandon()
    out.close()
    forgotten: Any = here.open_output("b")
    forgotten.write(b"x")
    forgotten = None
    gc.collect()
    assert here.list() == []


def test_a_path_leads_nowhere_else(tmp_path: Path) -> None:
    here = store(tmp_path)
    for path in ("../x", "a/../../x", "/x", "a//b", "."):
        with pytest.raises(ValueError, match="is no path below"):
            here.put(path, b"")


def test_files_are_for_ones_own_machine(tmp_path: Path) -> None:
    for uri in (str(tmp_path), f"file://{tmp_path}"):
        with pytest.raises(InvalidInput, match="files of the operator are no place for a job"):
            store(uri, AddressPolicy.tenants())


def test_a_full_disk_passes_and_a_folder_that_may_not_be_written_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = store(tmp_path).open_output("a")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(out, "_spool", type("Full", (), {"write": full, "flush": full, "close": full})())
    with pytest.raises(PlaceUnavailable, match="spooling: the disk is full; free some space"):
        out.write(b"x")
    with pytest.raises(PlaceUnavailable, match="the disk is full"):
        out.close()
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"spec.output.uri: writing a/b: Not a directory; correct the path"):
        store(tmp_path / "file").put("a/b", b"")
    with pytest.raises(InvalidInput, match="there is no such file"):
        store(tmp_path).open_input("absent")


# --- addresses and keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "place"),
    [
        ("s3://bucket/a/b.csv", Place(Kind.S3, "bucket", "a/b.csv")),
        ("S3://bucket/dir/", Place(Kind.S3, "bucket", "dir")),
        ("s3://bucket", Place(Kind.S3, "bucket", "")),
        ("s3://bucket/a?b#c%20d", Place(Kind.S3, "bucket", "a?b#c%20d")),
        ("gs://my_bucket.example/x", Place(Kind.GCS, "my_bucket.example", "x")),
        ("az://container/x", Place(Kind.AZURE, "container", "x")),
        ("abfss://container@account.dfs.core.windows.net/x", Place(Kind.AZURE, "container", "x", "account")),
        ("/data/x y", Place(Kind.LOCAL, "", "/data/x y")),
        ("file:///data/x%20y", Place(Kind.LOCAL, "", "/data/x y")),
    ],
)
def test_what_an_address_names(uri: str, place: Place) -> None:
    assert place_of(uri, field="spec.output.uri") == place
    assert is_object_uri(uri) == (place.kind is not Kind.LOCAL)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "no address"),
        ("s3://bu\ncket/x", "no address"),
        ("ftp://bucket/x", "ftp:// is no object store"),
        ("s3:///x", "'' is no name of a bucket"),
        ("s3://evil.example:80/x", "is no name of a bucket"),
        ("s3://a..b/x", "is no name of a bucket"),
        ("s3://bucket/a//b", "empty part"),
        ("s3://bucket/../x", "empty part, '.' or '..'"),
        ("abfss://container@evil.example/x", "write abfss://CONTAINER@ACCOUNT"),
    ],
)
def test_addresses_that_name_nothing(uri: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store(uri)
    assert caught.value.problems[0].path == "spec.output.uri"
    assert says in caught.value.problems[0].message


def test_a_password_in_an_address_is_not_told() -> None:
    with pytest.raises(InvalidInput, match="must not hold a password") as caught:
        store("s3://key:sesame@bucket/x")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("uri", "keys", "says"),
    [
        ("s3://bucket/x", {"AWS_ACCESS_KEY_ID": "sesame"}, "needs both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("s3://bucket/x", {"AWS_REGION": "x.sesame.example/"}, "AWS_REGION is no region"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "sesame.example"}, "AWS_ENDPOINT_URL is no endpoint"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "http://u:sesame@h"}, "AWS_ENDPOINT_URL is no endpoint"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "http://h/sesame"}, "AWS_ENDPOINT_URL is no endpoint"),
        ("s3://bucket/x", {"AWS_ENDPOINT_URL": "http://h:99999"}, "AWS_ENDPOINT_URL is no endpoint"),
        ("az://bucket/x", {"AZURE_STORAGE_KEY": "c2VzYW1l"}, "set AZURE_STORAGE_ACCOUNT"),
        ("az://bucket/x", {"AZURE_STORAGE_ACCOUNT": "sesame.example/"}, "is no name of a storage account"),
        ("az://bucket/x", {"AZURE_STORAGE_ACCOUNT": "abc", "AZURE_STORAGE_KEY": "sesame!"}, "is not base64"),
        (
            "az://bucket/x",
            {"AZURE_STORAGE_ACCOUNT": "abc", "AZURE_STORAGE_KEY": "YQ==", "AZURE_STORAGE_SAS_TOKEN": "sesame"},
            "leave one out",
        ),
        ("gs://bucket/x", {"GOOGLE_APPLICATION_CREDENTIALS_JSON": "sesame"}, "no JSON key of a service account"),
    ],
)
def test_keys_that_cannot_be_used_are_told_by_name_alone(uri: str, keys: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        store(uri, HERE, **keys)
    assert caught.value.problems[0].path == "spec.output.secretName"
    assert says in caught.value.problems[0].message
    assert "sesame" not in str(caught.value)
    assert "sesame" not in repr(Credentials(keys))


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://bucket/x", "AWS_ENDPOINT_URL"),
        ("gs://bucket/x", "STORAGE_EMULATOR_HOST"),
        ("az://bucket/x", "AZURE_STORAGE_ENDPOINT"),
    ],
)
def test_an_endpoint_is_judged_before_anything_connects(uri: str, name: str) -> None:
    for host in ("169.254.169.254", "127.0.0.1:9000", "[::ffff:127.0.0.1]", "localhost"):
        keys = {name: f"http://{host}", "AZURE_STORAGE_ACCOUNT": "account"}
        with pytest.raises(InvalidInput, match=rf"{name}: .*ask the platform team to add it to sources.allowAddresses"):
            store(uri, AddressPolicy.tenants(), **keys)


# --- what failures mean --------------------------------------------------------------------------------------------

S3, GCS, AZURE = (Place(kind, "tables", "x") for kind in (Kind.S3, Kind.GCS, Kind.AZURE))


def aws(code: str, tail: str = "the store's own words", *, error: type[OSError] = OSError) -> OSError:
    return error(
        f"When reading information for key 'x' in bucket 'tables': AWS Error {code} during GetObject operation: {tail}"
    )


def google(code: str) -> OSError:
    return OSError(
        f"google::cloud::Status({code}: Retry policy exhausted, with a last message of the store's own words)"
    )


def azure(code: str, status: str) -> OSError:
    return OSError(
        f"GetProperties failed for 'x'. Azure Error: [{code}] {status} the store's own words\n\nRequest ID: "
    )


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        (S3, aws("NO_SUCH_BUCKET"), "the bucket tables does not exist"),
        (S3, aws("ACCESS_DENIED"), "denies access"),
        (S3, aws("INVALID_ACCESS_KEY_ID"), "denies access"),
        (S3, aws("SIGNATURE_DOES_NOT_MATCH"), "denies access"),
        (S3, aws("UNKNOWN (HTTP status 403)"), "denies access to the bucket tables (status 403)"),
        (S3, aws("UNKNOWN (HTTP status 301)"), "lives in another region; set AWS_REGION"),
        (S3, aws("UNKNOWN (HTTP status 400)"), "refuses the request (status 400)"),
        (S3, aws("NO_SUCH_KEY"), "there is no such object"),
        (S3, aws("NETWORK_CONNECTION", "curlCode: 60, SSL peer certificate was not OK"), "certificate is not trusted"),
        (GCS, google("PERMISSION_DENIED"), "denies access"),
        (GCS, google("UNAUTHENTICATED"), "denies access"),
        (GCS, google("NOT_FOUND"), "there is no such object"),
        (GCS, google("INVALID_ARGUMENT"), "refuses the request"),
        (AZURE, azure("AuthorizationFailure", "403 Forbidden"), "denies access to the container tables"),
        (AZURE, azure("ContainerNotFound", "404 Not Found"), "the container tables does not exist"),
        (AZURE, azure("BlobNotFound", "404 Not Found"), "there is no such object"),
        (AZURE, azure("", "409 Conflict"), "refuses the request (status 409)"),
    ],
)
def test_what_a_person_mends(place: Place, error: Exception, says: str) -> None:
    told = fault(error, place=place, where="the place", field="spec.output", what="reading x")
    assert isinstance(told, InvalidInput)
    assert says in str(told)
    assert "own words" not in str(told)


@pytest.mark.parametrize(
    ("place", "error", "says"),
    [
        (S3, aws("SLOW_DOWN"), "it answers SLOW_DOWN"),
        (S3, aws("UNKNOWN (HTTP status 500)"), "it answers status 500"),
        (S3, aws("UNKNOWN (HTTP status 503)"), "it answers status 503"),
        (S3, aws("UNKNOWN (HTTP status 429)"), "it answers status 429"),
        (S3, aws("NETWORK_CONNECTION", "curlCode: 6, Could not resolve hostname"), "its host does not resolve"),
        (S3, aws("NETWORK_CONNECTION", "curlCode: 28, Timeout was reached"), "does not answer in time"),
        (S3, aws("NETWORK_CONNECTION", "curlCode: 99, ?"), "the connection failed"),
        (S3, aws("REQUEST_TIME_TOO_SKEWED"), "the clock of this machine differs"),
        (GCS, google("UNAVAILABLE"), "it answers UNAVAILABLE"),
        (
            GCS,
            OSError("google::cloud::Status(UNAVAILABLE: CURL error [7]=Could not connect)"),
            "refuses the connection",
        ),
        (AZURE, azure("ServerBusy", "503 Busy"), "it answers 503 ServerBusy"),
        (AZURE, OSError("Fail to get a new connection"), "the connection failed"),
    ],
)
def test_what_passes(place: Place, error: Exception, says: str) -> None:
    told = fault(error, place=place, where="the place", field="spec.output", what="reading x")
    assert isinstance(told, PlaceUnavailable)
    assert says in str(told)
    assert str(told).startswith("the place: reading x: ")
    assert "own words" not in str(told)
