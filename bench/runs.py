"""A run made by hand for a figure: in the ledger, with an epoch open and rows in its streams, but without an engine."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.row import Entry
from rowmill.window import FeedWindow, Window
from rowmill_cli.local.servers import Endpoints

INSTALLATION = "bench"
NAMESPACE = "default"
SHARDS = 4
BLOCK_ROWS = 1000
TEXT = "a row of about one hundred bytes, with a bit of text that stands for the work to be done"


def payload(seq: int) -> bytes:
    """A row as the source makes it: 100 bytes of cells."""
    return json.dumps({"id": f"{seq:08}", "text": TEXT + "....."[: 92 - len(TEXT)]}, separators=(",", ":")).encode()


def fresh_name(figure: str) -> str:
    return f"{figure.replace('_', '-')}-{secrets.token_hex(4)}"


def write_manifest(folder: Path, name: str, *, concurrency: int, **spec: Any) -> Path:
    """A manifest whose rows go to `executor` (an HTTP service that nobody calls unless `spec` says where it is)."""
    path = folder / f"{name}.yaml"
    manifest = {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "source": {"rows": [{"id": "1", "text": "x"}]},
            "executor": {"http": {"url": "http://127.0.0.1:9/", "method": "POST", "body": {"text": "{{ row.text }}"}}},
            "concurrency": {"perWorker": concurrency},
            "shards": SHARDS,
            "workers": {"maxReplicas": 1},
            **spec,
        },
    }
    path.write_text(json.dumps(manifest), encoding="utf-8")
    return path


@dataclass(frozen=True, slots=True)
class BenchRun:
    """A run whose first epoch is open."""

    record: RunRecord
    ledger: Ledger
    window: Window
    feed: FeedWindow

    async def fill(self, rows: int, *, first: int = 1) -> None:
        """Append rows `first`.. to the streams, in blocks, as the feeder does."""
        last = [look.last_seq for look in await self.feed.look(self.record.epoch)]
        for begin in range(first, first + rows, BLOCK_ROWS * SHARDS):
            end = min(first + rows, begin + BLOCK_ROWS * SHARDS)
            for shard in range(SHARDS):
                entries = [Entry(seq, payload(seq)) for seq in range(begin, end) if seq % SHARDS == shard]
                if entries:
                    await self.feed.append(self.record.epoch, shard, after=last[shard], entries=entries)
                    last[shard] = entries[-1].seq


@asynccontextmanager
async def open_run(stores: Endpoints, name: str) -> AsyncIterator[BenchRun]:
    """A new run named `name`; its keys and its table are gone after the block."""
    ledger = await Ledger.connect(stores.postgres_dsn, application_name="rowmill bench")
    window = await Window.connect(stores.redis_url)
    try:
        await ledger.migrate()
        identity = RunIdentity(INSTALLATION, NAMESPACE, name, "1")
        record = await ledger.runs.ensure(identity, frozen={}, shards=SHARDS, row_limit=None)
        record = await ledger.runs.take_over(record.id)
        record = await ledger.runs.begin_epoch(record, generation=0, epoch=1)
        feed = window.feed(token=record.token, shards=SHARDS)
        await feed.open(1)
        try:
            yield BenchRun(record, ledger, window, feed)
        finally:
            await feed.close(1)
            await _forget(stores, record)
    finally:
        await window.close()
        await ledger.close()


async def _forget(stores: Endpoints, record: RunRecord) -> None:
    """Drop a run's table, so that nothing cleans up behind the next measurement."""
    connection = await asyncpg.connect(stores.postgres_dsn)
    try:
        await connection.execute(f"drop table if exists rowmill.outcomes_{record.id}")
        await connection.execute("delete from rowmill.runs where id = $1", record.id)
    finally:
        await connection.close()
