"""What is to be told of runs to others, and what was heard.

    recorded ─ once for each occasion, however often and by however many it is recorded
    open     ─ tried now and then; every try is written down before the next
    ended    ─ acknowledged, or given up; never tried again

A try whose acknowledgement could not be written down is made again: at least once, under the same id. Times are the
database's own, so that whoever goes on needs no clock that agrees with anybody's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rowmill.identity import RunIdentity
from rowmill.ledger.connect import OneConnection, Pool
from rowmill.ledger.queries import statement

OPEN_AT_ONCE = 20
"""Open notices of a job that are looked at together, those that are due first."""

KEPT = 50
"""Ended notices that are kept of a run. The newest one is what its present state is compared with, so that more are
only for people."""


@dataclass(frozen=True, slots=True)
class Notice:
    """An open notice. `age` and `wait` (until its next try, negative when that is due) are in seconds.

    `uid` is the same for every try, and another for every other notice: letters, digits and dashes.
    """

    id: int
    identity: RunIdentity
    uid: str
    generation: int
    event: str
    body: Mapping[str, Any]
    tries: int
    age: float
    wait: float
    problem: str | None


class Notices:
    """Each call is one short transaction. All raise StoreUnavailable."""

    def __init__(self, pool: Pool | OneConnection) -> None:
        self._pool = pool

    async def record(
        self, identity: RunIdentity, *, generation: int, event: str, occasion: str, body: Mapping[str, Any]
    ) -> bool:
        """Have it told, unless this occasion is known already; whether it is new.

        Nothing is recorded of a run that the ledger does not know: there is none yet.
        """
        async with self._pool.connection() as c, c.transaction():
            new = await c.fetchval(statement("record_notice"), *identity, generation, event, occasion, json.dumps(body))
            if new is not None:
                await c.execute(statement("trim_notices"), new, KEPT)
        return new is not None

    async def open_of(self, installation: str, namespace: str, name: str) -> list[Notice]:
        """The open notices of every run of a job, those that are due first, at most `OPEN_AT_ONCE`."""
        async with self._pool.connection() as c:
            rows = await c.fetch(statement("open_notices"), installation, namespace, name, OPEN_AT_ONCE)
        return [
            Notice(
                id=r["id"],
                identity=RunIdentity(installation, namespace, name, r["run_id"]),
                uid=f"{r['token']}-{r['generation']}-{r['event'].lower()}-{r['occasion']}",
                generation=r["generation"],
                event=r["event"],
                body=json.loads(r["body"]),
                tries=r["tries"],
                age=r["age"],
                wait=r["wait"],
                problem=r["problem"],
            )
            for r in rows
        ]

    async def delivered(self, notice: Notice) -> None:
        """It was acknowledged."""
        async with self._pool.connection() as c:
            await c.execute(statement("end_notice"), notice.id, True, None)

    async def gave_up(self, notice: Notice, *, problem: str) -> None:
        """It is not tried again."""
        async with self._pool.connection() as c:
            await c.execute(statement("end_notice"), notice.id, False, problem)

    async def postpone(self, notice: Notice, *, seconds: float, problem: str) -> None:
        """A try was not acknowledged; the next one is not made before `seconds` have passed."""
        async with self._pool.connection() as c:
            await c.execute(statement("postpone_notice"), notice.id, seconds, problem)
