"""The stores that tests of single parts work on: one run, in its first epoch; and the places its output goes to."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.window import Window
from rowmill_operator.results import StoreFolder
from tests.support.parts import Desk, folder_at
from tests.support.s3 import s3_server

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


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The keys of an object store that speaks S3."""
    with s3_server() as keys:
        yield keys


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoreFolder:
    if request.param == "local":
        return folder_at(str(tmp_path / "out"))
    return folder_at(f"s3://bucket/{uuid.uuid4()}", credentials=request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> StoreFolder:
    return folder_at(str(tmp_path / "out"))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def desk(ledger: Ledger, record: RunRecord, threads: ThreadPoolExecutor) -> Desk:
    return Desk(ledger, record, threads)
