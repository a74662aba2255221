"""The engine's hands on the window: open an epoch, append rows, look, close.

Appending is fenced and idempotent. An entry's id is its row's number, a block names the epoch it belongs to and the
last row that must be there, and anything else than exactly that is refused: two engines, a wiped or a rolled back
Redis are noticed at the next append and end in a new epoch, never in a hole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rowmill.errors import RowmillError
from rowmill.row import Entry
from rowmill.window.connect import RedisClient, Script
from rowmill.window.keys import GROUP, shard_keys


class WindowLost(RowmillError):
    """The window is not what this epoch left there; only a new epoch can be trusted."""


@dataclass(frozen=True, slots=True)
class ShardLook:
    """Where one shard stands. `last_seq` is -1 where the stream is missing; `bytes` is what Redis holds for it."""

    epoch: int
    last_seq: int
    entries: int
    pending: int
    scheduled: int
    bytes: int


class FeedWindow:
    """Bound to one run."""

    def __init__(self, client: RedisClient, *, token: str, shards: int) -> None:
        self._client = client
        self._token = token
        self._shards = shards
        self._append, self._look = Script("append"), Script("look")
        self._open, self._close = Script("open"), Script("close")

    async def open(self, epoch: int) -> None:
        """Begin `epoch` on every shard and drop what older ones left. Raises WindowLost when a newer one is open."""
        for shard in range(self._shards):
            keys = shard_keys(self._token, shard, epoch)
            old = [key for e in range(1, epoch) for key in shard_keys(self._token, shard, e).of_epoch]
            if not await self._client.run(self._open, [keys.epoch, keys.stream, *old], [epoch, GROUP]):
                raise WindowLost(f"{self._client.where}: a newer epoch than {epoch} is open; another engine went on")

    async def append(self, epoch: int, shard: int, *, after: int, entries: Sequence[Entry]) -> int:
        """Append rows behind row `after` (0: the stream is new); returns the stream's length.

        May be repeated after a lost reply. Raises WindowLost when the stream does not end where it must, ValueError
        for a payload with a line break in it (no JSON object on one line has one).
        """
        keys = shard_keys(self._token, shard, epoch)
        ids = "".join([f"{seq}-0\n" for seq, _ in entries])
        rows = b"\n".join([payload for _, payload in entries]) + b"\n"
        if rows.count(b"\n") != len(entries):
            raise ValueError(f"a payload of rows {entries[0].seq} to {entries[-1].seq} holds a line break")
        status, detail = await self._client.run(self._append, [keys.epoch, keys.stream], [epoch, after, ids, rows])
        if status == 1:
            return int(detail)
        if status == 0 and detail == entries[-1].seq:
            return len(entries)  # the reply of our first try was lost: the block is there
        if status == 0:
            raise WindowLost(
                f"{self._client.where}: shard {shard} of epoch {epoch} ends at row {detail}, not {after}: "
                "Redis was wiped or went back in time, or another engine fed it"
            )
        raise WindowLost(f"{self._client.where}: epoch {epoch} is not open any more (found {detail})")

    async def look(self, epoch: int) -> list[ShardLook]:
        """Where every shard stands, in one round trip."""
        commands = []
        for shard in range(self._shards):
            keys = shard_keys(self._token, shard, epoch)
            commands.append(self._look.command([keys.epoch, keys.stream, keys.due], [GROUP]))
            commands.append(("MEMORY USAGE", keys.stream))
        replies = await self._client.many(commands, scripts=[self._look])
        failed = [reply for reply in replies if isinstance(reply, Exception)]
        if failed:
            raise WindowLost(f"{self._client.where}: {failed[0]}")
        looks = []
        for (open_epoch, last, entries, pending, scheduled), size in zip(replies[::2], replies[1::2], strict=True):
            looks.append(ShardLook(open_epoch, last, entries, pending, scheduled, int(size or 0)))
        return looks

    async def close(self, epoch: int) -> None:
        """Remove the run's keys, of this epoch and of every older one."""
        for shard in range(self._shards):
            first = shard_keys(self._token, shard, epoch).epoch
            keys = [key for e in range(1, epoch + 1) for key in shard_keys(self._token, shard, e).of_epoch]
            await self._client.run(self._close, [first, *keys], [epoch])
