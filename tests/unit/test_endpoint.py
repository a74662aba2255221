"""The endpoint that proofs measure by is itself held to what it says."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.endpoint import Behaviour, Endpoint, Plan, closes, read_log, spawn


async def post(session: aiohttp.ClientSession, url: str, row: Any, **headers: str) -> tuple[int, bytes]:
    async with session.post(url, json={"row": row}, headers=headers) as response:
        return response.status, await response.read()


async def test_each_call_is_logged_with_what_it_was_answered(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    plan = Plan(rows={"2": [Behaviour.of(503), Behaviour("echo")]})
    async with Endpoint(plan=plan, log=log) as endpoint, aiohttp.ClientSession() as session:
        headers = {"Idempotency-Key": "k-1", "X-Request-Id": "r-1"}
        assert await post(session, endpoint.url, 1, **headers) == (200, b'{"row":"1","ok":true}')
        assert (await post(session, endpoint.url, 2))[0] == 503
        assert await post(session, endpoint.url, 2) == (200, b'{"row": 2}')
        async with session.get(endpoint.url, params={"row": "7"}) as response:
            assert (await response.json())["row"] == "7"
        stats = endpoint.stats()
    calls = read_log(log)
    assert [(c.n, c.row, c.answered) for c in calls] == [
        (1, "1", "200"),
        (2, "2", "503"),
        (3, "2", "200"),
        (4, "7", "200"),
    ]
    assert (calls[0].key, calls[0].request_id) == ("k-1", "r-1")
    assert all(c.end is not None and c.end >= c.start for c in calls)
    assert (stats["calls"], stats["closed"], stats["in_flight"], stats["rows"]) == (4, 0, 0, 3)


async def test_held_calls_are_in_flight_until_released(tmp_path: Path) -> None:
    async with Endpoint(log=tmp_path / "log") as endpoint, aiohttp.ClientSession() as session:
        endpoint.hold()
        tasks = [asyncio.create_task(post(session, endpoint.url, n)) for n in range(5)]
        stats = await endpoint.wait(in_flight=5)
        assert stats["in_flight"] == stats["max_in_flight"] == 5
        assert len(read_log(tmp_path / "log")) == 5
        with pytest.raises(TimeoutError):
            await endpoint.wait(in_flight=6, timeout=0.01)
        endpoint.release()
        assert [status for status, _ in await asyncio.gather(*tasks)] == [200] * 5
        assert (await endpoint.wait(idle=True))["in_flight"] == 0


async def test_a_caller_that_goes_away_is_no_longer_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Endpoint(plan=Plan(default=Behaviour("hang")), log=log) as endpoint:
        async with aiohttp.ClientSession() as session:
            task = asyncio.create_task(post(session, endpoint.url, 1))
            await endpoint.wait(in_flight=1)
            task.cancel()
            await endpoint.wait(idle=True)
    assert [c.answered for c in read_log(log)] == ["client gone"]


@pytest.mark.parametrize(
    "kind", ["close_unread", "close_read", "close_mid", "reset", "half", "half_chunked", "garbage"]
)
async def test_every_close_is_one_failure_and_is_counted(kind: str, tmp_path: Path) -> None:
    async with Endpoint(plan=Plan(default=Behaviour(kind)), log=tmp_path / "log") as endpoint:
        async with aiohttp.ClientSession() as session:
            for row in range(3):
                with pytest.raises(aiohttp.ClientError):
                    await post(session, endpoint.url, row)
        await endpoint.wait(idle=True)
        assert endpoint.stats()["closed"] == endpoint.stats()["calls"] == 3
    assert len(list(closes(read_log(tmp_path / "log")))) == 3


async def test_random_closes_follow_the_seed_and_the_rate(tmp_path: Path) -> None:
    counts = []
    for _ in range(2):
        plan = Plan(rate=0.2, seed=7)
        async with Endpoint(plan=plan) as endpoint, aiohttp.ClientSession() as session:
            for row in range(200):
                try:
                    await post(session, endpoint.url, row)
                except aiohttp.ClientError:
                    continue
            counts.append(endpoint.stats()["closed"])
    assert counts[0] == counts[1]
    assert 20 <= counts[0] <= 60


async def test_a_process_of_its_own_is_steered_over_http(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with spawn(
        plan={"default": {"kind": "text", "body": "hi", "content_type": "text/plain"}}, log=log
    ) as endpoint:
        async with aiohttp.ClientSession() as session:
            assert await post(session, endpoint.url, 1) == (200, b"hi")
            await endpoint.play({"default": "echo", "rows": {"9": [429, "reset"]}})
            assert await post(session, endpoint.url, 2) == (200, b'{"row": 2}')
            assert (await post(session, endpoint.url, 9))[0] == 429
            with pytest.raises(aiohttp.ClientError):
                await post(session, endpoint.url, 9)
            await endpoint.hold()
            task = asyncio.create_task(post(session, endpoint.url, 3))
            await endpoint.wait(in_flight=1)
            with pytest.raises(TimeoutError, match="waited in vain"):
                await endpoint.wait(in_flight=2, timeout=0.01)
            await endpoint.release()
            assert (await task)[0] == 200
            stats = await endpoint.wait(idle=True)
        assert (stats["calls"], stats["closed"]) == (5, 1)
        endpoint.process.kill()  # nothing that was answered is lost to a kill
        await endpoint.process.wait()
    assert [c.answered for c in read_log(log)] == ["200", "200", "429", "closed", "200"]


async def test_a_line_cut_by_a_kill_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with Endpoint(log=log) as endpoint, aiohttp.ClientSession() as session:
        await post(session, endpoint.url, 1)
    with log.open("ab") as stream:
        stream.write(b'{"n": 2, "row": "')
    assert len(read_log(log)) == 1


async def test_poison_kills_its_caller_only_when_it_is_the_one_meant() -> None:
    plan = Plan(default=Behaviour("kill", match="the-poisoned-caller"))
    async with Endpoint(plan=plan) as endpoint:
        async with aiohttp.ClientSession() as session:  # this process does not bear the mark, and lives
            assert await post(session, endpoint.url, 1) == (500, b"no process to kill")
        script = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1])"
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, endpoint.url, "the-poisoned-caller", stderr=asyncio.subprocess.DEVNULL
        )
        assert await asyncio.wait_for(process.wait(), 60) == -9


def test_a_behaviour_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no behaviour 'explode'"):
        Behaviour.of("explode")
