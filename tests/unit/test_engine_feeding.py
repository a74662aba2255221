"""What is appended where, and when: shards, room, bounded calls; and the census that looks for gaps."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.ledger import RangeCounts, RunRecord, Runs
from rowmill.row import Entry
from rowmill.window import ShardLook
from rowmill_operator.engine import gaps
from rowmill_operator.engine.feeder import WindowBounds, _in_parts, by_shard, has_room
from rowmill_operator.engine.gaps import take_census
from tests.unit.test_engine_lifecycle import RECORD


def entries(*seqs: int) -> list[Entry]:
    return [Entry(seq, b"%d" % seq) for seq in seqs]


def seqs(split: list[list[Entry]]) -> list[list[int]]:
    return [[entry.seq for entry in shard] for shard in split]


def test_a_row_goes_to_the_shard_of_its_number() -> None:
    split = by_shard(entries(*range(1, 9)), shards=3, closed=set(), last_seqs=[0, 0, 0])
    assert seqs(split) == [[3, 6], [1, 4, 7], [2, 5, 8]]


def test_what_is_closed_or_there_already_is_left_out() -> None:
    split = by_shard(entries(*range(5, 13)), shards=2, closed={7, 8}, last_seqs=[6, 9])
    assert seqs(split) == [[10, 12], [11]], "shard 0 has 6, shard 1 has 9: a block may be half appended"


def test_bad_rows_leave_holes() -> None:
    assert seqs(by_shard(entries(4, 6, 7), shards=2, closed=set(), last_seqs=[0, 0])) == [[4, 6], [7]]


def test_nothing_to_append() -> None:
    assert by_shard([], shards=3, closed=set(), last_seqs=[0, 0, 0]) == [[], [], []]
    assert seqs(by_shard(entries(1, 2), shards=2, closed={1, 2}, last_seqs=[0, 0])) == [[], []]


@given(
    first=st.integers(1, 50),
    count=st.integers(0, 40),
    shards=st.integers(1, 7),
    bad=st.sets(st.integers(1, 90)),
    closed=st.sets(st.integers(1, 90)),
    fed=st.integers(0, 100),
)
def test_it_is_what_its_definition_says(
    first: int, count: int, shards: int, bad: set[int], closed: set[int], fed: int
) -> None:
    """The fast way for a dense block and the slow way are one function of the same rows."""
    block = entries(*(seq for seq in range(first, first + count) if seq not in bad))
    last = [max((s for s in range(1, fed + 1) if s % shards == shard), default=0) for shard in range(shards)]
    expected = [
        [e.seq for e in block if e.seq % shards == shard and e.seq not in closed and e.seq > last[shard]]
        for shard in range(shards)
    ]
    assert seqs(by_shard(block, shards=shards, closed=closed, last_seqs=last)) == expected


def look(rows: int, size: int = 0) -> ShardLook:
    return ShardLook(epoch=1, last_seq=9, entries=rows, pending=0, scheduled=0, bytes=size)


BOUNDS = WindowBounds(rows=100, bytes=1000)


@pytest.mark.parametrize(
    ("looks", "rows", "size", "room"),
    [
        ([look(40), look(40)], 20, 0, True),
        ([look(40), look(41)], 20, 0, False),
        ([look(1, 600), look(1, 300)], 1, 100, True),
        ([look(1, 600), look(1, 300)], 1, 101, False),
        ([look(0), look(0)], 10**6, 10**9, True),  # an empty window takes any block, or feeding would stand still
        ([look(0, 5000)], 1, 1, True),  # what an empty stream itself takes is no reason to wait
        ([look(0), look(1)], 100, 0, False),
        ([], 10, 10, True),
    ],
)
def test_room(looks: list[ShardLook], rows: int, size: int, room: bool) -> None:
    assert has_room(looks, rows=rows, size=size, bounds=BOUNDS) == room


def test_calls_are_cut_at_a_megabyte() -> None:
    rows = [Entry(seq, bytes(400_000)) for seq in range(1, 8)]
    parts = list(_in_parts(rows))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert [entry for part in parts for entry in part] == rows


def test_a_row_larger_than_that_goes_alone() -> None:
    rows = [Entry(1, b"a"), Entry(2, bytes(3_000_000)), Entry(3, b"c"), Entry(4, bytes(3_000_000))]
    parts = list(_in_parts(rows))
    assert [[entry.seq for entry in part] for part in parts] == [[1], [2], [3], [4]]
    assert [len(part) for part in _in_parts([Entry(1, b"x")])] == [1]


class Counted:
    """A ledger that has these rows, and notes how it was asked."""

    def __init__(self, there: set[int]) -> None:
        self.there = there
        self.asked: list[tuple[int, int]] = []

    async def count_range(self, record: RunRecord, first: int, last: int) -> RangeCounts:
        self.asked.append((first, last))
        found = [seq for seq in self.there if first <= seq <= last]
        failed = sum(1 for seq in found if seq % 10 == 0)
        return RangeCounts(len(found), len(found) - failed, failed, 0, failed)


@pytest.mark.parametrize(
    ("missing", "first_gap"),
    [(set(), None), ({1}, 1), ({25}, 21), ({10}, 1), ({30, 11}, 11), ({21}, 21), (set(range(1, 36)), 1), ({35}, 31)],
)
async def test_census(monkeypatch: pytest.MonkeyPatch, missing: set[int], first_gap: int | None) -> None:
    """Every row of 35 is looked for, in ranges of ten; the first gap is told to within its range, never past it."""
    monkeypatch.setattr(gaps, "RANGE_ROWS", 10)
    ledger = Counted(set(range(1, 36)) - missing)
    census = await take_census(cast(Runs, ledger), replace(RECORD, total=35), total=35)
    assert census.first_gap == first_gap
    assert census.missing == len(missing)
    assert census.counts.rows == 35 - len(missing)
    assert census.counts.failed == len({10, 20, 30} - missing)
    assert ledger.asked == [(1, 10), (11, 20), (21, 30), (31, 35)]


async def test_census_of_an_empty_source() -> None:
    census = await take_census(cast(Runs, Counted(set())), RECORD, total=0)
    assert (census.first_gap, census.missing, census.counts) == (None, 0, RangeCounts())
