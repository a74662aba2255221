"""What is told of a run and when, and what follows a try. Pure."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput, RowmillError
from rowmill.spec import parse_job
from rowmill.spec.notify import Notify
from rowmill.spec.source import KeyReference
from rowmill.spend import Pause
from rowmill.spend import Reason as PauseReason
from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.status import Output, status_document
from rowmill_operator.kube.worker_manifest import manifest_for_workers
from rowmill_operator.notify import Answer, NotReady, Occasion, occasion_of, resolve
from rowmill_operator.notify.schedule import (
    FIRST_SECONDS,
    GIVE_UP_SECONDS,
    LONGEST_ASKED_SECONDS,
    LONGEST_SECONDS,
    retry_after_of,
    wait_after,
)
from rowmill_operator.notify.target import signature

ALL = ("Complete", "Failed", "Suspended", "Stalled")
NOW = 1_800_000_000.0


def seen(
    run: RunStatus, *, events: tuple[str, ...] = ALL, previous: dict[str, Any] | None = None, **given: Any
) -> Occasion | None:
    document = status_document(
        run, run_id=given.pop("run_id", "1"), observed_generation=3, now=NOW, previous=previous, **given
    )
    return occasion_of(document, events=events, namespace="ns", name="job")


DONE = RunStatus(
    phase=Phase.COMPLETE, generation=2, epoch=7, total=9, succeeded=8, failed=1, errors=[ErrorCount("HTTP503", 1, 4)]
)


# -- what is told


def test_the_end_of_a_run_is_told_with_its_counts_and_no_row() -> None:
    occasion = seen(DONE, output=Output("s3://b/1/", 2, "s3://b/1/failures.jsonl"), ended_at=NOW - 5)
    assert occasion is not None
    assert (occasion.event, occasion.generation, occasion.mark) == ("Complete", 2, "7")
    assert occasion.body == {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "Notification",
        "event": "Complete",
        "time": "2027-01-15T07:59:55Z",
        "job": {"namespace": "ns", "name": "job", "runId": "1", "generation": 2, "mode": "Run"},
        "phase": "Complete",
        "reason": "CompletedWithFailures",
        "message": occasion.body["message"],
        "rows": {"total": 9, "queued": 0, "running": 0, "succeeded": 8, "failed": 1, "retried": 0, "deduplicated": 0},
        "successRate": "88.88%",
        "startTime": "2027-01-15T08:00:00Z",
        "completionTime": "2027-01-15T07:59:55Z",
        "output": {"uri": "s3://b/1/", "parts": 2, "failures": "s3://b/1/failures.jsonl"},
        "errors": [{"class": "HTTP503", "count": 1, "exampleRow": 4}],
    }
    assert "retryGeneration" in occasion.body["message"]


@pytest.mark.parametrize(
    ("run", "trouble", "event", "reason"),
    [
        (RunStatus(), None, None, ""),
        (RunStatus(phase=Phase.RUNNING), None, None, ""),
        (RunStatus(phase=Phase.RUNNING), Trouble(Reason.SECRET_MISSING, "m", 10), None, ""),
        (RunStatus(phase=Phase.RUNNING), Trouble(Reason.SECRET_MISSING, "m", 600), "Stalled", "SecretMissing"),
        (RunStatus(phase=Phase.RUNNING), Trouble(Reason.WAITING_FOR_STORE, "m", 600), None, ""),
        (RunStatus(phase=Phase.SUSPENDED), None, "Suspended", "Suspended"),
        (RunStatus(phase=Phase.FAILED, message="m"), None, "Failed", "FailurePolicyExceeded"),
        (DONE, Trouble(Reason.FROZEN_FIELD_CHANGED, "m"), "Stalled", "FrozenFieldChanged"),
    ],
)
def test_what_is_an_occasion(run: RunStatus, trouble: Trouble | None, event: str | None, reason: str) -> None:
    occasion = seen(run, trouble=trouble)
    assert (occasion.event if occasion else None) == event
    assert (occasion.body["reason"] if occasion else "") == reason
    if event is not None:
        assert seen(run, trouble=trouble, events=tuple(e for e in ALL if e != event)) is None


def test_refused_calls_are_told_to_whoever_listens_to_stalled_or_to_suspended() -> None:
    refused = RunStatus(phase=Phase.SUSPENDED, pause=Pause(PauseReason.REFUSED, "m", NOW, until=NOW + 60))
    told = {listens: seen(refused, events=listens) for listens in (ALL, ("Stalled",), ("Suspended",), ("Failed",))}
    assert [(one.event, one.body["reason"]) if one else None for one in told.values()] == [
        ("Stalled", "CallsRefused"),
        ("Stalled", "CallsRefused"),
        ("Suspended", "CallsRefused"),
        None,
    ]


def test_nothing_is_told_of_a_job_that_is_being_deleted() -> None:
    assert seen(DONE, deleting=True) is None


def test_the_same_end_is_the_same_occasion_and_another_is_not() -> None:
    first, again = seen(DONE), seen(DONE, ended_at=NOW + 99)
    assert first is not None
    assert again is not None
    assert first.key == again.key
    other = seen(RunStatus(phase=Phase.COMPLETE, generation=2, epoch=8, total=20, succeeded=20))
    assert other is not None
    assert other.key != first.key


def test_a_pause_is_told_once_for_as_long_as_it_lasts() -> None:
    def document(run: RunStatus, now: float, previous: dict[str, Any] | None) -> dict[str, Any]:
        return status_document(run, run_id="1", observed_generation=1, now=now, previous=previous)

    def mark(document: dict[str, Any]) -> str:
        occasion = occasion_of(document, events=ALL, namespace="ns", name="job")
        assert occasion is not None
        return occasion.mark

    paused, going = RunStatus(phase=Phase.SUSPENDED, succeeded=3), RunStatus(phase=Phase.RUNNING)
    first = document(paused, NOW, None)
    still = document(paused, NOW + 60, first)
    second = document(paused, NOW + 120, document(going, NOW + 90, still))
    assert mark(first) == mark(still) == "20270115T080000Z"
    assert mark(second) != mark(first)


def test_a_simulated_run_says_so() -> None:
    occasion = seen(DONE, run_id="1~simulate")
    assert occasion is not None
    assert occasion.run_id == "1~simulate"
    assert (occasion.body["job"]["runId"], occasion.body["job"]["mode"]) == ("1", "Simulate")


@given(
    st.dictionaries(
        st.sampled_from(["conditions", "run", "phase", "rows", "completionTime"]),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["type", "status", "id", "generation", "x"]), inner, max_size=3)
            ),
            max_leaves=9,
        ),
    )
)
def test_a_malformed_status_harms_nobody(document: dict[str, Any]) -> None:
    occasion_of(document, events=ALL, namespace="ns", name="job")


# -- what follows a try


@given(st.integers(1, 5000), st.floats(0, GIVE_UP_SECONDS - 1), st.floats(0, 1), st.none() | st.floats(0, 1e9))
def test_waits_are_bounded_whatever_is_asked_for(tries: int, age: float, spread: float, asked: float | None) -> None:
    wait = wait_after(Answer.of_status(503, retry_after=asked), tries=tries, age=age, spread=spread)
    assert wait is not None
    assert 0 < wait <= max(LONGEST_SECONDS, LONGEST_ASKED_SECONDS * 1.1)
    assert age + wait <= GIVE_UP_SECONDS
    if asked is not None and asked <= LONGEST_ASKED_SECONDS and age + asked * 1.1 < GIVE_UP_SECONDS:
        assert wait >= asked


def test_what_is_asked_for_is_waited_for_up_to_an_hour() -> None:
    asked = [wait_after(Answer.of_status(503, retry_after=s), tries=1, age=0, spread=0) for s in (0.1, 600, 1e9)]
    assert asked == [FIRST_SECONDS / 2, 600, LONGEST_ASKED_SECONDS]


def test_waits_double_and_are_spread() -> None:
    waits = [wait_after(Answer(problem="x"), tries=n, age=0, spread=1) for n in range(1, 12)]
    assert waits[:4] == [FIRST_SECONDS * 2**n for n in range(4)]
    assert waits[-1] == LONGEST_SECONDS
    assert wait_after(Answer(problem="x"), tries=3, age=0, spread=0) == FIRST_SECONDS * 2


def test_it_is_given_up_after_a_day_or_when_nobody_listens_there_any_more() -> None:
    assert wait_after(Answer(problem="x"), tries=9, age=GIVE_UP_SECONDS, spread=0) is None
    assert wait_after(Answer.of_status(410), tries=1, age=0, spread=0) is None
    for status in (400, 401, 404, 302, 500, 429):
        assert wait_after(Answer.of_status(status), tries=1, age=0, spread=0) is not None, "it may be mended"


def test_what_a_person_should_look_at() -> None:
    assert [s for s in (200, 204, 299) if not Answer.of_status(s).acknowledged] == []
    assert [s for s in (301, 400, 404, 408, 429, 500, 503) if Answer.of_status(s).acknowledged] == []
    assert [s for s in (301, 401, 404, 408, 425, 429, 500, 503) if Answer.of_status(s).lasting] == [301, 401, 404]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("17", 17.0),
        (" 0 ", 0.0),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("soon", None),
        ("-4", None),
        ("Fri, 99 Jan 2027 08:01:00 GMT", None),
        ("²", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after(text: str | None, seconds: float | None) -> None:
    assert retry_after_of(text, wall=NOW) == seconds


# -- where to


async def keys(reference: KeyReference, path: str) -> str:
    if reference.name == "away":
        raise RowmillError("the API server is away")
    return {
        "token": "Bearer abc\n",
        "url": "https://hooks.example/T0/B0/secret",
        "ftp": "ftp://hooks.example/",
        "lines": "a\r\nX-Injected: 1",
        "empty": "\n",
        "large": "x" * 9000,
        "whsec": "whsec_" + base64.b64encode(b"0" * 24).decode(),
        "unwhsec": "whsec_%%%",
    }[reference.key]


def ref(key: str, name: str = "hook") -> dict[str, Any]:
    return {"secretKeyRef": {"name": name, "key": key}}


async def test_secrets_are_read_and_never_shown() -> None:
    notify = Notify.model_validate(
        {
            "urlFrom": ref("url"),
            "headers": [{"name": "Authorization", "valueFrom": ref("token")}, {"name": "X-Team", "value": "rows"}],
            "signingKeyFrom": ref("whsec"),
        }
    )
    target = await resolve(notify, keys)
    assert target.url == "https://hooks.example/T0/B0/secret"
    assert target.headers == {"Authorization": "Bearer abc", "X-Team": "rows"}
    assert target.key == b"0" * 24
    assert target.place == "https://hooks.example"
    assert not [part for part in ("secret", "abc", "0000") if part in repr(target)]


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        ({"urlFrom": ref("ftp")}, "spec.notify.urlFrom: what the Secret holds is no http URL"),
        ({"urlFrom": ref("empty")}, "is empty"),
        ({"url": "http://h/", "headers": [{"name": "A", "valueFrom": ref("lines")}]}, "headers[0].valueFrom.secretKey"),
        ({"url": "http://h/", "headers": [{"name": "A", "valueFrom": ref("large")}]}, "is larger than 8,192 bytes"),
        ({"url": "http://h/", "signingKeyFrom": ref("unwhsec")}, "is no base64"),
    ],
)
async def test_secrets_that_cannot_be_sent(notify: dict[str, Any], told: str) -> None:
    with pytest.raises(NotReady) as caught:
        await resolve(Notify.model_validate(notify), keys)
    assert told in str(caught.value)
    assert "X-Injected" not in str(caught.value)


def test_the_signature_is_that_of_standard_webhooks() -> None:
    headers = signature(b"k" * 24, uid="id-1", timestamp=1_700_000_000, body=b'{"a":1}')
    expected = base64.b64encode(hmac.digest(b"k" * 24, b'id-1.1700000000.{"a":1}', hashlib.sha256)).decode()
    assert headers == {
        "webhook-id": "id-1",
        "webhook-timestamp": "1700000000",
        "webhook-signature": f"v1,{expected}",
    }


# -- the manifest


def job(notify: Any) -> Any:
    return parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "job"},
            "spec": {"source": {"rows": []}, "executor": {"http": {"url": "http://h/"}}, "notify": notify},
        },
        where="t",
    )


def test_by_default_the_ends_are_told() -> None:
    assert job({"url": "https://h/x"}).spec.notify.events == ("Complete", "Failed")


@pytest.mark.parametrize(
    ("notify", "told"),
    [
        ({"url": "https://h/#x"}, "notify.url: holds a #fragment"),
        ({"url": "https://h/a b"}, "notify.url: holds white space"),
        ({"url": "https://h/", "events": []}, "notify.events"),
        ({"url": "https://h/", "events": ["Failed", "Failed"]}, 'names "Failed" twice'),
        ({"url": "https://h/", "events": ["Done"]}, "notify.events[0]"),
        ({"url": "https://h/", "headers": [{"name": "A", "value": "x\ny"}]}, "line break or control character"),
        (
            {"url": "https://h/", "headers": [{"name": "A", "valueFrom": {"env": "HOME"}}]},
            "notify.headers[0].valueFrom",
        ),
        ({"url": "https://h/", "on": ["Failed"]}, "notify.on"),
    ],
)
def test_what_is_refused(notify: Any, told: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        job(notify)
    assert told in str(caught.value), caught.value.lines()


def test_workers_are_not_told_of_it() -> None:
    made = job({"url": "https://h/", "headers": [{"name": "Authorization", "valueFrom": ref("token")}]})
    assert "notify" not in str(manifest_for_workers(made))


# -- the document


def test_the_document_shows_what_is_sent() -> None:
    text = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text("utf-8")
    shown = json.loads(text.split("```json\n")[1].split("```")[0])
    run = RunStatus(
        phase=Phase.FAILED,
        message=shown["message"],
        epoch=1,
        total=120_000,
        succeeded=400,
        failed=500,
        retried=40,
        errors=[ErrorCount("HTTP503", 480, 17), ErrorCount("Timeout", 20, 4)],
        started_at=NOW - 109,
        ended_at=NOW,
    )
    occasion = occasion_of(
        status_document(
            run,
            run_id="1",
            observed_generation=1,
            now=NOW,
            output=Output(*shown["output"].values()),
            started_at=run.started_at,
            ended_at=run.ended_at,
        ),
        events=ALL,
        namespace="support",
        name="triage",
    )
    assert occasion is not None
    assert {"id": "3f9a0c71b2de-0-failed-1", **occasion.body} == shown


def test_the_documents_check_of_a_signature_holds() -> None:
    text = (Path(__file__).parents[2] / "docs" / "notifications.md").read_text("utf-8")
    found: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], found)  # documented code is run
    check, body = found["is_from_rowmill"], b'{"a": 1}'
    headers = signature(b"key", uid="id", timestamp=int(time.time()), body=body)
    assert check(b"key", headers, body)
    assert not check(b"another", headers, body)
    assert not check(b"key", headers, body + b" ")
    assert not check(b"key", signature(b"key", uid="id", timestamp=1, body=body), body)
