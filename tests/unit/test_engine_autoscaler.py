"""How many workers a run gets: the need of a moment, and how it grows and shrinks over time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill_operator.engine.autoscaler import STABLE_SECONDS, Autoscaler, Load, Scaling, need


def scaling(low: int = 0, high: int = 10, rows: int = 100, target: float | None = None) -> Scaling:
    return Scaling(min_replicas=low, max_replicas=high, rows_per_worker=rows, target_seconds=target)


def load(rows: int, *, rate: float = 0.0, elapsed: float = 0.0) -> Load:
    return Load(open_rows=rows, rate_a_worker=rate, elapsed=elapsed)


@pytest.mark.parametrize(("rows", "workers"), [(0, 0), (1, 1), (100, 1), (101, 2), (1000, 10), (1001, 10), (10**9, 10)])
def test_need_follows_the_backlog(rows: int, workers: int) -> None:
    assert need(load(rows), scaling()) == workers


def test_nothing_to_do_needs_nobody_whatever_the_minimum() -> None:
    assert need(load(0), scaling(low=3)) == 0
    assert need(load(1), scaling(low=3)) == 3


def test_no_workers_allowed_are_no_workers() -> None:
    assert need(load(500), scaling(high=0)) == 0


@pytest.mark.parametrize(
    ("rate", "elapsed", "workers"),
    [
        (0.0, 0.0, 6),  # nothing measured yet: by the backlog
        (1.0, 0.0, 6),  # 600 rows in 100 s at 1 row/s each
        (6.0, 0.0, 1),
        (2.0, 0.0, 3),
        (2.0, 50.0, 6),  # half of the time is over
        (2.0, 99.9, 10),
        (2.0, 100.0, 10),  # late: all that may be had
        (2.0, 500.0, 10),
    ],
)
def test_a_target_asks_for_what_reaches_it(rate: float, elapsed: float, workers: int) -> None:
    assert need(load(600, rate=rate, elapsed=elapsed), scaling(target=100.0)) == workers


@given(
    rows=st.integers(0, 10**10),
    rate=st.floats(0, 1e6, allow_subnormal=False),
    elapsed=st.floats(0, 1e7),
    low=st.integers(0, 50),
    extra=st.integers(0, 50),
    per_worker=st.integers(1, 10**6),
    target=st.none() | st.floats(1, 1e7),
)
def test_need_stays_within_its_bounds(
    rows: int, rate: float, elapsed: float, low: int, extra: int, per_worker: int, target: float | None
) -> None:
    bounds = scaling(low, max(1, low + extra), per_worker, target)
    workers = need(load(rows, rate=rate, elapsed=elapsed), bounds)
    assert (workers == 0) == (rows == 0)
    if rows:
        assert max(1, low) <= workers <= bounds.max_replicas


def test_it_grows_at_once_and_shrinks_when_the_need_stayed_low() -> None:
    scaler = Autoscaler(scaling())
    assert scaler.desired(load(200), now=0.0) == 2
    assert scaler.desired(load(900), now=1.0) == 9
    assert scaler.desired(load(300), now=2.0) == 9
    assert scaler.desired(load(500), now=30.0) == 9
    assert scaler.desired(load(300), now=1.0 + STABLE_SECONDS) == 9, "a minute ago nine were needed"
    assert scaler.desired(load(300), now=1.1 + STABLE_SECONDS) == 5, "the highest of the last minute"
    assert scaler.desired(load(300), now=30.1 + STABLE_SECONDS) == 3


def test_it_never_wants_more_workers_than_rows() -> None:
    scaler = Autoscaler(scaling())
    scaler.desired(load(900), now=0.0)
    assert scaler.desired(load(2), now=1.0) == 2


def test_the_end_forgets_what_was_needed() -> None:
    scaler = Autoscaler(scaling())
    scaler.desired(load(900), now=0.0)
    assert scaler.desired(load(0), now=1.0) == 0
    assert scaler.desired(load(100), now=2.0) == 1


@given(st.lists(st.tuples(st.integers(0, 2000), st.floats(0.01, 30)), min_size=1, max_size=60))
def test_what_it_wants_is_the_highest_need_of_the_last_minute(steps: list[tuple[int, float]]) -> None:
    """Against the plain definition: a window over every need since there was last nothing to do."""
    scaler, now = Autoscaler(scaling()), 0.0
    seen: list[tuple[float, int]] = []
    for rows, pause in steps:
        now += pause
        wanted = need(load(rows), scaling())
        seen = [*seen, (now, wanted)] if wanted else []
        highest = max((n for at, n in seen if now - at <= STABLE_SECONDS), default=0)
        assert scaler.desired(load(rows), now=now) == min(highest, rows)
