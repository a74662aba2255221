"""Clean runs of 10,000 rows: nothing is killed, nothing is called twice, and a failed attempt is always the server's.

The old runner shared one client session: whichever row finished first closed it under the others. With `maxAttempts: 1`
every call that fails on our side would be a failed row.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from rowmill.outcome import State
from tests.support.endpoint import closes, spawn
from tests.support.rig import Rig

ROWS = 10_000
ONE_ATTEMPT = {"maxAttempts": 1}


@pytest.mark.parametrize("concurrency", [8, 64, 512])
async def test_a_healthy_server_fails_no_row(
    concurrency: int, tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(ROWS)
            rig.job(concurrency={"perWorker": concurrency}, retry=ONE_ATTEMPT, timeoutSeconds=60)
            await rig.start_engine()
            await rig.start_worker()
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["total"], status["succeeded"], status["failed"]) == (ROWS, ROWS, 0)
            stats = await endpoint.stats()
            assert stats["calls"] == stats["answered"]["200"] == ROWS
            assert stats["max_in_flight"] <= concurrency
            (await rig.history()).assert_clean(allowed_duplicates=0)


@pytest.mark.parametrize("concurrency", [8, 64, 512])
async def test_failed_attempts_are_exactly_the_connections_that_the_server_closed(
    concurrency: int, tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    plan = {"rate": 0.03, "seed": concurrency, "kinds": ["close_unread", "close_read", "close_mid", "reset"]}
    async with spawn(plan=plan, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(ROWS)
            rig.job(concurrency={"perWorker": concurrency}, retry=ONE_ATTEMPT, timeoutSeconds=60)
            await rig.start_engine()
            await rig.start_worker()
            status = await rig.complete()
            await rig.stop_workers()
            stats = await endpoint.wait(idle=True)
            closed = list(closes(rig.calls()))
            assert ROWS * 0.015 < len(closed) < ROWS * 0.06
            assert stats["closed"] == len(closed) == status["failed"]
            failed = [outcome for outcome in await rig.outcomes() if outcome.state is State.FAILED]
            # Not only as many: the very rows. A call whose body was never read is known by its key.
            assert {str(o.seq) for o in failed} == {str(call.key).rpartition("#")[2] for call in closed}
            classes = Counter(outcome.error_class for outcome in failed)
            assert set(classes) == {"ConnectionReset", "IncompleteAnswer"}, classes
            assert all(o.attempts == 1 and f"127.0.0.1:{endpoint.port}" in str(o.error_message) for o in failed)
            assert {error["error_class"]: error["count"] for error in status["errors"]} == classes
            (await rig.history()).assert_clean(allowed_duplicates=0)


async def test_waiting_for_a_slot_or_a_connection_is_no_part_of_the_timeout(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    """400 rows of 0.4 s at 40 slots take four times as long as one row may."""
    plan = {"default": {"kind": "ok", "latency": 0.4}}
    async with spawn(plan=plan, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(400)
            rig.job(concurrency={"perWorker": 40}, retry=ONE_ATTEMPT, timeoutSeconds=1)
            await rig.start_engine()
            await rig.start_worker()
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["failed"]) == (400, 0), status["errors"]
            stats = await endpoint.stats()
            assert stats["max_in_flight"] == 40
            (await rig.history()).assert_clean(allowed_duplicates=0)
