"""From delivered to ready: the block's locks, the ledger's word on each row, the declared keys.

A row leaves here in one of four ways:
- ready: locked by us, no outcome yet, and its declared key (if any) is ours;
- released as done: the ledger has its outcome, it is only acknowledged;
- put back for a moment: locked elsewhere, or its key is being executed elsewhere; no attempt spent;
- decided: its key was executed already, and this row is told the winner's outcome.

Fails when Postgres is away: the rows stay in the table, and the caller brings them again with the next session.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rowmill.ledger import KeyHolder, LockSession, Work
from rowmill.ledger.keys import dedupe_key
from rowmill.outcome import Outcome, State
from rowmill_worker.held import HeldRow, HeldRows
from rowmill_worker.outcomes import carried_columns, failed

ELSEWHERE_SECONDS = 1.0
"""How long a row that another worker runs is left alone before it is looked at again."""

_decode = msgspec.json.Decoder().decode


@dataclass(frozen=True, slots=True)
class DedupeRule:
    """`spec.dedupe`, resolved: how a key becomes a digest, who we are to others, and what a failed winner means."""

    digest: Callable[[str], bytes]
    owner: Callable[[int], str]
    rerun_failed: bool


@dataclass(frozen=True, slots=True)
class RowReader:
    """What a worker takes out of a payload: the key for people and dedupe, the columns that results carry.

    `key` raises ValueError with a sentence for a person when a key column is missing.
    """

    key: Callable[[Mapping[str, Any]], str | None]
    columns: tuple[str, ...]

    def read(self, row: HeldRow) -> None:
        row.row = _decode(row.payload)
        row.columns = carried_columns(row.row, self.columns)
        row.key = self.key(row.row)


@dataclass(slots=True)
class Admission:
    """What came of a block: `release` carries rows with their `delay` set, `decided` rows their `outcome`."""

    ready: list[HeldRow]
    release: list[HeldRow]
    decided: list[HeldRow]


class Claimer:
    """Claims blocks of held rows, one block at a time."""

    def __init__(
        self,
        *,
        locks: LockSession,
        work: Work,
        held: HeldRows,
        reader: RowReader,
        dedupe: DedupeRule | None,
        rng: random.Random,
    ) -> None:
        self._locks = locks
        self._work = work
        self._held = held
        self._reader = reader
        self._dedupe = dedupe
        self._rng = rng

    async def claim(self, rows: Sequence[HeldRow], *, generation: int) -> Admission:
        """Raises StoreUnavailable; then none of the rows is locked."""
        by_seq = {row.seq: row for row in rows}
        claim = await self._locks.claim(list(by_seq), generation)
        number = self._locks.number
        result = Admission([], [], [])
        for seq in claim.done:
            by_seq[seq].delay = None
            result.release.append(by_seq[seq])
        for seq in claim.elsewhere:
            self._back(by_seq[seq], result)
        for seq in claim.ours:
            row = by_seq[seq]
            row.session = number
            try:
                self._reader.read(row)
            except ValueError as error:
                row.outcome = failed(row, "BadKey", str(error))
                result.decided.append(row)
            else:
                result.ready.append(row)
        if self._dedupe is not None:
            await self._settle_keys(self._dedupe, result)
        return result

    def _back(self, row: HeldRow, result: Admission) -> None:
        row.delay = ELSEWHERE_SECONDS * self._rng.uniform(0.5, 1.5)
        result.release.append(row)

    async def _settle_keys(self, rule: DedupeRule, result: Admission) -> None:
        """Of the rows that are ours, keep those whose key is ours too."""
        rows, result.ready = result.ready, []
        wanting: list[HeldRow] = []
        for row in rows:
            if row.key is None:
                result.ready.append(row)
                continue
            digest = rule.digest(row.key)
            if self._held.hold_key(digest, row.seq):
                row.digest = digest
                wanting.append(row)
            else:
                self._back(row, result)
        if not wanting:
            return
        # Different keys may share a lock; a second one in this session would seem to succeed.
        taken = {row.key_lock for row in self._held.all() if row.key_lock is not None}
        asking: list[HeldRow] = []
        for row in wanting:
            assert row.digest is not None
            lock = dedupe_key(row.digest)
            if lock in taken:
                self._give_up(row, result)
            else:
                taken.add(lock)
                row.key_lock = lock
                asking.append(row)
        got = await self._locks.lock_keys([row.key_lock for row in asking if row.key_lock is not None])
        locked = []
        for row, has in zip(asking, got, strict=True):
            if has:
                locked.append(row)
            else:
                row.key_lock = None
                self._give_up(row, result)
        if locked:
            await self._ask_ledger(rule, locked, result)

    async def _ask_ledger(self, rule: DedupeRule, rows: list[HeldRow], result: Admission) -> None:
        digests = [row.digest for row in rows if row.digest is not None]
        ours, holders = await self._work.take_keys(
            digests,
            [row.seq for row in rows],
            [rule.owner(row.seq) for row in rows],
            rerun_failed=rule.rerun_failed,
        )
        for row in rows:
            assert row.digest is not None
            if row.digest in ours:
                result.ready.append(row)
                continue
            holder = holders.get(row.digest)
            if holder is None or holder.state is None:
                self._give_up(row, result)  # its owner waits for its next attempt, or the claim just ended
            else:
                row.outcome = told_by_winner(row, holder)
                self._held.free_key(row.digest, row.seq)
                row.digest = None  # the claim is the winner's: our end must not change it
                result.decided.append(row)

    def _give_up(self, row: HeldRow, result: Admission) -> None:
        assert row.digest is not None
        self._held.free_key(row.digest, row.seq)
        row.digest = None
        self._back(row, result)


def told_by_winner(row: HeldRow, holder: KeyHolder) -> Outcome:
    """The outcome of a duplicate: the winner's result and name, or its failure where failures are shared."""
    if holder.state is State.FAILED:
        outcome = failed(
            row,
            "DuplicateOfFailed",
            f"{holder.owner} executed this key and failed ({holder.error_class}: {holder.error_message}); "
            "dedupe.onFailed is Share, so that this row was not sent",
        )
        return Outcome(
            seq=row.seq,
            state=State.FAILED,
            attempts=row.attempts,
            error_class=outcome.error_class,
            error_message=outcome.error_message,
            key=row.key,
            columns=row.columns,
            duplicate_of=holder.owner,
        )
    return Outcome(
        seq=row.seq,
        state=State.DEDUPLICATED,
        attempts=row.attempts,
        result=holder.result,
        key=row.key,
        columns=row.columns,
        duplicate_of=holder.owner,
    )
