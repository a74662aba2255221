"""The stores that tests of single parts work on: one run, in its first epoch."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.window import Window

IDENTITY = RunIdentity("test", "default", "job", "1")


@pytest.fixture
async def ledger(postgres_dsn: str) -> AsyncIterator[Ledger]:
    """An empty ledger, migrated."""
    ledger = await Ledger.connect(postgres_dsn, connections=4)
    await ledger.migrate()
    yield ledger
    await ledger.close()


@pytest.fixture
async def record(ledger: Ledger) -> RunRecord:
    """A run of two shards, taken over, in generation 0 and epoch 1."""
    record = await ledger.runs.ensure(IDENTITY, frozen={}, shards=2, row_limit=None)
    record = await ledger.runs.take_over(record.id)
    return await ledger.runs.begin_epoch(record, generation=0, epoch=1)


@pytest.fixture
async def window(redis_url: str) -> AsyncIterator[Window]:
    """A way into an empty Redis."""
    window = await Window.connect(redis_url)
    yield window
    await window.close()
