"""A worker's hands on the window: read rows, take due ones, finish, schedule, heartbeat, sweep.

Every call names the epoch that it belongs to; a call that comes too late for its epoch does nothing, and says so by
raising `EpochOver`. A lost reply of a read leaves rows pending that nobody runs: after any `StoreUnavailable` the
caller asks for `unscheduled` rows and schedules those that it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rowmill.errors import RowmillError
from rowmill.window.connect import Command, RedisClient, Script, unknown_group
from rowmill.window.keys import FIELD, GROUP, alive_key, shard_keys

FINISH_BLOCK = 1000
"""Rows to a finishing call: Lua unpacks a bounded number of arguments."""

HEARTBEAT_SECONDS = 2.0
"""A consumer whose last heartbeat is older than this counts as silent."""


class EpochOver(RowmillError):
    """The epoch is not open any more: look up in the ledger which one is."""


class Delivery(NamedTuple):
    """A row as it reached us. `deaths` is -1 for a row that was never left behind by a dead consumer."""

    shard: int
    seq: int
    payload: bytes
    attempts: int
    deaths: int


class Later(NamedTuple):
    """A row to be scheduled: in `delay` seconds, with `attempts` spent so far."""

    seq: int
    delay: float
    attempts: int


class Orphans(NamedTuple):
    """What sweeping one dead consumer found on one shard."""

    scheduled: int
    convicted: list[int]


def _seq(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


class WorkWindow:
    """Bound to one run, one consumer and one epoch; a new epoch gets a new one."""

    def __init__(self, client: RedisClient, *, token: str, shards: int, epoch: int, consumer: str) -> None:
        self._client = client
        self._token = token
        self.shards = shards
        self.epoch = epoch
        self.consumer = consumer
        self._keys = [shard_keys(token, shard, epoch) for shard in range(shards)]
        self._due, self._finish, self._schedule = Script("due"), Script("finish"), Script("schedule")
        self._started, self._unscheduled = Script("started"), Script("unscheduled")
        self._orphans, self._drop = Script("orphans"), Script("drop_consumer")

    async def take(self, count: int) -> list[Delivery]:
        """Up to about `count` rows, those that are due first, from every shard in one round trip; none is legal."""
        each = max(1, -(-count // self.shards))
        commands: list[Command] = [
            self._due.command([k.epoch, k.stream, k.due, k.tries, k.deaths], [self.epoch, GROUP, self.consumer, each])
            for k in self._keys
        ]
        commands += [
            ("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", each, "STREAMS", k.stream, ">") for k in self._keys
        ]
        replies = await self._client.many(commands, scripts=[self._due])
        rows: list[Delivery] = []
        over: object = None
        for shard, reply in enumerate(replies[: self.shards]):
            if unknown_group(reply):
                over = reply
            elif isinstance(reply, Exception):
                raise reply
            else:
                rows += [Delivery(shard, _seq(i), payload, tries, deaths) for i, payload, tries, deaths in reply]
        for shard, reply in enumerate(replies[self.shards :]):
            if unknown_group(reply):
                over = reply
            elif isinstance(reply, Exception):
                raise reply
            elif reply:
                rows += [Delivery(shard, _seq(i), fields[1], 0, -1) for i, fields in reply[0][1] if fields]
        if over is not None and not rows:
            raise EpochOver(f"{self._client.where}: {over}")
        return rows

    async def wait(self, shard: int, seconds: float) -> list[Delivery]:
        """Wait on one shard for a new row, at most `seconds`; takes one row at most."""
        milliseconds = max(1, int(seconds * 1000))
        stream = self._keys[shard].stream
        (reply,) = await self._client.many(
            [("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", 1, "BLOCK", milliseconds, "STREAMS", stream, ">")]
        )
        if unknown_group(reply):
            raise EpochOver(f"{self._client.where}: {reply}")
        if isinstance(reply, Exception):
            raise reply
        return [Delivery(shard, _seq(i), f[1], 0, -1) for i, f in reply[0][1] if f] if reply else []

    async def finish(self, shard: int, seqs: Sequence[int]) -> None:
        """Rows whose outcome is committed leave the window."""
        await self.finish_all({shard: seqs})

    async def finish_all(self, seqs_by_shard: Mapping[int, Sequence[int]]) -> None:
        """Rows of any shards whose outcome is committed leave the window, in one round trip."""
        commands: list[Command] = []
        for shard, seqs in seqs_by_shard.items():
            for start in range(0, len(seqs), FINISH_BLOCK):
                ids = [f"{seq}-0" for seq in seqs[start : start + FINISH_BLOCK]]
                commands.append(self._finish.command(self._keys[shard], [self.epoch, GROUP, *ids]))
        replies = await self._client.many(commands, scripts=[self._finish])
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if -1 in replies:
            raise EpochOver(f"epoch {self.epoch} is over")

    async def schedule(self, shard: int, rows: Sequence[Later], *, consumer: str | None = None) -> int:
        """Put rows back for later, those that are still pending with us (or with `consumer`)."""
        k = self._keys[shard]
        args: list[str | bytes | int] = [self.epoch, GROUP, consumer or self.consumer]
        for seq, delay, attempts in rows:
            args += [f"{seq}-0", int(delay * 1000), attempts]
        n = int(await self._client.run(self._schedule, [k.epoch, k.stream, k.due, k.tries, k.started], args))
        if n == -1:
            raise EpochOver(f"epoch {self.epoch} is over")
        return n

    async def mark_started(self, shard: int, seqs: Sequence[int], *, alone: bool) -> None:
        """Note, before they start, that suspect rows start here (`alone`: with nothing else running)."""
        k = self._keys[shard]
        mark = self.consumer + ("!" if alone else "")
        if not await self._client.run(
            self._started, [k.epoch, k.started], [self.epoch, mark, *(f"{s}-0" for s in seqs)]
        ):
            raise EpochOver(f"epoch {self.epoch} is over")

    async def unscheduled(self, shard: int) -> list[int]:
        """Rows pending with us that nobody has scheduled: those that we hold, and those whose delivery was lost."""
        k = self._keys[shard]
        found: list[int] = []
        after = b"0-0"
        while after:
            after, ids = await self._client.run(
                self._unscheduled, [k.epoch, k.stream, k.due], [self.epoch, GROUP, self.consumer, after, 1000]
            )
            found += [_seq(i) for i in ids]
        return found

    async def heartbeat(self) -> None:
        milliseconds = int(HEARTBEAT_SECONDS * 1000)
        await self._client.call("SET", alive_key(self._token, self.consumer), "1", "PX", milliseconds)

    async def stop_heartbeat(self) -> None:
        await self._client.call("UNLINK", alive_key(self._token, self.consumer))

    async def silent_consumers(self) -> list[str]:
        """Other consumers of any shard without a fresh heartbeat."""
        names: set[str] = set()
        replies = await self._client.many([("XINFO CONSUMERS", k.stream, GROUP) for k in self._keys])
        for reply in replies:
            if not isinstance(reply, Exception):
                names.update(dict(zip(c[::2], c[1::2], strict=True))[b"name"].decode() for c in reply)
        others = sorted(names - {self.consumer})
        if not others:
            return []
        beats = await self._client.many([("EXISTS", alive_key(self._token, name)) for name in others])
        return [name for name, beat in zip(others, beats, strict=True) if beat == 0]

    async def sweep(self, shard: int, dead: str) -> Orphans:
        """Schedule what a dead consumer left on one shard for everyone, and forget it once nothing is pending."""
        k = self._keys[shard]
        scheduled, convicted = 0, list[int]()
        after = b"0-0"
        while after:
            after, n, guilty = await self._client.run(
                self._orphans, [k.epoch, k.stream, k.due, k.deaths, k.started], [self.epoch, GROUP, dead, after, 1000]
            )
            if n == -1:
                raise EpochOver(f"epoch {self.epoch} is over")
            scheduled += n
            convicted += [_seq(i) for i in guilty]
        await self._client.run(self._drop, [k.epoch, k.stream], [self.epoch, GROUP, dead])
        return Orphans(scheduled, convicted)

    async def payload(self, shard: int, seq: int) -> bytes | None:
        """A row's payload as the stream has it, or None."""
        entries = await self._client.call("XRANGE", self._keys[shard].stream, f"{seq}-0", f"{seq}-0")
        return entries[0][1][FIELD] if entries else None

    async def leave(self) -> None:
        """Forget ourselves where nothing is pending with us."""
        for k in self._keys:
            await self._client.run(self._drop, [k.epoch, k.stream], [self.epoch, GROUP, self.consumer])
