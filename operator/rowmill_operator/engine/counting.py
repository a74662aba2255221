"""How many rows a source has: counted beside feeding, in threads, with at most half of the time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool

from rowmill.errors import InvalidInput
from rowmill.row import Position
from rowmill.sources import Source

BLOCK_ROWS = 10_000
SHARE = 0.5
"""Of the time, at most: counting would keep the interpreter from whoever else shares it, for seconds."""
WAIT_SECONDS = 60.0
"""How long the end of a run whose rows are all done waits until the whole source is counted."""


async def count_rows(
    source: Source, *, threads: ThreadPool, now: Callable[[], float], beyond_limit: bool = False
) -> int:
    """The rows of a source. Raises what its reading does."""
    loop = asyncio.get_running_loop()
    blocks = source.blocks(Position(), max_rows=BLOCK_ROWS, beyond_limit=beyond_limit)
    end = 1
    began = now()
    while (block := await loop.run_in_executor(threads, next, blocks, None)) is not None:
        end = block.end.seq
        await asyncio.sleep((now() - began) * (1 / SHARE - 1))
        began = now()
    return end - 1


class WholeCount:
    """The rows of the whole source of which a limit lets in some: what all of them would use is told by it.

    `known` is what was counted before, 0 where nobody asks. A source that is damaged beyond the limit has no count.
    """

    def __init__(self, *, source: Source, threads: ThreadPool, now: Callable[[], float], known: int | None) -> None:
        self._source = source
        self._threads = threads
        self._now = now
        self._over = known is not None
        self._until: float | None = None
        self.rows = known or 0
        """0 until it is known."""

    async def run(self) -> None:
        """Count, where nobody has."""
        if not self._over:
            try:
                self.rows = await count_rows(self._source, threads=self._threads, now=self._now, beyond_limit=True)
            except InvalidInput:
                return
            finally:
                self._over = True

    @property
    def waits(self) -> bool:
        """Whether whoever is done otherwise waits for the count: for `WAIT_SECONDS` after asking first."""
        if self._over:
            return False
        if self._until is None:
            self._until = self._now() + WAIT_SECONDS
        return self._now() < self._until
