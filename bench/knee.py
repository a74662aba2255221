"""Endpoints with a knee, on a simulated clock: no sockets, no sleeping, the same every time for one seed.

`Queue`: so many calls are served at once, the others wait in line. `Share`: all are served at once, ever slower past
the knee (and, with `thrash`, to less use altogether). Both finish `knee / mean` rows a second at most.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rowmill_worker.adaptive import Adaptive, Verdict


class Endpoint(Protocol):
    def arrive(self, call: int, now: float) -> None: ...

    def next_end(self) -> float: ...

    def end(self, now: float) -> tuple[int, Verdict]: ...


class Queue:
    """`knee(now)` servers and a line. Past `refuses` calls at once it refuses the next ones."""

    def __init__(
        self,
        knee: Callable[[float], int],
        *,
        rng: random.Random,
        mean: Callable[[float], float] = lambda now: 1.0,
        sigma: float = 0.5,
        refuses: float = math.inf,
    ) -> None:
        self._knee, self._rng, self._mean, self._sigma, self._refuses = knee, rng, mean, sigma, refuses
        self._line: deque[int] = deque()
        self._ends: list[tuple[float, int, Verdict]] = []
        self._served = 0

    def arrive(self, call: int, now: float) -> None:
        if self._served + len(self._line) >= self._refuses:
            heapq.heappush(self._ends, (now + 0.01, call, Verdict.STRAINED))
            return
        self._line.append(call)
        self._serve(now)

    def _serve(self, now: float) -> None:
        while self._line and self._served < self._knee(now):
            self._served += 1
            seconds = self._mean(now) * math.exp(self._rng.gauss(-(self._sigma**2) / 2, self._sigma))
            heapq.heappush(self._ends, (now + seconds, self._line.popleft(), Verdict.ANSWERED))

    def next_end(self) -> float:
        return self._ends[0][0] if self._ends else math.inf

    def end(self, now: float) -> tuple[int, Verdict]:
        _, call, verdict = heapq.heappop(self._ends)
        if verdict is Verdict.ANSWERED:
            self._served -= 1
            self._serve(now)
        return call, verdict


class Share:
    """Every call moves at `min(1, knee / calls)` of full speed, to the power of `1 + thrash` past the knee."""

    def __init__(
        self, knee: Callable[[float], int], *, rng: random.Random, sigma: float = 0.5, thrash: float = 0.0
    ) -> None:
        self._knee, self._rng, self._sigma, self._thrash = knee, rng, sigma, thrash
        self._done = 0.0  # what each call that is there all the time has got by now
        self._at = 0.0
        self._wants: list[tuple[float, int]] = []

    def _speed(self) -> float:
        calls, knee = len(self._wants), self._knee(self._at)
        return 1.0 if calls <= knee else (knee / calls) ** (1 + self._thrash)

    def _move(self, now: float) -> None:
        self._done += (now - self._at) * self._speed()
        self._at = now

    def arrive(self, call: int, now: float) -> None:
        self._move(now)
        seconds = math.exp(self._rng.gauss(-(self._sigma**2) / 2, self._sigma))
        heapq.heappush(self._wants, (self._done + seconds, call))

    def next_end(self) -> float:
        if not self._wants:
            return math.inf
        return self._at + max(0.0, self._wants[0][0] - self._done) / self._speed()

    def end(self, now: float) -> tuple[int, Verdict]:
        self._move(now)
        return heapq.heappop(self._wants)[1], Verdict.ANSWERED


@dataclass
class Told:
    """What came of a run: rows finished in all, and (time, pod, limit) whenever a limit changed."""

    rows: int = 0
    failed: int = 0
    limits: list[tuple[float, int, int]] = field(default_factory=list)

    def level(self, pods: int, start: float, end: float) -> tuple[float, float]:
        """The mean of all pods' limits together between two times, and its standard deviation."""
        current = [0] * pods
        last, total, squares = start, 0.0, 0.0
        for at, pod, limit in [*self.limits, (end, 0, 0)]:
            until = min(max(at, start), end)
            whole = sum(current)
            total += whole * (until - last)
            squares += whole**2 * (until - last)
            last = until
            current[pod] = limit
        mean = total / (end - start)
        return mean, math.sqrt(max(0.0, squares / (end - start) - mean**2))


TICK = 0.25


def run(endpoint: Endpoint, pods: Sequence[Adaptive | int], seconds: float, *, joins: Sequence[float] = ()) -> Told:
    """Rows without end through so many pods (each an Adaptive, or a fixed number), for `seconds`; pod i begins at
    `joins[i]`."""
    told = Told()
    joins = joins or [0.0] * len(pods)
    busy = [0] * len(pods)
    known = [0] * len(pods)
    calls: dict[int, tuple[int, object]] = {}
    number, ticked, now = 0, 0.0, 0.0
    while now < seconds:
        for pod, control in enumerate(pods):
            if now < joins[pod]:
                continue
            limit = control if isinstance(control, int) else control.limit
            while busy[pod] < limit:
                number += 1
                calls[number] = (pod, None if isinstance(control, int) else control.began(now))
                busy[pod] += 1
                endpoint.arrive(number, now)
                limit = control if isinstance(control, int) else control.limit
            if limit != known[pod]:
                known[pod] = limit
                told.limits.append((now, pod, limit))
        upcoming = endpoint.next_end()
        if ticked + TICK < upcoming:
            ticked += TICK
            now = max(now, ticked)
            for pod, control in enumerate(pods):
                if not isinstance(control, int) and now >= joins[pod]:
                    control.tick(now)
            continue
        now = upcoming
        call, verdict = endpoint.end(now)
        pod, handle = calls.pop(call)
        busy[pod] -= 1
        if verdict is Verdict.ANSWERED:
            told.rows += 1
        else:
            told.failed += 1
        control = pods[pod]
        if not isinstance(control, int):
            control.ended(handle, verdict, now)  # type: ignore[arg-type]
    return told
