"""Runs of rows, as a format finds them, cut into blocks, as the engine asks for them.

A format reads in pieces that suit it (a chunk of bytes, a batch of a row group); a block must end at exactly the
row and byte bounds asked for. So that the two need not agree, a hint never has to name the very row where a block
ends: it names a row at or before it, and the reader skips the few rows between.

Invariant: for runs without gaps, the blocks' entries and bad rows together are the seqs from `start.seq` on,
without a gap; whatever the bounds, cutting changes nothing of the rows.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate, count
from typing import Any

from rowmill.errors import InvalidInput
from rowmill.row import MAX_SEQ, BadRow, Block, Entry, Position

# Twice as fast as calling Entry: the tuple that zip makes is taken over as it is.
_entry_of = partial(tuple.__new__, Entry)


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive rows from `seq` on, in the order of the source.

    `clean` says that no item is a BadRow. `begin` is a hint for any row of this run, `end` for the row after it.
    """

    seq: int
    items: Sequence[bytes | BadRow]
    clean: bool
    begin: Mapping[str, Any] = field(default_factory=dict)
    end: Mapping[str, Any] = field(default_factory=dict)


def cut(
    runs: Iterable[Run], *, start: Position, limit: int | None, max_rows: int, max_bytes: int, where: str
) -> Iterator[Block]:
    """Blocks of the rows from `start.seq` to `limit` (a row number, inclusive).

    Runs may begin before `start.seq` (what they hold too early is dropped), but not after it. Raises InvalidInput
    past MAX_SEQ rows.
    """
    if max_rows < 1 or max_bytes < 1 or start.seq < 1:
        raise ValueError("max_rows, max_bytes and start.seq are at least 1")
    last = MAX_SEQ if limit is None else min(limit, MAX_SEQ)
    first = seq = start.seq
    entries: list[Entry] = []
    bad: list[BadRow] = []
    filled = 0
    if seq > last:
        return
    hint = start.hint
    for run in runs:
        items = run.items
        begin = seq - run.seq
        if begin < 0:
            raise RuntimeError(f"{where}: rows {seq} to {run.seq - 1} are missing from what was read")
        if begin >= len(items):
            continue
        until = len(items)
        if run.seq + until - 1 > last:
            if limit is None or limit > MAX_SEQ:
                raise InvalidInput.one(
                    where, "spec.source", f"the table has more than {MAX_SEQ:,} rows; split it into several jobs"
                )
            until = last - run.seq + 1
        sizes = [0, *accumulate(map(_size, items))] if not run.clean else [0, *accumulate(map(len, items))]
        while begin < until:
            room = max_rows - (seq - first)
            end = min(until, begin + room)
            spare = max_bytes - filled
            if sizes[end] - sizes[begin] > spare:
                end = _fitting(sizes, begin, end, spare)
                if end == begin and seq == first:
                    end = begin + 1
            part = items[begin:end]
            if run.clean:
                entries += map(_entry_of, zip(count(seq), part))
            else:
                for number, item in enumerate(part, seq):
                    if isinstance(item, BadRow):
                        bad.append(item)
                    else:
                        entries.append(Entry(number, item))
            filled += sizes[end] - sizes[begin]
            seq += end - begin
            begin = end
            hint = run.end if begin == len(items) else run.begin
            if begin < until or seq - first == max_rows or filled >= max_bytes:
                yield Block(first, entries, bad, Position(seq, hint))
                first, entries, bad, filled = seq, [], [], 0
        if seq > last and (limit is not None):
            break
    if seq > first:
        yield Block(first, entries, bad, Position(seq, hint))


def _size(item: bytes | BadRow) -> int:
    return len(item) if isinstance(item, bytes) else 0


def _fitting(sizes: list[int], begin: int, end: int, spare: int) -> int:
    """The greatest index from `begin` to `end` up to which the sizes fit into `spare`."""
    return bisect_right(sizes, sizes[begin] + spare, begin, end) - 1 if spare > 0 else begin
