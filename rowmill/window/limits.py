"""What a group of jobs may send, over all their workers: asked for in blocks, granted just before it is sent.

A group is the workers of all jobs of one namespace that name it. A worker asks with the tokens that each of its waiting
rows may cost, and is told when it may send how many of them; the script behind it (`scripts/grants.lua`) keeps the
books of all workers in one key.

States of a permission: wanted → given (its time is fixed, nobody else gets it) → fetched (by the worker's next ask) →
held (until the worker says that the call ended) → gone. Failures:

- The answer to an ask is lost: what it gave is never sent. The next ask says how many calls are held, and that counts.
- A worker dies: what it was given is not fetched and not sent. What it held may be in flight until its timeout is over,
  and counts until then.
- Redis is wiped: the first who asks begins new books, and nothing is given before everything that the old ones could
  have given is past. It is away: nothing is given.
- Redis goes back in time: workers tell the time of their last permission; the next one keeps its distance from that.
- An ask is late, after a younger one: it is refused by its number.

Invariant: in any 60 seconds no more calls are permitted, nor tokens reserved, than the lowest limit of the group's jobs
says, and no more calls are held at once. Permissions are spaced evenly over `WINDOW_SECONDS` rather than 60: what is
permitted may reach its endpoint up to two seconds late without that 60 seconds at the endpoint see one too many.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from rowmill.limits import MOST_JOBS, GroupLimits
from rowmill.window.connect import RedisClient, Script

WINDOW_SECONDS = 62.0
"""Limits a minute are spread over so many seconds; see above. As in the script."""
SEND_WITHIN_SECONDS = 1.0
"""After its time a permission is good for so long; the rest of the two seconds is the network's."""
HEARTBEAT_SECONDS = 1.0
"""A worker that holds or wants permissions asks at least this often: after three it counts as silent."""
ROWS_ASKED = 256
"""Rows that one ask speaks of at most."""


class Permit(NamedTuple):
    """One call may be sent, at `time` (the server's clock, seconds) or within `SEND_WITHIN_SECONDS` after it; `tokens`
    are reserved for it."""

    time: float
    tokens: int


class Granted(NamedTuple):
    """The answer to an ask. `now` is the server's clock, `again` the seconds after which asking anew is worth it.

    `limits` are those that hold in the group, the lowest of its jobs; `others` the jobs that set other ones.
    """

    now: float
    permits: list[Permit]
    again: float
    limits: GroupLimits
    others: list[str]


class Standing(NamedTuple):
    """Where a job stands in its group, whether or not it has workers.

    `held` are the lowest of its own limits and of those of the jobs that have workers. `lowered_by` are the jobs that
    set them where they are lower than its own, `lowers` those for which its own hold though they set others.
    """

    held: GroupLimits
    lowered_by: list[str]
    lowers: list[str]


class _Standing(msgspec.Struct, array_like=True):
    held: tuple[float, float, float]
    lowered_by: list[str]
    lowers: list[str]


class _Reply(msgspec.Struct, array_like=True):
    now: float
    permits: list[tuple[float, float]]
    again: float
    limits: tuple[float, float, float]
    others: list[str]


def group_key(installation: str, namespace: str, group: str) -> str:
    """The key of a group's books. Groups are the namespace's own: nobody's limits slow another tenant down."""
    return f"rowmill:{{limits:{installation}:{namespace}:{group}}}"


class LimitsWindow:
    """One worker's hands on the books of its group.

    `key` is the group's, `worker` names this one, `job` its job (as people know it), `priority` higher before lower,
    `timeout` the seconds that a call may take. One ask at a time. `clock` stands in for the server's in tests.
    """

    def __init__(
        self,
        client: RedisClient,
        *,
        key: str,
        worker: str,
        job: str,
        limits: GroupLimits,
        priority: int,
        timeout: float,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._client = client
        self._key = key
        self._worker = worker
        self._job = job
        self._limits = limits
        self._priority = priority
        self._timeout = timeout
        self._clock = clock
        self._script = Script("grants")
        self._asked = 0
        self._latest = 0.0

    async def ask(
        self,
        wants: Sequence[int],
        *,
        holds: int,
        refunds: Sequence[tuple[float, int]] = (),
        unused: Sequence[float] = (),
        pause: float = 0.0,
        leaves: bool = False,
    ) -> Granted:
        """Ask for the first rows that wait, `wants` being the tokens that each may cost.

        `holds` are the permits that are held by now; `refunds` tokens that were not used, by their permit's time;
        `unused` the times of permits that nothing was sent with; `pause` the seconds for which the endpoint asked to be
        left alone. With `leaves` this worker asks no more.
        Raises StoreUnavailable: then nothing was given, and nothing may be sent.
        """
        self._asked += 1
        ask = {
            "pod": self._worker,
            "job": self._job,
            "n": self._asked,
            "p": self._priority,
            "r": self._limits.requests_per_minute,
            "t": self._limits.tokens_per_minute,
            "f": self._limits.max_in_flight,
            "w": self._timeout,
            "wants": list(wants[:ROWS_ASKED]),
            "holds": holds,
            "refunds": list(refunds),
            "unused": list(unused),
            "latest": self._latest,
            "pause": pause,
            "leaves": leaves,
        }
        now = "" if self._clock is None else repr(self._clock())
        answer = await self._client.run(self._script, [self._key], [msgspec.msgpack.encode(ask), now])
        if answer is None:  # this ask was overtaken by a younger one: what comes of it belongs to that
            return Granted(0.0, [], HEARTBEAT_SECONDS, self._limits, [])
        reply = msgspec.msgpack.decode(answer, type=_Reply)
        permits = [Permit(time, int(tokens)) for time, tokens in reply.permits]
        if permits:
            self._latest = max(self._latest, permits[-1].time)
        rate, tokens, most = (int(limit) for limit in reply.limits)
        return Granted(reply.now, permits, reply.again, GroupLimits(rate, tokens, most), sorted(reply.others))


class LimitsLook:
    """Somebody's eyes on the books of the group at `key`, who sends nothing. `clock` stands in for the server's in
    tests."""

    def __init__(self, client: RedisClient, *, key: str, clock: Callable[[], float] | None = None) -> None:
        self._client = client
        self._key = key
        self._clock = clock
        self._script = Script("standing")

    async def standing(self, job: str, own: GroupLimits) -> Standing:
        """Where `job`, whose manifest sets `own`, stands; at most `MOST_JOBS` others are named of each kind.

        Raises StoreUnavailable.
        """
        now = "" if self._clock is None else repr(self._clock())
        answer = await self._client.run(self._script, [self._key], [job, *own, MOST_JOBS, now])
        found = msgspec.msgpack.decode(answer, type=_Standing)
        rate, tokens, most = (int(limit) for limit in found.held)
        return Standing(GroupLimits(rate, tokens, most), found.lowered_by, found.lowers)
