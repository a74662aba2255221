"""What sessions say of themselves, in the name that every client of the server can read, and what it adds up to. Pure.

A session's `application_name` lives exactly as long as the session, is seen at once and from every database, needs no
right, and cannot be left behind by anybody who died. So it is where use is declared:

    rowmill worker RUN NEEDS/MAY CONSUMER locks                the lock session of a worker
    rowmill … leader OWN CONNECTIONS/LOCKS RUNS:WORKERS/LOCKS  the session by which a process drives its runs

A worker needs so many locks for its rows and may hold so many now. A process has so many sessions of its own, has
reserved that much for its runs' workers, and could use that many workers, with that many locks, for so many runs.

A process's workers are those of the runs whose leader's lock it holds. What it uses is what it has reserved, or what
is really there where that is more; workers of runs that nobody drives count for themselves.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from rowmill.ledger.budget import CONNECTIONS_A_WORKER, OWN_LOCKS, Ask, Capacity, Room, worker_room

MAX_NAME = 63
"""Bytes of a name that the server keeps."""

_WORKER = re.compile(r"rowmill worker (\d+) (\d+)/(\d+) ")
_LEADER = re.compile(r"rowmill\b.* leader (\d+) (\d+)/(\d+) (\d+):(\d+)/(\d+)$")

Run = tuple[int, int]
"""The number of a database on the server, and that of a run in its ledger."""


@dataclass(frozen=True, slots=True)
class WorkerWord:
    """A worker's: which run it works for, the locks of rows that it needs and those that it may hold."""

    run: int
    needs: int
    may: int


@dataclass(frozen=True, slots=True)
class LeaderWord:
    """A process's: its own connections, what it has reserved for workers, and how many workers its runs could use,
    with how many locks."""

    own: int
    reserved: Room = field(default_factory=Room)
    runs: int = 0
    workers: int = 0
    locks: int = 0


@dataclass(frozen=True, slots=True)
class Session:
    """A session as the server shows it; `leads` are the runs whose leader's lock it holds."""

    pid: int
    database: int
    name: str
    leads: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class Process:
    """A process that drives runs: what it uses, what it could use, and how many workers it has."""

    pid: int
    used: Room
    word: LeaderWord
    alive: int


@dataclass(slots=True)
class Reckoning:
    """All that Rowmill has on a server: processes by the number of their leader session, what workers of nobody take,
    and the workers of each run."""

    processes: dict[int, Process] = field(default_factory=dict)
    orphans: Room = field(default_factory=Room)
    workers: dict[Run, int] = field(default_factory=dict)

    def others(self, pid: int) -> Room:
        """What everybody but that process takes."""
        used = self.orphans
        for process in self.processes.values():
            if process.pid != pid:
                used += process.used
        return used


def worker_name(word: WorkerWord, consumer: str) -> str:
    name = f"rowmill worker {word.run} {word.needs}/{word.may} "
    return f"{name}{consumer[: MAX_NAME - len(name) - len(' locks')]} locks"


def leader_name(application_name: str, word: LeaderWord) -> str:
    """Raises ValueError where the name of the application leaves no room."""
    used, wants = word.reserved, f"{word.runs}:{word.workers}/{word.locks}"
    name = f"{application_name} leader {word.own} {used.connections}/{used.locks} {wants}"
    if len(name.encode()) > MAX_NAME or not _LEADER.fullmatch(name):
        raise ValueError(f"{name!r} cannot be declared: an application's name begins with rowmill and is short")
    return name


def worker_word(name: str) -> WorkerWord | None:
    """None of a name that is not a worker's, or of one of an older release, which declares nothing."""
    found = _WORKER.match(name)
    return WorkerWord(*map(int, found.groups())) if found else None


def leader_word(name: str) -> LeaderWord | None:
    found = _LEADER.fullmatch(name)
    if found is None:
        return None
    own, connections, locks, runs, workers, wanted = map(int, found.groups())
    return LeaderWord(own, Room(connections, locks), runs, workers, wanted)


def reckon(capacity: Capacity, sessions: Sequence[Session]) -> Reckoning:
    """Add up what the sessions of a server say."""
    words = {s.pid: word for s in sessions if (word := leader_word(s.name)) is not None}
    led = {(s.database, run): s.pid for s in sessions if s.pid in words for run in s.leads}
    used = dict.fromkeys(words, Room())
    alive = dict.fromkeys(words, 0)
    found = Reckoning()
    for session in sessions:
        worker = worker_word(session.name)
        if worker is None:
            if session.name.startswith("rowmill worker ") and session.name.endswith(" locks"):
                found.orphans += Room(CONNECTIONS_A_WORKER, 0)
            continue
        run = (session.database, worker.run)
        found.workers[run] = found.workers.get(run, 0) + 1
        taken = worker_room(capacity, worker.needs)
        leader = led.get(run)
        if leader is None:
            found.orphans += taken
        else:
            used[leader] += taken
            alive[leader] += 1
    for pid, word in words.items():
        total = Room(word.own, 0) + word.reserved.most(used[pid])
        found.processes[pid] = Process(pid, total, word, alive[pid])
    return found


def asks_of(word: LeaderWord) -> list[Ask]:
    """What the runs of a process ask for, as if all of them were alike."""
    if word.runs == 0 or word.workers == 0:
        return []
    each = Room(CONNECTIONS_A_WORKER, -(-word.locks // word.workers))
    more = word.workers % word.runs
    return [Ask(word.workers // word.runs + (1 if n < more else 0), each) for n in range(word.runs)]


def locks_of_others(names: Sequence[str]) -> tuple[list[int], int]:
    """Of other workers' sessions: what each needs, and what they may hold all together, their own locks included."""
    words = [word for name in names if (word := worker_word(name)) is not None]
    return [word.needs for word in words], sum(word.may + OWN_LOCKS for word in words)
