"""How much of a Postgres a run may take: advisory locks and connections.

Every held row is a lock in a table that all sessions share, about 6,400 entries in a default Postgres; past its end
*new connections* fail, of everybody. Connections end at 100 by default. Rowmill plans with half of either: workers are
not scaled past it, and each worker holds no more rows than its share.
"""

from __future__ import annotations

from dataclasses import dataclass

CONNECTIONS_A_WORKER = 3
"""Its lock session, and a pool of two."""

CONNECTIONS_OF_THE_ENGINE = 4
HELD_A_SLOT = 2
"""Rows that a worker holds at least for each slot: one that runs, one that waits or is being recorded."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What the server's settings allow to all its clients together."""

    locks: int
    connections: int


def workers_allowed(capacity: Capacity, *, concurrency: int, locks_a_row: int = 1) -> int:
    """Workers that half of the server can carry; at least one. A row with a declared key takes two locks."""
    by_connections = (capacity.connections // 2 - CONNECTIONS_OF_THE_ENGINE) // CONNECTIONS_A_WORKER
    by_locks = capacity.locks // 2 // (concurrency * HELD_A_SLOT * locks_a_row)
    return max(1, min(by_connections, by_locks))


def rows_a_worker(capacity: Capacity, *, workers: int, concurrency: int, locks_a_row: int = 1) -> int:
    """Rows that one of `workers` workers may hold locked at once; never fewer than its slots need."""
    allowed = workers_allowed(capacity, concurrency=concurrency, locks_a_row=locks_a_row)
    share = capacity.locks // 2 // locks_a_row // max(1, min(workers, allowed))
    return max(concurrency * HELD_A_SLOT, share)


def why_capped(capacity: Capacity, *, allowed: int, wanted: int) -> str:
    """What a person is told when fewer workers are started than the manifest allows."""
    return (
        f"{allowed} workers instead of {wanted}: half of this Postgres (max_connections {capacity.connections}, "
        f"lock table {capacity.locks:,}) carries no more. Raise max_connections or max_locks_per_transaction"
    )
