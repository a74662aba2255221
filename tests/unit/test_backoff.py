"""Retry decisions are pure: bounds, floors and ends hold for every input."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill_worker.backoff import MAX_RETRY_AFTER, Fail, Retry, RetryPolicy, decide, next_delay
from rowmill_worker.executors.protocol import RowError

seconds = st.floats(0, 10_000, allow_nan=False)


def error(*, retryable: bool = True, retry_after: float | None = None, spent: bool = True) -> RowError:
    return RowError("HTTP503", "busy", retryable=retryable, retry_after=retry_after, spent=spent)


@given(attempt=st.integers(1, 10_000), initial=seconds, extra=seconds, seed=st.integers())
def test_a_delay_stays_in_its_half_of_the_doubling_bound(attempt: int, initial: float, extra: float, seed: int) -> None:
    maximum = initial + extra
    bound = min(maximum, initial * 2.0 ** min(attempt - 1, 60))
    delay = next_delay(attempt=attempt, initial=initial, maximum=maximum, retry_after=None, rng=random.Random(seed))
    assert bound / 2 <= delay <= bound <= maximum


@given(
    attempt=st.integers(1, 100),
    initial=seconds,
    extra=seconds,
    asked=st.floats(-10, 1e12, allow_nan=False),
    seed=st.integers(),
)
def test_what_the_endpoint_asks_for_is_a_floor_and_bounded(
    attempt: int, initial: float, extra: float, asked: float, seed: int
) -> None:
    maximum = initial + extra
    delay = next_delay(attempt=attempt, initial=initial, maximum=maximum, retry_after=asked, rng=random.Random(seed))
    floor = min(max(asked, 0.0), MAX_RETRY_AFTER)
    assert delay >= floor
    assert delay <= max(maximum, floor + min(maximum, floor / 10))


def test_rows_that_failed_together_come_back_apart() -> None:
    rng = random.Random(1)
    for asked in (None, 30.0):
        delays = [next_delay(attempt=3, initial=1, maximum=60, retry_after=asked, rng=rng) for _ in range(200)]
        assert len(set(delays)) == 200
        assert max(delays) - min(delays) > 1


def test_the_delay_doubles() -> None:
    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    delays = [next_delay(attempt=n, initial=1, maximum=60, retry_after=None, rng=Highest()) for n in range(1, 9)]
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]


@given(attempts=st.integers(1, 50), limit=st.integers(1, 20), seed=st.integers())
def test_no_row_has_more_calls_than_the_policy_allows(attempts: int, limit: int, seed: int) -> None:
    policy = RetryPolicy(max_attempts=limit, initial=1, maximum=60)
    decision = decide(error(), attempts, policy, rng=random.Random(seed))
    assert isinstance(decision, Fail) == (attempts >= limit)


def test_the_end_says_why() -> None:
    policy = RetryPolicy(max_attempts=2, initial=1, maximum=60)
    rng = random.Random(0)
    assert decide(error(retryable=False), 1, policy, rng=rng) == Fail(exhausted=False)
    assert decide(error(), 2, policy, rng=rng) == Fail(exhausted=True)


def test_an_attempt_that_was_not_spent_can_be_repeated() -> None:
    policy = RetryPolicy(max_attempts=1, initial=1, maximum=60)
    assert isinstance(decide(error(spent=False), 1, policy, rng=random.Random(0)), Retry)
    assert isinstance(decide(error(spent=False), 0, policy, rng=random.Random(0)), Retry)
    assert decide(error(spent=False, retryable=False), 0, policy, rng=random.Random(0)) == Fail(exhausted=False)


def test_the_decision_carries_what_the_endpoint_asked_for() -> None:
    policy = RetryPolicy(max_attempts=5, initial=1, maximum=60)
    decision = decide(error(retry_after=120), 1, policy, rng=random.Random(0))
    assert isinstance(decision, Retry)
    assert 120 <= decision.delay <= 121


@pytest.mark.parametrize(("attempts", "initial", "maximum"), [(0, 1, 2), (1, 3, 2), (1, -1, 2)])
def test_a_policy_that_makes_no_sense_is_refused(attempts: int, initial: float, maximum: float) -> None:
    with pytest.raises(ValueError, match="max_attempts must be"):
        RetryPolicy(max_attempts=attempts, initial=initial, maximum=maximum)
