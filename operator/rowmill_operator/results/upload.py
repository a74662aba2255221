"""Outcomes on their way from the ledger into objects, page by page, in bounded memory.

Encoding and sending happen in threads, one page at a time; the loop only hands pages over. Whatever ends it early (an
error, a cancel) waits for the call that is under way, and then abandons the object: none of it becomes visible.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from typing import Any, TypeVar

from rowmill.errors import RowmillError
from rowmill.ledger import RangeState, RunRecord, Runs
from rowmill.outcome import Outcome, State
from rowmill.results import OutcomeWriter, Vectors, outcome_writer
from rowmill_operator.results.checkpoint import Part, Shape
from rowmill_operator.results.layout import FAILURES_FILE_ROWS, PART_BYTES, Span, failures_name, part_name
from rowmill_operator.results.ports import Folder, OutputObject

T = TypeVar("T")
Fence = Callable[[], Awaitable[None]]
"""Raises when another engine has taken the run over since."""

_FAILED = frozenset({State.FAILED})


class RacedError(RowmillError):
    """The ledger changed between two looks: what was read does not fit together. Looked at again, it will."""


async def in_thread(threads: ThreadPool, call: Callable[..., T], *args: Any) -> T:
    """The result of a blocking call. When cancelled, waits for its end all the same: then nothing runs any more."""
    working = asyncio.get_running_loop().run_in_executor(threads, call, *args)
    try:
        return await asyncio.shield(working)
    except asyncio.CancelledError:
        while not working.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait([working])
        working.cancelled() or working.exception()
        raise


class _Counted:
    """Counts the bytes of an object."""

    def __init__(self, inner: OutputObject) -> None:
        self._inner = inner
        self.bytes = 0

    def write(self, data: bytes, /) -> None:
        self._inner.write(data)
        self.bytes += len(data)


class Upload:
    """Objects that are written one after the other, each cut at a number of bytes or rows: `write` pages, then `close`.

    `name` gives the name of the object of a number, from 1. Each becomes visible when it is complete, `fence` asked
    right before; `abandon` leaves nothing of the one that is not. Without a page there is no object.
    """

    def __init__(
        self,
        folder: Folder,
        name: Callable[[int], str],
        *,
        format: str,
        columns: Sequence[str],
        threads: ThreadPool,
        fence: Fence,
        max_bytes: int,
        max_rows: int,
        vectors: Vectors | None = None,
    ) -> None:
        self._folder = folder
        self._name = name
        self._format = format
        self._columns = columns
        self._vectors = vectors
        self._threads = threads
        self._fence = fence
        self._max_bytes = max_bytes
        self._max_rows = max_rows
        self._open: tuple[OutputObject, _Counted, OutcomeWriter] | None = None
        self._rows_here = 0
        self.rows = 0
        self.sizes: list[int] = []

    async def write(self, page: Sequence[Outcome]) -> None:
        """One page more. Raises what the folder and the fence raise."""
        if self._open is None:
            await in_thread(self._threads, self._begin)
        await in_thread(self._threads, self._write, page)
        self.rows += len(page)
        self._rows_here += len(page)
        if self._open is not None and (self._open[1].bytes >= self._max_bytes or self._rows_here >= self._max_rows):
            await self.close()

    async def close(self) -> None:
        """Complete the object that is open."""
        if self._open is not None:
            await self._fence()
            await in_thread(self._threads, self._end)

    async def abandon(self) -> None:
        """Nothing of what is open stays. What goes wrong now is not told: something else did before."""
        if self._open is not None:
            await in_thread(self._threads, self._drop)

    def _begin(self) -> None:
        inner = self._folder.create(self._name(len(self.sizes) + 1))
        file = _Counted(inner)
        try:
            self._open = inner, file, outcome_writer(self._format, file, self._columns, vectors=self._vectors)
        except BaseException:
            inner.abandon()
            raise
        self._rows_here = 0

    def _write(self, page: Sequence[Outcome]) -> None:
        assert self._open is not None
        self._open[2].write(page)

    def _end(self) -> None:
        assert self._open is not None
        inner, file, writer = self._open
        writer.close()
        inner.close()
        self.sizes.append(file.bytes)
        self._open = None

    def _drop(self) -> None:
        assert self._open is not None
        inner, _, writer = self._open
        self._open = None
        with contextlib.suppress(Exception):
            writer.abandon()
        with contextlib.suppress(Exception):
            inner.abandon()


@dataclass(frozen=True, slots=True)
class Way:
    """From one ledger to one folder."""

    runs: Runs
    folder: Folder
    threads: ThreadPool
    part_bytes: int = PART_BYTES
    failures_rows: int = FAILURES_FILE_ROWS

    async def part(self, record: RunRecord, span: Span, state: RangeState, *, shape: Shape, fence: Fence) -> Part:
        """Write what the ledger holds of `span`; `state` was read before. Raises RacedError besides."""
        upload = Upload(
            self.folder,
            lambda number: part_name(span, shape.format, number),
            format=shape.format,
            columns=shape.columns,
            threads=self.threads,
            fence=fence,
            max_bytes=self.part_bytes,
            max_rows=span.rows + 1,
            vectors=shape.vectors,
        )
        try:
            only_failed = shape.include == _FAILED
            results = self.runs.results(record, first=span.first, last=span.last, failed_only=only_failed)
            async with contextlib.aclosing(results) as pages:
                async for page in pages:
                    chosen = [outcome for outcome in page if outcome.state in shape.include]
                    if chosen:
                        await upload.write(chosen)
            if upload.rows != shape.rows_of(state):
                raise RacedError(f"rows {span.first} to {span.last} changed while they were read")
            await upload.close()
        except BaseException:
            await upload.abandon()
            raise
        return Part(
            first=span.first,
            last=span.last,
            rows=upload.rows,
            sizes=tuple(upload.sizes),
            succeeded=state.succeeded,
            failed=state.failed,
            deduplicated=state.deduplicated,
            generation=record.generation,
            epoch=record.epoch,
            whole=state.closed == span.rows,
            print=state.print,
        )

    async def failures(self, record: RunRecord, spans: Sequence[Span], *, fence: Fence) -> tuple[int, int]:
        """Write every failed row of `spans`, a line of JSON each, to as many files as it takes; returns rows and
        files."""
        upload = Upload(
            self.folder,
            failures_name,
            format="JSONL",
            columns=(),
            threads=self.threads,
            fence=fence,
            max_bytes=self.part_bytes,
            max_rows=self.failures_rows,
        )
        try:
            for span in spans:
                results = self.runs.results(record, first=span.first, last=span.last, failed_only=True)
                async with contextlib.aclosing(results) as pages:
                    async for page in pages:
                        await upload.write(page)
            await upload.close()
        except BaseException:
            await upload.abandon()
            raise
        return upload.rows, len(upload.sizes)
