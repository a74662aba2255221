"""An explicit-state model of a row's way: two rows, two workers, two engines, a sweeper, and faults at any step.

`explore` visits every state that any interleaving can reach, breadth-first, and raises `Violation` where a promise is
broken; the tests beside it take out one guard at a time and see that happen. What is not written here (payloads,
shards, failed attempts, poison, time) does not change which row is run, recorded or lost.

A state is a string of small integers, a byte each; the constants below are offsets into it:

* Postgres: an outcome a row, the run's epoch, Complete, the row locks, who leads. A lock belongs to a session.
* Redis: the epoch key, the stream's last id, and each row's entry: absent, unread, scheduled, or pending with a
  worker or with a ghost (a consumer whose process is dead). Besides, one snapshot of these, for the rollback.
* Worker: how far it is with each row, the epoch it read it in, and whether it saw a connection error.
* Engine: its phase and what it believes: the epoch, the next row, the stream's last id.

Faults, as many as asked for, in any places: kill (worker or engine), pause of a worker (a paused engine is one that
takes no step for a while), a lock session cut, a lost reply (the command took effect, its caller saw an error), Redis
wiped, Redis rolled back, a Postgres failover that loses a commit and with it every session.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

State = bytes
ROWS, WORKERS, ENGINES = (0, 1), (0, 1), (0, 1)

# Postgres. Outcome, lock and leader: 0, or 1 + the worker or engine whose it is.
OUTCOME, EPOCH, COMPLETE, LOCK, SESSION, LEADER, TERM = 0, 2, 3, 4, 6, 8, 9
# Redis, from the epoch key on: what a wipe or a rollback takes. Then its snapshot, and whether there is one.
REDIS, LAST, ENTRY, SNAPSHOT, SAVED = 10, 11, 12, 14, 18
# Workers: how far with which row, read in which epoch; saw a connection error; paused.
AT, HELD, READ_IN, ERROR, PAUSED = 19, 21, 23, 25, 27
# Engines, four cells each. Then the proof's own: calls that are still explained, by row; faults left; faults in all.
ENGINE, CALLS_LEFT, FAULTS, ALL_FAULTS, SIZE = 29, 37, 39, 40, 41

ABSENT, UNREAD, SCHEDULED, GHOST, PENDING = range(5)  # an entry; pending with worker w is PENDING + w
# A worker and a row. CALLING lasts until the result is committed; PEEKED and OVERTAKEN exist in mutants only.
NONE, READ, LOCKED, CLEARED, CALLING, KNOWN, ACKING, HANDBACK, PEEKED, OVERTAKEN = range(10)
# An engine: not leading; needs a new epoch; has it in the ledger; feeds; saw the window empty; cleans up. Then mutants.
IDLE, STALE, BUMPED, FEEDING, DRAINED, PURGING, COUNTED, SUSPECTING = range(8)
LONG_AGO = 3  # an outcome
NOTHING = bytes((0, 0, ABSENT, ABSENT))

Mutants = tuple[str, ...]
"""Guards taken out: no-gap-check, no-sweeper, no-fence, no-held-table, no-own-pending, ack-before-commit,
unlock-before-commit, one-statement-claim, upsert, count-then-complete, ledger-before-window."""

KINDS = frozenset({"kill", "pause", "session", "reply", "wipe", "rollback", "failover"})


class Broken(Exception):
    """Raised by a step that must never be possible; its text names the promise."""


class Step(NamedTuple):
    """What may happen next. One that `may_lose_its_reply` can take effect in Postgres and Redis alone: its caller
    sees an error and goes on from the memory that it had."""

    name: str
    after: State
    may_lose_its_reply: bool = False
    fault: str = ""  # its kind, one of KINDS


def initial(faults: int, rows: int) -> State:
    """Nothing is fed. With `rows` 1 the second row has its outcome already, safe on every standby."""
    s = [0] * SIZE
    s[OUTCOME + 1] = 0 if rows == 2 else LONG_AGO
    s[SESSION : SESSION + 2] = s[CALLS_LEFT : CALLS_LEFT + 2] = [1, 1]
    s[FAULTS] = s[ALL_FAULTS] = faults
    return bytes(s)


def but(s: State, *changes: int) -> State:
    """The state with some cells changed: `but(s, OFFSET, value, OFFSET, value, …)`."""
    n = bytearray(s)
    for i in range(0, len(changes), 2):
        n[changes[i]] = changes[i + 1]
    return bytes(n)


def all_recorded(s: State) -> bool:
    return bool(s[OUTCOME] and s[OUTCOME + 1])


def finished(s: State) -> bool:
    return bool(s[COMPLETE]) and all_recorded(s)


def check(s: State) -> None:
    """What must hold in every state, besides what the steps themselves refuse."""
    if s[COMPLETE] and not all_recorded(s):
        raise Broken("open row in Complete")
    if s[EPOCH] > 1 and s[FAULTS] == s[ALL_FAULTS]:
        raise Broken("epoch unexplained")  # rows are fed again though nothing has gone wrong


EPOCHS = (EPOCH, REDIS, SNAPSHOT, READ_IN, READ_IN + 1, ENGINE + 1, ENGINE + 5)


def canonical(s: State) -> State:
    """Epochs are only compared and counted on from: with the oldest forgotten, those left are numbered from 1."""
    if s[EPOCH] < 2 or s[REDIS] == 1 or s[ENGINE + 1] == 1 or s[ENGINE + 5] == 1:
        return s
    oldest = min(s[cell] for cell in EPOCHS if s[cell])
    if oldest == 1:
        return s
    n = bytearray(s)
    for cell in EPOCHS:
        n[cell] -= oldest - 1 if n[cell] else 0
    return bytes(n)


def worker_steps(s: State, w: int, mutants: Mutants) -> Iterator[Step]:
    if s[PAUSED + w]:
        yield Step(f"worker {w} wakes up", but(s, PAUSED + w, 0))
        return
    if not s[SESSION + w]:
        # A claim under way has failed and is made again; a call under way goes on, and its result is committed.
        at = READ if s[AT + w] in (LOCKED, PEEKED) else s[AT + w]
        yield Step(f"worker {w} connects again", but(s, SESSION + w, 1, AT + w, at))
    if s[ERROR + w] and "no-own-pending" not in mutants:
        # A row that is held already, from an earlier epoch, waits for that to end: then it looks again.
        mine = [r for r in ROWS if s[ENTRY + r] == PENDING + w and not holds(s, w, r)]
        if not mine:
            yield Step(f"worker {w} has read its own pending list", but(s, ERROR + w, 0))
        elif s[AT + w] == NONE:
            yield Step(f"worker {w} finds row {mine[0]} pending", but(s, *held(w, READ, mine[0], s[REDIS])))
    for r in ROWS:
        if s[ENTRY + r] in (UNREAD, SCHEDULED) and not (w == 1 and untouched(s)):
            yield from read_steps(s, w, r, mutants)
    if s[AT + w] != NONE:
        yield from row_steps(s, w, s[HELD + w], mutants)


def held(w: int, at: int = NONE, row: int = 0, epoch: int = 0) -> tuple[int, ...]:
    return (AT + w, at, HELD + w, row, READ_IN + w, epoch)


def holds(s: State, w: int, r: int) -> bool:
    """This very entry of the row, not one of another epoch."""
    return s[AT + w] != NONE and s[HELD + w] == r and s[READ_IN + w] == s[REDIS]


def read_steps(s: State, w: int, r: int, mutants: Mutants) -> Iterator[Step]:
    if s[AT + w] == NONE:
        n = but(s, ENTRY + r, PENDING + w, *held(w, READ, r, s[REDIS]))
        yield Step(f"worker {w} reads row {r}", n, True)
    elif s[HELD + w] == r:  # from another epoch, or Redis was rolled back
        if "no-held-table" in mutants and s[AT + w] == CALLING and s[LOCK + r] == w + 1 and not s[OUTCOME + r]:
            # The lock is re-entrant and the ledger knows nothing yet: no SQL stops the second call.
            raise Broken("two at once under one lock")
        yield Step(f"worker {w} reads row {r}, which it holds", but(s, ENTRY + r, PENDING + w, ERROR + w, 1))


def row_steps(s: State, w: int, r: int, mutants: Mutants) -> Iterator[Step]:
    """A worker's way with the row it holds: lock, look up, call, commit, unlock, acknowledge; or hand it back."""
    cell, me, who, at = AT + w, w + 1, f"worker {w}, row {r}: ", s[AT + w]
    unlocked = (LOCK + r, 0 if s[LOCK + r] == me else s[LOCK + r])
    # XACK and XDEL in one script, which does nothing in another epoch than the row's.
    acknowledged = (ENTRY + r, ABSENT if s[REDIS] == s[READ_IN + w] else s[ENTRY + r])

    if at in (READ, LOCKED, PEEKED) and not s[SESSION + w]:
        return
    if at == READ and "one-statement-claim" in mutants:
        yield Step(who + "snapshot", but(s, cell, KNOWN if s[OUTCOME + r] else PEEKED))
    elif at in (READ, PEEKED) and s[LOCK + r] not in (0, me):
        yield Step(who + "locked elsewhere", but(s, cell, HANDBACK))
    elif at in (READ, PEEKED):
        yield Step(who + "lock", but(s, LOCK + r, me, cell, LOCKED if at == READ else CLEARED))
    elif at == LOCKED:
        yield Step(who + "look up", but(s, cell, KNOWN if s[OUTCOME + r] else CLEARED))
    elif at == CLEARED:
        if not s[CALLS_LEFT + r]:
            raise Broken("call unexplained")
        yield Step(who + "call", but(s, cell, CALLING, CALLS_LEFT + r, s[CALLS_LEFT + r] - 1))
        yield Step(who + "no slot in time: unlock", but(s, cell, HANDBACK, *unlocked))
    elif at == CALLING and "unlock-before-commit" in mutants:
        yield Step(who + "unlock", but(s, cell, OVERTAKEN, *unlocked))
    elif at == CALLING and "ack-before-commit" in mutants:
        yield Step(who + "acknowledge", but(s, cell, OVERTAKEN, *acknowledged), True)
    elif at in (CALLING, OVERTAKEN):
        if s[OUTCOME + r] not in (0, me) and "upsert" in mutants:
            raise Broken("outcome changed")
        after = ACKING if "unlock-before-commit" in mutants else KNOWN
        yield Step(who + "commit", but(s, OUTCOME + r, s[OUTCOME + r] or me, cell, after), True)
    elif at == KNOWN:
        yield Step(who + "unlock", but(s, cell, ACKING, *unlocked))
    elif at == ACKING:
        yield Step(who + "acknowledge", but(s, *acknowledged, *held(w)), True)
    elif at == HANDBACK:
        mine = s[REDIS] == s[READ_IN + w] and s[ENTRY + r] == PENDING + w
        yield Step(who + "schedule", but(s, ENTRY + r, SCHEDULED if mine else s[ENTRY + r], *held(w)), True)


def untouched(s: State) -> bool:
    """Worker 0 has done nothing yet: the workers are alike, so that it may as well be the first to read."""
    return (
        not (s[AT] or s[ERROR] or s[PAUSED])
        and s[SESSION] == 1
        and PENDING not in s[ENTRY:SNAPSHOT] + s[SNAPSHOT + 2 : SAVED]
    )


def sweeper_steps(s: State, mutants: Mutants) -> Iterator[Step]:
    """Dead is whose liveness lock is free and whose heartbeat is stale: a ghost, or one paused without its session."""
    for r in ROWS:
        owner = s[ENTRY + r] - PENDING
        dead = s[ENTRY + r] == GHOST or (owner >= 0 and s[PAUSED + owner] and not s[SESSION + owner])
        if dead and "no-sweeper" not in mutants:
            yield Step(f"sweeper schedules row {r}", but(s, ENTRY + r, SCHEDULED))


def resigned(s: State, j: int) -> tuple[int, ...]:
    cell = ENGINE + 4 * j
    return (LEADER, 0 if s[LEADER] == j + 1 else s[LEADER], cell, IDLE, cell + 1, 0, cell + 2, 0, cell + 3, 0)


def engine_steps(s: State, j: int, mutants: Mutants) -> Iterator[Step]:
    cell, me, who = ENGINE + 4 * j, j + 1, f"engine {j}: "
    phase, known, at, last = s[cell : cell + 4]
    lead = (LEADER, me, TERM, me)

    def become(phase: int, epoch: int = known, at: int = 0, last: int = 0) -> tuple[int, ...]:
        return (cell, phase, cell + 1, epoch, cell + 2, at, cell + 3, last)

    if phase == IDLE:
        if s[LEADER] or (s[COMPLETE] and s[REDIS : REDIS + 4] == NOTHING) or (j == 1 and s[ENGINE] == IDLE):
            return  # the last: while both are idle they are alike, and the first goes
        if s[COMPLETE]:
            yield Step(who + "leads, cleans up", but(s, *lead, *become(PURGING, s[EPOCH])))
        elif s[REDIS] == s[EPOCH] > 0:
            # Going on from the stream's last id. Rows skipped before it are the gap check's business.
            yield Step(who + "leads", but(s, *lead, *become(FEEDING, s[EPOCH], s[LAST], s[LAST])))
        else:
            yield Step(who + "leads, distrusts the window", but(s, *lead, *become(STALE, s[EPOCH])))
        return
    if s[LEADER] != me:
        yield Step(who + "notices that it does not lead", but(s, *resigned(s, j)))  # until then it works on
    if phase == STALE and s[TERM] == me:
        # Fenced by the term: two engines would otherwise depose each other's epochs without end.
        yield Step(who + "new epoch in the ledger", but(s, EPOCH, known + 1, *become(BUMPED, known + 1)), True)
    elif phase == BUMPED and s[REDIS] <= known:
        yield Step(who + "opens the epoch", but(opened(s, known), *become(FEEDING)), True)
    elif phase in (STALE, BUMPED) or (phase in (DRAINED, COUNTED) and s[TERM] != me):
        yield Step(who + "refused, begins again", but(s, *resigned(s, j)))
    elif phase == FEEDING and at < len(ROWS):
        yield from append_steps(s, who, become, mutants, known, at, last, leads=s[TERM] == me)
    elif phase == FEEDING and s[REDIS] != known:
        yield Step(who + "finds the window gone", but(s, *become(DRAINED if "no-gap-check" in mutants else STALE)))
    elif phase == FEEDING and "ledger-before-window" in mutants:
        yield Step(who + "reads the ledger", but(s, *become(DRAINED if all_recorded(s) else SUSPECTING)))
    elif phase in (FEEDING, SUSPECTING):
        # Seen empty first, the ledger asked afterwards: a row is committed before it is acknowledged.
        if s[ENTRY] == s[ENTRY + 1] == ABSENT:
            yield Step(who + "sees the window empty", but(s, *become(STALE if phase == SUSPECTING else DRAINED)))
    elif phase == DRAINED and "count-then-complete" in mutants and all_recorded(s):
        yield Step(who + "counts the outcomes", but(s, *become(COUNTED)))
    elif phase == COUNTED or (phase == DRAINED and ("no-gap-check" in mutants or all_recorded(s))):
        # Counting and completing are one transaction (or one session, which a failover ends), fenced by the term.
        yield Step(who + "completes the run", but(s, COMPLETE, 1, *become(PURGING)), True)
    elif phase == DRAINED:
        yield Step(who + "finds a gap", but(s, *become(STALE)))
    elif phase == PURGING:
        redis = s[REDIS : REDIS + 4] if s[REDIS] > known else NOTHING
        n = s[:REDIS] + redis + s[SNAPSHOT:]
        yield Step(who + "deletes the window", but(n, *resigned(s, j)), True)


def opened(s: State, epoch: int) -> State:
    """The window of a new epoch. Repeated, or with a number that a failover made free again, it changes nothing."""
    if s[REDIS] == epoch:
        return s
    n = bytearray(but(s, REDIS, epoch, LAST, 0, ENTRY, ABSENT, ENTRY + 1, ABSENT))
    for cell in (READ_IN, READ_IN + 1):  # epochs that cannot come back are all alike
        if n[cell] < epoch and n[cell] != n[SNAPSHOT]:
            n[cell] = 0
    return bytes(n)


def append_steps(
    s: State,
    who: str,
    become: Callable[..., tuple[int, ...]],
    mutants: Mutants,
    known: int,
    at: int,
    last: int,
    *,
    leads: bool,
) -> Iterator[Step]:
    """The next row: skipped where the ledger has it, else appended by a script that is given epoch and last id."""
    if s[OUTCOME + at]:
        yield Step(who + f"skips row {at}", but(s, *become(FEEDING, known, at + 1, last)))
        if leads:
            return  # one that was deposed may have looked long ago, and appends
    appended = but(s, REDIS, known, LAST, at + 1, ENTRY + at, UNREAD, *become(FEEDING, known, at + 1, at + 1))
    if s[REDIS] == known and s[LAST] == last:
        yield Step(who + f"appends row {at}", appended, True)
    elif "no-fence" not in mutants:
        yield Step(who + f"append of row {at} refused", but(s, *become(STALE)))
    elif s[REDIS] in (0, known) and s[LAST] <= at:
        if s[COMPLETE]:
            raise Broken("finished run revived")
        yield Step(who + f"appends row {at} to what it finds", appended)
    else:  # to a stream that nobody reads, or with an id that is there already
        yield Step(who + f"appends row {at} in vain", but(s, *become(FEEDING, known, at + 1, at + 1)))


def fault_steps(s: State) -> Iterator[Step]:
    """Every fault that may strike now. What explains one more call of a row is counted here, and nowhere else."""
    spent = (FAULTS, s[FAULTS] - 1)
    for w in WORKERS:
        entries = [(c, GHOST) for c in (ENTRY, ENTRY + 1, SNAPSHOT + 2, SNAPSHOT + 3) if s[c] == PENDING + w]
        if entries or s[AT + w]:
            free = [x for r in ROWS if s[LOCK + r] == w + 1 for x in (LOCK + r, 0)]
            free += [x for change in entries for x in change]
            explained = one_more_call(s, w) if s[AT + w] in (CALLING, OVERTAKEN) else ()
            n = but(s, *spent, *explained, *free, *held(w), ERROR + w, 0, PAUSED + w, 0, SESSION + w, 1)
            yield Step(f"worker {w} is killed, another takes its place", n, fault="kill")
            if not s[PAUSED + w]:
                yield Step(f"worker {w} is paused", but(s, *spent, PAUSED + w, 1), fault="pause")
        if s[SESSION + w]:
            yield Step(f"worker {w} loses its session", but(s, *spent, *cut(s, [w])), fault="session")
    for j in ENGINES:
        if s[ENGINE + 4 * j] != IDLE:
            yield Step(f"engine {j} is killed", but(s, *spent, *resigned(s, j)), fault="kill")
        if s[LEADER] == j + 1:
            yield Step(f"engine {j} loses its session", but(s, *spent, LEADER, 0), fault="session")
    if s[REDIS : REDIS + 4] != NOTHING:
        yield Step("Redis is wiped", but(s[:REDIS] + NOTHING + s[SNAPSHOT:], *spent), fault="wipe")
        if not s[SAVED]:  # the fault is paid for here; the rollback itself may come at any later step
            n = s[:SNAPSHOT] + s[REDIS : REDIS + 4] + s[SAVED:]
            yield Step("Redis saves a snapshot", but(n, *spent, SAVED, 1), fault="rollback")
    yield from failover_steps(s, spent)


def rollback_steps(s: State) -> Iterator[Step]:
    if s[SAVED] and s[REDIS : REDIS + 4] != s[SNAPSHOT : SNAPSHOT + 4]:
        n = s[:REDIS] + s[SNAPSHOT : SNAPSHOT + 4] + NOTHING + s[SAVED:]
        yield Step("Redis is rolled back", but(n, SAVED, 0, ERROR, 1, ERROR + 1, 1), fault="rollback")


def failover_steps(s: State, spent: tuple[int, int]) -> Iterator[Step]:
    """Every session is gone, and the last commit may be: an outcome, Complete, or a new epoch."""
    n = but(s, *spent, *cut(s, WORKERS), LEADER, 0)
    yield Step("Postgres fails over", n, fault="failover")
    if s[COMPLETE]:
        yield Step("Postgres fails over, Complete is lost", but(n, COMPLETE, 0), fault="failover")
    if s[EPOCH] and not {1, 2} & {*s[OUTCOME : OUTCOME + 2]}:  # what was committed after it would be lost with it
        yield Step("Postgres fails over, the epoch is lost", but(n, COMPLETE, 0, EPOCH, s[EPOCH] - 1), fault="failover")
    for r in ROWS:
        if s[OUTCOME + r] not in (0, LONG_AGO):
            lost = but(n, COMPLETE, 0, OUTCOME + r, 0, CALLS_LEFT + r, n[CALLS_LEFT + r] + 1)
            yield Step(f"Postgres fails over, row {r}'s outcome is lost", lost, fault="failover")


def cut(s: State, workers: Iterable[int]) -> list[int]:
    """Lock sessions end: their locks are free, and a row that was cleared to run may be run by another as well."""
    changes = []
    for w in workers:
        changes += [SESSION + w, 0] + [x for r in ROWS if s[LOCK + r] == w + 1 for x in (LOCK + r, 0)]
        if s[AT + w] in (CLEARED, CALLING, OVERTAKEN) and s[LOCK + s[HELD + w]] == w + 1:
            changes += one_more_call(s, w)
    return changes


def one_more_call(s: State, w: int) -> tuple[int, int]:
    cell = CALLS_LEFT + s[HELD + w]
    return cell, s[cell] + 1
