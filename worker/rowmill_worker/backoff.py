"""Whether a failed row is tried again, and when. Pure: randomness is passed in, nothing sleeps.

The delay doubles with each attempt up to a maximum, and half of it is random ("equal jitter"): rows that failed
together come back apart, yet none at once. What the endpoint asked for by Retry-After is a floor under it, also past
the maximum (the endpoint knows better), with a little jitter above so that they do not all return in the same instant.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from rowmill_worker.executors.protocol import RowError

MAX_RETRY_AFTER = 3600.0
"""Seconds: a longer Retry-After is cut to this, so that no endpoint can park a row for ever."""

_MAX_DOUBLINGS = 60  # past any sensible maximum, and still far from a float's overflow
_RETURN_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`spec.retry`: at most `max_attempts` calls a row (1 or more); delays from `initial` up to `maximum` seconds."""

    max_attempts: int
    initial: float
    maximum: float

    def __post_init__(self) -> None:
        if self.max_attempts < 1 or not 0 <= self.initial <= self.maximum:
            raise ValueError("max_attempts must be at least 1, and 0 <= initial <= maximum")


@dataclass(frozen=True, slots=True)
class Retry:
    """Run the row again after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Fail:
    """Record the row as Failed now; `exhausted` says that it was worth another try but has had all of them."""

    exhausted: bool


def next_delay(*, attempt: int, initial: float, maximum: float, retry_after: float | None, rng: random.Random) -> float:
    """Seconds until the next try, after `attempt` (from 1) failed.

    Within [b/2, b] for b = min(maximum, initial * 2**(attempt - 1)) where nothing was asked for; with `retry_after`
    at least that many seconds (cut to `MAX_RETRY_AFTER`), and at most a tenth or b more, whichever is smaller.
    """
    bound = min(maximum, initial * 2.0 ** min(max(attempt, 1) - 1, _MAX_DOUBLINGS))
    delay = bound / 2 + rng.uniform(0.0, bound / 2)
    if retry_after is None:
        return delay
    floor = min(max(retry_after, 0.0), MAX_RETRY_AFTER)
    if delay >= floor:
        return delay
    return floor + rng.uniform(0.0, min(bound, floor * _RETURN_SPREAD))


def decide(error: RowError, attempts: int, policy: RetryPolicy, *, rng: random.Random) -> Retry | Fail:
    """What follows `error`, when the row has had `attempts` calls by now (the failed one among them, if it was sent).

    An attempt that was not spent (`error.spent` is False) can be repeated even when all were used up: it was none.
    """
    if not error.retryable:
        return Fail(exhausted=False)
    if error.spent and attempts >= policy.max_attempts:
        return Fail(exhausted=True)
    return Retry(
        next_delay(
            attempt=attempts,
            initial=policy.initial,
            maximum=policy.maximum,
            retry_after=error.retry_after,
            rng=rng,
        )
    )
