"""Events: one a transition, whatever the engine reports how often, and nobody is disturbed when they cannot be had."""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import Any

import pytest

from rowmill_operator.kube.events import (
    BURST_EVENTS,
    EVENTS_A_SECOND,
    JOBS,
    MESSAGE_BYTES,
    QUEUE_EVENTS,
    REPEAT_SECONDS,
    TRIES,
    WORDING_SECONDS,
    EventRecorder,
    Involved,
    event_manifest,
)
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_kube_writer import Lines, Refused, on_simulated_time

JOB = Involved(namespace="support", name="triage", uid="uid-1")
NOW = 1_767_261_600.0


class Api:
    """Holds events by their name, as the API server does. `plan` says what becomes of the next creations."""

    def __init__(self, *plan: Any) -> None:
        self.plan = iter(plan)
        self.events: dict[str, dict[str, Any]] = {}
        self.times: list[float] = []

    async def send(self, namespace: str, manifest: dict[str, Any]) -> None:
        assert namespace == manifest["metadata"]["namespace"]
        self.times.append(asyncio.get_running_loop().time() - 1000.0)
        fate = next(self.plan, None)
        await asyncio.sleep(0)
        if isinstance(fate, Exception):
            raise fate
        name = manifest["metadata"]["name"]
        if name in self.events:
            raise Refused(409)
        self.events[name] = manifest
        if fate == "lost":
            await asyncio.Event().wait()

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(one["reason"], one["message"]) for one in self.events.values()]


class Desk:
    def __init__(self, *plan: Any) -> None:
        self.api = Api(*plan)
        self.ends: list[str] = []
        loop = asyncio.get_running_loop()
        names = itertools.count()
        self.recorder = EventRecorder(
            send=self.api.send,
            instance="rowmill-operator-0",
            log=Lines(),
            now=loop.time,
            wall=lambda: NOW + loop.time() - 1000.0,
            token=lambda: f"{next(names):08x}",
            wrote=self.ends.append,
        )
        self.task = asyncio.create_task(self.recorder.run())

    def tell(self, reason: str, message: str = "…", *, job: Involved = JOB, warning: bool = True) -> bool:
        return self.recorder.tell(job, reason=reason, message=message, warning=warning)


def manifest(**given: Any) -> dict[str, Any]:
    told: dict[str, Any] = {"reason": "Unschedulable", "message": "no node has a GPU", "warning": True}
    return event_manifest(JOB, **{**told, "token": "0f3a", "instance": "rowmill-operator-0", "now": NOW, **given})


def test_an_event_in_full() -> None:
    assert manifest() == {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": "support", "name": "triage.0f3a"},
        "involvedObject": {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "namespace": "support",
            "name": "triage",
            "uid": "uid-1",
        },
        "reason": "Unschedulable",
        "message": "no node has a GPU",
        "type": "Warning",
        "count": 1,
        "firstTimestamp": "2026-01-01T10:00:00Z",
        "lastTimestamp": "2026-01-01T10:00:00Z",
        "source": {"component": "rowmill-operator", "host": "rowmill-operator-0"},
        "reportingComponent": "rowmill-operator",
        "reportingInstance": "rowmill-operator-0",
    }
    assert manifest(warning=False)["type"] == "Normal"


@pytest.mark.parametrize("name", ["a", "x" * 253, "a" * 247 + ".b.c", "a" * 240 + "." * 13])
def test_its_name_is_one_that_the_api_takes(name: str) -> None:
    job = Involved(namespace="support", name=name, uid="u")
    made = event_manifest(job, reason="R", message="m", warning=False, token="0f3a", instance="i", now=NOW)
    event_name = made["metadata"]["name"]
    assert len(event_name) <= 253
    assert event_name.endswith(".0f3a")
    assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", event_name)


def test_its_texts_are_bounded() -> None:
    made = manifest(message="long\n" * 5000, reason="not a word! " * 50)
    assert len(made["message"].encode()) <= MESSAGE_BYTES
    assert "\n" not in made["message"]
    assert re.fullmatch(r"[A-Za-z0-9]{1,128}", made["reason"])
    assert manifest(reason="!")["reason"] == "Unknown"


@on_simulated_time
async def test_what_stays_so_is_told_once() -> None:
    desk = Desk()
    for _ in range(500):
        desk.tell("Unschedulable", "no node has a GPU")
        await pass_time(2.0)
    assert desk.api.told == [("Unschedulable", "no node has a GPU")]
    assert desk.ends == ["ok"]


@on_simulated_time
async def test_each_transition_is_told() -> None:
    desk = Desk()
    told = [("Pending", "a"), ("Running", "b"), ("ImagePullFailed", "c"), ("Completed", "d")]
    for reason, message in told:
        assert desk.tell(reason, message)
        await pass_time(0.25)
    assert desk.api.told == told


@on_simulated_time
async def test_a_cause_that_comes_and_goes_is_not_a_flood() -> None:
    desk = Desk()
    for _ in range(300):  # ten minutes
        desk.tell("Unschedulable", "no room")
        await pass_time(1.0)
        desk.tell("Running", "rows")
        await pass_time(1.0)
    assert len(desk.api.told) <= 2 * (600 / REPEAT_SECONDS + 1)
    assert len(desk.api.told) >= 4


@on_simulated_time
async def test_other_words_of_one_reason_are_told_a_minute_apart() -> None:
    desk = Desk()
    for n in range(240):
        desk.tell("SourceUnavailable", f"refused {n}")
        await pass_time(1.0)
    assert len(desk.api.told) == 240 / WORDING_SECONDS
    assert desk.api.told[0] == ("SourceUnavailable", "refused 0")


@on_simulated_time
async def test_a_new_operator_does_not_tell_again_what_the_conditions_say() -> None:
    desk = Desk()
    desk.recorder.seed(JOB, reason="InvalidSpec", message="spec.executor: one is needed")
    assert not desk.tell("InvalidSpec", "spec.executor: one is needed")
    assert desk.tell("Running")


@on_simulated_time
async def test_a_job_that_is_made_again_tells_anew() -> None:
    desk = Desk()
    assert desk.tell("Completed")
    assert desk.tell("Completed", job=Involved(namespace="support", name="triage", uid="uid-2"))
    desk.recorder.forget("uid-1")
    assert desk.tell("Completed")


@on_simulated_time
async def test_what_is_remarked_beside_it_changes_nothing_of_what_a_job_tells() -> None:
    desk = Desk()
    assert desk.tell("Completed")
    for status in (404, 503):
        await pass_time(2 * REPEAT_SECONDS)
        assert desk.recorder.remark(JOB, reason="NotifyFailing", message=f"it answers {status}", warning=True)
        assert not desk.tell("Completed"), "it has told that all the time"
    desk.recorder.forget(JOB.uid)
    assert desk.recorder._jobs == {}


@on_simulated_time
async def test_jobs_do_not_hush_each_other() -> None:
    desk = Desk()
    for n in range(20):
        assert desk.tell("InvalidSpec", "same", job=Involved(namespace="support", name=f"job-{n}", uid=f"u{n}"))
    await pass_time(1.0)
    assert len(desk.api.events) == 20


@on_simulated_time
async def test_the_rate_over_all_jobs_is_bounded() -> None:
    desk = Desk()
    for n in range(200):
        desk.tell("InvalidSpec", job=Involved(namespace="support", name=f"job-{n}", uid=f"u{n}"))
    await pass_time(0.01)
    assert len(desk.api.events) == BURST_EVENTS
    await pass_time(10.0)
    assert len(desk.api.events) == BURST_EVENTS + 10 * EVENTS_A_SECOND
    await pass_time(60.0)
    assert len(desk.api.events) == 200


@on_simulated_time
async def test_a_full_queue_drops_and_the_job_may_tell_it_later() -> None:
    desk = Desk()
    jobs = [Involved(namespace="support", name=f"job-{n}", uid=f"u{n}") for n in range(QUEUE_EVENTS + 1)]
    told = [desk.tell("InvalidSpec", job=job) for job in jobs]
    assert told == [True] * QUEUE_EVENTS + [False]
    assert desk.ends == ["dropped"]
    await pass_time(100.0)
    assert desk.tell("InvalidSpec", job=jobs[-1])
    await pass_time(1.0)
    assert len(desk.api.events) == QUEUE_EVENTS + 1


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_a_refusal_ends_the_event_and_the_next_one_goes(status: int) -> None:
    """403 is what a namespace says that is being deleted, 404 one that is gone."""

    async def main() -> None:
        desk = Desk(Refused(status))
        desk.tell("Running")
        desk.tell("Completed")
        await pass_time(1.0)
        assert len(desk.api.times) == 2
        assert desk.ends == ["failed", "ok"]
        assert not desk.task.done()

    simulate(main)


@pytest.mark.parametrize("error", [Refused(429), Refused(503), OSError("refused"), ValueError("what?")])
def test_a_server_that_is_away_is_tried_a_few_times(error: Exception) -> None:
    async def main() -> None:
        desk = Desk(error, error)
        desk.tell("Running")
        await pass_time(5.0)
        assert desk.ends == ["ok"]
        assert len(desk.api.times) == 3
        desk.api.plan = iter([error] * 50)
        desk.tell("Completed")
        await pass_time(60.0)
        assert desk.ends == ["ok", "failed"]
        assert len(desk.api.times) == 3 + TRIES

    simulate(main)


@on_simulated_time
async def test_an_event_whose_reply_was_lost_is_there_once() -> None:
    desk = Desk("lost")
    desk.tell("Running")
    await pass_time(60.0)
    assert desk.api.told == [("Running", "…")]
    assert desk.ends == ["ok"]


@on_simulated_time
async def test_what_is_remembered_is_bounded() -> None:
    desk = Desk()
    for n in range(JOBS + 50):
        desk.recorder.seed(Involved(namespace="n", name="j", uid=str(n)), reason="Running", message="m")
    assert len(desk.recorder._jobs) == JOBS
    for n in range(100):
        desk.tell(f"R{n}")
    assert len(desk.recorder._jobs[JOB.uid].before) <= 8
