"""The history checker: reads five records of a run, each by a reader of its own, and compares them.

The source by plain `csv`, `json`, `openpyxl` or `pyarrow`; the log of the endpoint; the ledger by SQL; the exported
file; the keys that Redis still holds. Nothing of the program reads for it: a mistake that it makes in writing must
not be made again in checking.

    (await check_history(source=…, endpoint_log=…, postgres_dsn=…, identity=…, export=…, redis_url=…)).assert_clean()
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import openpyxl
import pyarrow.parquet
from redis.asyncio import Redis

from tests.support.endpoint import read_log
from tests.support.history import History, Recorded, Run, compare

__all__ = ["History", "check_history", "echoed_row", "read_export", "read_ledger", "read_redis", "read_source"]

SECONDS = 60.0


def echoed_row(result: Any) -> Any:
    """Whose the result is, by what the endpoint answers: `{"row": "17", "ok": true}`."""
    return str(result["row"]) if isinstance(result, dict) and "row" in result else None


async def check_history(
    *,
    source: Path,
    postgres_dsn: str,
    identity: Sequence[str],
    redis_url: str,
    endpoint_log: Path | None = None,
    export: Path | None = None,
    row_field: str = "id",
    limit: int | None = None,
    echoed: Callable[[Any], Any] | None = echoed_row,
) -> History:
    """Compare what is there now; call it when the run has ended.

    `identity` is installation, namespace, name and runId. `row_field` is the column whose cells, as text, are what the
    endpoint hears as `row`; they must differ. `limit` is the manifest's `source.limit`. Raises LookupError where the
    ledger knows no such run.
    """
    names = read_source(source, row_field)[:limit]
    run, token, recorded = await read_ledger(postgres_dsn, identity)
    return compare(
        run=run,
        source=names,
        recorded=recorded,
        calls=None if endpoint_log is None else read_log(endpoint_log),
        exported=None if export is None else read_export(export),
        redis_keys=await read_redis(redis_url, token),
        echoed=echoed,
    )


def read_source(path: Path, row_field: str) -> list[str]:
    """One column of a table, as text; the format by its suffix."""
    return [str(cell) for cell in _READERS[path.suffix.lower()](path, row_field)]


def _csv_cells(path: Path, name: str) -> Iterator[Any]:
    csv.field_size_limit(2**30)
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        at = next(rows).index(name)
        yield from (row[at] for row in rows if row)


def _jsonl_cells(path: Path, name: str) -> Iterator[Any]:
    yield from (json.loads(line)[name] for line in path.read_bytes().split(b"\n") if line.strip())


def _excel_cells(path: Path, name: str) -> Iterator[Any]:
    book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    try:
        assert book.active is not None
        rows = book.active.iter_rows(values_only=True)
        at = list(next(rows)).index(name)
        yield from (row[at] for row in rows)
    finally:
        book.close()


def _parquet_cells(path: Path, name: str) -> Iterator[Any]:
    yield from pyarrow.parquet.read_table(path, columns=[name])[name].to_pylist()


_READERS: dict[str, Callable[[Path, str], Iterator[Any]]] = {
    ".csv": _csv_cells,
    ".jsonl": _jsonl_cells,
    ".xlsx": _excel_cells,
    ".parquet": _parquet_cells,
}


async def read_ledger(dsn: str, identity: Sequence[str]) -> tuple[Run, str, list[Recorded]]:
    """The run, the token that names its keys in Redis, and all its outcomes of all generations."""
    connection = await asyncpg.connect(dsn, timeout=SECONDS, command_timeout=SECONDS)
    try:
        run = await connection.fetchrow(
            "select id, token, generation, total, counts::text as counts from rowmill.runs"
            " where installation = $1 and namespace = $2 and name = $3 and run_id = $4",
            *identity,
        )
        if run is None:
            raise LookupError(f"the ledger knows no run {'/'.join(identity)}")
        rows = await connection.fetch(
            "select seq, generation, state, attempts, key::text as key, result::text as result, error_class,"
            " error_message, extract(epoch from finished_at)::float8 as finished_at"
            f" from rowmill.outcomes_{run['id']} order by seq, generation"
        )
    finally:
        await connection.close()
    counts = json.loads(run["counts"]) if run["counts"] else None
    recorded = [
        Recorded(
            r["seq"],
            r["generation"],
            r["state"],
            r["attempts"],
            None if r["key"] is None else json.loads(r["key"]),
            None if r["result"] is None else json.loads(r["result"]),
            r["error_class"],
            r["error_message"],
            r["finished_at"],
        )
        for r in rows
    ]
    return Run("/".join(identity[1:]), run["generation"], run["total"], counts), run["token"], recorded


def read_export(path: Path) -> list[dict[str, Any]]:
    """Every line of a JSONL file of results."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


async def read_redis(url: str, token: str) -> list[str]:
    """The keys that a run has left. The heartbeats of workers that have just ended are no leftovers: they expire."""
    client = Redis.from_url(url, socket_timeout=SECONDS, decode_responses=True)
    try:
        keys = [key async for key in client.scan_iter(match=f"*{token}*", count=1000)]
        return [key for key in keys if not (":alive:" in key and await client.pttl(key) >= 0)]
    finally:
        await client.aclose()
