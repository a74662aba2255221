"""Who drives a run: one engine at a time, by an advisory lock on a session of its own.

The lock only keeps engines out of each other's way; what makes a second engine harmless is the term that fences
its writes to the ledger and the epoch that fences its appends to the window.
"""

from __future__ import annotations

import asyncpg

from rowmill.errors import StateInUse
from rowmill.ledger.connect import open_connection, passing_failures, place
from rowmill.ledger.keys import leader_key
from rowmill.ledger.queries import statement


class Leadership:
    """Held from `take` to `release`, or until the session is lost."""

    def __init__(self, dsn: str, *, run: int) -> None:
        self._dsn = dsn
        self._run = run
        self._connection: asyncpg.Connection | None = None

    @property
    def held(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    async def take(self) -> None:
        """Become the leader. Raises StateInUse when another engine is, StoreUnavailable when Postgres is away."""
        if self.held:
            return
        connection = await open_connection(self._dsn, application_name=f"rowmill engine {self._run}")
        with passing_failures(place(self._dsn)):
            if not await connection.fetchval(statement("try_lock"), leader_key(self._run)):
                await connection.close(timeout=2)
                raise StateInUse(f"another engine drives run {self._run} of this ledger; only one can")
        self._connection = connection

    async def release(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
