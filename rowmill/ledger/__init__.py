"""Postgres: the truth about every run. Outcomes, totals, progress, declared keys.

`Ledger.connect` opens it, checks the server's settings and gives the views that each part needs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger.connect import (
    OneConnection,
    Pool,
    check_settings,
    open_connection,
    passing_failures,
    place,
)
from rowmill.ledger.leadership import Leadership
from rowmill.ledger.locks import Claim, LockSession
from rowmill.ledger.migrate import migrate
from rowmill.ledger.notices import Notice, Notices
from rowmill.ledger.retention import Drop, Kept, Retention, hold_results, results_dropped
from rowmill.ledger.runs import FeedPosition, RangeCounts, RangeState, RunRecord, Runs, Superseded
from rowmill.ledger.shares import Grant, Shares, look_at_server
from rowmill.ledger.spend import TELL_SECONDS, Allowed, Held, SpendBook, Spending, SpendTold, Want
from rowmill.ledger.work import REFUSED, KeyEnd, KeyHolder, Turn, Work
from rowmill.outcome import Outcome

__all__ = [
    "REFUSED",
    "TELL_SECONDS",
    "Allowed",
    "Claim",
    "Drop",
    "FeedPosition",
    "Grant",
    "Held",
    "Kept",
    "KeyEnd",
    "KeyHolder",
    "Leadership",
    "Ledger",
    "LockSession",
    "Notice",
    "Notices",
    "RangeCounts",
    "RangeState",
    "Retention",
    "RunRecord",
    "Runs",
    "Shares",
    "SpendBook",
    "SpendTold",
    "Spending",
    "Superseded",
    "Turn",
    "Want",
    "Work",
    "results_dropped",
]


SPARE_CONNECTIONS = 2
"""Of a process that drives runs, beside its pool: the session by which it leads them, and one that checks or ends."""


class Ledger:
    """A checked, pooled way into one ledger."""

    def __init__(self, dsn: str, *, application_name: str, connections: int) -> None:
        self.dsn = dsn
        self.application_name = application_name
        self.pool = Pool(dsn, application_name=application_name, size=connections)
        self.runs = Runs(self.pool)
        self.notices = Notices(self.pool)
        self.spending = Spending(self.pool)
        self.retention = Retention(self.pool)
        self.leadership = Leadership(dsn, application_name=application_name)
        self.shares = Shares(
            application_name=application_name,
            see=lambda: look_at_server(self.pool),
            declare=lambda name: self.leadership.declare(name),
            session=lambda: self.leadership.number,
            own=connections + SPARE_CONNECTIONS,
        )

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

    async def results(self, record: RunRecord, *, failed_only: bool = False) -> AsyncGenerator[list[Outcome], None]:
        """All of a run's outcomes, page by page, in a session of its own that keeps them from being dropped meanwhile.

        Close it (`contextlib.aclosing`) where not all of it is read. Raises ResultsDropped, StoreUnavailable.
        """
        connection = await open_connection(self.dsn, application_name=self.application_name)
        try:
            with passing_failures(place(self.dsn)):
                await hold_results(connection, record)
                async for page in Runs(OneConnection(connection)).results(record, failed_only=failed_only):
                    yield page
                await connection.close(timeout=2)
        finally:
            connection.terminate()

    def work(self, record: RunRecord, *, worker: str) -> Work:
        return Work(self.pool, record=record, worker=worker)

    def spend_book(self, record: RunRecord, *, worker: str) -> SpendBook:
        return SpendBook(self.pool, run=record.id, worker=worker)

    def lock_session(self, record: RunRecord, *, consumer: str, needs: int = 0) -> LockSession:
        """A worker's; `needs` are the locks that its rows need."""
        return LockSession(self.dsn, run=record.id, token=record.token, consumer=consumer, needs=needs)

    async def close(self) -> None:
        self.leadership.close()
        await self.pool.close()
