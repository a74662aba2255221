"""Numbers of the advisory locks. Rows use the form of two int4 (run, seq); everything else one bigint.

The two forms are separate spaces in Postgres. Within the bigint form the top byte tells the class and the other
56 bits are a number or a digest, so that no two classes ever meet.
"""

from __future__ import annotations

from hashlib import blake2b

_LEADER, _SWEEPER, _LIVENESS, _DEDUPE, _MIGRATION, _RESULTS, _SPEND = range(1, 8)
_LOW = (1 << 56) - 1


def _key(kind: int, low: int) -> int:
    return (kind << 56) | (low & _LOW)


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


MIGRATION_KEY = _key(_MIGRATION, 1)

LEADER_CLASS = _LEADER << 24
"""The upper half of leaders' locks, as `pg_locks` shows it; the lower half is the run."""


def leader_key(run: int) -> int:
    """Held by the engine that drives a run."""
    return _key(_LEADER, run)


def sweeper_key(run: int) -> int:
    """Held by the worker that sweeps a run."""
    return _key(_SWEEPER, run)


def liveness_key(token: str, consumer: str) -> int:
    """Held by a consumer for as long as its session lives."""
    return _key(_LIVENESS, _hash(f"{token}/{consumer}"))


def results_key(run: int) -> int:
    """Held by whoever reads a run's outcomes from end to end, shared with others who do; alone by who drops them."""
    return _key(_RESULTS, run)


def spend_key(run: int) -> int:
    """Held for the moment in which a worker is told what it may use of the run's budget."""
    return _key(_SPEND, run)


def dedupe_key(digest: bytes) -> int:
    """Held while the row that owns a declared key is executed; two keys that meet here only wait for each other."""
    return _key(_DEDUPE, int.from_bytes(digest[:7], "big"))
