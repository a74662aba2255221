"""Connections to Postgres: how they are opened, what they are told, which failures are passing ones.

A failure is *passing* when the same call may succeed later against the same server (away, restarting, shutting
down, out of connections or lock space): it becomes `StoreUnavailable`, and whoever runs waits. Settings that
lose rows become `StoreUnsafe`, and nothing is started.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from rowmill.errors import StoreUnavailable, StoreUnsafe

CONNECT_TIMEOUT = 10.0
"""Seconds until a connection attempt is given up."""

CALL_TIMEOUT = 60.0
"""Seconds until a statement is given up; far above what any of them needs, so that only a lost server meets it."""

MIN_VERSION = 14
"""The oldest major version: `client_connection_check_interval` came with it."""

# A killed client must not keep its locks: the server looks for a closed socket while a statement runs (1 s), and
# for a silent peer by keepalives and TCP_USER_TIMEOUT.
SESSION_SETTINGS = {
    "client_connection_check_interval": "1000",
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "timezone": "UTC",
    "jit": "off",
}

_SET_SESSION = "; ".join(f"set {name} = '{value}'" for name, value in SESSION_SETTINGS.items())

_SCHEMES = ("postgresql", "postgres")

_PASSING = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, a statement or an idle session cancelled
    asyncpg.InsufficientResourcesError,  # connections, lock table, memory, disk
    asyncpg.TransactionRollbackError,  # deadlock, serialization
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.PostgresSystemError,  # the server's own input and output
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.UndefinedTableError,  # nobody has migrated this database yet
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's goodbye came between two statements of ours
    ConnectionError,
    TimeoutError,
    OSError,
)


def place(dsn: str) -> str:
    """Where a DSN points, without its password: fit for a message."""
    try:
        parts = urlsplit(dsn)
        port = parts.port or 5432
    except ValueError:
        return "Postgres"  # several hosts, or a password that is not encoded: name no part of it
    if parts.scheme not in _SCHEMES:
        return "Postgres"
    return f"Postgres at {parts.hostname or 'a local socket'}:{port}{parts.path}"


@contextmanager
def passing_failures(where: str) -> Iterator[None]:
    """Turn failures that may pass into `StoreUnavailable`; everything else goes through as it is."""
    try:
        yield
    except (asyncpg.DataError, asyncpg.ClientConfigurationError):
        raise
    except _PASSING as error:
        if isinstance(error, asyncpg.InterfaceError) and "invalid input for query argument" in str(error):
            raise
        reason = str(error) or type(error).__name__
        if isinstance(error, asyncpg.OutOfMemoryError):
            reason += " (the lock table may be full: raise max_locks_per_transaction or run fewer workers)"
        raise StoreUnavailable(f"{where}: {reason}") from error


async def open_connection(dsn: str, *, application_name: str) -> asyncpg.Connection:
    """One connection. Raises StoreUnavailable (away, for now) or StoreUnsafe (refuses us whatever we wait for)."""
    where = place(dsn)
    try:
        with passing_failures(where):
            connection = await asyncpg.connect(
                dsn,
                timeout=CONNECT_TIMEOUT,
                command_timeout=CALL_TIMEOUT,
                server_settings={"application_name": application_name},
            )
            try:
                # Not at the start of the session: poolers refuse parameters there that they do not know.
                await connection.execute(_SET_SESSION)
            except BaseException:
                connection.terminate()
                raise
            return connection
    except asyncpg.CannotConnectNowError as error:
        raise StoreUnavailable(f"{where}: {error}") from error
    except (asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError) as error:
        raise StoreUnsafe(
            f"{where}: {error}. Check user and password in ROWMILL_POSTGRES_DSN (postgresql://user:password@host:port/database)."
        ) from error
    except asyncpg.InvalidCatalogNameError as error:
        raise StoreUnsafe(
            f"{where}: {error}. Create it (createdb), or name another in ROWMILL_POSTGRES_DSN."
        ) from error
    except asyncpg.UndefinedObjectError as error:
        raise StoreUnsafe(f"{where}: {error}. Rowmill needs Postgres {MIN_VERSION} or newer.") from error
    except ValueError as error:
        # What could not be read may be a part of the password.
        raise StoreUnsafe(
            "ROWMILL_POSTGRES_DSN is not the address of a Postgres. Write it as "
            "postgresql://user:password@host:port/database, special characters in user and password as %XX."
        ) from error
    except asyncpg.PostgresError as error:
        raise StoreUnsafe(f"{where}: {error}") from error


class Pool:
    """A few connections that come back by themselves after a failure. At most `size` at once."""

    def __init__(self, dsn: str, *, application_name: str, size: int) -> None:
        self._dsn = dsn
        self._application_name = application_name
        self._slots = asyncio.Semaphore(size)
        self._idle: list[asyncpg.Connection] = []
        self._closed = False
        self.where = place(dsn)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection for the length of the block; one that failed is thrown away."""
        async with self._slots:
            connection = self._idle.pop() if self._idle else None
            if connection is None or connection.is_closed():
                connection = await open_connection(self._dsn, application_name=self._application_name)
            try:
                with passing_failures(self.where):
                    yield connection
            except BaseException as error:
                # A cancelled or failed call may still be under way in it; a refused statement leaves it healthy.
                if connection.is_closed() or not isinstance(error, asyncpg.PostgresError):
                    connection.terminate()
                else:
                    self._put_back(connection)
                raise
            self._put_back(connection)

    def _put_back(self, connection: asyncpg.Connection) -> None:
        if self._closed:
            connection.terminate()  # who closed the pool did not know of it, and nobody comes for it
        else:
            self._idle.append(connection)

    async def close(self) -> None:
        """Close what is idle; what is in use ends when it comes back."""
        self._closed = True
        while self._idle:
            connection = self._idle.pop()
            try:
                await connection.close(timeout=2)
            except (*_PASSING, asyncpg.PostgresError):
                connection.terminate()


class OneConnection:
    """A pool of exactly one given connection: for calls that must share a session."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        yield self._connection


async def check_settings(dsn: str, connection: asyncpg.Connection, *, application_name: str) -> None:
    """Refuse a server on which a promise of Rowmill would not hold. Raises StoreUnsafe with what to change."""
    where = place(dsn)
    try:
        with passing_failures(where):
            await _check_settings(dsn, connection, where=where, application_name=application_name)
    except (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError) as error:
        # What we prepared is on another server connection than the one that answers now.
        raise StoreUnsafe(_pooled(where)) from error


async def _check_settings(dsn: str, connection: asyncpg.Connection, *, where: str, application_name: str) -> None:
    major = connection.get_server_version().major
    if major < MIN_VERSION:
        raise StoreUnsafe(f"{where}: version {major} is too old; Rowmill needs Postgres {MIN_VERSION} or newer.")
    for setting, bad, why in (
        (
            "synchronous_commit",
            "off",
            "a crash of the server would lose outcomes that were already acknowledged",
        ),
        ("fsync", "off", "a crash of the machine would lose or corrupt the ledger"),
        ("full_page_writes", "off", "a crash of the machine could corrupt the ledger"),
    ):
        if await connection.fetchval(f"show {setting}") == bad:
            raise StoreUnsafe(f"{where}: {setting} is {bad}: {why}. Set it to on (ALTER SYSTEM SET {setting} = on).")
    if await connection.fetchval("select pg_is_in_recovery()"):
        raise StoreUnsafe(
            f"{where}: this is a standby that takes no writes. Point ROWMILL_POSTGRES_DSN at the primary."
        )
    if await connection.fetchval("select pg_backend_pid()") != connection.get_server_pid():
        await _refuse_transaction_pooling(dsn, connection, application_name=application_name)


async def _refuse_transaction_pooling(dsn: str, connection: asyncpg.Connection, *, application_name: str) -> None:
    """A pooler stands between. It must keep a session on one server connection: session locks live there.

    While a second client holds a transaction open, a transaction pooler has to serve us from another server
    connection than before; a session pooler never does.
    """
    where = place(dsn)
    before: Any = await connection.fetchval("select pg_backend_pid()")
    other = await open_connection(dsn, application_name=application_name)
    try:
        async with other.transaction():
            await other.fetchval("select pg_backend_pid()")
            after: Any = await connection.fetchval("select pg_backend_pid()")
    except asyncpg.PostgresConnectionError as error:
        if "pooling mode" in str(error):  # a pooler that refuses transactions altogether
            raise StoreUnsafe(_pooled(where)) from error
        raise
    finally:
        other.terminate()
    if before != after:
        raise StoreUnsafe(_pooled(where))


def _pooled(where: str) -> str:
    return (
        f"{where}: a pooler in transaction mode answers here, and session locks do not survive it. "
        "Use pool_mode = session, or connect to Postgres itself."
    )
