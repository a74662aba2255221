"""What a run has used, as its workers tell it, and what they may still use.

Each worker has a row of its own and writes it as a whole: all that it used since it began, and what it holds for calls
that are under way. So a reply that is lost is asked for again, and nothing is counted twice. Permission is given in the
statement that tells: under a lock of the run, against what all others have told (`migrations/0004_spend.sql`).

Failures:

- A worker dies. What it held was perhaps sent, and stays counted; after `SILENT_SECONDS` nobody waits for it to come
  back. One that was only paused for so long tells the truth when it wakes up.
- A reply is lost: the next telling says what is held really.
- Postgres is away: nothing is permitted, and nothing is lost; the worker's own sums are told when it is back.

Invariant: what is used and held is never more than the budget, but for calls that used more than they reserved.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import NamedTuple

from rowmill.ledger.connect import Pool
from rowmill.ledger.keys import spend_key
from rowmill.ledger.queries import statement
from rowmill.ledger.runs import RunRecord, Superseded, record_of
from rowmill.spend import Budget, Pause, Shortage, Spend

SILENT_SECONDS = 30.0
"""A worker that has said nothing for so long is not waited for. They tell at least every `TELL_SECONDS`."""
TELL_SECONDS = 5.0


class Want(NamedTuple):
    """What a call may use at most."""

    tokens: int = 0
    cost: Decimal = Decimal(0)


class Held(NamedTuple):
    """What is reserved for calls that are under way."""

    requests: int = 0
    tokens: int = 0
    cost: Decimal = Decimal(0)

    def plus(self, want: Want, *, times: int = 1) -> Held:
        return Held(self.requests + times, self.tokens + times * want.tokens, self.cost + times * want.cost)


class Allowed(NamedTuple):
    """So many of the calls that were asked for may be sent, from the first on. `shortage` is what the next one lacks;
    `for_good`: nothing that is under way can make room for it."""

    calls: int
    shortage: Shortage | None = None
    for_good: bool = False


class SpendBook:
    """One worker's row."""

    def __init__(self, pool: Pool, *, run: int, worker: str) -> None:
        self._pool = pool
        self._run = run
        self._worker = worker
        self._tellings = 0

    async def tell(self, *, used: Spend, held: Held, wants: Sequence[Want] = (), refused: str | None = None) -> Allowed:
        """Tell what was used and is held, and ask for more. Where there is no budget everything is allowed.

        `refused` says that the endpoint takes no calls; it counts for as long as it is said again. Raises
        StoreUnavailable: then nothing was allowed. A telling that comes late, after a younger one, changes nothing.
        """
        self._tellings += 1
        async with self._pool.connection() as c:
            row = await c.fetchrow(
                statement("tell_spend"),
                *(self._run, self._worker, spend_key(self._run), SILENT_SECONDS),
                *used,
                *held,
                [want.tokens for want in wants],
                [want.cost for want in wants],
                refused,
                self._tellings,
            )
        assert row is not None
        short = None if row["what"] is None else Shortage(row["what"], row["need"], row["room"])
        return Allowed(row["granted"], short, row["for_good"])

    async def leave(self) -> None:
        """This worker calls no more: its sums are added to those of others who left. Twice is once."""
        async with self._pool.connection() as c:
            await c.execute(statement("leave_spend"), self._run, self._worker)


class SpendTold(NamedTuple):
    """A run's sum, and what its workers complain of."""

    spent: Spend
    shortage: Shortage | None
    refused: str | None


class Spending:
    """The engine's side: what a run may use, what it has used, why it stands still. Writes carry the engine's term."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def bound(self, record: RunRecord, budget: Budget | None) -> RunRecord:
        """What workers may use from now on, also those that run already. Raises Superseded."""
        return await self._write("save_budget", record, budget.as_json() if budget else None)

    async def pause(self, record: RunRecord, pause: Pause | None) -> RunRecord:
        """Have the run stand still for a reason; with None nothing is in its way any more, and what its workers have
        complained of is forgotten. Raises Superseded."""
        if pause is None:  # forgotten first: a run that goes on with old complaints would be paused by them at once
            async with self._pool.connection() as c:
                await c.execute(statement("forget_complaints"), record.id, record.term)
        return await self._write("save_pause", record, pause.as_json() if pause else None)

    async def of(self, record: RunRecord) -> SpendTold:
        """What the run has used over all its generations, as far as its workers have told it."""
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("spend_of_run"), record.id, SILENT_SECONDS)
        assert row is not None
        spent = Spend(row["requests"], row["input_tokens"], row["output_tokens"], row["cost"])
        shortage = Shortage.from_json(json.loads(row["shortage"])) if row["shortage"] else None
        return SpendTold(spent, shortage, row["refused"])

    async def _write(self, name: str, record: RunRecord, value: str | None) -> RunRecord:
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement(name), record.id, record.term, value)
        if row is None:
            raise Superseded(f"another engine has taken run {record.id} over; this one stops")
        return record_of(row)
