"""A BatchJob's webhook, on an API server in memory, real stores and a real receiver."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rowmill.ledger import Notices
from rowmill_operator.kube import controller, deletion
from rowmill_operator.notify import courier, schedule
from tests.support.kube_cluster import Object
from tests.support.kube_lab import KubeLab, batch_job, hurry, kube_lab
from tests.support.webhook import Reply, Webhook

HERE = ("127.0.0.0/8",)
NOT_THERE = {"http": {"url": "http://127.0.0.1:1/", "method": "POST", "body": {"row": "{{ row.id }}"}}}


@pytest.fixture
async def lab(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[KubeLab]:
    """A cluster whose pods execute rows, an operator whose pauses are short, and receivers that may be here."""
    hurry(monkeypatch)
    monkeypatch.setattr(schedule, "FIRST_SECONDS", 0.05)
    monkeypatch.setattr(courier, "LEDGER_RETRY_SECONDS", (0.05, 0.2))
    async with kube_lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as lab:
        yield lab


def notifying(url: str, *events: str, name: str = "job", **spec: Any) -> Object:
    notify: dict[str, Any] = {"url": url}
    if events:
        notify["events"] = list(events)
    return batch_job(name, notify=notify, **spec)


def told_events(lab: KubeLab, reason: str) -> list[Object]:
    return [call.body for call in lab.cluster.made("create events") if call.body["reason"] == reason]


def secret(**data: str) -> Object:
    return {"metadata": {"name": "hook"}, "data": {k: base64.b64encode(v.encode()).decode() for k, v in data.items()}}


async def test_an_endpoint_that_is_down_is_told_once_over_restarts(lab: KubeLab) -> None:
    """The job fails by its policy. The receiver is broken at first, then the operator ends, then it is taken."""
    down = batch_job(
        rows=10,
        mode="Run",
        executor=NOT_THERE,
        retry={"maxAttempts": 1},
        failurePolicy={"maxFailedPercent": 10, "minProcessedRows": 5},
    )
    async with Webhook(500, usual=500) as hook:
        down["spec"]["notify"] = {"url": hook.url}
        async with lab.operator(webhooks=HERE) as operator:
            lab.cluster.put("batchjobs", down)
            job = await lab.until_phase("Failed", within=60)
            await hook.until(2)
            assert operator.sample("rowmill_operator_notifications_total", result="retried")
            assert operator.sample("rowmill_operator_notifications_total", result="delivered") is None
        before = len(hook.told)
        hook.usual = 200
        async with lab.operator(webhooks=HERE) as operator:
            await hook.until(before + 1)
            await operator.until(
                lambda: operator.sample("rowmill_operator_notifications_total", result="delivered") == 1, within=60
            )
            assert operator.log.said("the webhook was told")[0]["job"] == "default/job"
        async with lab.operator(webhooks=HERE) as operator:
            await operator.controller()._notices.courier.ended(within=60)
            lab.cluster.edit("batchjobs", "job", {"spec": {"workers": {"maxReplicas": 3}}})
            await lab.cluster.until(lambda: lab.job()["status"]["observedGeneration"] == 2, within=60)
            await lab.until_phase("Failed", within=60)
            await operator.controller()._notices.courier.ended(within=60)
    assert len(hook.told) == before + 1
    assert len({one.key for one in hook.told}) == 1
    body = hook.told[-1].body
    assert body == hook.told[0].body
    assert (body["event"], body["reason"]) == ("Failed", "FailurePolicyExceeded")
    assert body["job"] == {"namespace": "default", "name": "job", "runId": "1", "generation": 0, "mode": "Run"}
    assert body["rows"]["failed"] >= 5
    assert body["errors"][0]["class"].startswith("Connect")
    assert body["completionTime"] == job["status"]["completionTime"]


async def test_a_receiver_that_never_answers_holds_up_nobody(lab: KubeLab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not its job's status, nor its next run, nor its deletion, nor what another job's receiver is told."""
    monkeypatch.setattr(deletion, "FIRST_TRIES_SECONDS", 0.1)
    async with Webhook(usual=Reply(silent=True)) as slow, Webhook() as quick:
        async with lab.operator(webhooks=HERE):
            lab.cluster.put("batchjobs", notifying(slow.url, name="slow", rows=3))
            await lab.until_phase("Complete", "slow")
            await slow.until(1)
            lab.cluster.edit("batchjobs", "slow", {"spec": {"runId": "2"}})
            await lab.cluster.until(
                lambda: (
                    lab.job("slow")["status"].get("completionTime")
                    and lab.job("slow")["status"]["run"]["id"] == "2~simulate"
                )
            )
            lab.cluster.put("batchjobs", notifying(quick.url, name="quick", rows=3))
            await quick.until(1)
            lab.cluster.delete("batchjobs", "slow")
            await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "slow") is None)
        assert quick.told[0].body["job"]["name"] == "quick"


async def test_what_only_the_operator_reaches_is_refused_and_told(lab: KubeLab) -> None:
    async with Webhook() as hook:
        async with lab.operator() as operator:
            lab.cluster.put("batchjobs", notifying("http://169.254.169.254/latest/", name="metadata"))
            lab.cluster.put("batchjobs", notifying(hook.url, name="loopback"))
            await lab.until_phase("Complete", "metadata")
            await lab.until_phase("Complete", "loopback")
            await lab.cluster.until(lambda: len(told_events(lab, "NotifyFailing")) == 2)
            events = {one["involvedObject"]["name"]: one for one in told_events(lab, "NotifyFailing")}
            assert "metadata service" in events["metadata"]["message"]
            assert "sources.allowAddresses" in events["loopback"]["message"]
            assert events["loopback"]["type"] == "Warning"
            lab.cluster.edit("batchjobs", "loopback", {"spec": {"notify": None}})  # and nobody is told any more
            await lab.cluster.until(lambda: lab.job("loopback")["status"]["observedGeneration"] == 2)
            assert await operator.controller("loopback")._notices.courier.ended(within=60)
            assert len(told_events(lab, "Completed")) == 2, "what jobs tell is told beside it"
        assert hook.told == []


async def test_a_secret_that_comes_later_is_carried_and_stands_nowhere_else(lab: KubeLab) -> None:
    async with Webhook() as hook:
        reference = {"valueFrom": {"secretKeyRef": {"name": "hook", "key": "token"}}}
        notify = {"url": hook.url, "headers": [{"name": "Authorization", **reference}]}
        async with lab.operator(webhooks=HERE) as operator:
            lab.cluster.put("batchjobs", batch_job(notify=notify))
            await lab.cluster.until(lambda: told_events(lab, "NotifyFailing"))
            message = told_events(lab, "NotifyFailing")[0]["message"]
            assert "there is no Secret hook in the namespace default" in message
            assert "spec.notify.headers[0].valueFrom.secretKeyRef" in message
            lab.cluster.put("secrets", secret(token="Bearer 5e3c7e7\n"))
            (told,) = await hook.until(1)
            assert told.headers["Authorization"] == "Bearer 5e3c7e7"
            await lab.cluster.until(lambda: told_events(lab, "Notified"))
            assert "5e3c7e7" not in json.dumps(operator.log.lines, default=str)
        assert "5e3c7e7" not in json.dumps([call.body for call in lab.cluster.calls], default=str)
        workers = lab.cluster.made("create secrets") + lab.cluster.made("patch deployments")
        assert "hook" not in json.dumps([call.body for call in workers], default=str), "workers have no part in it"


async def test_a_job_whose_time_is_over_at_once_is_told_before_it_goes(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Webhook(500, 500) as hook:
        async with lab.operator(webhooks=HERE):
            lab.cluster.put("batchjobs", notifying(hook.url, ttlSecondsAfterFinished=0))
            await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None, within=60)
        assert len(hook.told) == 3
        monkeypatch.setattr(controller, "NOTICES_SECONDS", 0.2)
        hook.usual = 500
        async with lab.operator(webhooks=HERE):
            lab.cluster.put("batchjobs", notifying(hook.url, ttlSecondsAfterFinished=0, runId="2"))
            await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None, within=60)
        assert {one.body["job"]["runId"] for one in hook.told[3:]} == {"2"}, "it stays no longer than it may"


async def test_a_job_that_is_deleted_at_its_end_is_told_once_more(
    lab: KubeLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, going = Notices.record, asyncio.Event()

    async def late(self: Notices, *given: Any, **more: Any) -> bool:
        await going.wait()
        return await record(self, *given, **more)

    monkeypatch.setattr(Notices, "record", late)
    monkeypatch.setattr(deletion, "FIRST_TRIES_SECONDS", 60.0)
    async with Webhook() as hook:
        async with lab.operator(webhooks=HERE):
            lab.cluster.put("batchjobs", notifying(hook.url))
            await lab.until_phase("Complete")
            lab.cluster.delete("batchjobs", "job")
            await lab.until_reason("Deleting")
            await asyncio.sleep(0.3)  # long enough to be gone, were it not waited for
            assert lab.cluster.get("batchjobs", "job") is not None
            going.set()
            await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None)
            assert [one.event for one in hook.told] == ["Complete"]


async def test_each_state_is_told_as_asked_and_the_same_end_once_over_deletion(lab: KubeLab) -> None:
    async with Webhook() as hook:
        asked = ("Complete", "Suspended", "Stalled")
        async with lab.operator(webhooks=HERE) as operator:
            lab.cluster.put("batchjobs", notifying(hook.url, *asked, rows=5, suspend=True))
            await hook.until(1)
            lab.cluster.edit("batchjobs", "job", {"spec": {"concurrency": {"perWorker": 2}}})  # still the same pause
            await lab.cluster.until(lambda: lab.job()["status"]["observedGeneration"] == 2)
            lab.cluster.edit("batchjobs", "job", {"spec": {"suspend": False}})
            await hook.until(2)
            lab.cluster.edit("batchjobs", "job", {"spec": {"timeoutSeconds": 6}})  # frozen
            await hook.until(3)
            lab.cluster.edit("batchjobs", "job", {"spec": {"timeoutSeconds": 5}})
            await lab.until_phase("Complete")
            lab.cluster.delete("batchjobs", "job")
            await lab.cluster.until(lambda: lab.cluster.get("batchjobs", "job") is None)
            lab.cluster.put("batchjobs", notifying(hook.url, *asked, rows=5))
            await lab.until_phase("Complete")
            await operator.until(lambda: operator.hub.controllers)
            assert await operator.controller()._notices.courier.ended(within=60)
            lab.cluster.edit("batchjobs", "job", {"spec": {"timeoutSeconds": -3}})  # nothing in it is trusted any more
            await lab.until_reason("InvalidSpec")
            assert await operator.controller()._notices.courier.ended(within=60)
        assert [one.event for one in hook.told] == ["Suspended", "Complete", "Stalled"]
        assert hook.told[2].body["reason"] == "FrozenFieldChanged"


async def test_a_webhook_that_comes_later_is_told_and_a_retry_of_its_own(lab: KubeLab) -> None:
    errors = [{"class": "HTTP400", "percent": 100, "retryable": False}]
    async with Webhook() as hook:
        async with lab.operator(webhooks=HERE):
            lab.cluster.put("batchjobs", batch_job(rows=3, simulate={"errors": errors}))
            await lab.until_phase("Complete")
            lab.cluster.edit("batchjobs", "job", {"spec": {"notify": {"url": hook.url}}})
            await hook.until(1)
            lab.cluster.edit("batchjobs", "job", {"spec": {"retryGeneration": 1}})
            first, second = await hook.until(2)
        assert [one.body["job"]["generation"] for one in (first, second)] == [0, 1]
        assert first.key != second.key
        assert second.body["reason"] == "CompletedWithFailures"


async def test_a_secret_that_cannot_be_read_for_a_while_loses_no_notification(lab: KubeLab) -> None:
    """The Secret cannot be read for a while; what is open is told when it can."""
    async with Webhook() as hook:
        notify = {"urlFrom": {"secretKeyRef": {"name": "hook", "key": "url"}}}
        lab.cluster.put("secrets", secret(url=hook.url))
        refused = lab.cluster.fail("get secrets/hook", 503, "not now")
        async with lab.operator(webhooks=HERE) as operator:
            lab.cluster.put("batchjobs", batch_job(notify=notify))
            await lab.until_phase("Complete")
            await operator.until(lambda: operator.log.said("the webhook was not told"), within=60)
            lab.cluster.mend(refused)
            await hook.until(1)
        assert hook.url not in json.dumps(operator.log.lines, default=str), "an address may be a secret"
