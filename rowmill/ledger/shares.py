"""The workers that the runs of one process may have, where all processes on a Postgres server share half of it.

    a run asks (wanted, needs) → look at the server → plan → declare → look again → granted
                                     ↑ every few seconds, by whichever run asks next ↓

Nobody shares it out: each process sees the same sessions (`rowmill.ledger.declared`), plans by the same rule, and keeps
to its part. What it grants it declares *before* it is used, in the name of its leader's session; then it looks again.
Of two that grow at once at least one sees the other, and takes back what does not fit. So at any time what all have
granted, and what their workers really take, is at most half of the server.

A run that comes late is seen by all within a few seconds. They grant less, their workers drain, and as these end it is
granted what they leave; until then it is told to wait. What was granted is counted for `SETTLE_SECONDS` after it was
taken back, because workers may be about to start.

Failures. A process that dies, or loses its session: the declaration is gone with it; its workers go on, and are counted
as the orphans that they are until somebody leads their runs. What it had granted to workers that had not connected yet
is not known to others: half may be exceeded by these, until its next look. A worker that nothing was granted to (one
started by hand, one of an older release) is counted when it is there. A grant that no worker takes up (no node, no
image) gives way to runs that would use it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from rowmill.errors import StoreUnavailable
from rowmill.ledger.budget import CONNECTIONS_A_WORKER, Ask, Capacity, Room, fill, why_short, worker_room
from rowmill.ledger.connect import Pool
from rowmill.ledger.declared import LeaderWord, Process, Reckoning, Session, asks_of, leader_name, reckon
from rowmill.ledger.keys import LEADER_CLASS
from rowmill.ledger.queries import statement

LOOK_SECONDS = 3.0
SOON_SECONDS = 0.5
"""Between looks: as a rule, and at least where a run asks for more than before."""
LOOK_SHARE = 0.05
"""Of the time that looking may take at most."""

SETTLE_SECONDS = 15.0
TAKEN_UP_SECONDS = 180.0
"""How long a grant may go without a worker before others come first."""


@dataclass(frozen=True, slots=True)
class Grant:
    """Workers that a run may have now, and, where it wanted more, why not (a person's sentence, or nothing). None: that
    is not known yet; those that are there may stay."""

    workers: int | None
    why: str = ""


@dataclass(frozen=True, slots=True)
class Sight:
    """What one look saw. `database` is the number of ours."""

    capacity: Capacity
    database: int
    sessions: Sequence[Session]


@dataclass(slots=True)
class RunShare:
    """One run of this process."""

    wanted: int = 0
    needs: int = 0
    granted: int = 0
    alive: int = 0
    known: bool = False
    """Whether a look has answered what was asked."""
    before: list[tuple[float, int]] = field(default_factory=list)
    """Until when a larger grant of before counts, and how many workers it was."""
    unused_since: float | None = None
    left: bool = False
    why: str = ""

    def held(self, now: float) -> int:
        """Workers that are there, or may be at any moment."""
        self.before = [one for one in self.before if one[0] > now]
        return max([self.granted, self.alive, *(workers for _, workers in self.before)])

    def grant(self, workers: int, now: float) -> None:
        if workers < self.granted:
            self.before.append((now + SETTLE_SECONDS, self.granted))
        self.granted = workers

    def see(self, alive: int, now: float) -> None:
        self.alive = alive
        if alive:
            self.unused_since = None
        elif self.granted and self.unused_since is None:
            self.unused_since = now

    def late(self, now: float) -> bool:
        """Whether others come first."""
        return self.unused_since is not None and now - self.unused_since > TAKEN_UP_SECONDS


@dataclass(frozen=True, slots=True)
class Plan:
    """Workers for each run, what that reserves with what is still there of before, and what is declared of it."""

    grants: dict[int, int]
    reserved: Room
    word: LeaderWord
    demand: Room


def make_plan(
    capacity: Capacity,
    found: Reckoning,
    runs: dict[int, RunShare],
    *,
    pid: int,
    own: int,
    now: float,
    grow: bool = True,
) -> Plan:
    """Share out, by what a look found. `own` are this process's connections; without `grow` no run gets more than it
    has already. Pure, but for what `runs` forget of before."""
    order = sorted((n for n, run in runs.items() if not run.left), key=lambda n: runs[n].held(now) == 0)
    each = {number: worker_room(capacity, run.needs) for number, run in runs.items()}
    prompt = [n for n in order if not runs[n].late(now)]
    late = [n for n in order if runs[n].late(now)]
    asks = {n: Ask(runs[n].wanted, each[n]) for n in order}
    wants = _sum(each[n] * runs[n].wanted for n in prompt)
    workers = sum(runs[n].wanted for n in prompt)
    word = LeaderWord(own, Room(), sum(1 for n in prompt if runs[n].wanted), workers, wants.locks)
    alive = sum(runs[n].alive for n in order)
    others = [process for process in found.processes.values() if process.pid != pid]
    room = capacity.half - found.orphans - Room(own + sum(process.word.own for process in others), 0)
    part, rest = _entitled(room, Process(pid, Room(), word, alive), others)
    targets = dict(zip(prompt, fill(part, [asks[n] for n in prompt]), strict=True))
    targets |= dict(zip(late, fill(rest, [asks[n] for n in late]), strict=True))

    held = {number: run.held(now) for number, run in runs.items()}
    taken = _sum(each[n] * held[n] for n in held)
    grants = {n: min(targets[n], held[n]) for n in order}
    if grow:
        free = capacity.half - found.others(pid) - Room(own, 0) - taken
        growing = sorted((n for n in order if targets[n] > held[n]), key=lambda n: held[n] > 0)
        more = fill(free, [Ask(targets[n] - held[n], each[n]) for n in growing])
        for number, workers in zip(growing, more, strict=True):
            grants[number] += workers
    reserved = _sum(each[n] * max(held[n], grants.get(n, 0)) for n in held)
    demand = found.orphans + Room(own, 0) + _sum(each[n] * runs[n].wanted for n in order)
    for process in others:
        asked = Room(CONNECTIONS_A_WORKER * process.word.workers, process.word.locks)
        demand += Room(process.word.own, 0) + asked
    word = LeaderWord(own, reserved, word.runs, word.workers, word.locks)
    return Plan(grants, reserved, word, demand)


def _entitled(room: Room, ours: Process, others: Sequence[Process]) -> tuple[Room, Room]:
    """What of `room` is for our runs, and what nobody asked for. Those that have workers keep one before others get
    their first."""
    if not any(process.word.workers for process in others):
        wanted = _sum(ask.each * ask.wanted for ask in asks_of(ours.word))
        return room, room - wanted
    queue: list[tuple[bool, int, Ask]] = []
    for process in (ours, *others):
        queue += [(n >= process.alive, process.pid, ask) for n, ask in enumerate(asks_of(process.word))]
    queue.sort(key=lambda one: one[:2])
    given = fill(room, [ask for _, _, ask in queue])
    parts = [(pid, ask.each * workers) for (_, pid, ask), workers in zip(queue, given, strict=True)]
    return _sum(part for pid, part in parts if pid == ours.pid), room - _sum(part for _, part in parts)


class Shares:
    """One of each process that drives runs. `see` looks at the server; `declare` names the leader's session and answers
    with the number of its server process; `session` counts these sessions; `own` are the connections that this process
    takes for itself."""

    def __init__(
        self,
        *,
        application_name: str,
        see: Callable[[], Awaitable[Sight]],
        declare: Callable[[str], Awaitable[int]],
        session: Callable[[], int],
        own: int,
        now: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._see = see
        self._application_name = application_name
        self._declare = declare
        self._session = session
        self._own = own
        self._now = now
        self._rng = rng or random.Random()
        self._runs: dict[int, RunShare] = {}
        self._turn = asyncio.Lock()
        self._asked = False
        self._next_look = 0.0
        self._soonest_look = 0.0
        self._word = LeaderWord(own)
        self._said_in: int | None = None
        """The session whose name says `_word`; None where that is not known."""
        self._pid = 0
        self._demand = Room()

    async def grant(self, run: int, *, wanted: int, needs: int) -> Grant:
        """Workers that `run` may have now, of `wanted`, where each needs so many locks for its rows.

        To be called again and again while the run goes: others come and go. Its leader must be ours. Raises
        StoreUnavailable.
        """
        share = self._runs.get(run)
        if share is None or share.left:
            kept = share.before if share is not None else []
            share = self._runs[run] = RunShare(before=kept)
            self._asked = True
        if wanted > share.wanted or needs > share.needs:
            self._asked = True
        share.wanted, share.needs = wanted, needs
        now = self._now()
        due = self._soonest_look if self._asked or self._said_in != self._session() else self._next_look
        if now >= due and not self._turn.locked():
            async with self._turn:
                await self._look()
        if not share.known and wanted:
            return Grant(None)
        workers = min(share.granted, wanted)
        return Grant(workers, share.why if workers < wanted else "")

    async def leave(self, run: int) -> None:
        """Nobody here drives `run` any more. What it had counts until its workers must have been seen, or are gone; of
        the last run of a process only what is seen, because nobody looks any more."""
        share = self._runs.get(run)
        if share is None or share.left:
            return
        share.grant(0, self._now())
        share.left, share.wanted, share.alive = True, 0, 0
        async with self._turn:
            if all(one.left for one in self._runs.values()) and self._word != LeaderWord(self._own):
                with contextlib.suppress(StoreUnavailable):
                    await self._say(LeaderWord(self._own))

    async def _look(self) -> None:
        began = self._now()
        self._asked = False
        if self._said_in != self._session():
            await self._say(self._word)
        sight = await self._see()
        now = self._now()
        plan = self._planned(sight, now=now)
        if not self._word.reserved.holds(plan.reserved):
            await self._say(plan.word)
            again = await self._see()
            found = reckon(again.capacity, again.sessions)
            used = found.others(self._pid) + Room(self._own, 0) + plan.reserved
            if not again.capacity.half.holds(used):
                plan = self._planned(again, now=now, grow=False)
        if self._word != plan.word:
            await self._say(plan.word)
        self._adopt(plan, sight.capacity, now)
        ended = self._now()
        pause = max(LOOK_SECONDS, (ended - began) / LOOK_SHARE) * self._rng.uniform(0.7, 1.0)
        self._next_look, self._soonest_look = ended + pause, ended + SOON_SECONDS

    def _planned(self, sight: Sight, *, now: float, grow: bool = True) -> Plan:
        found = reckon(sight.capacity, sight.sessions)
        for number, run in list(self._runs.items()):
            run.see(0 if run.left else found.workers.get((sight.database, number), 0), now)
            if run.left and run.held(now) == 0:
                del self._runs[number]
        return make_plan(sight.capacity, found, self._runs, pid=self._pid, own=self._own, now=now, grow=grow)

    def _adopt(self, plan: Plan, capacity: Capacity, now: float) -> None:
        short = False
        for number, workers in plan.grants.items():
            run = self._runs.get(number)
            if run is None or run.left:  # it left while we looked
                continue
            run.grant(workers, now)
            run.known = True
            short = short or workers < run.wanted
        self._demand = self._demand.most(plan.demand) if short else Room()
        for number, workers in plan.grants.items():
            if (run := self._runs.get(number)) is not None:
                lacks = workers < run.wanted
                run.why = why_short(capacity, none=workers == 0, demand=self._demand) if lacks else ""

    async def _say(self, word: LeaderWord) -> None:
        session, self._said_in = self._session(), None
        self._pid = await self._declare(leader_name(self._application_name, word))
        if session != self._session():
            raise StoreUnavailable("the session that leads this process's runs was lost while its share was declared")
        self._said_in, self._word = session, word


async def look_at_server(pool: Pool) -> Sight:
    """What the server says now. Raises StoreUnavailable."""
    async with pool.connection() as c:
        capacity = Capacity(*await c.fetchrow(statement("capacity")))
        rows = await c.fetch(statement("our_sessions"), LEADER_CLASS)
    here = next((row["database"] for row in rows if row["here"]), 0)
    return Sight(capacity, here, [Session(r["pid"], r["database"], r["name"], r["runs"]) for r in rows])


def _sum(rooms: Iterable[Room]) -> Room:
    return sum(rooms, Room())
