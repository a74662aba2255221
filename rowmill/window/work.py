"""A worker's hands on the window: read rows, take due ones, finish, schedule, heartbeat, sweep.

Every call names the epoch that it belongs to; a call that comes too late for its epoch does nothing, and says so by
raising `EpochOver`. A lost reply of a read leaves rows pending that nobody runs: after any `StoreUnavailable` the
caller asks for `unscheduled` rows and schedules those that it does not hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rowmill.errors import RowmillError
from rowmill.window.connect import Command, RedisClient, Script, unknown_group
from rowmill.window.keys import FIELD, GROUP, alive_key, shard_keys

FINISH_BLOCK = 1000
"""Rows to a finishing call: Lua unpacks a bounded number of arguments."""

SMALLEST_TAKE = 32
"""Rows that one read may bring however few are asked for: two of each shard, and asking fewer than 16 shards at once
would make many round trips of an empty look at all of them."""

DUE_SHARE = {False: 1, True: 3}
"""Quarters of a read that are kept for due rows: the most of it while there are many, else as little as may be."""

HEARTBEAT_SECONDS = 2.0
"""A consumer whose last heartbeat is older than this counts as silent."""


LOST = -1
"""In place of attempts: a delivery that never arrived. What the window knows of its attempts stays as it is."""


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
        self._next = 0
        self._many_due = False

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """One script; where the stream or its group is gone, the epoch is over even if its key says otherwise."""
        try:
            return await self._client.run(script, keys, args)
        except Exception as error:
            if unknown_group(error):
                raise EpochOver(f"{self._client.where}: {error}") from error
            raise

    async def take(self, count: int) -> list[Delivery]:
        """Rows from all shards, those that are due first: at most `count`, or `SMALLEST_TAKE` where that is more.

        Where `count` allows every shard is asked in one round trip, else one group of shards after the other, until
        there is a row: an empty answer says that no shard has any.
        """
        asked = min(self.shards, max(SMALLEST_TAKE, count) // 2)
        each = max(2, count // asked)
        for _ in range(-(-self.shards // asked)):
            shards = [(self._next + n) % self.shards for n in range(asked)]
            self._next = (self._next + asked) % self.shards
            due = max(1, each * DUE_SHARE[self._many_due] // 4)
            if rows := await self._take(shards, due=due, new=each - due):
                return rows
        return []

    async def _take(self, shards: Sequence[int], *, due: int, new: int) -> list[Delivery]:
        """Rows of some shards, in one round trip: up to `due` and up to `new` of each."""
        commands: list[Command] = []
        for k in (self._keys[shard] for shard in shards):
            keys = [k.epoch, k.stream, k.due, k.tries, k.deaths]
            commands.append(self._due.command(keys, [self.epoch, GROUP, self.consumer, due]))
        for k in (self._keys[shard] for shard in shards):
            commands.append(("XREADGROUP", "GROUP", GROUP, self.consumer, "COUNT", new, "STREAMS", k.stream, ">"))
        replies = await self._client.many(commands, scripts=[self._due])
        rows: list[Delivery] = []
        over: object = None
        for shard, reply in zip(shards, replies[: len(shards)], strict=True):
            if unknown_group(reply):
                over = reply
            elif isinstance(reply, Exception):
                raise reply
            else:
                rows += [Delivery(shard, _seq(i), payload, tries, deaths) for i, payload, tries, deaths in reply]
        self._many_due = 2 * len(rows) > due * len(shards)
        for shard, reply in zip(shards, replies[len(shards) :], strict=True):
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
                ids = "".join([f"{seq}-0\n" for seq in seqs[start : start + FINISH_BLOCK]])
                commands.append(self._finish.command(self._keys[shard], [self.epoch, GROUP, ids]))
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
        n = int(await self._run(self._schedule, [k.epoch, k.stream, k.due, k.tries, k.started], args))
        if n == -1:
            raise EpochOver(f"epoch {self.epoch} is over")
        return n

    async def reschedule_lost(self, shard: int, seqs: Sequence[int]) -> None:
        """Give everyone, at once, rows that are pending with us and that nobody has scheduled by now."""
        for start in range(0, len(seqs), FINISH_BLOCK):
            await self.schedule(shard, [Later(seq, 0.0, LOST) for seq in seqs[start : start + FINISH_BLOCK]])

    async def mark_started(self, shard: int, seqs: Sequence[int], *, alone: bool) -> None:
        """Note, before they start, that suspect rows start here (`alone`: with nothing else running)."""
        k = self._keys[shard]
        mark = self.consumer + ("!" if alone else "")
        if not await self._run(self._started, [k.epoch, k.started], [self.epoch, mark, *(f"{s}-0" for s in seqs)]):
            raise EpochOver(f"epoch {self.epoch} is over")

    async def unscheduled(self, shard: int) -> list[int]:
        """Rows pending with us that nobody has scheduled: those that we hold, and those whose delivery was lost."""
        k = self._keys[shard]
        found: list[int] = []
        after = b"0-0"
        while after:
            after, ids = await self._run(
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
            after, n, guilty = await self._run(
                self._orphans, [k.epoch, k.stream, k.due, k.deaths, k.started], [self.epoch, GROUP, dead, after, 1000]
            )
            if n == -1:
                raise EpochOver(f"epoch {self.epoch} is over")
            scheduled += n
            convicted += [_seq(i) for i in guilty]
        await self._run(self._drop, [k.epoch, k.stream], [self.epoch, GROUP, dead])
        return Orphans(scheduled, convicted)

    async def payload(self, shard: int, seq: int) -> bytes | None:
        """A row's payload as the stream has it, or None."""
        entries = await self._client.call("XRANGE", self._keys[shard].stream, f"{seq}-0", f"{seq}-0")
        return entries[0][1][FIELD] if entries else None

    async def leave(self) -> None:
        """Forget ourselves where nothing is pending with us."""
        for k in self._keys:
            await self._run(self._drop, [k.epoch, k.stream], [self.epoch, GROUP, self.consumer])
