"""What all of Rowmill may take of one Postgres server together, and how it is shared. Pure.

Every held row is a lock in a table that all sessions of the server share, about 6,400 entries in a default Postgres;
past its end *new connections* fail, of everybody. Connections end at 100 by default. Rowmill plans with half of either,
over all jobs, processes, databases and installations on the server.

Two things are shared out, by whoever knows what it takes:

- *workers* to runs, by the processes that drive them (`fill`): one after the other gets one more, so that no run has a
  second worker while another that needs one has none. A worker stands for three connections and the locks that it
  needs;
- *locks* to workers, by the workers themselves (`share_of_locks`): what they need, and of the rest in proportion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONNECTIONS_A_WORKER = 3
"""Its lock session, and a pool of two."""

OWN_LOCKS = 2
"""Of a worker besides those of its rows: its liveness, and the sweeper's where it sweeps."""

HELD_A_SLOT = 2
"""Rows that a worker holds at least for each slot: one that runs, one that waits or is being recorded."""

ROWS_OVER = 32
"""Rows that one read of the window may bring beyond what was asked for; see `rowmill.window.work.SMALLEST_TAKE`."""

STEP_CONNECTIONS, STEP_LOCKS = 50, 64
"""Settings are advised in such steps: what is told of a job must not change with every row of another."""


@dataclass(frozen=True, slots=True)
class Room:
    """Connections and entries of the lock table; negative where more is taken than there is."""

    connections: int = 0
    locks: int = 0

    def __add__(self, other: Room) -> Room:
        return Room(self.connections + other.connections, self.locks + other.locks)

    def __sub__(self, other: Room) -> Room:
        return Room(self.connections - other.connections, self.locks - other.locks)

    def __mul__(self, times: int) -> Room:
        return Room(self.connections * times, self.locks * times)

    def holds(self, other: Room) -> bool:
        """Whether `other` has its place in this."""
        return other.connections <= self.connections and other.locks <= self.locks

    def most(self, other: Room) -> Room:
        """The larger of either kind."""
        return Room(max(self.connections, other.connections), max(self.locks, other.locks))


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the server's settings allow to all its clients together. `locks` are entries of the lock table, `slots` the
    sessions and prepared transactions that `max_locks_per_transaction` is multiplied with, `connections` those that an
    ordinary role may open, and `reserved` those that are kept from it."""

    locks: int
    connections: int
    slots: int = 100
    reserved: int = 3

    @property
    def half(self) -> Room:
        """What Rowmill plans with."""
        return Room(self.connections // 2, self.locks // 2)


@dataclass(frozen=True, slots=True)
class Ask:
    """A run asks for `wanted` workers, each of which takes `each`."""

    wanted: int
    each: Room


def locks_needed(*, concurrency: int, locks_a_row: int) -> int:
    """Locks of rows that a worker needs to keep its slots busy. A row with a declared key takes two."""
    return (concurrency * HELD_A_SLOT + ROWS_OVER) * locks_a_row


def worker_room(capacity: Capacity, needs: int) -> Room:
    """What a worker that needs so many locks is planned with: one that would need more than a quarter of the table
    gets along with that, and its slots wait for rows."""
    return Room(CONNECTIONS_A_WORKER, min(needs, max(1, capacity.half.locks // 2)) + OWN_LOCKS)


def fill(room: Room, asks: Sequence[Ask]) -> list[int]:
    """Workers for each ask, together within `room`: round after round each gets one more, the first first.

    What does not fit into what is left goes without; a smaller one behind it may still have its place.
    """
    given = [0] * len(asks)
    open_asks = list(range(len(asks)))
    while open_asks:
        still = []
        for index in open_asks:
            ask = asks[index]
            if given[index] < ask.wanted and room.holds(ask.each):
                given[index] += 1
                room -= ask.each
                still.append(index)
        open_asks = still
    return given


def share_of_locks(plan: int, needs: int, others: Sequence[int]) -> int:
    """Locks of rows that a worker may take of `plan`, where the others of the server need `others`.

    In proportion to needs, as if one more like itself were there: whoever starts next finds room at once. What all take
    by this rule is never more than `plan`; it is less than `needs` only where all needs together are more.
    """
    total = needs + sum(others)
    usable = max(0, plan - OWN_LOCKS * (len(others) + 1))
    if total <= usable:
        return max(needs, usable * needs // (total + needs))
    return usable * needs // max(1, total)


def rows_of_locks(locks: int, *, locks_a_row: int) -> int:
    """Rows that may be asked for until so many locks are taken, by reads that may bring some more. With next to no
    locks still one: rows must go on, however slowly, on a server that too many share."""
    return max(1 if locks >= locks_a_row else 0, locks // locks_a_row - ROWS_OVER)


def settings_for(capacity: Capacity, demand: Room) -> tuple[int | None, int | None]:
    """`max_connections` and `max_locks_per_transaction` with which half of the server carries `demand`; None where the
    present one does."""
    connections, locks = None, None
    slots = capacity.slots
    if demand.connections > capacity.half.connections:
        connections = _up(2 * demand.connections + capacity.reserved, STEP_CONNECTIONS)
        slots += connections - capacity.connections - capacity.reserved
    if demand.locks > capacity.half.locks:
        each = _up(math.ceil(2 * demand.locks / slots), STEP_LOCKS)
        locks = each if each * capacity.slots > capacity.locks else None  # more connections bring more entries along
    return connections, locks


SHARED = "half of this Postgres"
"""Every message of `why_short` has it."""


def why_short(capacity: Capacity, *, none: bool, demand: Room) -> str:
    """What a person is told of a run that has fewer workers than it could use (`none`: not one), where all runs of the
    server together could use `demand`."""
    had = "no worker yet" if none else "fewer workers than it could use"
    connections, locks = settings_for(capacity, demand)
    settings = [
        *([f"max_connections to {connections}"] if connections else []),
        *([f"max_locks_per_transaction to {locks}"] if locks else []),
    ]
    server = f"max_connections {capacity.connections + capacity.reserved}, lock table {capacity.locks:,}"
    if not settings:
        return f"{had}: {SHARED} ({server}) is for all jobs on it, and others are making room; wait"
    return (
        f"{had}: {SHARED} ({server}) is for all jobs on it, and carries no more. It comes as others end; "
        f"for all at once raise {' and '.join(settings)}"
    )


def _up(number: int, step: int) -> int:
    return -(-number // step) * step
