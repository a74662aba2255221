"""Feeding: rows of the source that have no outcome in this generation, into the window, until the source ends.

States: reading a block ahead (in a thread) → bad rows committed → room in the window → appended, shard by shard →
checkpoint → … → fed (the total is known).

Failures: the engine dies anywhere: the next one goes on from the streams' last ids (a block may be half appended: each
shard skips what it has). An append's reply is lost: it is repeated and found to be there. The window is not what was
left there: `WindowLost`, and the engine begins a new epoch. The source is not the one that the run began with:
`SourceChanged`. Another engine took over: `Superseded`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from itertools import pairwise

from rowmill.ledger import FeedPosition, RunRecord, Runs
from rowmill.outcome import Outcome, State
from rowmill.row import Block, Entry, Position
from rowmill.sources import Source
from rowmill.window import FeedWindow, ShardLook

CHECKPOINT_SECONDS = 2.0
ROOM_POLL_SECONDS = (0.02, 0.5)
"""Between looks for room: the longer nothing drains, the seldomer. Fifty jobs that wait must not keep a core busy."""
BLOCK_ROWS_A_SHARD = 1000
BLOCK_BYTES = 4 * 1024 * 1024
CALL_BYTES = 1024 * 1024
"""Bytes of payload to one append."""


@dataclass(frozen=True, slots=True)
class WindowBounds:
    """How much of a run may be on its way at once, over all shards."""

    rows: int = 20_000
    bytes: int = 64 * 1024 * 1024


@dataclass(slots=True)
class FeedState:
    """How far an epoch was fed; shared with who watches it. `last_seqs` holds the last row appended to each shard."""

    last_seqs: list[int]
    position: Position
    rows: int = 0
    finished: bool = False


def has_room(looks: Sequence[ShardLook], *, rows: int, size: int, bounds: WindowBounds) -> bool:
    """Whether a block of `rows` rows and `size` bytes may be appended. A window that is empty takes any block."""
    entries = sum(look.entries for look in looks)
    held = sum(look.bytes for look in looks)
    return entries == 0 or (entries + rows <= bounds.rows and held + size <= bounds.bytes)


def by_shard(entries: Sequence[Entry], *, shards: int, closed: set[int], last_seqs: Sequence[int]) -> list[list[Entry]]:
    """A block's rows for each shard: those that are open and not appended yet, in order."""
    dense = not closed and bool(entries) and entries[-1].seq - entries[0].seq + 1 == len(entries)
    if dense and entries[0].seq > max(last_seqs):
        first = entries[0].seq
        return [list(entries[(shard - first) % shards :: shards]) for shard in range(shards)]
    split: list[list[Entry]] = [[] for _ in range(shards)]
    for entry in entries:
        shard = entry.seq % shards
        if entry.seq > last_seqs[shard] and entry.seq not in closed:
            split[shard].append(entry)
    return split


class Feeder:
    """Feeds one epoch; `run` returns the source's number of rows."""

    def __init__(
        self,
        *,
        source: Source,
        record: RunRecord,
        runs: Runs,
        window: FeedWindow,
        state: FeedState,
        skip_closed: bool,
        bounds: WindowBounds,
        threads: ThreadPool,
        now: Callable[[], float],
        fed: Callable[[int, int, float], None],
    ) -> None:
        self._source = source
        self._record = record
        self._runs = runs
        self._window = window
        self._state = state
        self._skip_closed = skip_closed
        self._bounds = bounds
        self._threads = threads
        self._now = now
        self._fed = fed
        self._looks: list[ShardLook] = []

    async def run(self) -> int:
        """Feed to the end. May be cancelled at any point; what is half done is repeated harmlessly."""
        loop = asyncio.get_running_loop()
        # A block larger than the window would wait for it to be empty, and then overflow it.
        most = min(BLOCK_ROWS_A_SHARD * self._record.shards, max(1, self._bounds.rows // 4))
        blocks = self._source.blocks(self._state.position, max_rows=most, max_bytes=BLOCK_BYTES)
        saved = self._now()
        ahead = loop.run_in_executor(self._threads, _next_block, blocks)
        try:
            while (block := await ahead) is not None:
                ahead = loop.run_in_executor(self._threads, _next_block, blocks)
                await self._feed(block)
                self._state.position = block.end
                if self._now() - saved >= CHECKPOINT_SECONDS:
                    await self._checkpoint()
                    saved = self._now()
        finally:
            # The thread cannot be cancelled, and nobody else may read from this iterator before it is done.
            await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()
        await self._checkpoint()
        self._state.finished = True
        return self._state.position.seq - 1

    async def _checkpoint(self) -> None:
        position = FeedPosition(self._state.position, list(self._state.last_seqs))
        await self._runs.save_feed_position(self._record, position)

    async def _feed(self, block: Block) -> None:
        began = self._now()
        closed: set[int] = set()
        if self._skip_closed:
            closed = await self._runs.closed_in_range(self._record, block.first, block.end.seq - 1)
        bad = [row for row in block.bad if row.seq not in closed]
        if bad:
            await self._runs.commit_bad_rows(
                self._record,
                [Outcome(b.seq, State.FAILED, 0, error_class=b.error_class, error_message=b.message) for b in bad],
            )
        split = by_shard(block.entries, shards=self._record.shards, closed=closed, last_seqs=self._state.last_seqs)
        rows = sum(map(len, split))
        if not rows:
            return
        size = sum([len(payload) for entries in split for _, payload in entries])
        await self._wait_for_room(rows, size)
        await asyncio.gather(*(self._append(shard, entries) for shard, entries in enumerate(split) if entries))
        self._state.rows += rows
        self._fed(rows, size, self._now() - began)

    async def _append(self, shard: int, entries: list[Entry]) -> None:
        for part in _in_parts(entries):
            await self._window.append(self._record.epoch, shard, after=self._state.last_seqs[shard], entries=part)
            self._state.last_seqs[shard] = part[-1].seq

    async def _wait_for_room(self, rows: int, size: int) -> None:
        """Wait until the window has drained enough. What was appended since the last look is counted as still there."""
        poll = ROOM_POLL_SECONDS[0]
        while not has_room(self._looks, rows=rows, size=size, bounds=self._bounds):
            self._looks = await self._window.look(self._record.epoch)
            if has_room(self._looks, rows=rows, size=size, bounds=self._bounds):
                break
            await asyncio.sleep(poll)
            poll = min(poll * 1.5, ROOM_POLL_SECONDS[1])
        share = len(self._looks) or 1
        self._looks = [
            ShardLook(
                k.epoch, k.last_seq, k.entries + -(-rows // share), k.pending, k.scheduled, k.bytes + size // share
            )
            for k in self._looks
        ] or [ShardLook(self._record.epoch, 0, rows, 0, 0, size)]


def _next_block(blocks: Iterator[Block]) -> Block | None:
    return next(blocks, None)


def _in_parts(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Calls of a bounded size: Redis runs a script to its end before it serves anybody else."""
    if sum([len(payload) for _, payload in entries]) <= CALL_BYTES:
        yield entries
        return
    cuts = [0]
    size = 0
    for index, entry in enumerate(entries):
        size += len(entry.payload)
        if size > CALL_BYTES and index > cuts[-1]:
            cuts.append(index)
            size = len(entry.payload)
    yield from (entries[a:b] for a, b in pairwise([*cuts, len(entries)]))
