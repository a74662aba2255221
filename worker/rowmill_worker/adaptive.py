"""How many rows at once an endpoint bears: found out by what more of them costs.

The model: up to its knee an endpoint answers as fast at a high level of concurrency as at a lower one; past it every
row more makes all of them wait longer, in proportion, and no more rows get done. Calls are looked at in rounds: about
as many as there are slots, all started at one level. Each round gives one point, (level, how long a call took). Of
every possible knee it is asked how well it explains the last points, young ones counting more; that gives a
distribution over knees, and the level goes to a little above its median.

States:

- climb: from the start, and whenever the points tell plainly that the knee lies well above: the level doubles.
- hold: near the knee the level moves by small steps. In one slot of six it is a fifth lower, so that there is
  something to compare with. An endpoint that becomes slower for everybody is slower at both levels: nothing changes.
- descend: calls take much longer than they used to at this level. What was known is forgotten and the level is halved:
  if that makes calls faster the knee has moved down, if not the endpoint is slower, and the climb begins anew.

The slots of a hold are cut from the wall clock, their length a power of two: pods that see the same endpoint lower
their levels in the same slots without a word between them, and so see what all of them do to it. Each on its own would
find that its own rise costs it next to nothing, and all of them would rise for ever. Workers that begin together find
the knee together; one that joins late may take the others for a slower endpoint, or they it, and all of them may come
to rest at up to 2.6 times the knee: rows get done as fast, but wait longer. Where that harms, a limits group helps.

Failures that tell of strain (timeouts, refusals, 5xx, out of memory) cut the level by a quarter, once for each round of
calls, and leave a ceiling behind, which is lifted ever more rarely while it is met again: no saw-tooth against an
endpoint that refuses instead of slowing down. A few failures among many calls are no strain.

Invariant: minimum <= limit <= maximum; and only calls that were made with the slots in use are looked at: a pod that
has too few rows learns nothing, and changes nothing.

Pure: nothing here sleeps or reads a clock. Whoever uses it passes the time, and asks for `limit` after each call.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final


class Verdict(Enum):
    """What a call that ended says of the endpoint."""

    ANSWERED = auto()
    STRAINED = auto()
    """A failure that less concurrency may mend."""
    NEITHER = auto()
    """A failure of the row's own, a call that was cancelled: says nothing."""


HEADROOM: Final = 1.1
"""How far above the knee the level rests: there is to be always a row at hand for the endpoint."""
LOW_SHARE: Final = 0.8
SLOTS: Final = 6
"""In one slot of so many the level is `LOW_SHARE` of what it is else."""
ROUND_CALLS: Final = (16, 256)
"""Calls that a round waits for: as many as there are slots, within these bounds."""
KEPT_CALLS: Final = 400
"""Calls that a round keeps the times of."""
ROUND_SECONDS: Final = 0.25
"""A round lasts at least so long: of very fast calls there are many, and looking costs time too."""
ENDED_SHARE: Final = 0.9
"""Of a round's calls so many must have ended; the slowest count as the last of these."""
FULL_SHARE: Final = 0.8
"""Of the slots so many were in use while a round was started, on average, or it says nothing."""
MEMORY: Final = 0.96
"""How much less the point before counts than the last one."""
POINTS: Final = 64
FIRST_VARIANCE: Final = 0.3
"""Of a call's seconds, over the square of their mean, before anything is known."""
VARIANCE_CALLS: Final = 100
MISFIT: Final = 0.04
"""What a point is off, as a logarithm, however many calls it is made of: no endpoint is quite like the model."""
KNEES: Final = 8
"""Knees to a doubling that are told apart."""
SURE: Final = 0.92
SMALL_STEP: Final = 1.15
SLOT_SECONDS: Final = (0.5, 256.0)
SLOWED: Final = math.log(1.6)
CUT: Final = 0.75
STRAIN_SHARE: Final = 0.15
LEAST_STRAINED: Final = 3
"""Failures that are no accident: so many, and so large a share of two rounds of calls."""
CEILING_SECONDS: Final = (5.0, 600.0)


class _Round:
    """Calls that were started one after the other at one level."""

    __slots__ = ("_ended", "_in_flight", "_started", "_wanted", "began", "level")

    def __init__(self, level: int, now: float, *, wanted: int) -> None:
        self.level = level
        self._wanted = wanted
        self.began = now
        self._started = 0
        self._in_flight = 0
        self._ended: list[float] = []

    def add(self, in_flight: int) -> None:
        self._started += 1
        self._in_flight += in_flight

    def end(self, seconds: float) -> None:
        self._ended.append(max(seconds, 1e-6))

    def withdraw(self, in_flight: int) -> None:
        """A call that says nothing."""
        self._started -= 1
        self._in_flight -= in_flight

    def takes_more(self, now: float) -> bool:
        """Calls that start now belong to it."""
        return self._started < self._wanted or (self._started < KEPT_CALLS and now - self.began < ROUND_SECONDS)

    def is_over(self, now: float) -> bool:
        return not self.takes_more(now) and len(self._ended) >= ENDED_SHARE * self._started

    @property
    def was_full(self) -> bool:
        """The slots were in use, but for one that is free while a row goes and the next one comes."""
        return self._in_flight >= FULL_SHARE * self._started * max(1.0, self.level - 0.5)

    def point(self) -> _Point:
        ended = sorted(self._ended)
        kept = ended[: math.ceil(ENDED_SHARE * self._started)]
        mean = (sum(kept) + kept[-1] * (self._started - len(kept))) / self._started
        quarter, three = ended[len(ended) // 4], ended[(3 * len(ended) - 1) // 4]
        return _Point(self.level, self._started, math.log(mean), math.log(three / quarter) / 1.35)


@dataclass(frozen=True, slots=True)
class _Point:
    """One round. `took` is the logarithm of the mean of its calls' seconds, `spread` how widely the single logarithms
    vary."""

    level: int
    calls: int
    took: float
    spread: float


@dataclass(slots=True, eq=False)
class Call:
    """One call in flight."""

    started: float
    in_flight: int
    level: int
    round: _Round | None


class Adaptive:
    """One worker's level. `start` is the first one, `now` seconds of any clock, `wall` what the wall clock shows then.

    Every call of an executor is framed by `began` and `ended`; `tick` is called a few times a second besides.
    """

    def __init__(self, *, minimum: int, maximum: int, start: int, now: float, wall: float) -> None:
        if not 1 <= minimum <= maximum:
            raise ValueError(f"1 <= minimum <= maximum, not {minimum} and {maximum}")
        self._minimum, self._maximum = minimum, maximum
        self._wall_ahead = wall - now
        self._level = float(min(max(start, minimum), maximum))
        self._limit = round(self._level)
        self._in_flight = 0
        self._round = _Round(self._limit, now, wanted=ROUND_CALLS[0])
        self._variance = FIRST_VARIANCE
        self._points: list[_Point] = []
        self._descends = False
        self._climbs = True
        self._slot_seconds = SLOT_SECONDS[0]
        self._dips = False
        count = KNEES * math.ceil(math.log2(8 * maximum)) + 1
        self._knees = [2.0 ** (i / KNEES - 1) for i in range(count)]
        self._ceiling = math.inf
        self._ceiling_until = 0.0
        self._patience = CEILING_SECONDS[0]
        self._cut_at = -math.inf
        self._seen = 0
        self._strained = 0

    @property
    def limit(self) -> int:
        """Rows that may run at once now."""
        return self._limit

    def began(self, now: float) -> Call:
        """A call is sent."""
        self._in_flight += 1
        current = self._round if self._round.takes_more(now) else None
        if current is not None:
            current.add(self._in_flight)
        return Call(now, self._in_flight, self._limit, current)

    def ended(self, call: Call, verdict: Verdict, now: float) -> None:
        """That call ended."""
        self._in_flight -= 1
        if call.round is not None:
            if verdict is Verdict.ANSWERED:
                call.round.end(now - call.started)
            else:
                call.round.withdraw(call.in_flight)
        if verdict is not Verdict.NEITHER:
            self._note_strain(call, verdict is Verdict.STRAINED, now)
        self.tick(now)

    def tick(self, now: float) -> None:
        """Time passed."""
        if self._round.is_over(now):
            if self._round.was_full:
                self._learn(self._round.point(), now)
            self._begin_round(now)
        elif self._dips != self._dip_is_on(now) and not self._climbs:
            self._begin_round(now)

    def _begin_round(self, now: float) -> None:
        self._dips = not self._climbs and self._dip_is_on(now)
        level = self._whole(self._level)
        if self._dips:
            level = max(self._minimum, min(level - 1, round(level * LOW_SHARE)))
        self._limit = level
        least, most = ROUND_CALLS
        self._round = _Round(level, now, wanted=min(max(least, level if self._climbs else 2 * level), most))

    def _dip_is_on(self, now: float) -> bool:
        return math.floor((now + self._wall_ahead) / self._slot_seconds) % SLOTS == 0

    # What the points tell.

    def _learn(self, point: _Point, now: float) -> None:
        weight = min(0.5, point.calls / VARIANCE_CALLS)
        self._variance += weight * (math.expm1(min(point.spread, 2.0) ** 2) - self._variance)
        if self._descends:
            self._descended(point)
        elif self._has_slowed(point):
            self._points = [point]
            self._descends = True
            self._climbs = True
            self._level = self._bounded(point.level / 2)
            return
        self._points = [*self._points[1 - POINTS :], point]
        seconds = math.exp(point.took)
        least, most = SLOT_SECONDS
        wanted = seconds * max(2.0, ROUND_CALLS[0] / point.level + 1.0)
        self._slot_seconds = 2.0 ** math.ceil(math.log2(min(max(wanted, least), most)))
        knee, above = self._knee()
        highest = max(p.level for p in self._points)
        lowest = min(p.level for p in self._points)
        if above >= (0.5 if self._climbs else SURE):
            self._climbs = True
            wanted = 2.0 * self._level
        elif self._climbs:
            self._climbs = False
            wanted = knee * HEADROOM
        else:
            wanted = min(max(knee * HEADROOM, self._level / SMALL_STEP), self._level * SMALL_STEP)
        if self._ceiling < math.inf and now >= self._ceiling_until:
            self._ceiling *= SMALL_STEP
            self._ceiling_until = now + self._patience
        self._level = self._bounded(wanted)
        if self._level >= min(self._maximum, self._ceiling) or highest == lowest == self._whole(self._level):
            self._climbs = self._climbs and len(self._points) < 2

    def _knee(self) -> tuple[float, float]:
        """The median of what the knee may be, and how likely it is well above the level."""
        weighted = [
            (MEMORY**age / (self._variance / p.calls + MISFIT**2), p.took, math.log(p.level))
            for age, p in enumerate(reversed(self._points))
        ]
        whole = sum(weight for weight, _, _ in weighted)
        costs = []
        for knee in self._knees:
            log_knee = math.log(knee)
            total = squares = 0.0
            for weight, took, log_level in weighted:
                rest = took - log_level + log_knee if log_level > log_knee else took
                total += weight * rest
                squares += weight * rest * rest
            costs.append((squares - total * total / whole) / 2)
        least = min(costs)
        likely = [math.exp(least - cost) for cost in costs]
        total = sum(likely)
        bar = self._level * 1.2
        above = sum(one for knee, one in zip(self._knees, likely, strict=True) if knee > bar) / total
        passed = 0.0
        for knee, one in zip(self._knees, likely, strict=True):
            passed += one
            if passed >= total / 2:
                return knee, above
        return self._knees[-1], above

    def _has_slowed(self, point: _Point) -> bool:
        """Calls take much longer than at this level, or a higher one, before."""
        before = [p for p in self._points if p.level >= point.level * 0.95]
        if not before or point.level <= self._minimum:
            return False
        usual = sum(p.took for p in before) / len(before)
        error = math.sqrt(self._variance / point.calls + self._variance / sum(p.calls for p in before))
        return point.took - usual > SLOWED + 2 * error

    def _descended(self, point: _Point) -> None:
        before = self._points[-1]
        if before.took - point.took < 0.5 * math.log(max(before.level / point.level, 1.01)):
            self._descends = False  # as slow as with twice as many
        elif point.level <= self._minimum:
            self._descends = False

    # Strain.

    def _note_strain(self, call: Call, strained: bool, now: float) -> None:
        if call.started < self._cut_at:
            return  # sent before the cut, which was its answer
        self._seen += 1
        self._strained += strained
        if self._strained >= max(LEAST_STRAINED, STRAIN_SHARE * max(self._seen, 2 * self._limit)):
            self._cut(call, now)
        elif self._seen >= 4 * max(self._limit, 4):
            self._seen = self._strained = 0

    def _cut(self, call: Call, now: float) -> None:
        self._seen = self._strained = 0
        self._cut_at = now
        self._patience = min(CEILING_SECONDS[1], max(CEILING_SECONDS[0], 64 * self._slot_seconds, self._patience * 2))
        self._ceiling = max(float(self._minimum), 0.9 * call.level)
        self._ceiling_until = now + self._patience
        self._climbs = self._descends = False
        self._level = self._bounded(CUT * call.level)
        self._begin_round(now)

    # Bounds.

    def _bounded(self, level: float) -> float:
        return min(max(min(level, self._ceiling), self._minimum), self._maximum)

    def _whole(self, level: float) -> int:
        return int(level + 0.3)
