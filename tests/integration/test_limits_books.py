"""The books of a limits group: the real script in a real Redis, minutes of many workers on a simulated clock.

What counts is what an endpoint sees: calls and tokens in any 60 seconds, calls at once, and who got which share.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis as sync_redis

from rowmill.window import GroupLimits, Window
from tests.support.grants_sim import Group, most_at_once, most_in


@asynccontextmanager
async def group(url: str, seed: int, **how: object) -> AsyncIterator[Group]:
    window = await Window.connect(url)
    try:
        yield Group(window, rng=random.Random(seed), name=f"g{seed}", **how)  # type: ignore[arg-type]
    finally:
        await window.close()


async def churn(sim: Group, jobs: dict[str, GroupLimits], *, seconds: float, slots: int = 12) -> None:
    """Workers of these jobs come, stay a while, and die; one of each stays to the end."""
    rng = random.Random(sim.now)
    for job, limits in jobs.items():
        sim.join(f"{job}-0", job, limits, slots=slots)
    number = 0
    passed = 0.0
    while passed < seconds:
        step = rng.uniform(1.0, 6.0)
        await sim.run(step)
        passed += step
        mortal = [pod.name for pod in sim.pods.values() if pod.alive and not pod.name.endswith("-0")]
        if mortal and rng.random() < 0.5:
            sim.die(rng.choice(mortal))
        elif len(mortal) < 4:
            number += 1
            job = rng.choice(list(jobs))
            sim.join(f"{job}-{number}", job, jobs[job], slots=slots)


@pytest.mark.parametrize("rate", [7, 240])
async def test_requests_a_minute_are_never_passed_and_nearly_all_used(redis_url: str, rate: int) -> None:
    async with group(redis_url, rate, takes=lambda rng: rng.uniform(0.1, 0.4), loses=0.005) as sim:
        limits = GroupLimits(requests_per_minute=rate)
        await churn(sim, {"one": limits, "two": limits}, seconds=190)
        times = [(sent.at, 1) for sent in sim.sent]
        assert most_in(times, 60.0) <= rate
        begin = 1_000_000.0 + 63 + 60 / rate
        steady = [at for at, _ in times if begin < at <= begin + 60]
        assert len(steady) >= 0.85 * rate - 1, "though workers die all the time, with what they were given"


async def test_of_an_undisturbed_group_ninety_five_hundredths_are_used_and_shared_evenly(redis_url: str) -> None:
    async with group(redis_url, 1, takes=lambda rng: rng.uniform(0.1, 0.4)) as sim:
        limits = GroupLimits(requests_per_minute=600)
        for job, workers in {"small": 1, "large": 3}.items():
            for n in range(workers):
                sim.join(f"{job}-{n}", job, limits)
        await sim.run(100)
        steady = [sent for sent in sim.sent if 1_000_010 < sent.at <= 1_000_090]
        assert len(steady) >= 0.95 * 80 / 60 * 600
        assert most_in([(sent.at, 1) for sent in sim.sent], 60.0) <= 600
        by_job = Counter(sent.job for sent in steady)
        assert abs(by_job["small"] - by_job["large"]) <= 0.03 * len(steady), "jobs share evenly, however many workers"
        of_large = [n for worker, n in Counter(s.worker for s in steady).items() if worker.startswith("large")]
        assert max(of_large) - min(of_large) <= 4, "and so do the workers of a job"


async def test_no_more_calls_at_once_than_the_lowest_limit_whoever_dies(redis_url: str) -> None:
    async with group(redis_url, 2, loses=0.02, takes=lambda rng: rng.uniform(0.3, 4.9)) as sim:
        await churn(sim, {"one": GroupLimits(max_in_flight=9), "two": GroupLimits(max_in_flight=7)}, seconds=80)
        assert most_at_once(sim.sent) <= 7
        busy = sum(s.until - s.at for s in sim.sent) / 80
        assert busy > 7 * 0.35, "and they are used"


async def test_tokens_are_reserved_and_what_was_not_used_is_given_back(redis_url: str) -> None:
    def cost(rng: random.Random) -> tuple[int, int]:
        reserved = rng.choice([50, 500, 2000])
        return reserved, rng.randint(reserved // 10, reserved // 2)

    async with group(redis_url, 3, cost=cost, takes=lambda rng: rng.uniform(0.2, 1.0)) as sim:
        limits = GroupLimits(tokens_per_minute=60_000)
        for n in range(3):
            sim.join(f"w{n}", "job", limits, slots=16)
        await sim.run(200)
        used = [(sent.at, sent.tokens) for sent in sim.sent]
        assert most_in(used, 60.0) <= 60_000
        steady = sum(tokens for at, tokens in used if 1_000_080 < at <= 1_000_200)
        assert steady >= 0.75 * 2 * 60_000, "far more than could be sent if what was reserved counted to the end"


async def test_a_late_urgent_job_overtakes_and_those_behind_go_on_when_it_is_done(redis_url: str) -> None:
    async with group(redis_url, 4, takes=lambda rng: 0.2) as sim:
        limits = GroupLimits(requests_per_minute=600)
        sim.join("slow", "slow", limits, slots=20)
        await sim.run(20)
        sim.join("urgent", "urgent", limits, priority=5, slots=20)
        await sim.run(20)
        during = Counter(sent.job for sent in sim.sent if 1_000_022 < sent.at <= 1_000_040)
        assert during["urgent"] > 0.95 * during.total()
        sim.die("urgent")
        await sim.run(20)
        after = Counter(sent.job for sent in sim.sent if 1_000_045 < sent.at <= 1_000_060)
        assert after["slow"] > 0.9 * 15 * 600 / 62


async def test_the_lowest_limits_hold_and_both_jobs_are_told(redis_url: str) -> None:
    async with group(redis_url, 5) as sim:
        high = sim.join("a", "high", GroupLimits(requests_per_minute=600, max_in_flight=50))
        low = sim.join("b", "low", GroupLimits(requests_per_minute=120, tokens_per_minute=9_000))
        await sim.run(2)
        lowest = GroupLimits(120, 9_000, 50)
        told = await high.books.ask([], holds=0)
        assert (told.limits, told.others) == (lowest, ["low"])
        told = await low.books.ask([], holds=0)
        assert (told.limits, told.others) == (lowest, ["high"])
        sim.die("b")
        await sim.run(10)
        told = await high.books.ask([], holds=0)
        assert (told.limits, told.others) == (GroupLimits(600, 0, 50), []), "who has gone is not heard any more"


@pytest.mark.parametrize("limits", [GroupLimits(requests_per_minute=60), GroupLimits(max_in_flight=6)])
async def test_wiped_books_do_not_start_full(redis_url: str, limits: GroupLimits) -> None:
    async with group(redis_url, 6, takes=lambda rng: rng.uniform(0.1, 1.5)) as sim:
        wiping = sync_redis.Redis.from_url(redis_url)
        for n in range(3):
            sim.join(f"w{n}", "job", limits, slots=6)
        for _ in range(12):
            await sim.run(7.3)
            wiping.flushall()
        await sim.run(30)
        wiping.close()
        if limits.max_in_flight:
            assert most_at_once(sim.sent) <= 6
        else:
            assert most_in([(sent.at, 1) for sent in sim.sent], 60.0) <= 60
        assert len(sim.sent) > 30, "and it goes on"


async def test_wiped_books_take_the_last_minutes_tokens_for_spent(redis_url: str) -> None:
    async with group(redis_url, 7, cost=lambda rng: (1000, 1000), takes=lambda rng: 0.2) as sim:
        sim.join("w", "job", GroupLimits(tokens_per_minute=12_000))
        await sim.run(130)
        wiping = sync_redis.Redis.from_url(redis_url)
        wiping.flushall()
        wiping.close()
        await sim.run(130)
        assert most_in([(sent.at, sent.tokens) for sent in sim.sent], 60.0) <= 12_000


async def test_books_that_went_back_in_time_are_corrected_by_the_workers(redis_url: str) -> None:
    async with group(redis_url, 8, takes=lambda rng: 0.2) as sim:
        sim.join("w", "job", GroupLimits(requests_per_minute=30))
        await sim.run(70)
        client = sync_redis.Redis.from_url(redis_url)
        (key,) = client.keys("rowmill:{limits:*")
        old = client.get(key)
        assert isinstance(old, bytes)
        await sim.run(9)
        client.set(key, old)
        client.close()
        await sim.run(70)
        assert most_in([(sent.at, 1) for sent in sim.sent], 60.0) <= 30


async def test_an_endpoint_that_asks_to_be_left_alone_is_by_everybody_and_not_for_ever(redis_url: str) -> None:
    async with group(redis_url, 11, takes=lambda rng: 0.1) as sim:
        pod = sim.join("one", "job", GroupLimits(requests_per_minute=600))
        sim.join("other", "job", GroupLimits(requests_per_minute=600))
        await sim.run(5)
        await pod.books.ask([], holds=pod.held, pause=10.0)
        begin = sim.now
        await sim.run(8)
        assert not [sent for sent in sim.sent if sent.at > begin + 1.5], "but for what was permitted before"
        await sim.run(10)
        assert len([sent for sent in sim.sent if sent.at > begin + 10]) > 50
        await pod.books.ask([], holds=pod.held, pause=86_400.0)
        begin = sim.now
        await sim.run(50)
        assert len([sent for sent in sim.sent if sent.at > begin + 31]) > 100


async def test_what_was_given_and_not_used_is_given_again_at_its_own_time(redis_url: str) -> None:
    async with group(redis_url, 10) as sim:
        limits = GroupLimits(requests_per_minute=600)
        one, other = sim.join("one", "job", limits), sim.join("other", "job", limits)
        await one.books.ask([0], holds=0)
        sim.now += 1.0
        given = (await one.books.ask([0] * 4, holds=0)).permits
        sim.now += 0.2
        back = [permit.time for permit in given[-2:]]
        await one.books.ask([], holds=0, unused=[given[0].time - 9, *back], leaves=True)
        again = (await other.books.ask([0] * 2, holds=0)).permits
        assert [permit.time for permit in again] == back, "those that are long past are lost"
        assert (await other.books.ask([0], holds=2)).permits[0].time > back[-1]


async def test_an_ask_that_comes_after_a_younger_one_is_refused(redis_url: str) -> None:
    async with group(redis_url, 9) as sim:
        pod = sim.join("w", "job", GroupLimits(requests_per_minute=6000))
        await pod.books.ask([0, 0], holds=0)
        sim.now += 5
        pod.books._asked -= 1
        assert (await pod.books.ask([0, 0], holds=0)).permits == []
        assert (await pod.books.ask([0, 0], holds=0)).permits != []


async def test_where_a_job_stands_in_its_group_is_seen_without_changing_anything(redis_url: str) -> None:
    async with group(redis_url, 12) as sim:
        raw = sync_redis.Redis.from_url(redis_url)
        look = sim._window.limits_look(installation="sim", namespace="ns", group="g12", clock=lambda: sim.now)
        wide, slow = GroupLimits(600, 0, 4), GroupLimits(60, 9000, 40)
        assert await look.standing("wide", wide) == (wide, [], []), "nobody is there"
        assert raw.keys() == []

        sim.join("w", "wide", wide)
        sim.join("s", "slow", slow)
        await sim.run(1)
        key = "rowmill:{limits:sim:ns:g12}"
        before, left = raw.get(key), raw.pttl(key)
        held = GroupLimits(60, 9000, 4)
        assert await look.standing("wide", wide) == (held, ["slow"], ["slow"]), "each has a lower one"
        assert await look.standing("slow", slow) == (held, ["wide"], ["wide"])
        assert await look.standing("new", GroupLimits()) == (held, ["slow", "wide"], []), "before it has workers"
        assert await look.standing("lowest", GroupLimits(6, 900, 1)) == (GroupLimits(6, 900, 1), [], ["slow", "wide"])
        assert await look.standing("same", held) == (held, [], ["slow", "wide"])
        edited = GroupLimits(6000, 0, 400)
        assert await look.standing("wide", edited) == (slow, ["slow"], []), "whatever its workers have asked with"
        assert raw.get(key) == before
        assert raw.pttl(key) <= left, "a look keeps no books alive"

        for n in range(9):
            sim.join(f"p{n}", f"job-{n}", GroupLimits(60, 0, 4))
        await sim.run(1)
        assert (await look.standing("wide", wide)).lowered_by == ["job-0", "job-1", "job-2", "job-3", "job-4"]
        for n in range(9):
            sim.die(f"p{n}")
        await sim.run(12)
        assert await look.standing("wide", wide) == (held, ["slow"], ["slow"]), "those that died are forgotten"

        last = sim.join("last", "slow", slow)
        sim.die("s")
        sim.die("last")
        while not (await last.books.ask([0], holds=0)).permits:
            sim.now += 0.4
        sim.now += 4  # it asks no more; what it holds may be in flight yet
        assert await look.standing("wide", wide) == (held, ["slow"], ["slow"]), "until its calls' timeout is over"
        sim.now += 13
        assert await look.standing("wide", wide) == (wide, [], []), "though nobody has asked and put the books in order"
        raw.close()
