"""A source over a file, whatever its format: the format reads runs, this guards the file and cuts the blocks."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Protocol

from rowmill.errors import InvalidInput
from rowmill.row import Block, Position
from rowmill.sources.files import SourceFile
from rowmill.sources.protocol import DEFAULT_BLOCK_BYTES, DEFAULT_BLOCK_ROWS
from rowmill.sources.runs import Run, cut


class RowReader(Protocol):
    """One format. `kind` names it and its dialect: the same bytes read another way are another table."""

    @property
    def kind(self) -> str: ...

    @property
    def columns(self) -> tuple[str, ...] | None: ...

    def runs(self, start: Position) -> Iterator[Run]:
        """Runs without a gap from at or before `start` to the end. Raises InvalidInput when the file is damaged."""
        ...


class FileSource:
    """Source over a file. Each call opens the file anew, so that calls in several threads do not meet.

    `release` is called once, on `close`: then the file may go.
    """

    def __init__(
        self, *, file: SourceFile, reader: RowReader, limit: int | None, release: Callable[[], None] | None = None
    ) -> None:
        self._file = file
        self._reader = reader
        self._limit = limit
        self._release = release

    def fingerprint(self) -> str:
        """See Source."""
        return self._file.digest(self._reader.kind)

    def columns(self) -> tuple[str, ...] | None:
        """See Source."""
        return self._reader.columns

    def blocks(
        self,
        start: Position,
        *,
        max_rows: int = DEFAULT_BLOCK_ROWS,
        max_bytes: int = DEFAULT_BLOCK_BYTES,
        beyond_limit: bool = False,
    ) -> Iterator[Block]:
        """See Source."""
        with closing(self._guarded(start)) as runs:
            yield from cut(
                runs,
                start=start,
                limit=None if beyond_limit else self._limit,
                max_rows=max_rows,
                max_bytes=max_bytes,
                where=self._file.where,
            )

    def close(self) -> None:
        """Nothing of the file is held between calls; a copy in a cache is let go of."""
        release, self._release = self._release, None
        if release is not None:
            release()

    def _guarded(self, start: Position) -> Generator[Run, None, None]:
        """The reader's runs, each checked after it was read to be of the file as it was."""
        try:
            for run in self._reader.runs(start):
                self._file.unchanged()
                yield run
        except InvalidInput:
            self._file.unchanged()  # a file that is written anew looks damaged
            raise
        self._file.unchanged()
