"""Sharing half of a Postgres: the rules, what sessions say of themselves, and processes and workers that keep to it.

Processes and workers run against a server of this file, one step at a time, in an order that a seed decides: between
any two of their statements the others may do whatever they like.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rowmill.ledger import LockSession, Shares
from rowmill.ledger.budget import (
    OWN_LOCKS,
    ROWS_OVER,
    Ask,
    Capacity,
    Room,
    fill,
    locks_needed,
    rows_of_locks,
    settings_for,
    share_of_locks,
    why_short,
    worker_room,
)
from rowmill.ledger.declared import (
    LeaderWord,
    Session,
    WorkerWord,
    leader_name,
    leader_word,
    reckon,
    worker_name,
    worker_word,
)
from rowmill.ledger.shares import SETTLE_SECONDS, TAKEN_UP_SECONDS, Grant, Sight
from rowmill.window.work import SMALLEST_TAKE
from rowmill_worker.quota import LockQuota

DEFAULT = Capacity(locks=6400, connections=97)
rooms = st.builds(Room, st.integers(-5, 60), st.integers(-50, 4000))
asks = st.lists(
    st.builds(Ask, st.integers(0, 12), st.builds(Room, st.just(3), st.integers(1, 900))), min_size=1, max_size=8
)


@given(rooms, asks)
def test_nobody_has_a_second_worker_before_all_that_fit_have_one(room: Room, wanted: list[Ask]) -> None:
    given_ = fill(room, wanted)
    left = room
    for ask, workers in zip(wanted, given_, strict=True):
        assert 0 <= workers <= ask.wanted
        left -= ask.each * workers
    if any(given_):
        assert room.holds(room - left), "together within the room"
    for ask, workers in zip(wanted, given_, strict=True):
        if workers == ask.wanted:
            continue
        assert not left.holds(ask.each), "nothing that somebody could use is left over"
        for other, others_workers in zip(wanted, given_, strict=True):
            if others_workers > workers + 1:
                assert not (left + other.each).holds(ask.each), "one more of theirs would have been one of ours"


@given(st.integers(0, 40_000), st.lists(st.integers(1, 5000), min_size=1, max_size=60))
def test_what_workers_take_by_the_rule_is_never_more_than_the_plan(plan: int, needs: list[int]) -> None:
    shares = [share_of_locks(plan, mine, needs[:n] + needs[n + 1 :]) for n, mine in enumerate(needs)]
    own = OWN_LOCKS * len(needs)
    assert sum(shares) <= max(0, plan - own)
    if sum(needs) + own <= plan:
        assert all(share >= mine for share, mine in zip(shares, needs, strict=True)), "all have what they need"


def test_a_worker_that_comes_next_finds_room_at_once() -> None:
    plan, needs = DEFAULT.half.locks, locks_needed(concurrency=16, locks_a_row=2)
    for workers in (1, 3, 8):
        taken = sum(share_of_locks(plan, needs, [needs] * (workers - 1)) + OWN_LOCKS for _ in range(workers))
        assert plan - taken >= needs


def test_a_read_that_brings_more_than_asked_stays_within_the_locks() -> None:
    assert ROWS_OVER >= SMALLEST_TAKE - 1
    for concurrency in (1, 3, 512):
        for locks_a_row in (1, 2):
            needs = locks_needed(concurrency=concurrency, locks_a_row=locks_a_row)
            rows = rows_of_locks(needs, locks_a_row=locks_a_row)
            assert rows >= 2 * concurrency, "one that runs and one that waits in each slot"
            assert (rows - 1 + SMALLEST_TAKE) * locks_a_row <= needs
    assert rows_of_locks(0, locks_a_row=1) == 0
    assert rows_of_locks(2, locks_a_row=2) == 1, "slowly, but on"


@given(
    st.integers(10, 2000), st.integers(0, 100), st.sampled_from([64, 128, 512]), st.integers(0, 5000),
    st.integers(0, 90_000),
)  # fmt: skip
def test_with_the_settings_that_are_advised_half_a_server_carries_it(
    connections: int, prepared: int, each: int, wanted: int, locks: int
) -> None:
    now = Capacity(each * (connections + prepared), connections - 3, connections + prepared, 3)
    demand = Room(wanted, locks)
    more_connections, more_locks = settings_for(now, demand)
    total, each_then = more_connections or connections, more_locks or each
    then = Capacity(each_then * (total + prepared), total - 3, total + prepared, 3)
    assert then.half.holds(demand)
    assert (more_connections is None) == (wanted <= now.half.connections)
    if locks <= now.half.locks:
        assert more_locks is None
    text = why_short(now, none=True, demand=demand)
    assert all(str(setting) in text for setting in (more_connections, more_locks) if setting)


def test_names_say_what_they_said() -> None:
    word = WorkerWord(2**31 - 1, 131_072, 99_999)
    for consumer in ("w1-0a1b2c3d", "a-pod-with-a-name-of-" + "x" * 60):
        name = worker_name(word, consumer)
        assert (worker_word(name), len(name) <= 63, name.endswith(" locks")) == (word, True, True)
    leader = LeaderWord(10, Room(330, 64_000), 100, 1000, 99_999)
    for application in ("rowmill", "rowmill operator", "rowmill engine here"):
        assert leader_word(leader_name(application, leader)) == leader
    for name in ("psql", "rowmill operator leader", "rowmill operator", "rowmill worker w1-0a1b locks"):
        assert (worker_word(name), leader_word(name)) == (None, None)
    with pytest.raises(ValueError, match="cannot be declared"):
        leader_name("rowmill " + "x" * 50, leader)


def test_workers_count_for_whoever_leads_their_run_and_else_for_themselves() -> None:
    worker = worker_name(WorkerWord(7, 100, 100), "w")
    each = worker_room(DEFAULT, 100)
    sessions = [
        Session(1, 5, leader_name("rowmill operator", LeaderWord(10, each, 1, 9, 900)), [7, 8]),
        Session(2, 6, leader_name("rowmill", LeaderWord(4, each * 3, 1, 3, 300)), [9]),
        *(Session(10 + n, 5, worker) for n in range(2)),
        Session(20, 6, worker),  # of another ledger: a run of the same number
        Session(21, 5, "rowmill worker w-of-an-older-release locks"),
        Session(22, 5, "rowmill operator"),
    ]
    found = reckon(DEFAULT, sessions)
    assert found.processes[1].used == Room(10, 0) + each * 2, "more is there than was reserved"
    assert found.processes[2].used == Room(4, 0) + each * 3, "more is reserved than is there"
    assert found.orphans == each + Room(3, 0)
    assert (found.workers[5, 7], found.workers[6, 7]) == (2, 1)
    assert found.others(1) == found.processes[2].used + found.orphans


# Steps.


class Pause:
    """One statement: whoever awaits it gives way to all others."""

    def __await__(self) -> Generator[None, None, None]:
        yield


def step(work: Any) -> bool:
    """Until the next statement; False when it is over."""
    try:
        work.send(None)
    except StopIteration:
        return False
    return True


def finish(work: Awaitable[Any]) -> Any:
    """All of it, with nobody in between."""
    running: Any = work
    while True:
        try:
            running.send(None)
        except StopIteration as end:
            return end.value


@dataclass
class Server:
    """What sessions say, and who leads which run."""

    capacity: Capacity
    now: float = 1000.0
    names: dict[int, str] = field(default_factory=dict)
    leads: dict[int, list[int]] = field(default_factory=dict)
    pids: int = 0

    def open(self, name: str) -> int:
        self.pids += 1
        self.names[self.pids] = name
        return self.pids

    def sight(self) -> Sight:
        found = [Session(pid, 1, name, self.leads.get(pid, ())) for pid, name in self.names.items()]
        return Sight(self.capacity, 1, found)


class Driver:
    """A process that drives runs, and its workers, which come and go some time after they were granted."""

    def __init__(self, server: Server, runs: dict[int, int], *, needs: int, own: int, rng: random.Random) -> None:
        self.server, self.wanted, self.needs, self.rng = server, runs, needs, rng
        self.own = own
        self.pid = server.open("rowmill test leader")
        server.leads[self.pid] = list(runs)
        self.granted = dict.fromkeys(runs, 0)
        self.workers: dict[int, list[int]] = {run: [] for run in runs}
        self.works, self.lingers = True, 0.5
        self.starting: list[tuple[float, int]] = []
        self.said: dict[int, str] = {}
        self.shares = Shares(
            application_name="rowmill test",
            see=self._see,
            declare=self._declare,
            session=lambda: 1,
            own=own,
            now=lambda: server.now,
            rng=rng,
        )

    async def _see(self) -> Sight:
        await Pause()
        return self.server.sight()

    async def _declare(self, name: str) -> int:
        await Pause()
        self.server.names[self.pid] = name
        return self.pid

    async def tick(self) -> None:
        for run, wanted in self.wanted.items():
            grant: Grant = await self.shares.grant(run, wanted=wanted, needs=self.needs)
            if grant.workers is not None:
                self.granted[run], self.said[run] = grant.workers, grant.why

    def work(self) -> None:
        """Workers that were granted start some time later, whatever was said since; those that are too many linger."""
        for run, workers in self.workers.items():
            coming = sum(1 for _, one in self.starting if one == run)
            if len(workers) + coming < self.granted[run] and self.works:
                self.starting.append((self.server.now + self.rng.uniform(0.0, SETTLE_SECONDS / 2), run))
            elif len(workers) > self.granted[run] and self.rng.random() > self.lingers:
                del self.server.names[workers.pop()]
        for due, run in list(self.starting):
            if due <= self.server.now:
                self.starting.remove((due, run))
                name = worker_name(WorkerWord(run, self.needs, 0), "w")
                self.workers[run].append(self.server.open(name))

    @property
    def alive(self) -> list[int]:
        return [len(workers) for workers in self.workers.values()]

    def settle(self) -> None:
        finish(self.tick())
        for _ in range(50):
            self.work()
        self.starting = [(0.0, run) for _, run in self.starting]
        self.work()


def taken(server: Server, drivers: list[Driver]) -> Room:
    """What all really take."""
    used = Room()
    for driver in drivers:
        used += Room(driver.own, 0) + worker_room(server.capacity, driver.needs) * sum(driver.alive)
    return used


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(40, 160), st.integers(800, 8000))
@example(1, 2, 97, 6400)
def test_processes_together_never_take_more_than_half(seed: int, count: int, connections: int, locks: int) -> None:
    """Whatever the order of their statements, and whoever comes, goes, wants more, or lets workers be late."""
    rng = random.Random(seed)
    server = Server(Capacity(locks, connections))
    drivers = [
        Driver(
            server,
            {10 * n + k: 0 for k in range(rng.randint(1, 4))},
            needs=rng.choice([38, 64, 200]),
            own=rng.choice([2, 4]),
            rng=rng,
        )
        for n in range(count)
    ]
    for driver in drivers:
        driver.lingers = 0.97
        finish(driver.tick())  # the connections of a process of its own are there when it is
    ticks: dict[int, Any] = {}
    for _ in range(400):
        server.now += rng.choice([0.0, 0.3, 2.0])
        for driver in rng.sample(drivers, rng.randint(0, count)):
            if rng.random() < 0.05:
                driver.wanted[rng.choice(list(driver.wanted))] = rng.randint(0, 9)
            if driver.pid not in ticks:
                ticks[driver.pid] = driver.tick()
            if not step(ticks[driver.pid]):
                del ticks[driver.pid]
        for driver in drivers:
            driver.work()
        used = taken(server, drivers)
        assert server.capacity.half.holds(used), (used, server.capacity.half)
    for work in ticks.values():
        work.close()


def test_a_run_that_comes_late_gets_its_share() -> None:
    """Of 43 connections for workers first all, then half, then a third, then what the others leave."""
    server, rng = Server(DEFAULT), random.Random(1)
    drivers = [Driver(server, {n: 20}, needs=64, own=1, rng=rng) for n in range(3)]

    def rounds(active: list[Driver], times: int = 12) -> None:
        for _ in range(times):
            server.now += SETTLE_SECONDS / 3
            for driver in active:
                driver.settle()

    rounds(drivers[:1])
    assert drivers[0].alive == [15]
    rounds(drivers[:2])
    assert sorted(d.alive[0] for d in drivers[:2]) == [7, 8]
    rounds(drivers)
    assert [d.alive for d in drivers] == [[5], [5], [5]]
    assert "max_connections to 400" in drivers[0].said[0], drivers[0].said
    drivers[1].wanted[1] = 2
    rounds(drivers)
    assert [sum(d.alive) for d in drivers] in ([7, 2, 6], [6, 2, 7])
    assert drivers[1].said[1] == "", "who has what it wants is told nothing"
    finish(drivers[0].shares.leave(0))
    server.leads[drivers[0].pid] = []
    drivers[0].wanted.clear()
    rounds(drivers[1:])
    assert [sum(d.alive) for d in drivers[1:]] == [2, 6], "the orphans of a run that nobody drives take their place"


def test_many_runs_of_one_process_have_a_worker_each_before_any_has_two() -> None:
    server = Server(DEFAULT)
    driver = Driver(server, dict.fromkeys(range(20), 5), needs=64, own=10, rng=random.Random(1))
    for _ in range(9):
        server.now += SETTLE_SECONDS / 2
        driver.settle()
    assert driver.alive == [1] * 12 + [0] * 8, "twelve fit"
    assert driver.said[19].startswith("no worker yet: ")
    assert driver.said[0].startswith("fewer workers ")
    assert "max_connections to" in driver.said[19]
    driver.wanted[0] = 0  # it is done
    for _ in range(9):
        server.now += SETTLE_SECONDS / 2
        driver.settle()
    assert driver.alive == [0] + [1] * 12 + [0] * 7, "first come, first served"


def test_workers_that_may_be_about_to_start_count_for_a_while() -> None:
    server, rng = Server(DEFAULT), random.Random(1)
    first = Driver(server, {1: 20}, needs=64, own=4, rng=rng)
    finish(first.tick())
    assert first.granted[1] == 14
    first.wanted[1] = 0  # none of them has connected yet
    second = Driver(server, {2: 20}, needs=64, own=4, rng=rng)
    for wait, granted in ((4, 0), (4, 0), (4, 0), (SETTLE_SECONDS, 13)):
        server.now += wait
        finish(first.tick())
        finish(second.tick())
        assert second.granted[2] == granted


def test_a_run_is_told_nothing_before_somebody_has_looked() -> None:
    """Else an engine that begins anew would send the workers of the one before away."""
    server = Server(DEFAULT)
    driver = Driver(server, {1: 3, 2: 3}, needs=64, own=4, rng=random.Random(1))
    looking: Any = driver.shares.grant(1, wanted=3, needs=64)
    assert step(looking)
    assert finish(driver.shares.grant(2, wanted=3, needs=64)) == Grant(None)
    assert finish(looking).workers == 3
    server.now += 4
    assert finish(driver.shares.grant(2, wanted=3, needs=64)).workers == 3


def test_a_grant_that_nobody_takes_up_makes_way() -> None:
    """Its pods find no node: others work meanwhile."""
    server, rng = Server(DEFAULT), random.Random(1)
    stuck = Driver(server, {1: 20}, needs=64, own=4, rng=rng)
    stuck.works = False
    well = Driver(server, {2: 14}, needs=64, own=4, rng=rng)
    for _ in range(5):
        server.now += 5
        stuck.settle()
        well.settle()
    assert (stuck.granted[1], well.alive) == (7, [6])
    server.now += TAKEN_UP_SECONDS
    for _ in range(9):
        server.now += SETTLE_SECONDS
        stuck.settle()
        well.settle()
    assert (stuck.granted[1], well.alive) == (0, [13])
    well.wanted[2] = 4
    stuck.works = True
    for _ in range(9):
        server.now += SETTLE_SECONDS
        well.settle()
        stuck.settle()
    assert (stuck.alive, well.alive) == ([9], [4]), "what others leave is tried again"


# Workers.


class Locks:
    """The lock session of a worker, on a server of this file; as `LockSession` it declares, and looks at others."""

    def __init__(self, server: Server, needs: int) -> None:
        self.server, self.needs = server, needs
        self.number, self.may, self.is_open = 0, 0, False
        self.pid = 0

    def open(self) -> None:
        self.number += 1
        self.is_open = True
        self.pid = self.server.open(self._name())

    def close(self) -> None:
        self.is_open = False
        del self.server.names[self.pid]

    def _name(self) -> str:
        return worker_name(WorkerWord(1, self.needs, self.may), "w")

    async def declare(self, may: int) -> None:
        await Pause()
        self.may = may
        self.server.names[self.pid] = self._name()

    async def others(self) -> tuple[Capacity, list[str]]:
        await Pause()
        return self.server.capacity, [name for pid, name in self.server.names.items() if pid != self.pid]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(400, 6000), st.sampled_from([1, 2]))
def test_workers_together_never_hold_more_than_half(seed: int, count: int, locks: int, locks_a_row: int) -> None:
    """They start, lose their session, fill up, run dry and end in any order; held is only what was confirmed."""
    rng = random.Random(seed)
    server = Server(Capacity(locks, 200))
    held = [0] * count
    sessions = [Locks(server, locks_needed(concurrency=rng.choice([1, 3, 8]), locks_a_row=locks_a_row)) for _ in held]
    enough = sum(min(s.needs, server.capacity.half.locks // 2) + OWN_LOCKS for s in sessions) <= locks // 2

    def rows_held(n: int) -> Callable[[], int]:
        return lambda: held[n]

    quotas = [
        LockQuota(
            locks=cast(LockSession, session),
            needs=session.needs,
            locks_a_row=locks_a_row,
            rows_held=rows_held(n),
            now=lambda: server.now,
            rng=rng,
        )
        for n, session in enumerate(sessions)
    ]
    looks: dict[int, Any] = {}
    for _ in range(500):
        server.now += rng.choice([0.0, 0.0, 0.1, 3.0])
        for n in rng.sample(range(count), rng.randint(0, count)):
            session, quota = sessions[n], quotas[n]
            if not session.is_open:
                if rng.random() < 0.1:
                    session.open()
                continue
            if n not in looks and rng.random() < 0.03:
                session.close()  # the next one declares what this one had; others may have taken it by then
                held[n] = 0
                continue
            if n in looks or quota.due:
                if n not in looks:
                    looks[n] = quota.look()
                if not step(looks[n]):
                    del looks[n]
            room = quota.rows - held[n]
            if room > 0 and rng.random() < 0.6:
                held[n] += room - 1 + rng.randint(1, SMALLEST_TAKE)  # the last read brings more
            elif rng.random() < 0.1:
                held[n] = rng.randint(0, held[n])
        total = sum(rows * locks_a_row + OWN_LOCKS for rows, s in zip(held, sessions, strict=True) if s.is_open)
        if enough:
            assert total <= server.capacity.half.locks, (held, [s.may for s in sessions])
    for look in looks.values():
        look.close()
    for _ in range(6):  # quiet: all that is there settles, each with what it needs
        server.now += 10
        for n, (session, quota) in enumerate(zip(sessions, quotas, strict=True)):
            if session.is_open:
                held[n] = 0
                finish(quota.look())
                if enough:
                    assert quota.rows > 0
