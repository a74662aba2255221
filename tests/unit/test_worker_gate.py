"""The gate: `available + processing == limit`, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill_worker.gate import Gate


@given(limit=st.integers(1, 5), steps=st.lists(st.booleans(), max_size=60))
def test_slots_are_neither_lost_nor_doubled(limit: int, steps: list[bool]) -> None:
    gate = Gate(limit)
    taken = 0
    for take in steps:
        if take:
            free = taken < limit
            assert gate.try_acquire() is free
            taken += free
        elif taken:
            gate.release()
            taken -= 1
        assert (gate.processing, gate.available, gate.limit) == (taken, limit - taken, limit)


@given(start=st.integers(1, 9), steps=st.lists(st.one_of(st.booleans(), st.integers(1, 9)), max_size=80))
def test_a_number_that_changes_takes_effect_as_slots_end(start: int, steps: list[bool | int]) -> None:
    gate = Gate(start)
    taken, wanted = 0, start
    for step in steps:
        if step is True:
            free = taken < wanted
            assert gate.try_acquire() is free
            taken += free
        elif step is False:
            if taken:
                gate.release()
                taken -= 1
        else:
            wanted = step
            gate.resize(wanted)
        assert gate.wanted == wanted
        assert gate.limit == max(wanted, taken), "what runs is never more than there is"
        assert gate.available + gate.processing == gate.limit
        assert gate.is_over is (taken > wanted)


def test_a_slot_given_back_twice_is_an_error() -> None:
    gate = Gate(1)
    assert gate.try_acquire()
    gate.release()
    with pytest.raises(RuntimeError):
        gate.release()
    assert gate.available == 1


@pytest.mark.parametrize("limit", [0, -1])
def test_a_gate_without_a_slot_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="at least one slot"):
        Gate(limit)
