"""What an address of an object store names: `s3://bucket/path`, `gs://bucket/path`, `az://container/path`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import unquote, urlsplit

from rowmill.errors import InvalidInput

OBJECT_SCHEMES = ("s3", "gs", "az", "abfs", "abfss")

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}[A-Za-z0-9]")
_ACCOUNT_HOST = re.compile(r"([a-z0-9]{3,24})\.(?:dfs|blob)\.core\.windows\.net")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class Kind(StrEnum):
    """Whose protocol is spoken."""

    S3 = "S3"
    GCS = "GCS"
    AZURE = "Azure"
    LOCAL = "files"


@dataclass(frozen=True, slots=True)
class Place:
    """`bucket` is a container in Azure and empty for files; `path` is within it, without a slash at either end.

    `account` is the Azure storage account where the address itself names it.
    """

    kind: Kind
    bucket: str
    path: str
    account: str | None = None


def is_object_uri(uri: str) -> bool:
    """Whether `uri` belongs to an object store."""
    found = _SCHEME.match(uri)
    return found is not None and found[1].lower() in OBJECT_SCHEMES


def place_of(uri: str, *, field: str) -> Place:
    """What `uri` names; a path or `file://` is a place of kind LOCAL. Raises InvalidInput at `field`."""

    def invalid(message: str) -> InvalidInput:
        return InvalidInput.one(uri.replace("\0", "?"), field, message)

    if not uri or any(ord(c) < 32 or ord(c) == 127 for c in uri):
        raise invalid("this is no address; write scheme://bucket/path, or a path")
    found = _SCHEME.match(uri)
    scheme = found[1].lower() if found else ""
    if scheme in ("", "file"):
        path = unquote(urlsplit(uri).path) if scheme else uri
        return Place(Kind.LOCAL, "", path)
    if scheme not in OBJECT_SCHEMES:
        raise invalid(f"{scheme}:// is no object store; use s3://, gs:// or az://")
    assert found is not None
    # Keys may hold ? # and %: they are taken as they stand.
    authority, _, path = uri[found.end() :].partition("/")
    account = None
    if scheme in ("abfs", "abfss") and "@" in authority:
        authority, _, host = authority.partition("@")
        known = _ACCOUNT_HOST.fullmatch(host.lower())
        if known is None:
            raise invalid("write abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/path, or az://CONTAINER/path")
        account = known[1]
    if "@" in authority:
        raise InvalidInput.one(
            f"{scheme}://…@{authority.rpartition('@')[2]}/{path}",
            field,
            "an address must not hold a password; put the credentials into a Secret and name it in secretName",
        )
    if not _BUCKET.fullmatch(authority) or ".." in authority:
        raise invalid(f"{authority!r} is no name of a bucket; write {scheme}://bucket/path")
    kind = Kind.S3 if scheme == "s3" else Kind.GCS if scheme == "gs" else Kind.AZURE
    path = path.strip("/")
    if not plain(path):
        raise invalid("a path must not hold an empty part, '.' or '..'")
    return Place(kind, authority, path, account)


def plain(path: str) -> bool:
    """Whether `path` (perhaps empty) names exactly one place below another."""
    return not path or not any(part in ("", ".", "..") for part in path.split("/"))
