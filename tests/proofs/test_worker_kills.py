"""`kill -9` of workers: nothing is lost, nothing ends twice, and nothing is paid twice but what was in flight.

What was in flight in a worker that died is told by two records together: the stages that its rows had passed, and the
calls that the endpoint wrote down.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import redis

from rowmill.outcome import State
from rowmill.window.keys import shard_keys
from tests.support.endpoint import Call, spawn
from tests.support.rig import Process, Rig, eventually

ROUNDS = 20
INJECTED = ("claimed", "committed", "unlocked", "finished")
RECORDED = ("committed", "unlocked", "finished")
"""Of these, those at which the rows' outcomes are in the ledger."""


@pytest.mark.timeout(600)
@pytest.mark.slow
async def test_twenty_kills(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with spawn(plan={"default": {"latency": 0.1}}, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rows = 5000
            rig.table(rows)
            rig.job(concurrency={"perWorker": 4}, timeoutSeconds=60)
            await rig.start_engine()
            standing = [await rig.start_worker(), await rig.start_worker()]
            dead: list[Process] = []
            for n in range(ROUNDS):
                await endpoint.hold()  # rows are spent while something happens, not while a process starts
                if n % 2:
                    # This one dies by itself, at an exact point of a block's way, in the middle of work.
                    victim = await rig.start_worker(die_at=INJECTED[n // 2 % 4], after=4)
                    await endpoint.release()
                else:
                    standing.append(await rig.start_worker())
                    victim = standing.pop(0)
                    seen = await endpoint.stats()
                    await endpoint.release()
                    await endpoint.wait(calls=seen["calls"] + 24)
                    await endpoint.hold()
                    # No call that is in flight at the kill may have been answered by then, however late it comes.
                    async with asyncio.timeout(200):
                        while not victim.is_calling(rig.calls()):
                            await endpoint.wait(in_flight=1, all_held=True)
                        await endpoint.wait(in_flight=1, all_held=True)
                    victim.kill()
                    await endpoint.release()
                assert await victim.ended() == -signal.SIGKILL, rig.tail()
                dead.append(victim)
            assert rig.status()["succeeded"] < rows, "the rows were done before the rounds were"
            await endpoint.play({"default": "ok"})
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["failed"]) == (rows, 0), status["errors"]
            assert status["epoch"] == 1, "rows had left the window with no outcome, and had to be fed again"

            calls = rig.calls()
            in_flight = [worker.was_running(calls) for worker in dead]
            print("rows in flight in each killed worker:", [len(running) for running in in_flight])
            for worker, running in zip(dead, in_flight, strict=True):
                assert running, f"{worker.name} died with no row in flight"
                again = {int(call.row) for call in calls if call.row and call.start > worker.died_at}
                assert running & again, f"{worker.name}: nothing was delivered again"
            duplicates = calls_too_many(calls)
            assert set(duplicates) <= set().union(*in_flight), "a row was called twice that was in flight nowhere"
            allowed = Counter(row for running in in_flight for row in running)
            assert all(duplicates[row] <= allowed[row] for row in duplicates), duplicates - allowed
            history = await rig.history()
            history.assert_clean(allowed_duplicates=allowed.total(), allowed_overlaps=0)
            assert not history.late_calls, "a row was called again after its outcome was recorded"


def calls_too_many(calls: Sequence[Call]) -> Counter[int]:
    """By row, the calls beyond its first."""
    return Counter({row: n - 1 for row, n in Counter(int(c.row) for c in calls if c.row).items() if n > 1})


def passed(worker: Process, stage: str) -> set[int]:
    """Rows that passed a stage in a worker."""
    return {seq for at in worker.stages() if at.name == stage for seq in at.seqs}


async def test_deaths_between_commit_unlock_and_acknowledgement(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    """The block that died on its way comes back, is found in the ledger, and leaves without a call."""
    rows, last = 400, 400
    async with spawn(plan={"rows": {str(last): [{"held": True}]}}, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(rows)
            rig.job(concurrency={"perWorker": 2}, shards=1)
            await rig.start_engine()
            await rig.until(lambda status: status["fed"] == rows)
            dead = []
            for stage in RECORDED:
                victim = await rig.start_worker(die_at=stage)
                assert await victim.ended() == -signal.SIGKILL, rig.tail()
                dead.append(victim)
            await rig.start_worker()
            # The last row is held, so that the run cannot end before all others have left the window.
            stream = shard_keys((await rig.record()).token, 0, 1).stream
            with redis.Redis.from_url(redis_url) as client:
                await eventually(lambda: client.xlen(stream) == 1)
                assert [entry for entry, _ in client.xrange(stream)] == [f"{last}-0".encode()]
            await endpoint.release()
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["epoch"]) == (rows, 1)

            calls = rig.calls()
            recorded = set().union(*(passed(worker, "committed") for worker in dead))
            assert len(recorded) >= len(RECORDED)
            assert not recorded & set(calls_too_many(calls)), "a recorded row was called again"
            allowed = sum(len(worker.was_running(calls)) for worker in dead)
            history = await rig.history()
            history.assert_clean(allowed_duplicates=allowed, allowed_overlaps=0)
            assert not history.late_calls


@pytest.mark.slow
async def test_a_poison_row_is_convicted_and_nobody_else(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    """Row 30 kills whoever runs it. The rows beside it die with it, time and again, and succeed."""
    poison = {"kind": "kill", "match": "rowmill-worker"}
    plan = {"default": {"latency": 0.2}, "rows": {"30": [poison] * 10}}
    async with spawn(plan=plan, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rows = 60
            rig.table(rows)
            rig.job(concurrency={"perWorker": 4}, shards=1)
            await rig.start_engine()
            async with rig.keep_workers(2):
                status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["failed"]) == (rows - 1, 1), status["errors"]

            (failed,) = (outcome for outcome in await rig.outcomes() if outcome.state is not State.SUCCEEDED)
            assert (failed.seq, failed.error_class) == (30, "PoisonRow")
            assert "died while they ran this row" in str(failed.error_message)
            calls = rig.calls()
            killed = [worker for worker in rig.workers if worker.process.returncode == -signal.SIGKILL]
            deaths = sum(1 for call in calls if call.answered == "killed")
            assert len(killed) == deaths == 5, "one that nobody suspected, two that were counted, two alone"
            beside = set().union(*(worker.was_running(calls) for worker in killed)) - {30}
            assert beside, "the poison row always ran alone: nobody innocent was put to the test"
            print("innocent rows that died beside the poison row:", sorted(beside))
            allowed = sum(len(worker.was_running(calls)) for worker in killed)
            (await rig.history()).assert_clean(allowed_duplicates=allowed, allowed_overlaps=0)


async def test_tries_and_deliveries_are_no_deaths(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    """Rows that were tried twice, then were in flight in one worker that died: nothing that speaks against them."""
    slots = 8
    again = [503, 503, {"held": True}]
    async with spawn(
        plan={"rows": {str(n): again for n in range(1, slots + 1)}}, log=tmp_path / "calls.jsonl"
    ) as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(slots)
            rig.job(concurrency={"perWorker": slots}, retry={"initialSeconds": 0})
            await rig.start_engine()
            victim = await rig.start_worker()
            await endpoint.wait(in_flight=slots, calls=len(again) * slots)
            victim.kill()
            await victim.ended()
            await rig.start_worker()
            await endpoint.release()
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["failed"], status["epoch"]) == (slots, 0, 1), status["errors"]
            calls = rig.calls()
            running = victim.was_running(calls)
            assert running == set(range(1, slots + 1))
            history = await rig.history()
            history.assert_clean(allowed_duplicates=len(running), allowed_overlaps=0)
            assert not history.late_calls
            spent = {outcome.seq: outcome.attempts for outcome in await rig.outcomes()}
            called = Counter(int(call.row) for call in calls if call.row)
            assert all(called[seq] - spent[seq] == (seq in running) for seq in spent), "an attempt was not counted"


async def test_a_worker_that_is_told_to_stop_pays_for_nothing_twice(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rows = 400
            rig.table(rows)
            rig.job(concurrency={"perWorker": 8}, timeoutSeconds=60)
            await endpoint.hold()
            await rig.start_engine()
            first = await rig.start_worker()
            await endpoint.wait(in_flight=8)
            second = await rig.start_worker()
            await endpoint.wait(in_flight=16)
            running = {int(call.row) for call in rig.calls()[:8] if call.row}
            first.signal(signal.SIGTERM)
            handed_back = await first.logged("rows handed back")
            assert handed_back["why"] == "this worker stops"
            assert first.alive, "it did not wait for what it runs"
            await endpoint.release()
            assert await first.ended() == 0
            await first.logged("drained")
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["retried"]) == (rows, 0)

            assert passed(first, "committed") == running, "what ran when the signal came was finished and recorded"
            assert not first.unfinished()
            waiting = passed(first, "claimed") - running
            assert handed_back["rows"] == len(waiting) > 0
            assert waiting <= passed(second, "committed")
            (await rig.history()).assert_clean(allowed_duplicates=0)
