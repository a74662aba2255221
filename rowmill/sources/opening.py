"""From what the manifest says of a source to the Source."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from rowmill.errors import InvalidInput
from rowmill.sources.cache import Cache, HeldCopy
from rowmill.sources.csv_file import CsvReader
from rowmill.sources.download import Stopped, fetched, fetched_object, kept
from rowmill.sources.excel_file import ExcelReader
from rowmill.sources.files import SOURCE_PATH, SourceFile
from rowmill.sources.inline import InlineSource
from rowmill.sources.jsonl_file import JsonlReader
from rowmill.sources.parquet_file import ParquetReader
from rowmill.sources.protocol import Source
from rowmill.sources.table import FileSource, RowReader
from rowmill.storage import AddressPolicy, is_object_uri, open_store

_SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".parquet": "Parquet",
    ".xlsx": "Excel",
}
FORMATS = ("CSV", "JSONL", "Parquet", "Excel")


class Content(NamedTuple):
    """A table that is at hand as bytes. `name` (such as a ConfigMap's key) tells its format where none is given.

    `where` is how messages call it, `field` the part of the manifest that names it.
    """

    data: bytes
    name: str
    where: str
    field: str = "spec.source.configMap"


def open_source(
    *,
    uri: str | None,
    rows: Sequence[Mapping[str, Any]] | None,
    format: str | None,
    limit: int | None,
    base: Path,
    cache: Path,
    content: Content | None = None,
    credentials: Mapping[str, str] | None = None,
    ambient: bool = True,
    policy: AddressPolicy | None = None,
    cache_bytes: int | None = None,
    stopped: Stopped = lambda: False,
) -> Source:
    """Open a table. Blocks: it fetches what is behind http(s) or in an object store, and reads the header.

    Exactly one of `uri`, `rows` and `content` is given. `uri` is a path (relative to `base`, the manifest's folder), a
    `file://` or http(s) address, or one of an object store (`s3://`, `gs://`, `az://`). What is fetched goes into the
    folder `cache`, which holds at most `cache_bytes` (None: what the disk holds), and stays there until the source is
    closed and `prune_cache` called. `format` is one of CSV, JSONL, Parquet and Excel, or None: told by the suffix.
    `limit` (at least 1) caps the rows.

    `credentials` are a Secret's keys for an object store; without them requests go unsigned, or with `ambient` by this
    process's own identity. `policy` is what may be connected to, and whether files may be read (None: everything).
    `stopped` is asked while fetching, from this thread.

    Raises InvalidInput, whose `where` is `uri` as given, when the table as a whole cannot be used; PlaceUnavailable
    when it cannot be had now: then call again, and fetching goes on where it stopped.
    """
    if limit is not None and limit < 1:
        raise InvalidInput.one(uri or "", "spec.source.limit", "the limit must be at least 1; leave it out for all")
    if sum(given is not None for given in (uri, rows, content)) != 1:
        raise InvalidInput.one(uri or "", "spec.source", "give exactly one of uri, rows and configMap")
    if rows is not None:
        return InlineSource(rows, limit=limit)
    copies = Cache(cache, max_bytes=cache_bytes)
    if content is not None:
        kind = _format(format, content.name, where=content.where)
        held = kept(content.data, where=content.where, cache=copies)
        return _file_source(held, None, kind, content.name, where=content.where, field=content.field, limit=limit)
    assert uri is not None
    parts = _parts(uri)
    name = _key(uri) if is_object_uri(uri) else unquote(parts.path) if parts.scheme else uri
    kind = _format(format, name, where=uri)
    policy = policy or AddressPolicy.everything()
    if is_object_uri(uri):
        store = open_store(uri, credentials=credentials, ambient=ambient, policy=policy)
        held = fetched_object(store, where=uri, cache=copies, credentials=credentials, stopped=stopped)
        return _file_source(held, None, kind, name, where=uri, limit=limit)
    path = _path(uri, base=base)
    if path is None:
        held = fetched(uri, where=uri, cache=copies, policy=policy, stopped=stopped)
        return _file_source(held, None, kind, name, where=uri, limit=limit)
    if policy.restricted:
        raise InvalidInput.one(
            uri, SOURCE_PATH, "files of the operator are no source for a job; use http(s)://, s3://, gs:// or az://"
        )
    return _file_source(None, path, kind, name, where=uri, limit=limit)


def _file_source(
    held: HeldCopy | None,
    path: Path | None,
    kind: str,
    name: str,
    *,
    where: str,
    limit: int | None,
    field: str = SOURCE_PATH,
) -> Source:
    """A source over a copy, which it lets go of when it is closed or cannot be opened, or over a file."""
    try:
        at = held.path if held is not None else path
        assert at is not None
        file = SourceFile(path=at, where=where, field=field)
        if file.gzipped and kind not in ("CSV", "JSONL"):
            raise file.invalid(f"this is gzip data; only CSV and JSONL are read compressed, {kind} as it is")
        release = held.close if held is not None else None
        return FileSource(file=file, reader=_reader(kind, file, name), limit=limit, release=release)
    except BaseException:
        if held is not None:
            held.close()
        raise


def _reader(kind: str, file: SourceFile, name: str) -> RowReader:
    if kind == "JSONL":
        return JsonlReader(file)
    if kind == "Parquet":
        return ParquetReader(file)
    if kind == "Excel":
        return ExcelReader(file)
    return CsvReader(file, delimiter="\t" if _suffix(name) == ".tsv" else ",")


def _parts(uri: str) -> Any:
    """The parts of an address; a path has no scheme, whatever colons it holds."""
    scheme, separator, _ = uri.partition("://")
    try:
        return urlsplit(uri if separator and scheme.isalnum() else "")
    except ValueError:
        raise InvalidInput.one(uri, SOURCE_PATH, "this is no valid address; correct it") from None


def _key(uri: str) -> str:
    """The path of an object's address: keys may hold `?`, `#` and `%`."""
    return uri.partition("://")[2].partition("/")[2]


def _path(uri: str, *, base: Path) -> Path | None:
    """The path of a file, or None for an http(s) address that can be used."""
    parts = _parts(uri)
    if not uri or "\0" in uri:
        raise InvalidInput.one(uri.replace("\0", "?"), SOURCE_PATH, "this is no path; name a file or an address")
    if not parts.scheme:
        return base / uri
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise InvalidInput.one(uri, SOURCE_PATH, "a file address names no host: write file:///path/to/the/file")
        return Path(urllib.request.url2pathname(parts.path))
    if parts.scheme not in ("http", "https"):
        raise InvalidInput.one(
            uri,
            SOURCE_PATH,
            f"{parts.scheme}:// is not supported; use http(s)://, s3://, gs://, az://, file:// or a path",
        )
    if "@" in parts.netloc:
        shown = uri.replace(parts.netloc, "…@" + parts.netloc.rpartition("@")[2], 1)
        raise InvalidInput.one(shown, SOURCE_PATH, "an address must not hold a password; use one without, or signed")
    if not parts.hostname or any(c.isspace() for c in uri):
        raise InvalidInput.one(uri, SOURCE_PATH, "this is no valid address: it lacks a host or holds a blank")
    return None


def _suffix(name: str) -> str:
    path = PurePosixPath(name.lower())
    return PurePosixPath(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _format(format: str | None, name: str, *, where: str) -> str:
    if format is None:
        found = _SUFFIXES.get(_suffix(name))
        if found is None:
            raise InvalidInput.one(
                where,
                "spec.source.format",
                f"the format cannot be told from the name; set it to one of {', '.join(FORMATS)}",
            )
        return found
    if format not in FORMATS:
        raise InvalidInput.one(where, "spec.source.format", f"{format!r} is no format; use one of {', '.join(FORMATS)}")
    return format
