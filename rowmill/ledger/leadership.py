"""Who drives a run: one engine at a time, by advisory locks on one session for all runs that a process drives.

The lock only keeps engines out of each other's way; what makes a second engine harmless is the term that fences its
writes to the ledger and the epoch that fences its appends to the window. Locks are re-entrant within a session, so
which runs this process drives already is kept here.
"""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg

from rowmill.errors import StateInUse, StoreUnavailable
from rowmill.ledger.connect import open_connection, passing_failures, place
from rowmill.ledger.keys import leader_key
from rowmill.ledger.queries import statement


class Leadership:
    """Every run that one process drives. When the session is lost, so is the lead of all of them."""

    def __init__(self, dsn: str, *, application_name: str) -> None:
        self._dsn = dsn
        self._application_name = f"{application_name} leader"
        self._connection: asyncpg.Connection | None = None
        self._runs: set[int] = set()
        self._turn = asyncio.Lock()
        self._closed = False
        self.number = 0
        """Tells sessions apart."""

    def holds(self, run: int) -> bool:
        """Whether the lead of `run` is ours now."""
        return run in self._runs and self._connection is not None and not self._connection.is_closed()

    async def take(self, run: int) -> None:
        """Take the lead. Raises StateInUse when somebody has it, StoreUnavailable when Postgres is away."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                self._runs.clear()
                connection = await open_connection(self._dsn, application_name=self._application_name)
                if self._closed:
                    connection.terminate()
                    raise StoreUnavailable(f"{place(self._dsn)}: this ledger was closed")
                self._connection = connection
                self.number += 1
            free = run not in self._runs and await self._ask("try_lock", run)
            if not free:
                raise StateInUse(f"another engine drives run {run} of this ledger; only one can")
            self._runs.add(run)

    async def declare(self, name: str) -> int:
        """Name the session, for all of the server to see; the number of its process there. Raises StoreUnavailable."""
        async with self._turn:
            connection = self._connection
            if connection is None or connection.is_closed():
                raise StoreUnavailable("the session that leads this process's runs is lost")
            try:
                with passing_failures(place(self._dsn)):
                    return int(await connection.fetchval(statement("declare"), name))
            except StoreUnavailable:
                connection.terminate()
                raise

    async def release(self, run: int) -> None:
        """Give the lead up; nothing where it is not ours."""
        if not self.holds(run):
            self._runs.discard(run)
            return
        # At once, whatever happens below: this process must be able to take the run again.
        self._runs.discard(run)
        session = self._connection
        try:
            async with self._turn:
                if self._connection is session:
                    await self._ask("unlock", run)
        except asyncio.CancelledError:
            if session is not None:
                session.terminate()
            raise

    async def _ask(self, name: str, run: int) -> Any:
        """One statement on a run's lock. Where it fails or is given up, what it did is unknown: the session ends."""
        assert self._connection is not None
        try:
            with passing_failures(place(self._dsn)):
                return await self._connection.fetchval(statement(name), leader_key(run))
        except BaseException:
            self._connection.terminate()
            raise

    def close(self) -> None:
        """End the session, and with it every lead; for good."""
        self._closed = True
        connection, self._connection = self._connection, None
        self._runs.clear()
        if connection is not None:
            connection.terminate()
