"""Names of a run's keys in Redis.

One hash tag a shard, so that every script touches one slot of a cluster. What belongs to an epoch carries its
number; the key that says which epoch is open does not.
"""

from __future__ import annotations

from typing import NamedTuple

GROUP = "workers"
"""The one consumer group of every stream."""

FIELD = b"r"
"""The one field of every entry: the row's payload."""


class ShardKeys(NamedTuple):
    """The keys of one shard in one epoch."""

    epoch: str
    stream: str
    due: str
    tries: str
    deaths: str
    started: str

    @property
    def of_epoch(self) -> tuple[str, ...]:
        """Those that end with the epoch."""
        return self[1:]


def shard_keys(token: str, shard: int, epoch: int) -> ShardKeys:
    base = f"rowmill:{{{token}:{shard}}}"
    names = ("rows", "due", "tries", "deaths", "started")
    return ShardKeys(f"{base}:epoch", *(f"{base}:{name}:{epoch}" for name in names))


def alive_key(token: str, consumer: str) -> str:
    """There while a consumer's heartbeat is fresh."""
    return f"rowmill:{{{token}}}:alive:{consumer}"
