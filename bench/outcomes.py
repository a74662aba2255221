"""`outcomes`: rows a second into the ledger, in groups as a worker commits them, against a plain COPY.

Our side is `Work.commit`: inserts that ignore what is there, the worker's counters in the same statement, one
connection, one group after the other, each its own transaction that is on disk when it returns. The other side is COPY
of 10,000 rows at a time into a table with the same columns and the same primary key, and nothing else on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

import asyncpg

from bench.report import Figure, Missing, median
from bench.runs import fresh_name, open_run
from rowmill.outcome import Outcome, State
from rowmill_cli.local.servers import Endpoints

NAME = "outcomes"
GROUPS = {32: 20_000, 100: 50_000, 300: 90_000, 1000: 120_000}
"""Sizes of groups, and the rows that a round commits in them: about a second each."""
COPIED_ROWS = 200_000
AIMED_AT = 300
COPIED = 10_000
RESULT = '{"label":"billing","confidence":0.93}'
COLUMNS = ("seq", "generation", "state", "attempts", "result", "worker", "finished_at")


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, share = (1, 0.02) if quick else (9, 1.0)
    rates: dict[int, list[float]] = {size: [] for size in GROUPS}
    copies: list[float] = []
    for number in range(1, rounds + 1):
        copies.append(await _copy(stores, max(COPIED, int(COPIED_ROWS * share))))
        for size, rows in GROUPS.items():
            rates[size].append(await _commit(stores, size, int(rows * share)))
        shown = ", ".join(f"{size}: {rates[size][-1]:,.0f}" for size in GROUPS)
        say(f"round {number}: COPY {copies[-1]:,.0f} rows/s; groups of {shown}")
    figures: list[Figure | Missing] = []
    for size in GROUPS:
        ratios = [rate / copy for rate, copy in zip(rates[size], copies, strict=True)]
        figures.append(
            Figure(
                f"{NAME}_{size}",
                f"rows/s committed in groups of {size} over COPY of {COPIED:,}",
                median(ratios),
                (0.35,) if size == AIMED_AT else (),
                True,
                ratios,
                {"rows/s": {"rowmill": median(rates[size]), "COPY": median(copies)}},
            )
        )
    return figures


async def _commit(stores: Endpoints, size: int, rows: int) -> float:
    groups = [_group(first, size) for first in range(size + 1, size + 1 + max(rows, size), size)]
    async with open_run(stores, fresh_name(NAME)) as run:
        work = run.ledger.work(run.record, worker="bench-worker")
        await work.commit(_group(1, size), generation=0)  # connects, and prepares the statement
        began = time.perf_counter()
        written = 0
        for group in groups:
            written += await work.commit(group, generation=0)
        return written / (time.perf_counter() - began)


def _group(first: int, size: int) -> list[Outcome]:
    return [Outcome(seq, State.SUCCEEDED, 1, result=RESULT) for seq in range(first, first + size)]


async def _copy(stores: Endpoints, rows: int) -> float:
    now = datetime.now(UTC)
    blocks = [
        [(seq, 0, 1, 1, RESULT, "bench-worker", now) for seq in range(first, first + COPIED)]
        for first in range(1, rows + 1, COPIED)
    ]
    connection = await asyncpg.connect(stores.postgres_dsn)
    table = fresh_name("bench_copy").replace("-", "_")
    try:
        # The ledger's own table without its second index: the same columns, defaults and primary key.
        await connection.execute(f"create table {table} (like rowmill.outcomes including defaults)")
        await connection.execute(f"alter table {table} add primary key (seq, generation)")
        began = time.perf_counter()
        for block in blocks:
            await connection.copy_records_to_table(table, records=block, columns=COLUMNS)
        return len(blocks) * COPIED / (time.perf_counter() - began)
    finally:
        await connection.execute(f"drop table if exists {table}")
        await connection.close()
