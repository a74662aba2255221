"""How many workers a run should have. Pure: measurements in, a number out.

`desired = clamp(need, min, max)`. The need follows the backlog (`rowsPerWorker` rows each) and, with a completion
target, the measured rate of a worker. Nothing to do needs nobody; one row needs one. Growth is immediate; shrinking
waits until no recommendation of the last minute was higher, so that a jagged backlog does not make workers come and go.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

STABLE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Scaling:
    """`spec.workers` and the target: bounds inclusive, `rows_per_worker` at least 1, target in seconds or None."""

    min_replicas: int
    max_replicas: int
    rows_per_worker: int
    target_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Load:
    """`open_rows` without an outcome yet; `rate_a_worker` in rows a second, 0 where none was measured yet; `elapsed`
    seconds since the run started."""

    open_rows: int
    rate_a_worker: float
    elapsed: float


def need(load: Load, scaling: Scaling) -> int:
    """Workers that this moment alone asks for, within the bounds."""
    if load.open_rows <= 0:
        return 0
    wanted = math.ceil(load.open_rows / scaling.rows_per_worker)
    if scaling.target_seconds is not None and load.rate_a_worker > 0:
        left = scaling.target_seconds - load.elapsed
        wanted = scaling.max_replicas if left <= 0 else math.ceil(load.open_rows / (load.rate_a_worker * left))
    return max(1, scaling.min_replicas, min(wanted, scaling.max_replicas)) if scaling.max_replicas > 0 else 0


class Autoscaler:
    """`need` with a memory: it grows at once and shrinks when the need stayed low."""

    def __init__(self, scaling: Scaling) -> None:
        self._scaling = scaling
        self._recent: deque[tuple[float, int]] = deque()

    def desired(self, load: Load, *, now: float) -> int:
        wanted = need(load, self._scaling)
        if wanted == 0:
            self._recent.clear()
            return 0
        while self._recent and (now - self._recent[0][0] > STABLE_SECONDS):
            self._recent.popleft()
        while self._recent and self._recent[-1][1] <= wanted:
            self._recent.pop()  # a later and higher one stands for it
        self._recent.append((now, wanted))
        return min(self._recent[0][1], max(1, math.ceil(load.open_rows)))
