"""Where a job's rows come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from rowmill.spec.base import (
    KEY_NAME,
    DnsSubdomain,
    Finding,
    Int,
    JsonObject,
    Listed,
    NoTraps,
    OneOf,
    Part,
    one_of_schema,
    sentence,
)

Format = Literal["CSV", "JSONL", "Parquet", "Excel"]

MAX_INLINE_ROWS: Final = 10_000
MAX_SEQ: Final = 2**31 - 1

SUFFIXES: Final[Mapping[str, Format]] = {
    ".csv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".parquet": "Parquet",
    ".xlsx": "Excel",
}
"""What a source or an output is, where `format` is absent."""

OBJECT_STORES: Final = frozenset({"s3", "gs", "az", "abfs"})
"""Schemes of object stores: S3 and what speaks its protocol, Google Cloud Storage, Azure Blob Storage (two names)."""

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def uri_scheme(uri: str) -> str:
    """`https` of `https://…`, in lower case; empty for a path."""
    found = _SCHEME.match(uri)
    return found[1].lower() if found else ""


def in_object_store(uri: str) -> bool:
    """Whether a URI names a place in an object store."""
    return uri_scheme(uri) in OBJECT_STORES


def format_of(uri: str) -> Format | None:
    """The format that a path's or URL's suffix tells, or None."""
    path = urlsplit(uri).path if uri_scheme(uri) else uri
    return SUFFIXES.get(PurePosixPath(path).suffix.lower())


def check_uri(uri: str) -> str:
    """Refuse what can never be opened, and secrets in a URL."""
    if any(ord(c) < 32 or ord(c) == 127 for c in uri):
        raise sentence("holds a line break or control character; take it out")
    scheme = uri_scheme(uri)
    if not scheme:
        return uri
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise sentence("is not a URL; write scheme://host/path, with a port from 1 to 65535 if any") from None
    if scheme in ("http", "https") and not host:
        raise sentence("has no host; write https://host/path")
    if parts.username is not None or parts.password is not None:
        raise sentence("holds a user or password; a secret never stands in a manifest")
    return uri


Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps, AfterValidator(check_uri)]


def secret_without_store(given: Mapping[str, Any]) -> list[Finding]:
    """A finding where `secretName` is set and `uri` names no object store that would take its credentials."""
    uri = given.get("uri")
    if given.get("secretName") is None or (isinstance(uri, str) and in_object_store(uri)):
        return []
    return [(("secretName",), "goes with a uri in an object store (s3://, gs://, az://) only; leave it out")]


class KeyReference(Part):
    """A key of an object of the cluster."""

    name: DnsSubdomain = Field(description="Name of the object, in the job's namespace.")
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=KEY_NAME)] = Field(
        description="Key in the object's data."
    )


class Query(Part):
    """Rows of an SQL query."""

    connection: KeyReference = Field(description="Secret whose key holds the connection string.")
    sql: Annotated[str, StringConstraints(min_length=1, max_length=32_768), NoTraps] = Field(
        description="One SELECT with an ORDER BY that puts every row in a place of its own: rows are told apart by it."
    )


class Source(OneOf):
    """Where the rows come from: exactly one of `uri`, `rows`, `configMap`, `query`.

    Frozen for a run, but for `limit` and `secretName`.
    """

    model_config = ConfigDict(json_schema_extra=one_of_schema("uri", "rows", "configMap", "query"))
    alternatives: ClassVar[tuple[str, ...]] = ("uri", "rows", "configMap", "query")

    uri: Uri | None = Field(
        default=None,
        description="A table by path or URL: https://, or in an object store by s3://, gs:// or az://. Without a "
        "cluster also a path; a relative one counts from the folder of the manifest.",
        examples=["https://files.example/tickets.csv", "s3://bucket/tickets.parquet", "data/tickets.csv"],
    )
    rows: Annotated[tuple[JsonObject, ...], Field(max_length=MAX_INLINE_ROWS), Listed] | None = Field(
        default=None,
        description="The rows themselves, one object each: column to cell. For a few; larger tables belong in a file.",
    )
    config_map: KeyReference | None = Field(default=None, description="A table in a key of a ConfigMap.")
    query: Query | None = Field(default=None, description="The rows of an SQL query.")
    secret_name: DnsSubdomain | None = Field(
        default=None,
        description="Secret in the job's namespace with the credentials of the object store that `uri` lies in; "
        "without it the store is read anonymously. May change within a run.",
    )
    format: Format | None = Field(
        default=None, description="Format of `uri` or `configMap`; from the suffix of the name when absent."
    )
    limit: Annotated[Int, Field(ge=1, le=MAX_SEQ)] | None = Field(
        default=None,
        description="Take only the first rows: a canary. It may be raised or left out later; the run goes on.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings = super().cross_check(given)
        config_map = given.get("configMap")
        name = config_map.get("key") if isinstance(config_map, dict) else given.get("uri")
        if given.get("format") is not None and (given.get("rows") is not None or given.get("query") is not None):
            findings.append((("format",), "goes with uri or configMap only; leave it out"))
        elif isinstance(name, str) and name and given.get("format") is None and format_of(name) is None:
            known = ", ".join(f"{suffix} ({name})" for suffix, name in SUFFIXES.items())
            findings.append(
                (
                    ("format",),
                    f"cannot be told from the suffix of the name (known are {known}); set CSV, JSONL, Parquet or Excel",
                )
            )
        findings += secret_without_store(given)
        rows = given.get("rows")
        if isinstance(rows, list | tuple):
            for i, row in enumerate(rows[:MAX_INLINE_ROWS]):
                if isinstance(row, dict) and any(not name or len(name) > 256 for name in row if isinstance(name, str)):
                    findings.append((("rows", i), "has a column whose name is empty or longer than 256 characters"))
        return findings

    @property
    def effective_format(self) -> Format | None:
        """`format`, or what the suffix of the name tells; None for inline rows and queries."""
        if self.format is not None:
            return self.format
        name = self.uri or (self.config_map.key if self.config_map is not None else None)
        return format_of(name) if name is not None else None


__all__ = [
    "OBJECT_STORES",
    "Format",
    "KeyReference",
    "Query",
    "Source",
    "check_uri",
    "format_of",
    "in_object_store",
    "secret_without_store",
    "uri_scheme",
]
