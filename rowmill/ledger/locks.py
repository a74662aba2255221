"""The session that holds a worker's locks: its liveness, the rows it is running, the declared keys it executes.

States: closed → open (liveness held) → lost. Locks live and die with the session. When it is lost, every row
claimed in it must be claimed again before it is started; rows that run already go on, because what they bring
home is committed whatever happened to the lock (the ledger's primary key decides, the lock only gates starting).
`number` tells sessions apart: a claim is good only while the session that made it is the one that is open. The name of
the session says how many locks of rows it may hold (see `rowmill.ledger.declared`).

Locks are re-entrant within a session, so SQL can never tell what *we* hold: the caller keeps that table.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import asyncpg

from rowmill.errors import StoreUnavailable
from rowmill.ledger.budget import Capacity
from rowmill.ledger.connect import open_connection, passing_failures, place
from rowmill.ledger.declared import WorkerWord, worker_name
from rowmill.ledger.keys import liveness_key
from rowmill.ledger.queries import int_array, statement


@dataclass(frozen=True, slots=True)
class Claim:
    """What came of claiming a block: every given row is in exactly one of the three."""

    ours: list[int]
    done: list[int]
    elsewhere: list[int]


class LockSession:
    """One dedicated connection. Its statements run one at a time."""

    def __init__(
        self,
        dsn: str,
        *,
        run: int,
        token: str,
        consumer: str,
        needs: int = 0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._dsn = dsn
        self._run = run
        self._liveness = liveness_key(token, consumer)
        self._consumer = consumer
        self._needs = needs
        self._where = place(dsn)
        self._monotonic = monotonic
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()
        self._lock_rows = statement("lock_rows")
        self._look_up = statement("look_up_rows", run=run)
        self._unlock_rows = statement("unlock_rows")
        self.number = 0
        self.may = 0
        """Locks of rows that this session has declared that it may hold."""
        self._opened = 0.0

    @property
    def is_open(self) -> bool:
        return self._connection is not None and not self._connection.is_closed()

    @property
    def age(self) -> float:
        """Seconds that the open session has lived; 0 when closed."""
        return self._monotonic() - self._opened if self.is_open else 0.0

    async def open(self) -> None:
        """Open a new session and take the liveness lock; does nothing while one is open. Raises StoreUnavailable."""
        async with self._turn:
            if self.is_open:
                return
            connection = await open_connection(self._dsn, application_name=self._name(self.may))
            try:
                with passing_failures(self._where):
                    held = await connection.fetchval(statement("try_lock"), self._liveness)
            except BaseException:
                connection.terminate()
                raise
            if not held:
                # The server has not noticed yet that our last session is gone; it does within its check interval.
                connection.terminate()
                raise StoreUnavailable(f"{self._where}: the last session of this worker still holds its liveness lock")
            self._connection = connection
            self.number += 1
            self._opened = self._monotonic()

    async def close(self) -> None:
        """End the session, and with it every lock."""
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await connection.close(timeout=2)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError):
                connection.terminate()

    @asynccontextmanager
    async def _live(self) -> AsyncIterator[asyncpg.Connection]:
        """The open session, for statements of which one that fails or is given up ends it: which locks were taken or
        freed by then is unknown, and only the session's end is sure to free them."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                raise StoreUnavailable(f"{self._where}: the lock session is lost")
            try:
                with passing_failures(self._where):
                    yield self._connection
            except BaseException:
                self._drop()
                raise

    async def claim(self, seqs: Sequence[int], generation: int) -> Claim:
        """Lock rows, then look them up in a second statement: in one statement the look-up's snapshot is older
        than the lock, and rows that another worker has just committed would run again.

        None of `seqs` may be held by this session already. Raises StoreUnavailable; then none of them is held.
        """
        async with self._live() as connection:
            locks = await connection.fetchval(self._lock_rows, self._run, int_array(seqs))
            ours = [seq for seq, got in zip(seqs, locks, strict=True) if got]
            known = await connection.fetch(self._look_up, generation, int_array(ours)) if ours else []
            done = [r[0] for r in known]
            if done:
                await connection.fetchval(self._unlock_rows, self._run, int_array(done))
                finished = set(done)
                ours = [seq for seq in ours if seq not in finished]
            elsewhere = [seq for seq, got in zip(seqs, locks, strict=True) if not got]
            return Claim(ours, done, elsewhere)

    async def relock(self, seqs: Sequence[int]) -> list[int]:
        """Take rows that run already again, after the session was lost; returns those that we got."""
        async with self._live() as connection:
            locks = await connection.fetchval(self._lock_rows, self._run, int_array(seqs))
            return [seq for seq, got in zip(seqs, locks, strict=True) if got]

    async def release(self, seqs: Sequence[int]) -> None:
        """Unlock rows. Raises StoreUnavailable when the session is lost, which frees them as well."""
        async with self._live() as connection:
            await connection.fetchval(self._unlock_rows, self._run, int_array(seqs))

    async def lock_keys(self, keys: Sequence[int]) -> list[bool]:
        """Try the locks of declared keys, in the order given. None may be held by this session already."""
        async with self._live() as connection:
            return list(await connection.fetchval(statement("lock_keys"), keys))

    async def release_keys(self, keys: Sequence[int]) -> None:
        async with self._live() as connection:
            await connection.fetchval(statement("unlock_keys"), keys)

    async def try_lock(self, key: int) -> bool:
        """Try one lock of another class (the sweeper's); it is held until the session ends or `unlock`."""
        async with self._live() as connection:
            return bool(await connection.fetchval(statement("try_lock"), key))

    async def declare(self, may: int) -> None:
        """Say that this session may hold so many locks of rows, for all of the server to see."""
        async with self._live() as connection:
            await connection.fetchval(statement("declare"), self._name(may))
            self.may = may

    async def others(self) -> tuple[Capacity, list[str]]:
        """What the server carries in all, and what the lock sessions of other workers on it say of themselves. Raises
        StoreUnavailable when the session is lost: asking is how that is noticed."""
        async with self._live() as connection:
            capacity = Capacity(*await connection.fetchrow(statement("capacity")))
            return capacity, list(await connection.fetchval(statement("other_workers")))

    def _name(self, may: int) -> str:
        return worker_name(WorkerWord(self._run, self._needs, may), self._consumer)

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()
