"""The worker's view of the ledger: which epoch is on, outcomes in, declared keys, the liveness of others.

`commit` may be repeated after a lost reply: a row that is there already is not inserted and not counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import asyncpg

from rowmill.ledger.connect import Pool
from rowmill.ledger.insert import insert_outcomes
from rowmill.ledger.keys import liveness_key
from rowmill.ledger.queries import statement
from rowmill.ledger.runs import RunRecord
from rowmill.outcome import Outcome, State
from rowmill.spend import NOTHING_SPENT, Spend
from rowmill.status import Phase

REFUSED = (asyncpg.DataError, asyncpg.ProgramLimitExceededError, asyncpg.IntegrityConstraintViolationError)
"""What Postgres says of a value that it will never take: the group is halved until the guilty row stands alone."""


@dataclass(frozen=True, slots=True)
class Turn:
    """Where the run stands: rows are read from this epoch and committed in this generation."""

    generation: int
    epoch: int
    phase: Phase
    shards: int


@dataclass(frozen=True, slots=True)
class KeyHolder:
    """Who owns a declared key and what came of it; `state` is None while it runs."""

    digest: bytes
    owner: str
    state: State | None
    result: str | None
    error_class: str | None
    error_message: str | None


@dataclass(frozen=True, slots=True)
class KeyEnd:
    """What the owner of a declared key leaves for its duplicates."""

    digest: bytes
    seq: int
    outcome: Outcome


class Work:
    """Bound to one run and one worker."""

    def __init__(self, pool: Pool, *, record: RunRecord, worker: str) -> None:
        self._pool = pool
        self._run = record.id
        self._token = record.token
        self._worker = worker

    async def turn(self) -> Turn | None:
        """None when the run is gone from the ledger."""
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("position_of_run"), self._run)
        return Turn(row["generation"], row["epoch"], Phase(row["phase"]), row["shards"]) if row else None

    async def commit(
        self,
        outcomes: list[Outcome],
        *,
        generation: int,
        keys: Sequence[KeyEnd] = (),
        keep_seconds: float = 0,
        worker: str | None = None,
        spent: Spend = NOTHING_SPENT,
    ) -> int:
        """Record outcomes and, in the same transaction, what became of the declared keys and what this worker has used
        since it began. Returns the new rows."""
        async with self._pool.connection() as c:
            if not keys:
                return await insert_outcomes(c, self._run, generation, worker or self._worker, outcomes, spent=spent)
            async with c.transaction():
                inserted = await insert_outcomes(
                    c, self._run, generation, worker or self._worker, outcomes, spent=spent, may_be_known=True
                )
                ordered = sorted(keys, key=lambda k: k.digest)
                await c.execute(
                    statement("finish_claims"),
                    [k.digest for k in ordered],
                    self._run,
                    keep_seconds,
                    [k.seq for k in ordered],
                    [k.outcome.state for k in ordered],
                    [k.outcome.result for k in ordered],
                    [k.outcome.error_class for k in ordered],
                    [k.outcome.error_message for k in ordered],
                )
                return inserted

    async def take_keys(
        self, digests: Sequence[bytes], seqs: Sequence[int], owners: Sequence[str], *, rerun_failed: bool
    ) -> tuple[set[bytes], dict[bytes, KeyHolder]]:
        """With the keys' locks held: (those that are ours now, who holds the others)."""
        ordered = sorted(zip(digests, seqs, owners, strict=True))
        async with self._pool.connection() as c:
            taken = await c.fetch(
                statement("take_claims"),
                [d for d, _, _ in ordered],
                self._run,
                [s for _, s, _ in ordered],
                [o for _, _, o in ordered],
                rerun_failed,
            )
            ours = {bytes(r[0]) for r in taken}
            rest = [d for d in digests if d not in ours]
            rows = await c.fetch(statement("read_claims"), rest) if rest else []
        holders = {
            bytes(r["digest"]): KeyHolder(
                digest=bytes(r["digest"]),
                owner=r["owner"],
                state=State(r["state"]) if r["state"] else None,
                result=r["result"],
                error_class=r["error_class"],
                error_message=r["error_message"],
            )
            for r in rows
        }
        return ours, holders

    async def extend_keys(self, digests: Sequence[bytes], seqs: Sequence[int], seconds: Sequence[float]) -> None:
        """Keep running keys for the owner while it waits `seconds` for its next attempt."""
        async with self._pool.connection() as c:
            await c.execute(statement("extend_claims"), list(digests), self._run, list(seqs), list(seconds))

    async def silent(self, consumers: Sequence[str]) -> list[str]:
        """Consumers whose liveness lock nobody holds. Right only in a session older than a Postgres restart."""
        keys = [liveness_key(self._token, consumer) for consumer in consumers]
        async with self._pool.connection() as c:
            free = await c.fetchval(statement("probe_liveness"), keys)
        return [consumer for consumer, is_free in zip(consumers, free, strict=True) if is_free]
