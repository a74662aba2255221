"""Postgres: the truth about every run. Outcomes, totals, progress, declared keys.

`Ledger.connect` opens it, checks the server's settings and gives the views that each part needs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger.connect import Pool, check_settings, open_connection
from rowmill.ledger.leadership import Leadership
from rowmill.ledger.locks import Claim, LockSession
from rowmill.ledger.migrate import migrate
from rowmill.ledger.runs import FeedPosition, RangeCounts, RangeState, RunRecord, Runs, Superseded
from rowmill.ledger.work import REFUSED, KeyEnd, KeyHolder, Turn, Work
from rowmill.outcome import Outcome

__all__ = [
    "REFUSED",
    "Claim",
    "FeedPosition",
    "KeyEnd",
    "KeyHolder",
    "Leadership",
    "Ledger",
    "LockSession",
    "RangeCounts",
    "RangeState",
    "RunRecord",
    "Runs",
    "Superseded",
    "Turn",
    "Work",
]


class Ledger:
    """A checked, pooled way into one ledger."""

    def __init__(self, dsn: str, *, application_name: str, connections: int) -> None:
        self.dsn = dsn
        self.application_name = application_name
        self.pool = Pool(dsn, application_name=application_name, size=connections)
        self.runs = Runs(self.pool)
        self.leadership = Leadership(dsn, application_name=application_name)

    @classmethod
    async def connect(cls, dsn: str, *, application_name: str = "rowmill", connections: int = 2) -> Ledger:
        """Open and check. Raises StoreUnavailable when Postgres is away, StoreUnsafe when it cannot be trusted."""
        try:
            connection = await open_connection(dsn, application_name=application_name)
        except StoreUnavailable as error:
            raise StoreUnavailable(f"{error}. See that it runs, and that ROWMILL_POSTGRES_DSN names it") from error
        try:
            await check_settings(dsn, connection, application_name=application_name)
        finally:
            await connection.close(timeout=2)
        return cls(dsn, application_name=application_name, connections=connections)

    async def migrate(self) -> int:
        """Bring the schema up to this release; safe to run twice and at once. Returns what was applied now."""
        async with self.pool.connection() as c:
            return await migrate(c)

    async def find_run(self, identity: RunIdentity) -> RunRecord | None:
        return await self.runs.find(identity)

    def results(self, record: RunRecord, *, failed_only: bool = False) -> AsyncIterator[list[Outcome]]:
        return self.runs.results(record, failed_only=failed_only)

    def work(self, record: RunRecord, *, worker: str) -> Work:
        return Work(self.pool, record=record, worker=worker)

    def lock_session(self, record: RunRecord, *, consumer: str) -> LockSession:
        return LockSession(self.dsn, run=record.id, token=record.token, consumer=consumer)

    async def close(self) -> None:
        self.leadership.close()
        await self.pool.close()
