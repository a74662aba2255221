"""Table E: slots. A pod never runs more rows than it may, waits in bounds, and gets every slot back."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from rowmill.outcome import State
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.gate import Gate
from rowmill_worker.health import serve_health
from tests.support.endpoint import Behaviour, Endpoint, Plan, read_log
from tests.support.inprocess import KeepLast, lab, manifest


async def test_four_rows_at_three_slots_take_two_rounds(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    """Default slots: 3. The fourth row is called only after one of the first three was answered."""
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo")), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        job = manifest(endpoint.url, rows=4)
        endpoint.hold()
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job) as worker:
            await endpoint.wait(in_flight=3)
            async with asyncio.timeout(60):
                while worker.waiting < 1:  # the fourth is at hand, and waits
                    await asyncio.sleep(0.01)
            assert endpoint.stats()["calls"] == 3
            assert worker.numbers() == {
                "max_concurrent": 3,
                "available_slots": 0,
                "processing_count": 3,
                "active_sessions": 3,
                "waiting": 1,
            }
            endpoint.release()
            await asyncio.wait_for(driving, 60)
    assert endpoint.stats()["max_in_flight"] == 3
    calls = sorted(read_log(tmp_path / "calls"), key=lambda call: call.start)
    assert calls[3].start >= min(call.end or 0 for call in calls[:3]), "the fourth row had to wait for a slot"


@pytest.mark.parametrize(
    ("spec", "environ", "slots"),
    [
        ({}, {}, 3),
        ({}, {"MAX_CONCURRENT_REQUESTS": "7"}, 7),
        ({"concurrency": {"perWorker": 2}}, {"MAX_CONCURRENT_REQUESTS": "7"}, 2),
    ],
)
async def test_the_manifest_wins_over_the_environment(
    tmp_path: Path, redis_url: str, postgres_dsn: str, spec: dict[str, Any], environ: dict[str, str], slots: int
) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo", latency=0.02))) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        job = manifest(endpoint.url, rows=60, **spec)
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job, environ=environ):
            await asyncio.wait_for(driving, 60)
    assert endpoint.stats()["max_in_flight"] == slots


async def test_a_row_that_waits_too_long_is_handed_back_with_no_attempt_spent(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo")), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        concurrency = {"perWorker": 1, "acquireTimeoutSeconds": 1}
        job = manifest(endpoint.url, rows=3, shards=1, concurrency=concurrency, retry={"maxAttempts": 1})
        endpoint.hold()
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job) as worker:
            await endpoint.wait(in_flight=1)
            record = await stores.record(job)
            window = stores.window.feed(token=record.token, shards=1)
            async with asyncio.timeout(60):
                while True:  # a row that is scheduled was handed back: nothing has failed
                    (look,) = await window.look(1)
                    if look.scheduled:
                        break
                    await asyncio.sleep(0.02)
            assert worker.gate.processing == 1
            endpoint.release()
            await asyncio.wait_for(driving, 60)
        ends = await stores.outcomes(job)
    assert [(end.state, end.attempts) for end in ends] == [(State.SUCCEEDED, 1)] * 3
    assert endpoint.stats()["calls"] == 3


async def test_a_row_that_never_answers_gives_its_slot_back(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    hang = Behaviour("hang")
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo"), rows={"1": [hang, hang], "2": [hang]})) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        retry = {"maxAttempts": 2, "initialSeconds": 1, "maxSeconds": 1}
        job = manifest(endpoint.url, rows=20, timeoutSeconds=1, concurrency={"perWorker": 2}, retry=retry)
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job) as worker:
            await asyncio.wait_for(driving, 60)
            assert worker.gate.available == 2
        ends = await stores.outcomes(job)
    assert (ends[0].state, ends[0].error_class, ends[0].attempts) == (State.FAILED, "Timeout", 2)
    assert (ends[1].state, ends[1].attempts) == (State.SUCCEEDED, 2), "retried after its timeout"
    assert Counter(end.state for end in ends[2:]) == {State.SUCCEEDED: 18}


class Deaf:
    """An executor that heeds no timeout, and for some rows not even the first cancel."""

    active_sessions = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, attempt: Attempt) -> Any:
        if attempt.seq == 1:
            await asyncio.Event().wait()
        return attempt.seq


async def test_an_executor_that_heeds_no_timeout_is_cancelled(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores:
        job = manifest("http://127.0.0.1:1/", rows=5, timeoutSeconds=1, retry={"maxAttempts": 1})
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job, executor=Deaf()) as worker:
            await asyncio.wait_for(driving, 60)
            assert worker.gate.available == worker.gate.limit
        ends = await stores.outcomes(job)
    assert (ends[0].state, ends[0].error_class) == (State.FAILED, "Timeout")
    assert [end.state for end in ends[1:]] == [State.SUCCEEDED] * 4


async def test_health_adds_up_under_churn(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo", latency=0.005), rate=0.2, seed=3)) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        retry = {"maxAttempts": 10, "initialSeconds": 1, "maxSeconds": 1}
        job = manifest(endpoint.url, rows=600, concurrency={"perWorker": 8}, retry=retry)
        sink = KeepLast()
        driving = asyncio.create_task(stores.drive(job, sink=sink))
        seen: list[dict[str, Any]] = []
        async with (
            stores.worker(job) as worker,
            serve_health(
                host="127.0.0.1",
                port=0,
                registry=CollectorRegistry(),
                not_ready=worker.not_ready,
                numbers=worker.numbers,
            ) as port,
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
        ):
            while not driving.done():
                async with session.get("/health") as response:
                    seen.append(await response.json())
            await driving
            async with session.get("/readyz") as response:
                assert response.status == 200
            async with session.get("/healthz") as response:
                assert response.status == 200
    assert len(seen) > 20
    assert {n["available_slots"] + n["processing_count"] for n in seen} == {8}
    assert len({n["processing_count"] for n in seen}) > 1, "it was looked at while it changed"
    assert endpoint.stats()["max_in_flight"] <= 8
    assert sink.all[-1].succeeded == 600
    assert sink.all[-1].retried > 0


def test_a_gate_refuses_a_slot_given_back_twice() -> None:
    gate = Gate(1)
    assert gate.try_acquire()
    assert not gate.try_acquire()
    gate.release()
    with pytest.raises(RuntimeError):
        gate.release()
