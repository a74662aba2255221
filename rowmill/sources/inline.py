"""Rows written into the manifest itself. They are few (the manifest bounds them), so nothing is cached or hinted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rowmill.row import BadRow, Block, Position
from rowmill.sources.payload import payloads_of
from rowmill.sources.protocol import DEFAULT_BLOCK_BYTES, DEFAULT_BLOCK_ROWS
from rowmill.sources.runs import Run, cut


class InlineSource:
    """Source over `spec.source.rows`. Rows keep the columns that they have; none is filled in."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], *, limit: int | None) -> None:
        self._rows = rows
        self._limit = limit

    def fingerprint(self) -> str:
        """Of the rows as payloads: the order of rows and of columns within them counts."""
        digest = hashlib.blake2b(b"rows\0", digest_size=32)
        for item in self._items():
            digest.update((item if isinstance(item, bytes) else repr(item).encode()) + b"\n")
        return f"blake2b:{digest.hexdigest()}"

    def columns(self) -> tuple[str, ...] | None:
        """The union of the rows' columns, in the order of their first appearance."""
        return tuple(dict.fromkeys(name for row in self._rows for name in row))

    def blocks(
        self,
        start: Position,
        *,
        max_rows: int = DEFAULT_BLOCK_ROWS,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        beyond_limit: bool = False,
    ) -> Iterator[Block]:
        """See Source."""
        return cut(
            [Run(1, self._items(), False)],
            start=Position(start.seq),
            limit=None if beyond_limit else self._limit,
            max_rows=max_rows,
            max_bytes=max_bytes,
            where="spec.source.rows",
        )

    def close(self) -> None:
        """Nothing is held."""

    def _items(self) -> list[bytes | BadRow]:
        return payloads_of(self._rows, 1, lambda i: f"spec.source.rows[{i}]")
