"""The end of a run's outcomes: kept for as long as its manifest said, then dropped. The run itself stays in the ledger.

    open or over, table of outcomes → over, retention passed → dropped: no table; totals, counts and classes of errors

Time is told by the server that recorded the end, never by whoever asks. A run is dropped in one transaction that takes,
without waiting long for any of them, in this order:

    the run's leadership      an engine drives the run: it may be about to open it again
    the results' lock, alone  somebody reads the outcomes from end to end and would be left with half of them
    the run's row             only then it is judged, in a statement of its own, whether it is still due: it must be of
                              the term that was seen, over, and nobody may be about to write its results elsewhere
    the table                 a commit or a page that is under way

What cannot be had is left for the next time, and nobody waits behind us for more than `LOCK_SECONDS`. Killed anywhere,
the transaction leaves everything as it was; two that drop the same run get in each other's way at the first step.

Invariant: a run has its outcomes, or `dropped_at`; and what is dropped never opens again. A new term supersedes an
engine that was paused before, an engine that comes later is told by the record, and a constraint holds off a release
that knows nothing of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

import asyncpg

from rowmill.errors import ResultsDropped
from rowmill.identity import RunIdentity
from rowmill.ledger.connect import Pool
from rowmill.ledger.keys import leader_key, results_key
from rowmill.ledger.queries import statement
from rowmill.ledger.runs import RunRecord, record_of
from rowmill.status import when_dropped

LOCK_SECONDS = 2
"""How long others may have to wait behind us for a run's table."""


class Drop(Enum):
    """What became of an attempt. All but DROPPED leave the run as it was."""

    DROPPED = "dropped"
    DRIVEN = "an engine drives the run"
    READ = "its results are being read"
    BUSY = "its table is in use"
    DENIED = "this user of Postgres may not drop its table"
    NOT_DUE = "it is not over any more, or to be kept longer"


class Kept(NamedTuple):
    """What a manifest says of its run: `seconds` is spec.resultsRetentionSeconds."""

    identity: RunIdentity
    seconds: int


class Retention:
    """Finds runs whose time is over and drops their outcomes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def expired(self, installation: str, *, after: int = 0, limit: int = 20) -> list[RunRecord]:
        """Runs that are due, at most `limit`, by their number in the ledger from `after` on."""
        async with self._pool.connection() as c:
            rows = await c.fetch(statement("expired_runs"), installation, after, limit)
        return [record_of(row) for row in rows]

    async def drop(self, record: RunRecord) -> Drop:
        """Drop the outcomes of a run that was found `expired`. Raises StoreUnavailable."""
        async with self._pool.connection() as c:
            try:
                # Before any lock: of many failures it takes a while. A run that changes meanwhile is not due any more.
                classes = await c.fetch(statement("error_counts", run=record.id), record.generation)
            except asyncpg.UndefinedTableError:
                classes = []  # dropped by hand, or by another just now: whether it is due is judged below
            errors = json.dumps([list(one) for one in classes])
            try:
                async with c.transaction():
                    return await self._drop(c, record, errors)
            except asyncpg.LockNotAvailableError:
                return Drop.BUSY
            except asyncpg.InsufficientPrivilegeError:
                return Drop.DENIED

    async def _drop(self, c: asyncpg.Connection, record: RunRecord, errors: str) -> Drop:
        await c.execute(f"set local lock_timeout = '{LOCK_SECONDS}s'")
        if not await c.fetchval(statement("try_lock_in_transaction"), leader_key(record.id)):
            return Drop.DRIVEN
        if not await c.fetchval(statement("try_lock_in_transaction"), results_key(record.id)):
            return Drop.READ
        if not await c.fetchval(statement("still_expired"), record.id, record.term):
            return Drop.NOT_DUE
        await c.execute(statement("drop_outcomes", run=record.id))
        await c.execute(statement("fold_counters"), record.id)
        await c.execute(statement("fold_spend"), record.id)
        await c.execute(statement("mark_dropped"), record.id, errors)
        return Drop.DROPPED

    async def note(self, installation: str, kept: Sequence[Kept], *, replace: bool = False) -> dict[RunIdentity, float]:
        """Keep what manifests say of runs of which the ledger knows nothing yet: those that ended before it kept this.

        `replace` has it take their word over what it knows, for who is alone with these runs. Returns those of them
        that are dropped already, with when (seconds since the epoch).
        """
        if not kept:
            return {}
        identities = [one.identity for one in kept]
        async with self._pool.connection() as c:
            rows = await c.fetch(
                statement("note_retention"),
                installation,
                [one.namespace for one in identities],
                [one.name for one in identities],
                [one.run_id for one in identities],
                [one.seconds for one in kept],
                replace,
            )
        return {
            RunIdentity(installation, r["namespace"], r["name"], r["run_id"]): r["dropped_at"].timestamp() for r in rows
        }


async def hold_results(connection: asyncpg.Connection, record: RunRecord) -> None:
    """Keep a run's outcomes from being dropped for as long as this session lives. Raises ResultsDropped."""
    await connection.execute(statement("lock_shared"), results_key(record.id))
    # In a second statement: what is seen is then not older than the lock.
    row = await connection.fetchrow(statement("find_run"), *record.identity)
    now = record_of(row) if row is not None else record
    if now.dropped_at is not None:
        raise results_dropped(now)


def results_dropped(record: RunRecord, path: str = "") -> ResultsDropped:
    """What is said to whoever needs outcomes that are not there any more; `path` names the field that asks for them."""
    assert record.dropped_at is not None
    return ResultsDropped.one(
        f"BatchJob {record.identity.namespace}/{record.identity.name}, run {record.identity.run_id}",
        path,
        f"the results of this run {when_dropped(record.dropped_at)}; change spec.runId to run again",
    )
