"""The operator's way into Redis and Postgres: one for all jobs, opened when they can be.

A job that comes while a store is away is told so and waits; nothing of the operator depends on the stores being there
when it starts. A store that is unsafe (it would lose rows) is looked at again every few seconds: it may be mended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rowmill.errors import RowmillError
from rowmill.ledger import Ledger
from rowmill.window import Window

LEDGER_CONNECTIONS = 8
WINDOW_CONNECTIONS = 32
AGAIN_SECONDS = 2.0


class Stores:
    """`get` opens on first use; every job gets the same two."""

    def __init__(self, *, redis_url: str, postgres_dsn: str, now: Callable[[], float]) -> None:
        self._redis_url = redis_url
        self._postgres_dsn = postgres_dsn
        self._now = now
        self._turn = asyncio.Lock()
        self._ledger: Ledger | None = None
        self._window: Window | None = None
        self._failed: tuple[float, RowmillError] | None = None

    async def get(self) -> tuple[Ledger, Window]:
        """Both stores, checked, the ledger's schema up to date. Raises StoreUnavailable, StoreUnsafe."""
        async with self._turn:
            if self._ledger is not None and self._window is not None:
                return self._ledger, self._window
            if self._failed is not None and self._now() - self._failed[0] < AGAIN_SECONDS:
                raise self._failed[1]
            try:
                return await self._open()
            except RowmillError as error:
                self._failed = (self._now(), error)
                raise

    async def _open(self) -> tuple[Ledger, Window]:
        if self._ledger is None:
            ledger = await Ledger.connect(
                self._postgres_dsn, application_name="rowmill operator", connections=LEDGER_CONNECTIONS
            )
            try:
                await ledger.migrate()
            except BaseException:
                await ledger.close()
                raise
            self._ledger = ledger
        if self._window is None:
            self._window = await Window.connect(self._redis_url, connections=WINDOW_CONNECTIONS)
        return self._ledger, self._window

    async def close(self) -> None:
        if self._window is not None:
            await self._window.close()
        if self._ledger is not None:
            await self._ledger.close()
