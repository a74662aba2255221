"""Rates and time left, on a clock that the test turns."""

from __future__ import annotations

import pytest

from rowmill_operator.engine.progress import WINDOW_SECONDS, RateMeter


def test_nothing_is_known_from_one_point() -> None:
    meter = RateMeter()
    assert (meter.per_second, meter.seconds_left(10)) == (0.0, None)
    meter.add(5, now=0.0)
    assert (meter.per_second, meter.seconds_left(10)) == (0.0, None)


def test_rate_over_the_points_there_are() -> None:
    meter = RateMeter()
    meter.add(0, now=10.0)
    meter.add(50, now=15.0)
    assert meter.per_second == 10.0
    assert meter.seconds_left(100) == 10.0
    assert meter.seconds_left(0) == 0.0
    assert meter.seconds_left(None) is None, "the total is not known yet"


def test_only_the_last_seconds_count() -> None:
    meter = RateMeter()
    for second in range(100):
        meter.add(1000 * min(second, 20), now=float(second))
    assert meter.per_second == 0.0, "it has stood still for longer than the window"
    assert meter.seconds_left(1) is None
    meter.add(20_000 + 75, now=100.0)
    assert meter.per_second == pytest.approx(75 / WINDOW_SECONDS, rel=0.1)


def test_two_points_at_one_time_divide_nothing_by_zero() -> None:
    meter = RateMeter()
    meter.add(0, now=1.0)
    meter.add(9, now=1.0)
    assert meter.per_second == 0.0


def test_a_count_that_fell_begins_anew() -> None:
    """A new generation counts its failures from 0; that is no negative rate."""
    meter = RateMeter()
    meter.add(1000, now=0.0)
    meter.add(2000, now=1.0)
    meter.add(100, now=2.0)
    assert meter.per_second == 0.0
    meter.add(110, now=3.0)
    assert meter.per_second == 10.0


def test_memory_is_bounded() -> None:
    meter = RateMeter()
    for tick in range(10_000):
        meter.add(tick, now=tick * 0.25)
    assert len(meter._points) <= WINDOW_SECONDS / 0.25 + 2
