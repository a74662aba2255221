"""Outcomes into a run's table, in groups, counted by what was really inserted.

Most groups are new as a whole, and a plain INSERT takes them at two thirds of the server's time of one that is ready
for conflicts. A group that holds a row which is there already (redelivered, or a commit whose reply was lost) is
refused as a whole and written again by the statement that leaves such rows as they are. Both are sorted by key, so that
groups never deadlock; both raise the worker's counters in the same transaction.
"""

from __future__ import annotations

import asyncpg

from rowmill.ledger.queries import int_array, statement
from rowmill.outcome import Outcome
from rowmill.spend import NOTHING_SPENT, Spend


async def insert_outcomes(
    connection: asyncpg.Connection,
    run: int,
    generation: int,
    worker: str,
    outcomes: list[Outcome],
    *,
    spent: Spend = NOTHING_SPENT,
    may_be_known: bool = False,
) -> int:
    """Record outcomes; returns how many rows were new. Those that are there already stay as they are. `spent` is what
    the worker has used since it began.

    `may_be_known` goes straight to the statement that is ready for them: needed inside of a transaction, which the
    other one's refusal would end.
    """
    ordered = sorted(outcomes, key=lambda o: o.seq)
    values = (
        run,
        generation,
        int_array([o.seq for o in ordered]),
        int_array([o.state for o in ordered]),
        int_array([o.attempts for o in ordered]),
        _texts([o.key for o in ordered]),
        _texts([o.result for o in ordered]),
        _texts([o.error_class for o in ordered]),
        _texts([o.error_message for o in ordered]),
        _texts([o.columns for o in ordered]),
        _texts([o.duplicate_of for o in ordered]),
        worker,
        _numbers([o.input_tokens for o in ordered]),
        _numbers([o.output_tokens for o in ordered]),
        *spent,
    )
    if not may_be_known:
        try:
            return int(await connection.fetchval(statement("commit", run=run, on_conflict=""), *values))
        except asyncpg.UniqueViolationError:
            pass
    return int(await connection.fetchval(statement("commit", run=run, on_conflict="on conflict do nothing"), *values))


def _texts(values: list[str | None]) -> list[str | None] | None:
    """The array, or null where all of it is: `unnest` fills it up."""
    return values if values.count(None) < len(values) else None


def _numbers(values: list[int | None]) -> str | None:
    """The same of numbers, as Postgres reads an array from text."""
    if values.count(None) == len(values):
        return None
    return "{" + ",".join("null" if value is None else str(value) for value in values) + "}"
