"""How many rows are read ahead: never past a bound, and never so few that a worker with free slots stands still."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill_worker.prefetch import AHEAD_SECONDS, MAX_BYTES, MAX_ROWS, Rate, rows_to_read

SITUATION = {
    "concurrency": st.integers(1, 600),
    "rows_per_second": st.floats(0, 1e6),
    "waiting": st.integers(0, 3000),
    "held": st.integers(0, 6000),
    "held_bytes": st.integers(0, 2 * MAX_BYTES),
}


@given(**SITUATION, share=st.integers(0, 5000))
def test_the_bounds_hold(
    concurrency: int, rows_per_second: float, waiting: int, held: int, held_bytes: int, share: int
) -> None:
    budget = max(2 * concurrency, share)
    rows = rows_to_read(
        concurrency=concurrency,
        rows_per_second=rows_per_second,
        waiting=waiting,
        held=held,
        held_bytes=held_bytes,
        budget=budget,
    )
    assert rows >= 0
    if rows:
        assert held + rows <= budget, "each row is an advisory lock"
        assert waiting + rows <= MAX_ROWS
        assert held_bytes < MAX_BYTES


@given(concurrency=st.integers(1, 600), rate=st.floats(0, 1e6), share=st.integers(0, 5000), data=st.data())
def test_free_slots_are_never_left_without_rows(concurrency: int, rate: float, share: int, data: st.DataObject) -> None:
    """Nothing waits and a slot is free: whatever runs in the other slots, something is read (or it would be stuck)."""
    budget = max(2 * concurrency, share)
    running = data.draw(st.integers(0, concurrency - 1))
    size = data.draw(st.integers(0, (MAX_BYTES - 1) // max(1, running)))
    assert rows_to_read(
        concurrency=concurrency,
        rows_per_second=rate,
        waiting=0,
        held=running,
        held_bytes=running * size,
        budget=budget,
    )


def read(**other: int | float) -> int:
    known = {
        "concurrency": 8,
        "rows_per_second": 0.0,
        "waiting": 0,
        "held": 0,
        "held_bytes": 0,
        "budget": 5000,
        **other,
    }
    return rows_to_read(**known)  # type: ignore[arg-type]


def test_slow_rows_wait_as_many_as_there_are_slots() -> None:
    assert read() == 8
    assert read(waiting=8, held=16) == 0
    assert read(waiting=5, held=13) == 3


def test_fast_rows_wait_as_many_as_run_in_a_moment() -> None:
    assert read(rows_per_second=2000) == 2000 * AHEAD_SECONDS
    assert read(rows_per_second=1e6) == MAX_ROWS
    assert read(rows_per_second=4000, budget=100) == 100


def test_a_read_is_put_off_until_it_is_worth_it() -> None:
    assert read(rows_per_second=2000, waiting=510, held=510) == 0
    assert read(rows_per_second=2000, waiting=500, held=500) == 500
    assert read(rows_per_second=1e6, waiting=1500, held=1500, budget=9000) == 500, "and no longer"
    assert read(rows_per_second=2000, waiting=700, held=700, budget=3900) == 300, "nor where locks are short"
    assert read(rows_per_second=30, waiting=11, held=11) == 4, "nor for slots that would stand still"


@given(concurrency=st.integers(1, 600), rate=st.floats(0, 1e6), share=st.integers(0, 5000), data=st.data())
def test_what_waits_keeps_the_slots_busy_until_more_is_read(
    concurrency: int, rate: float, share: int, data: st.DataObject
) -> None:
    """As many rows as there are slots may end at once: unless most of that wait, more has been asked for."""
    budget = max(8 * concurrency, share)
    waiting = data.draw(st.integers(0, max(0, concurrency * 3 // 4 - 1)))
    ended = data.draw(st.integers(0, concurrency))
    situation = {"concurrency": concurrency, "rows_per_second": rate, "waiting": waiting, "budget": budget}
    assert read(**situation, held=waiting + concurrency + ended)


def test_large_rows_are_bounded_by_their_bytes() -> None:
    mean = 1024 * 1024
    assert read(concurrency=512, waiting=0, held=60, held_bytes=60 * mean) == 4, "few, but slots are free"
    assert read(concurrency=512, rows_per_second=0, held=1, held_bytes=MAX_BYTES - 1) == 1
    assert read(concurrency=8, held=4, held_bytes=4 * mean) == 8
    assert read(held=1, held_bytes=MAX_BYTES) == 0


def test_rate_follows_what_is_fed() -> None:
    rate = Rate()
    assert rate.value == 0.0
    for step in range(200):
        rate.add(100, step * 0.1)
    assert rate.value == pytest.approx(1000, rel=0.02)
    for step in range(200, 300):
        rate.add(10, step * 0.1)
    assert rate.value == pytest.approx(100, rel=0.02)


def test_rate_waits_for_enough_time_to_divide_by() -> None:
    rate = Rate()
    for _ in range(50):
        rate.add(1000, 5.0)
    assert rate.value == 0.0
