"""Visits every state of the model breadth-first and checks each; then looks for states that can never complete."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tests.model import protocol as p


class Violation(Exception):
    """A promise is broken; `trace` is the shortest way there, step by step."""

    def __init__(self, promise: str, trace: list[str]) -> None:
        super().__init__(f"{promise}, by: " + " | ".join(trace))
        self.promise, self.trace = promise, trace


class Explored(NamedTuple):
    """How many states there were, and how many of them had the run Complete."""

    states: int
    complete: int


def successors(s: p.State, mutants: p.Mutants, kinds: frozenset[str]) -> Iterator[p.Step]:
    """Everything that may happen next, faults of these kinds included."""
    may_fail = s[p.FAULTS] > 0
    actors = [(p.ERROR + w, p.worker_steps(s, w, mutants)) for w in p.WORKERS]
    actors += [(0, p.engine_steps(s, j, mutants)) for j in p.ENGINES]
    actors += [(0, p.sweeper_steps(s, mutants))]
    for error, steps in actors:
        for step in steps:
            yield step
            if may_fail and step.may_lose_its_reply and "reply" in kinds:
                # The stores have changed; their caller's memory has not, but for the error that it saw.
                lost = p.but(step.after[: p.SNAPSHOT] + s[p.SNAPSHOT :], p.FAULTS, s[p.FAULTS] - 1)
                after = p.but(lost, error, 1) if error else lost
                yield p.Step(step.name + " (reply lost)", after, fault="reply")
    yield from p.rollback_steps(s)
    if may_fail:
        yield from (step for step in p.fault_steps(s) if step.fault in kinds)


def explore(
    *, rows: int, faults: int, without: p.Mutants = (), kinds: Iterable[str] = p.KINDS, limit: int = 10_000_000
) -> Explored:
    """Visit everything that up to `faults` faults of these `kinds` can lead to.

    Raises Violation for a broken promise, by a shortest way. The promise `stuck` is: from every state some sequence
    of steps without a further fault completes the run. Raises MemoryError past `limit` states.
    """
    first, kinds = p.initial(faults, rows), frozenset(kinds)
    number: dict[p.State, int] = {first: 0}
    states, parent = [first], [-1]
    onward: list[list[int]] = []  # by state: where the steps that are no faults lead
    while len(onward) < len(states) <= limit:
        i = len(onward)
        ways = []
        try:
            p.check(states[i])
            for step in successors(states[i], without, kinds):
                after = p.canonical(step.after)
                n = number.setdefault(after, len(states))
                if n == len(states):
                    states.append(after)
                    parent.append(i)
                if not step.fault:
                    ways.append(n)
        except p.Broken as broken:
            raise Violation(str(broken), trace(states, parent, i, without)) from None
        onward.append(ways)
    if len(states) > limit:
        raise MemoryError(f"more than {limit} states: choose fewer rows, faults or kinds of faults")
    finishing = can_finish([p.finished(s) for s in states], onward)
    if not all(finishing):
        raise Violation("stuck", trace(states, parent, finishing.index(False), without))
    return Explored(len(states), sum(s[p.COMPLETE] for s in states))


def can_finish(finished: list[bool], onward: list[list[int]]) -> list[bool]:
    """Which states have a finished one ahead, themselves included. Most steps lead to later numbers, so that a pass
    from the last state to the first settles nearly all of them; passes go on until one changes nothing."""
    can, settled = list(finished), False
    while not settled:
        settled = True
        for i in range(len(can) - 1, -1, -1):
            if not can[i] and any(can[n] for n in onward[i]):
                can[i], settled = True, False
    return can


def trace(states: list[p.State], parent: list[int], end: int, without: p.Mutants) -> list[str]:
    """The names of the steps from the first state to this one, found again from the states on the way."""
    names: list[str] = []
    while end:
        came_from = parent[end]
        steps = successors(states[came_from], without, p.KINDS)
        names.append(next(step.name for step in steps if p.canonical(step.after) == states[end]))
        end = came_from
    return names[::-1]
