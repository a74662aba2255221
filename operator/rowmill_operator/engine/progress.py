"""Rates and times from counts. Pure: the clock is passed in."""

from __future__ import annotations

from collections import deque

WINDOW_SECONDS = 15.0


class RateMeter:
    """Rows a second over the last quarter of a minute."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()

    def add(self, done: int, *, now: float) -> None:
        """`done` rows have an outcome at `now` (monotonic seconds). A lower count (a new generation) begins anew."""
        if self._points and done < self._points[-1][1]:
            self._points.clear()
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > WINDOW_SECONDS:
            self._points.popleft()

    @property
    def per_second(self) -> float:
        if len(self._points) < 2:
            return 0.0
        (start, before), (end, after) = self._points[0], self._points[-1]
        return (after - before) / (end - start) if end > start else 0.0

    def seconds_left(self, open_rows: int | None) -> float | None:
        """None while it cannot be told."""
        rate = self.per_second
        return open_rows / rate if open_rows is not None and rate > 0 else None
