"""Workers of a limits group on a simulated clock, against the real script in a real Redis.

Time jumps from event to event. Workers join, leave, die, lose answers and are slow to send, and every call is written
down with the time at which it reaches the endpoint, its tokens and when it ends.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rowmill.window import GroupLimits, LimitsWindow, Window

LATEST_ARRIVAL = 1.9
"""Seconds after its permit's time at which a call reaches the endpoint at most."""


@dataclass(frozen=True, slots=True)
class Sent:
    """A call as the endpoint saw it."""

    at: float
    until: float
    job: str
    worker: str
    tokens: int


@dataclass
class Pod:
    """A worker with rows without end."""

    name: str
    job: str
    books: LimitsWindow
    slots: int
    waiting: int = 0
    held: int = 0
    alive: bool = True
    refunds: list[tuple[float, int]] = field(default_factory=list)


class Group:
    """One group's workers. `cost` draws (tokens reserved, tokens used) of a row, `takes` the seconds of a call."""

    def __init__(
        self,
        window: Window,
        *,
        rng: random.Random,
        name: str,
        cost: Callable[[random.Random], tuple[int, int]] = lambda rng: (0, 0),
        takes: Callable[[random.Random], float] = lambda rng: rng.uniform(0.2, 2.0),
        loses: float = 0.0,
    ) -> None:
        self.now = 1_000_000.0
        self.sent: list[Sent] = []
        self.pods: dict[str, Pod] = {}
        self._window, self._rng, self._name = window, rng, name
        self._cost, self._takes, self._loses = cost, takes, loses
        self._events: list[tuple[float, int, Callable[[], None] | Pod]] = []
        self._number = 0

    def join(self, name: str, job: str, limits: GroupLimits, *, slots: int = 8, priority: int = 0) -> Pod:
        """A worker begins."""
        books = self._window.limits(
            installation="sim",
            namespace="ns",
            group=self._name,
            worker=name,
            job=job,
            limits=limits,
            priority=priority,
            timeout=5.0,
            clock=lambda: self.now,
        )
        pod = self.pods[name] = Pod(name, job, books, slots, waiting=slots)
        self._at(self.now, pod)
        return pod

    def _at(self, time: float, what: Callable[[], None] | Pod) -> None:
        self._number += 1
        heapq.heappush(self._events, (time, self._number, what))

    async def run(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, what = heapq.heappop(self._events)
            if isinstance(what, Pod):
                await self._ask(what)
            else:
                what()
        self.now = end

    async def _ask(self, pod: Pod) -> None:
        if not pod.alive:
            return
        costs = [self._cost(self._rng) for _ in range(pod.waiting)]
        refunds, pod.refunds = pod.refunds, []
        granted = await pod.books.ask([reserved for reserved, _ in costs], holds=pod.held, refunds=refunds)
        lost = self._rng.random() < self._loses
        for permit, (_, used) in zip(granted.permits, costs, strict=False):
            if not lost:
                pod.waiting -= 1
                pod.held += 1
                self._send(pod, permit.time, permit.tokens, min(used, permit.tokens))
        self._at(self.now + granted.again * self._rng.uniform(1.0, 1.3), pod)

    def _send(self, pod: Pod, due: float, reserved: int, used: int) -> None:
        begins = max(self.now, due)
        at = min(begins + self._rng.expovariate(5), max(begins, due + LATEST_ARRIVAL))
        until = at + self._takes(self._rng)

        def arrives() -> None:
            if pod.alive:
                self.sent.append(Sent(at, until, pod.job, pod.name, used))
                self._at(until, ends)

        def ends() -> None:
            pod.held -= 1
            pod.waiting += 1
            if reserved > used:
                pod.refunds.append((due, reserved - used))

        self._at(at, arrives)

    def die(self, name: str) -> None:
        """SIGKILL; what it sent goes on at the endpoint."""
        self.pods[name].alive = False


def most_in(times: Sequence[tuple[float, int]], seconds: float) -> int:
    """The largest sum in any span of so many seconds, of (time, amount)."""
    ordered = sorted(times)
    most = total = first = 0
    for time, amount in ordered:
        total += amount
        while ordered[first][0] <= time - seconds:
            total -= ordered[first][1]
            first += 1
        most = max(most, total)
    return most


def most_at_once(sent: Sequence[Sent]) -> int:
    """The most calls in flight at one time."""
    marks = sorted([(one.at, 1) for one in sent] + [(one.until, -1) for one in sent], key=lambda m: (m[0], m[1]))
    most = now = 0
    for _, step in marks:
        now += step
        most = max(most, now)
    return most
