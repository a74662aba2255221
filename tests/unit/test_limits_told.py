"""Limits of a group that differ: how often they are looked up, and what people are told, where."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.limits import MOST_JOBS, GroupLimits, LimitsTold, say_limits
from rowmill.status import Phase, RunStatus
from rowmill.window import LimitsLook, Standing, Window
from rowmill_cli.kubectl.client import Access
from rowmill_cli.kubectl.page import page
from rowmill_cli.kubectl.view import JobView
from rowmill_cli.progress import describe
from rowmill_cli.report import Ending, render
from rowmill_operator.engine.limits_watch import LimitsWatch, limits_watch, no_limits
from rowmill_operator.kube.events import REPEAT_SECONDS, WORDING_SECONDS, EventRecorder, Involved
from rowmill_operator.kube.limits_events import LimitsEvents
from tests.support.kube_lab import Noted, batch_job, parsed

OWN = GroupLimits(requests_per_minute=600, max_in_flight=4)
SAME = LimitsTold("triage", OWN, OWN)
LOWERED = LimitsTold("triage", OWN, GroupLimits(60, 9000, 4), ("shop/slow",))
BOTH = replace(LOWERED, lowers=("shop/wide",))


def test_one_line_says_whose_limits_hold_and_for_whom() -> None:
    assert say_limits(SAME) == ""
    assert say_limits(BOTH) == (
        "limits group triage: shop/slow set lower limits, and the lowest hold: 60 requests a minute (this job sets "
        "600), 9,000 tokens a minute (this job sets none); shop/wide set higher limits or none, and this job's hold "
        "for them too: 4 calls at once"
    )
    many = tuple(f"shop/{n}" for n in range(MOST_JOBS))
    assert "shop/4 and perhaps others set lower limits" in say_limits(replace(LOWERED, lowered_by=many))


class Books:
    """Answers a look with what is next; counts."""

    def __init__(self) -> None:
        self.looks = 0
        self.next: Standing | Exception = Standing(OWN, [], [])

    async def standing(self, job: str, own: GroupLimits) -> Standing:
        self.looks += 1
        assert (job, own) == ("job", OWN)
        if isinstance(self.next, Exception):
            raise self.next
        return self.next


async def test_a_look_every_few_seconds_and_a_redis_that_is_away_changes_nothing() -> None:
    books, now = Books(), [0.0]
    watch = LimitsWatch(
        books=cast(LimitsLook, books),
        group="triage",
        namespace="shop",
        job="job",
        own=OWN,
        now=lambda: now[0],
        every=3.0,
    )
    books.next = StoreUnavailable("Redis at nowhere")
    assert await watch.look() == SAME, "before anything is known the manifest's own"
    books.next = Standing(LOWERED.held, ["slow"], [])
    now[0] = 2.9
    assert await watch.look() == SAME
    assert books.looks == 1
    now[0] = 3.0
    assert await watch.look() == LOWERED
    books.next = StoreUnavailable("Redis at nowhere")
    now[0] = 6.0
    assert await watch.look() == LOWERED
    books.next = Standing(OWN, [], [])
    now[0] = 9.0
    assert await watch.look() == SAME
    assert books.looks == 4


def test_only_a_run_that_calls_under_limits_looks() -> None:
    def looks(**spec: Any) -> bool:
        spec = {"mode": "Run", **spec}
        window = cast(Window, type("Window", (), {"limits_look": lambda self, **_: Books()})())
        return limits_watch(
            parsed(batch_job(**spec)).spec, RunIdentity("i", "default", "job", "1"), window=window, now=lambda: 0.0
        ) is not no_limits  # fmt: skip

    assert looks(limits={"group": "g"})
    assert not looks()
    assert not looks(limits={"group": "g"}, mode="Simulate")
    assert asyncio.run(no_limits()) is None  # type: ignore[func-returns-value]


class Desk:
    """A job's events on a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.recorder = EventRecorder(
            send=self._send, instance="i", log=cast(Any, Noted()), now=lambda: self.now, wall=lambda: self.now,
            token=lambda: "t",
        )  # fmt: skip
        self.limits = LimitsEvents(Involved("shop", "job", "u"), self.recorder)

    async def _send(self, namespace: str, body: dict[str, Any]) -> None:
        raise AssertionError("nothing is sent here")

    def saw(self, told: LimitsTold | None, phase: Phase = Phase.RUNNING) -> list[tuple[str, str, str]]:
        """The events that this makes."""
        self.limits.saw(RunStatus(phase=phase, limits=told))
        made = [(one["type"], one["reason"], one["message"]) for one in self.recorder._queue]
        self.recorder._queue.clear()
        return made


def test_an_event_once_for_each_change() -> None:
    desk = Desk()
    assert desk.saw(SAME) == []
    assert desk.saw(LOWERED) == [("Normal", "LimitsDiffer", say_limits(LOWERED))]
    assert desk.saw(LOWERED) == []
    assert desk.saw(None, Phase.PENDING) == [], "an engine that begins again knows nothing yet"
    assert desk.saw(LOWERED) == []
    assert desk.saw(BOTH) == [], "other words too soon"
    desk.now += WORDING_SECONDS
    assert desk.saw(BOTH) == [("Normal", "LimitsDiffer", say_limits(BOTH))], "are not forgotten"
    assert [reason for _, reason, _ in desk.saw(SAME)] == ["LimitsAgree"]
    assert desk.saw(LOWERED, Phase.COMPLETE) == []


def test_what_was_told_before_a_restart_is_not_told_again() -> None:
    desk = Desk()
    desk.limits.known(LimitsTold("", LOWERED.held, LOWERED.held, LOWERED.lowered_by))  # as a status is read back
    assert desk.saw(LOWERED) == []
    desk.now += REPEAT_SECONDS
    assert [reason for _, reason, _ in desk.saw(SAME)] == ["LimitsAgree"]


def test_the_command_line_says_it_while_it_runs_and_in_the_report() -> None:
    status = RunStatus(phase=Phase.RUNNING, limits=BOTH)
    assert say_limits(BOTH) in describe(status)
    assert "limits" not in describe(replace(status, limits=SAME))
    ending = Ending(RunIdentity("i", "shop", "job", "1"), status, 1.0, Path("state"), "rowmill run")
    assert f"When it was last seen: {say_limits(BOTH)}." in render(ending).splitlines()
    assert "limits" not in render(replace(ending, status=replace(status, limits=SAME)))


def test_the_page_of_a_job_says_it_of_its_spec_and_status() -> None:
    body = batch_job("job", namespace="shop", limits={"group": "triage", "requestsPerMinute": 600, "maxInFlight": 4})
    held = {"requestsPerMinute": 60, "tokensPerMinute": 9000, "maxInFlight": 4, "loweredBy": ["shop/slow"]}
    body["status"] = {"phase": "Running", "limits": {**held, "lowers": ["shop/wide"]}}
    said = page(JobView(body), access=Access(), now=0.0)
    assert f"  limits        {say_limits(BOTH).removeprefix('limits ')}" in said.splitlines()
    body["status"]["limits"] = {"requestsPerMinute": 600, "maxInFlight": 4}
    assert "limits" not in page(JobView(body), access=Access(), now=0.0)
    for strange in ("x", {"loweredBy": "shop/slow"}, {"loweredBy": [3, None]}, {"requestsPerMinute": "1"}):
        body["status"]["limits"] = strange
        assert "limits" not in page(JobView(body), access=Access(), now=0.0)
