"""Tables C and E: limits of a group, over all its workers and jobs, measured at the endpoint."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from rowmill.limits import GroupLimits, LimitsTold
from rowmill.spec import BatchJob
from rowmill.status import RunStatus
from rowmill_operator.engine import limits_watch
from tests.support.endpoint import Behaviour, Call, Endpoint, Plan, read_log, spawn
from tests.support.grants_sim import most_in
from tests.support.inprocess import KeepLast, lab, manifest
from tests.support.rig import Rig

ROWS = 100
RATE = 1800
IN_FLIGHT = 8
LATE = 2.0
"""Seconds that a call may reach its endpoint late."""


def at_once(calls: list[Call]) -> int:
    """The most calls that the endpoint had in flight at one time."""
    marks = [(call.start, 1) for call in calls] + [(call.end, -1) for call in calls if call.end is not None]
    most = now = 0
    for _, step in sorted(marks):
        now += step
        most = max(most, now)
    return most


@pytest.mark.slow
async def test_two_jobs_share_a_group_while_workers_come_and_die(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    log = tmp_path / "calls"
    spec = {
        "limits": {"group": "triage", "requestsPerMinute": RATE, "maxInFlight": IN_FLIGHT},
        "concurrency": {"perWorker": 16},
        "timeoutSeconds": 2,
    }
    async with spawn(plan={"default": {"kind": "echo", "latency": 0.05}}, log=log) as endpoint:
        folders = [tmp_path / name for name in ("one", "two")]
        rigs = []
        for folder in folders:
            folder.mkdir()
            rigs.append(
                Rig(folder, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint, name=folder.name)
            )
        one, two = rigs
        async with one, two:
            for rig in rigs:
                rig.table(ROWS, text=rig.identity.name)
                rig.job(**spec)
                await rig.start_engine()
            first, second, _ = await asyncio.gather(one.start_worker(), one.start_worker(), two.start_worker())
            await endpoint.wait(calls=60)
            first.kill()
            await two.start_worker()
            await endpoint.wait(calls=110)
            second.kill()
            await asyncio.gather(one.start_worker(), *(rig.complete() for rig in rigs))
    calls = sorted(read_log(log), key=lambda call: call.start)
    assert at_once(calls) <= IN_FLIGHT
    gap = 62 / RATE
    for seconds in (1.0, 5.0, 15.0):
        most = most_in([(call.start, 1) for call in calls], seconds)
        assert most <= (seconds + LATE) / gap + 1, f"in {seconds} s: by this pace 60 s never see more than {RATE}"
    assert len(calls) <= 2 * ROWS + 2 * IN_FLIGHT, "only what died with its worker was called again"


async def test_a_late_urgent_job_overtakes(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    limits = {"group": "g", "requestsPerMinute": 1500}
    concurrency = {"perWorker": 32}
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo")), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        slow = manifest(
            endpoint.url,
            name="slow",
            rows=[{"id": f"s{n}"} for n in range(400)],
            limits=limits,
            concurrency=concurrency,
        )
        urgent = manifest(
            endpoint.url,
            name="urgent",
            rows=[{"id": f"u{n}"} for n in range(100)],
            limits={**limits, "priority": 10},
            concurrency=concurrency,
        )
        driving = asyncio.create_task(stores.drive(slow))
        async with stores.worker(slow):
            await endpoint.wait(calls=20)
            hurrying = asyncio.create_task(stores.drive(urgent))
            async with stores.worker(urgent):
                await asyncio.wait_for(hurrying, 60)
            assert not driving.done()
            await endpoint.wait(calls=endpoint.stats()["calls"] + 20)  # and then those behind go on
            driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
    calls = sorted(read_log(tmp_path / "calls"), key=lambda call: call.start)
    places = [n for n, call in enumerate(calls) if call.row and call.row.startswith("u")]
    between = Counter(call.row[0] for call in calls[places[0] : places[-1]] if call.row)
    assert len(places) == 100
    assert between["s"] <= 20, "what had its permit already when the urgent job came, and little else"


class Heard(KeepLast):
    """Keeps every status, and lets a test wait for one."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Condition()

    async def report(self, status: RunStatus) -> None:
        async with self._more:
            await super().report(status)
            self._more.notify_all()

    async def until_limits(self, wanted: LimitsTold) -> None:
        """Wait until this is told, now or later."""
        try:
            async with asyncio.timeout(90), self._more:
                await self._more.wait_for(lambda: bool(self.all) and self.all[-1].limits == wanted)
        except TimeoutError:
            raise AssertionError(f"never told {wanted}, but {[one.limits for one in self.all[-3:]]}") from None


async def test_both_jobs_are_told_of_limits_that_differ_and_the_other_when_one_has_ended(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two engines of one group: what holds is told by each; when one has ended the other's own limits hold again."""
    monkeypatch.setattr(limits_watch, "LOOK_SECONDS", 0.1)
    held = Behaviour("echo", held=True)
    async with (
        Endpoint(plan=Plan(default=held)) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):

        def job(name: str, **limits: int) -> BatchJob:
            rows = [{"id": f"{name}-{n}"} for n in range(6)]
            return manifest(endpoint.url, name=name, rows=rows, timeoutSeconds=600, limits={"group": "g", **limits})

        slow, wide = job("slow", requestsPerMinute=600), job("wide", requestsPerMinute=6000, maxInFlight=20)
        own = {"slow": GroupLimits(600), "wide": GroupLimits(6000, 0, 20)}
        told = {"slow": Heard(), "wide": Heard()}
        driving = [asyncio.create_task(stores.drive(one, sink=told[one.metadata.name])) for one in (slow, wide)]
        async with stores.worker(wide):
            async with stores.worker(slow):
                for name, other in (("slow", "default/wide"), ("wide", "default/slow")):
                    both = LimitsTold("g", own[name], GroupLimits(600, 0, 20), lowered_by=(other,), lowers=(other,))
                    await told[name].until_limits(both)
                wides = {f"wide-{n}": [held] * 2 for n in range(6)}
                endpoint.play(Plan(default=Behaviour("echo"), rows=wides))
                endpoint.release()
                assert (await asyncio.wait_for(driving[0], 90)).succeeded == 6
            await told["wide"].until_limits(LimitsTold("g", own["wide"], own["wide"]))
            assert not driving[1].done()
            endpoint.play(Plan(default=Behaviour("echo")))
            endpoint.release()
            assert (await asyncio.wait_for(driving[1], 90)).succeeded == 6
