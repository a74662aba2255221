"""The table of held rows: one entry a row number, its bytes, and the declared keys that go with it."""

from __future__ import annotations

from rowmill.window import Delivery
from rowmill_worker.held import HeldRow, HeldRows


def held(rows: HeldRows, seq: int, payload: bytes = b"{}", *, epoch: int = 1) -> HeldRow:
    return rows.add(Delivery(0, seq, payload, 0, -1), generation=0, epoch=epoch)


def test_rows_and_their_bytes_come_and_go() -> None:
    rows = HeldRows()
    one, two = held(rows, 1, b"12345"), held(rows, 2, b"123")
    assert (len(rows), rows.bytes, 1 in rows, rows.get(2)) == (2, 8, True, two)
    rows.remove([one])
    assert (len(rows), rows.bytes, 1 in rows, rows.get(1)) == (1, 3, False, None)
    assert rows.all() == [two]


def test_a_row_that_is_removed_twice_takes_no_other_with_it() -> None:
    """A late release of an old delivery must not drop the new one, which runs."""
    rows = HeldRows()
    old = held(rows, 1, b"old")
    rows.remove([old])
    new = held(rows, 1, b"the new one", epoch=2)
    rows.remove([old, old])
    assert rows.get(1) is new
    assert rows.bytes == len(b"the new one")


def test_a_key_is_held_by_one_row_until_that_row_is_gone() -> None:
    rows = HeldRows()
    one, two = held(rows, 1), held(rows, 2)
    assert rows.hold_key(b"k", 1)
    one.digest = b"k"
    assert rows.hold_key(b"k", 1), "its holder may ask again"
    assert not rows.hold_key(b"k", 2)
    rows.free_key(b"k", 2)
    assert not rows.hold_key(b"k", 2), "only the holder frees it"
    two.digest = b"k"
    rows.remove([two])
    assert not rows.hold_key(b"k", 2)
    rows.remove([one])
    assert rows.hold_key(b"k", 2)


def test_what_deaths_mean() -> None:
    told = {deaths: HeldRow(1, 0, b"", 0, deaths, 0, 1) for deaths in (-1, 0, 1, 2, 3)}
    assert [row.suspect for row in told.values()] == [False, True, True, True, True]
    assert [row.runs_alone for row in told.values()] == [False, False, False, True, True]


def test_rows_are_told_apart_by_what_they_are_not_by_what_they_hold() -> None:
    one, two = (HeldRow(1, 0, b"", 0, -1, 0, 1) for _ in range(2))
    assert one != two
    assert len({one, two}) == 2
