"""Many rows at once over one connector: no row's failure is another's, and waiting is never a timeout."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import RowError
from tests.support.endpoint import Behaviour, Endpoint, Plan, closes, read_log, spawn
from tests.support.http_rows import attempt, http_executor


async def run_rows(executor: HttpExecutor, rows: int, concurrency: int, timeout: float = 30.0) -> Counter[str]:
    """Each row once, `concurrency` at a time; how they ended, by class (Success where it did)."""
    ends: Counter[str] = Counter()
    left = iter(range(1, rows + 1))

    async def lane() -> None:
        for seq in left:
            try:
                result: Any = await executor.execute(attempt(seq, timeout=timeout))
                assert result == {"row": str(seq), "ok": True}
                ends["Success"] += 1
            except RowError as error:
                kind = "" if error.retryable and error.spent else " for good"
                ends[error.error_class + kind] += 1
            assert 0 <= executor.active_sessions <= concurrency

    await asyncio.gather(*(lane() for _ in range(concurrency)))
    assert executor.active_sessions == 0
    return ends


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_failed_attempts_are_exactly_the_closed_connections(method: str, tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    plan = {"rate": 0.1, "seed": 11, "kinds": ["close_unread", "close_read", "close_mid", "reset", "half_chunked"]}
    async with spawn(plan=plan, log=log) as endpoint:
        async with http_executor(endpoint.url, method=method) as executor:
            ends = await run_rows(executor, rows=2000, concurrency=64)
            assert executor.rebuilt_connectors == 0
        stats = await endpoint.wait(idle=True)
    failed = sum(ends.values()) - ends["Success"]
    calls = read_log(log)
    assert stats["calls"] == len(calls) == 2000  # no call was made twice, none left out
    assert stats["closed"] == len(list(closes(calls))) == failed
    assert 100 < failed < 300
    assert set(ends) <= {"Success", "ConnectionReset", "IncompleteAnswer"}
    assert len({call.key for call in calls}) == len({call.request_id for call in calls}) == 2000


async def test_a_healthy_server_fails_no_row() -> None:
    async with spawn() as endpoint, http_executor(endpoint.url) as executor:
        for concurrency in (8, 512):
            assert await run_rows(executor, rows=1024, concurrency=concurrency) == {"Success": 1024}
        stats = await endpoint.stats()
        assert stats["closed"] == 0
        assert stats["max_in_flight"] <= 512


async def test_more_rows_than_connections_had_before_wait_for_none() -> None:
    """Every one of 300 rows is at the slow server at once: none waits on this side while its timeout runs."""
    async with Endpoint() as endpoint:
        async with http_executor(endpoint.url) as executor:
            await run_rows(executor, rows=10, concurrency=2)
            endpoint.hold()
            running = asyncio.create_task(run_rows(executor, rows=300, concurrency=300))
            stats = await endpoint.wait(in_flight=300)
            assert stats["in_flight"] == executor.active_sessions == 300
            endpoint.release()
            assert await running == {"Success": 300}


async def test_a_slow_server_with_more_rows_than_slots_times_nobody_out() -> None:
    """72 rows, 6 at a time: were they to wait for each other inside their timeout, it would run out."""
    async with Endpoint(plan=Plan(default=Behaviour("ok", latency=0.3))) as endpoint:
        async with http_executor(endpoint.url) as executor:
            assert await run_rows(executor, rows=72, concurrency=6, timeout=3.0) == {"Success": 72}
        assert endpoint.stats()["max_in_flight"] <= 6


async def test_a_row_that_fails_closes_nobody_elses_session() -> None:
    plan = Plan(choose=lambda row, nth: Behaviour("reset") if row == "1" else None)
    async with Endpoint(plan=plan) as endpoint, http_executor(endpoint.url) as executor:
        endpoint.hold()
        tasks = [asyncio.create_task(executor.execute(attempt(seq))) for seq in range(1, 21)]
        await endpoint.wait(in_flight=20)
        endpoint.release()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(ends[0], RowError)
    assert ends[1:] == [{"row": str(seq), "ok": True} for seq in range(2, 21)]
