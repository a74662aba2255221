"""When a batch goes, over any arrivals: exactly when the rules say, with the oldest rows, and nobody forgotten."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.spec.executors import Microbatch as Spec
from rowmill_worker.microbatch import BatchRules, Microbatch, QueueFull

RULES = BatchRules(max_size=3, min_size=2, max_wait=1.0, hard_timeout=4.0, queue_size=6)
EPSILON = 2.0**-20


def test_a_full_batch_goes_at_once() -> None:
    batch: Microbatch[str] = Microbatch(RULES)
    batch.add("a", now=10.0)
    batch.add("b", now=10.0)
    assert batch.take(10.0) == []
    batch.add("c", now=10.0)
    assert batch.due() == 10.0
    assert batch.take(10.0) == ["a", "b", "c"]
    assert (batch.due(), len(batch)) == (None, 0)


def test_min_size_goes_after_max_wait_and_fewer_after_the_hard_timeout() -> None:
    batch: Microbatch[str] = Microbatch(RULES)
    batch.add("a", now=10.0)
    assert batch.due() == 15.0
    batch.add("b", now=10.9)
    assert batch.due() == 11.0
    assert batch.take(10.99) == []
    assert batch.discard("a")
    assert not batch.discard("a")
    assert batch.due() == 15.9
    assert batch.take(15.9) == ["b"]


def test_a_wait_of_nothing_is_at_once() -> None:
    batch: Microbatch[str] = Microbatch(BatchRules(max_size=8, queue_size=8))
    batch.add("a", now=1.0)
    assert batch.take(1.0) == ["a"]


def test_past_its_bound_the_queue_takes_nothing_and_drops_nothing() -> None:
    batch: Microbatch[int] = Microbatch(RULES)
    for row in range(6):
        batch.add(row, now=1.0)
    with pytest.raises(QueueFull):
        batch.add(6, now=1.0)
    with pytest.raises(ValueError, match="waits already"):
        batch.add(0, now=1.0)
    assert batch.take(1.0) == [0, 1, 2]
    batch.add(6, now=1.0)
    assert batch.clear() == [3, 4, 5, 6]


def test_rows_that_are_to_be_alone_take_turns_with_batches() -> None:
    batch: Microbatch[str] = Microbatch(RULES)
    for row in "abc":
        batch.add(row, now=1.0)
    batch.add("x", now=1.0, alone=True)
    batch.add("y", now=1.0, alone=True)
    assert [batch.take(1.0) for _ in range(4)] == [["x"], ["a", "b", "c"], ["y"], []]
    batch.add("d", now=2.0)
    batch.add("z", now=2.0, alone=True)
    assert batch.due() == 2.0
    assert batch.take(2.0) == ["z"]
    assert batch.take(2.0) == []


def test_the_manifest_counts_in_milliseconds_and_waits_for_ten_batches() -> None:
    rules = BatchRules.of(Spec(max_size=32, min_size=4, max_wait_milliseconds=20, hard_timeout_milliseconds=300))
    assert rules == BatchRules(max_size=32, min_size=4, max_wait=0.02, hard_timeout=0.3, queue_size=320)
    for wrong in ({"min_size": 0}, {"min_size": 9}, {"queue_size": 7}, {"max_wait": -1.0}, {"hard_timeout": -1.0}):
        with pytest.raises(ValueError, match="min_size"):
            BatchRules(**{"max_size": 8, "queue_size": 8, **wrong})  # type: ignore[arg-type]


def may_go(waiting: list[float], rules: BatchRules, now: float) -> bool:
    """The rules in their own words, over the times at which those who wait came, oldest first."""
    if not waiting:
        return False
    waited = now - waiting[0]
    return (
        len(waiting) >= rules.max_size
        or (len(waiting) >= rules.min_size and waited >= rules.max_wait)
        or waited >= rules.max_wait + rules.hard_timeout
    )


# Times are multiples of 1/64 s, so that sums are exact.
TICKS = st.integers(0, 256).map(lambda n: n / 64)
SIZES = st.integers(1, 12)


@settings(max_examples=300, deadline=None)
@given(
    rules=st.builds(
        lambda sizes, wait, hard, more: BatchRules(
            max_size=max(sizes), min_size=min(sizes), max_wait=wait, hard_timeout=hard, queue_size=max(sizes) + more
        ),
        st.tuples(SIZES, SIZES),
        TICKS,
        TICKS,
        st.integers(0, 20),
    ),
    steps=st.lists(st.tuples(TICKS, st.sampled_from(["add", "add", "add", "leave"])), max_size=60),
)
def test_every_batch_goes_exactly_when_the_rules_say(rules: BatchRules, steps: list[tuple[float, str]]) -> None:
    batch: Microbatch[int] = Microbatch(rules)
    waiting: dict[int, float] = {}
    now, added, gone = 0.0, 0, set[int]()

    def let_go(until: float) -> float:
        """Everything due up to `until` goes, each batch at its own time."""
        at = now
        while (due := batch.due()) is not None and due <= until:
            at = max(at, due)
            before = at - EPSILON
            assert before < now or not may_go([t for t in waiting.values() if t <= before], rules, before)
            assert may_go(list(waiting.values()), rules, at)
            rows = batch.take(at)
            assert rows == list(waiting)[: rules.max_size]
            for row in rows:
                del waiting[row]
            gone.update(rows)
        assert not may_go(list(waiting.values()), rules, until)
        assert batch.take(until) == []
        return until

    for wait, step in steps:
        now = let_go(now + wait)
        if step == "leave" and waiting:
            row = list(waiting)[len(waiting) // 2]
            assert batch.discard(row)
            del waiting[row]
            gone.add(row)
        elif len(waiting) >= rules.queue_size:
            with pytest.raises(QueueFull):
                batch.add(added, now=now)
        else:
            batch.add(added, now=now)
            waiting[added] = now
            added += 1
        let_go(now)
    last = now + rules.max_wait + rules.hard_timeout
    let_go(last)
    assert gone == set(range(added))
    assert (len(batch), batch.due()) == (0, None)
    assert not math.isinf(last)
