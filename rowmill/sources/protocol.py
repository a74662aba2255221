"""What every source is to the engine: a fingerprint, perhaps columns, and blocks of rows from any position."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from rowmill.row import Block, Position

DEFAULT_BLOCK_ROWS = 1000
DEFAULT_BLOCK_BYTES = 1_048_576


class Source(Protocol):
    """A table of rows, numbered from 1. All methods block: call them in a thread."""

    def fingerprint(self) -> str:
        """A digest of the whole content and its format (`blake2b:…`), whatever its place, age or `limit`.

        Reads everything once, in bounded memory. Raises SourceChanged, InvalidInput.
        """
        ...

    def columns(self) -> tuple[str, ...] | None:
        """The columns that every good row has, in order; for inline rows the union; None for JSONL."""
        ...

    def blocks(
        self,
        start: Position,
        *,
        max_rows: int = DEFAULT_BLOCK_ROWS,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        beyond_limit: bool = False,
    ) -> Iterator[Block]:
        """Stream the rows from `start.seq` on, without a gap, to the end or (but for `beyond_limit`) to `limit`.

        A block holds at most `max_rows` rows and `max_bytes` bytes of payload (a larger single row makes a block
        of its own). `block.end` given back as `start`, to this or to a later source of the same content, yields
        exactly the rest. Raises SourceChanged when the content is not what it was when the source was opened,
        and InvalidInput when it turns out to be damaged; no block is handed out after either was noticed.
        """
        ...

    def close(self) -> None:
        """Let go of everything. Safe to call twice."""
        ...
