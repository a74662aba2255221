"""Table C: the same order submitted twice. A declared key is executed once; a row's end is written once."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rowmill.outcome import Outcome, State
from rowmill.spec import BatchJob
from tests.support.endpoint import Behaviour, Endpoint, Plan, read_log
from tests.support.inprocess import Lab, lab, manifest

DEDUPE = {"key": ["id"], "dedupe": {"scope": "Namespace", "group": "orders"}}


async def finish(stores: Lab, job: BatchJob) -> list[Outcome]:
    """Drive one job to its end with one worker; its outcomes."""
    driving = asyncio.create_task(stores.drive(job))
    async with stores.worker(job):
        await asyncio.wait_for(driving, 60)
    return await stores.outcomes(job)


async def test_ten_submitters_of_one_key_make_one_call(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo", latency=0.2)), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        jobs = [manifest(endpoint.url, name=f"order-{n}", rows=[{"id": "A17"}], **DEDUPE) for n in range(10)]
        ends = [end for outcomes in await asyncio.gather(*(finish(stores, job) for job in jobs)) for end in outcomes]
        assert endpoint.stats()["calls"] == 1
    states = Counter(end.state for end in ends)
    assert states == {State.SUCCEEDED: 1, State.DEDUPLICATED: 9}
    winner = next(n for n, end in enumerate(ends) if end.state is State.SUCCEEDED)
    assert {end.result for end in ends} == {ends[winner].result}, "ten consistent answers"
    told = {end.duplicate_of for end in ends if end.state is State.DEDUPLICATED}
    assert told == {f"default/order-{winner}/1#1"}, "each duplicate names the winner's job and row"
    (call,) = read_log(tmp_path / "calls")
    assert call.key is not None
    assert call.key.startswith("key-"), "the idempotency key is that of the declared key, not of the row"


async def test_equal_rows_of_one_job_run_once_and_later_jobs_meet_the_claim(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo")), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        rows = [{"id": str(n % 7)} for n in range(70)]
        first = await finish(stores, manifest(endpoint.url, name="first", rows=rows, **DEDUPE))
        assert Counter(end.state for end in first) == {State.SUCCEEDED: 7, State.DEDUPLICATED: 63}
        later = await finish(stores, manifest(endpoint.url, name="later", rows=rows[:7], **DEDUPE))
        assert {end.state for end in later} == {State.DEDUPLICATED}
        assert endpoint.stats()["calls"] == 7
        other = await finish(stores, manifest(endpoint.url, name="other", namespace="b", rows=rows[:7], **DEDUPE))
        assert {end.state for end in other} == {State.SUCCEEDED}, "another namespace is another scope"


async def test_another_prompt_is_not_a_duplicate(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo"))) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        job = manifest(endpoint.url, name="one", rows=[{"id": "A"}], **DEDUPE)
        http = {"url": endpoint.url, "method": "POST", "body": {"row": "{{ row.id }}", "prompt": "another"}}
        other = manifest(endpoint.url, name="two", rows=[{"id": "A"}], executor={"http": http}, **DEDUPE)
        assert [end.state for end in await finish(stores, job)] == [State.SUCCEEDED]
        assert [end.state for end in await finish(stores, other)] == [State.SUCCEEDED]
        assert endpoint.stats()["calls"] == 2


@pytest.mark.parametrize(("on_failed", "state", "calls"), [("Rerun", State.SUCCEEDED, 2), ("Share", State.FAILED, 1)])
async def test_what_follows_a_failed_winner_is_declared(
    tmp_path: Path, redis_url: str, postgres_dsn: str, on_failed: str, state: State, calls: int
) -> None:
    plan = Plan(default=Behaviour("echo"), rows={"A": [Behaviour.of(400)]})
    async with (
        Endpoint(plan=plan) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        rule: dict[str, Any] = {"key": ["id"], "dedupe": {"scope": "Namespace", "onFailed": on_failed}}
        (failed,) = await finish(stores, manifest(endpoint.url, name="one", rows=[{"id": "A"}], **rule))
        assert (failed.state, failed.error_class) == (State.FAILED, "HTTP400")
        (second,) = await finish(stores, manifest(endpoint.url, name="two", rows=[{"id": "A"}], **rule))
        assert second.state is state
        assert endpoint.stats()["calls"] == calls
        if on_failed == "Share":
            assert second.error_class == "DuplicateOfFailed"
            assert second.duplicate_of == "default/one/1#1"


async def test_a_key_that_waits_for_its_retry_is_not_taken_over(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    """Two jobs, one key, an endpoint that fails twice: the owner comes back to it, the other job never calls."""
    plan = Plan(default=Behaviour("echo"), rows={"A": [Behaviour.of(503), Behaviour.of(503)]})
    async with (
        Endpoint(plan=plan, log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        retry = {"retry": {"maxAttempts": 5, "initialSeconds": 1, "maxSeconds": 1}}
        jobs = [manifest(endpoint.url, name=f"j{n}", rows=[{"id": "A"}], **DEDUPE, **retry) for n in range(2)]
        ends = [end for ends in await asyncio.gather(*(finish(stores, job) for job in jobs)) for end in ends]
    assert Counter(end.state for end in ends) == {State.SUCCEEDED: 1, State.DEDUPLICATED: 1}
    jobs_that_called = {(call.request_id or "").split("#")[0] for call in read_log(tmp_path / "calls")}
    assert len(jobs_that_called) == 1


@pytest.mark.slow
async def test_a_burst_is_queued_not_dropped_and_not_duplicated(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    """100 jobs at once whose 500 rows share 100 keys, 50 workers writing at a time."""
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo", latency=0.01)), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, connections=12) as stores,
    ):
        jobs = [
            manifest(
                endpoint.url,
                name=f"burst-{n}",
                rows=[{"id": str((n * 5 + i) % 100)} for i in range(5)],
                shards=1,
                **DEDUPE,
            )
            for n in range(100)
        ]
        writers = asyncio.Semaphore(50)

        async def run(job: BatchJob) -> list[Outcome]:
            driving = asyncio.create_task(stores.drive(job))
            async with writers, stores.worker(job):
                await asyncio.wait_for(driving, 90)
            return await stores.outcomes(job)

        ends = await asyncio.gather(*map(run, jobs))
    assert [len(outcomes) for outcomes in ends] == [5] * 100, "every row is accounted for"
    states = Counter(end.state for outcomes in ends for end in outcomes)
    assert states == {State.SUCCEEDED: 100, State.DEDUPLICATED: 400}
    calls = Counter(call.row for call in read_log(tmp_path / "calls"))
    assert set(calls.values()) == {1}
    assert len(calls) == 100


async def test_concurrent_writers_of_one_row_leave_one_outcome(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, connections=50) as stores:
        job = manifest("http://127.0.0.1:1/", rows=1)
        record = await stores.ledger.runs.ensure(stores.identity(job), frozen={}, shards=1, row_limit=None)

        def end(n: int) -> Outcome:
            state = State.SUCCEEDED if n % 2 else State.FAILED
            return Outcome(1, state, 1, result=json.dumps(n), error_class=None if n % 2 else "E", error_message="m")

        writers = [stores.ledger.work(record, worker=f"w{n}") for n in range(50)]
        written = await asyncio.gather(*(w.commit([end(n)], generation=0) for n, w in enumerate(writers)))
        assert sum(written) == 1
        (first,) = [o async for page in stores.ledger.results(record) for o in page]
        await asyncio.gather(*(w.commit([end(n)], generation=0) for n, w in enumerate(writers)))
        (second,) = [o async for page in stores.ledger.results(record) for o in page]
        assert second == first, "a finished row never changes"
        counts = await stores.ledger.runs.progress(record)
        assert counts.rows == 1
