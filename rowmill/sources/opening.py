"""From what the manifest says of a source to the Source."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from rowmill.errors import InvalidInput
from rowmill.sources.csv_file import CsvReader
from rowmill.sources.download import fetched
from rowmill.sources.excel_file import ExcelReader
from rowmill.sources.files import SOURCE_PATH, SourceFile
from rowmill.sources.inline import InlineSource
from rowmill.sources.jsonl_file import JsonlReader
from rowmill.sources.parquet_file import ParquetReader
from rowmill.sources.protocol import Source
from rowmill.sources.table import FileSource, RowReader

_SUFFIXES = {
    ".csv": "CSV",
    ".tsv": "CSV",
    ".jsonl": "JSONL",
    ".ndjson": "JSONL",
    ".parquet": "Parquet",
    ".xlsx": "Excel",
}
FORMATS = ("CSV", "JSONL", "Parquet", "Excel")


def open_source(
    *,
    uri: str | None,
    rows: Sequence[Mapping[str, Any]] | None,
    format: str | None,
    limit: int | None,
    base: Path,
    cache: Path,
) -> Source:
    """Open a table. Blocks: it fetches what is behind http(s), and reads the header.

    Exactly one of `uri` and `rows` is given. `uri` is a path (relative to `base`, the manifest's folder), a
    `file://` or an http(s) address; what is fetched goes into the folder `cache`. `format` is one of CSV, JSONL,
    Parquet and Excel, or None: told by the suffix. `limit` (at least 1) caps the rows. Raises InvalidInput, whose
    `where` is `uri` as given, when the table as a whole cannot be used.
    """
    if limit is not None and limit < 1:
        raise InvalidInput.one(uri or "", "spec.source.limit", "the limit must be at least 1; leave it out for all")
    if rows is not None and uri is None:
        return InlineSource(rows, limit=limit)
    if uri is None or rows is not None:
        raise InvalidInput.one(uri or "", "spec.source", "give exactly one of uri and rows")
    parts = _parts(uri)
    name = unquote(parts.path) if parts.scheme else uri
    kind = _format(format, name, where=uri)
    file = SourceFile(path=_path(uri, base=base, cache=cache), where=uri)
    if file.gzipped and kind not in ("CSV", "JSONL"):
        raise file.invalid(f"this is gzip data; only CSV and JSONL are read compressed, {kind} as it is")
    return FileSource(file=file, reader=_reader(kind, file, name), limit=limit)


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


def _path(uri: str, *, base: Path, cache: Path) -> Path:
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
            uri, SOURCE_PATH, f"{parts.scheme}:// is not supported; use a path, file://, http:// or https://"
        )
    if "@" in parts.netloc:
        shown = uri.replace(parts.netloc, "…@" + parts.netloc.rpartition("@")[2], 1)
        raise InvalidInput.one(shown, SOURCE_PATH, "an address must not hold a password; use one without, or signed")
    if not parts.hostname or any(c.isspace() for c in uri):
        raise InvalidInput.one(uri, SOURCE_PATH, "this is no valid address: it lacks a host or holds a blank")
    return fetched(uri, where=uri, cache=cache)


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
