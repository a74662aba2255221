"""The status document: what a person reads in it, that it stays small, and that it moves only when something does."""

from __future__ import annotations

import dataclasses
import itertools
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.ledger.budget import Capacity, Room, why_short
from rowmill.limits import MOST_JOBS, GroupLimits, LimitsTold
from rowmill.spec.job_status import JobStatus
from rowmill.spend import Pause, Shortage, Spend
from rowmill.spend import Reason as PauseReason
from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_operator.engine import engine as engine_module
from rowmill_operator.engine.lifecycle import FailureRule, over_deadline
from rowmill_operator.kube.conditions import INVALID, REFUSALS, WELL, Reason, Trouble, cut, rfc3339
from rowmill_operator.kube.patches import merge_patch
from rowmill_operator.kube.status import (
    MAX_BYTES,
    WAITING,
    Output,
    Workers,
    engine_trouble,
    failure_reason,
    progress,
    size,
    status_document,
    success_rate,
)
from rowmill_operator.kube.told import told

NOW = 1_767_261_600.0
RUNNING = RunStatus(
    phase=Phase.RUNNING,
    generation=1,
    epoch=2,
    total=120_000,
    fed=90_000,
    queued=9_000,
    running=24,
    succeeded=80_000,
    failed=12,
    retried=31,
    rows_per_minute=5400.4,
    seconds_left=444.0,
    workers_desired=8,
    workers_ready=7,
    errors=[ErrorCount("HTTP429", 11, 4711), ErrorCount("Timeout", 1, 9)],
)


def made(run: RunStatus = RUNNING, **given_: Any) -> dict[str, Any]:
    return status_document(run, **{"run_id": "1", "observed_generation": 3, "now": NOW, **given_})


def reason_of(document: dict[str, Any]) -> str:
    return next(str(one["reason"]) for one in document["conditions"] if one["type"] == "Ready")


def applied(target: Any, patch: Any) -> Any:
    """A JSON merge patch, applied by the rules of RFC 7396."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


def test_a_running_job_in_full() -> None:
    document = made(
        workers=Workers(image="example/worker:1", selector="rowmill.dev/job=triage"),
        output=Output("s3://bucket/triage/1/", parts=3),
        started_at=NOW - 900,
    )
    assert [one["type"] for one in document.pop("conditions") if one["status"] == "True"] == ["Reconciling"]
    assert document == {
        "observedGeneration": 3,
        "phase": "Running",
        "run": {"id": "1", "generation": 1, "epoch": 2},
        "rows": {
            "total": 120_000,
            "queued": 9_000,
            "running": 24,
            "succeeded": 80_000,
            "failed": 12,
            "retried": 31,
            "deduplicated": 0,
        },
        "done": "80012/120000",
        "progress": "66%",
        "successRate": "99.98%",
        "rowsPerMinute": 5400,
        "startTime": "2026-01-01T09:45:00Z",
        "estimatedCompletionTime": "2026-01-01T10:08:00Z",
        "workers": {"desired": 8, "ready": 7, "image": "example/worker:1", "selector": "rowmill.dev/job=triage"},
        "output": {"uri": "s3://bucket/triage/1/", "parts": 3},
        "errors": [
            {"class": "HTTP429", "count": 11, "exampleRow": 4711},
            {"class": "Timeout", "count": 1, "exampleRow": 9},
        ],
    }


def test_a_job_that_has_not_begun() -> None:
    document = made(RunStatus())
    assert document["phase"] == "Pending"
    assert document["done"] == "0"
    assert document["rows"]["succeeded"] == 0
    assert not {"progress", "successRate", "startTime", "completionTime", "errors", "output"} & set(document)
    assert "total" not in document["rows"]
    assert "image" not in document["workers"]


def test_done_without_a_total() -> None:
    assert made(dataclasses.replace(RUNNING, total=None))["done"] == "80012"


@pytest.mark.parametrize(
    ("phase", "done", "total", "shown"),
    [
        (Phase.RUNNING, 0, None, None),
        (Phase.RUNNING, 0, 3, "0%"),
        (Phase.RUNNING, 2, 3, "66%"),
        (Phase.RUNNING, 999_999, 1_000_000, "99%"),
        (Phase.RUNNING, 3, 3, "99%"),  # recorded, and not yet said to be whole
        (Phase.RUNNING, 4, 3, "99%"),
        (Phase.SUSPENDED, 3, 3, "99%"),
        (Phase.COMPLETE, 3, 3, "100%"),
        (Phase.FAILED, 3, 3, "100%"),
        (Phase.FAILED, 2, 3, "66%"),
        (Phase.RUNNING, 0, 0, "0%"),
        (Phase.COMPLETE, 0, 0, "100%"),
    ],
)
def test_progress_is_never_ahead_of_the_run(phase: Phase, done: int, total: int | None, shown: str | None) -> None:
    assert progress(RunStatus(phase=phase, succeeded=done, total=total)) == shown


@pytest.mark.parametrize(
    ("succeeded", "failed", "deduplicated", "shown"),
    [
        (0, 0, 0, None),
        (1, 0, 0, "100.00%"),
        (0, 1, 0, "0.00%"),
        (99_996, 4, 0, "99.99%"),
        (999_999_999, 1, 0, "99.99%"),
        (1, 2, 0, "33.33%"),
        (0, 1, 1, "50.00%"),
        (80_000, 12, 0, "99.98%"),
    ],
)
def test_success_is_rounded_down(succeeded: int, failed: int, deduplicated: int, shown: str | None) -> None:
    assert success_rate(RunStatus(succeeded=succeeded, failed=failed, deduplicated=deduplicated)) == shown


def test_the_end_stops_the_clocks() -> None:
    running = made()
    ended = dataclasses.replace(RUNNING, phase=Phase.COMPLETE, succeeded=119_988, seconds_left=None)
    document = made(ended, previous=running, now=NOW + 400)
    assert document["startTime"] == running["startTime"] == rfc3339(NOW)
    assert document["completionTime"] == rfc3339(NOW + 400)
    assert document["rowsPerMinute"] == 0
    assert "estimatedCompletionTime" not in document
    assert reason_of(document) == "CompletedWithFailures"
    assert made(ended, previous=document, now=NOW + 4000) == document


def test_the_runs_own_times_win() -> None:
    ended = dataclasses.replace(RUNNING, phase=Phase.COMPLETE)
    document = made(ended, previous=made(ended), started_at=5.0, ended_at=7.0)
    assert (document["startTime"], document["completionTime"]) == (rfc3339(5), rfc3339(7))


def test_another_run_takes_nothing_over() -> None:
    document = made(previous=made(), run_id="2", now=NOW + 1000)
    assert document["startTime"] == rfc3339(NOW + 1000)
    assert document["estimatedCompletionTime"] != made()["estimatedCompletionTime"]


def test_a_retried_generation_has_its_own_end() -> None:
    ended = dataclasses.replace(RUNNING, phase=Phase.COMPLETE)
    first = made(ended)
    again = made(dataclasses.replace(RUNNING, generation=2), previous=first, now=NOW + 60)
    assert "completionTime" not in again
    assert again["startTime"] == first["startTime"]
    end = made(dataclasses.replace(ended, generation=2), previous=first, now=NOW + 99)
    assert end["completionTime"] == rfc3339(NOW + 99)


def test_an_estimate_that_holds_is_not_written_again() -> None:
    """Ten minutes of a job with a jittery rate: the estimate is written a handful of times, not 300 times."""
    document: dict[str, Any] = {}
    estimates = []
    for tick in range(300):
        left = 1800 - 2 * tick + (7 * tick) % 41 - 20
        document = made(
            dataclasses.replace(RUNNING, seconds_left=float(left)), previous=document or None, now=NOW + 2 * tick
        )
        estimates.append(document["estimatedCompletionTime"])
    assert sum(one != other for one, other in itertools.pairwise(estimates)) <= 3
    assert all(abs_seconds(one) <= 61 for one in estimates)


def abs_seconds(told: str) -> float:
    from datetime import datetime

    return abs(datetime.fromisoformat(told).timestamp() - (NOW + 1800))


def test_an_estimate_in_the_past_is_made_anew() -> None:
    first = made(dataclasses.replace(RUNNING, seconds_left=5.0))
    later = made(dataclasses.replace(RUNNING, seconds_left=5.0), previous=first, now=NOW + 11)
    assert later["estimatedCompletionTime"] == rfc3339(NOW + 20)


def test_an_estimate_beyond_the_calendar_is_left_out() -> None:
    assert "estimatedCompletionTime" not in made(dataclasses.replace(RUNNING, seconds_left=1e15))
    assert "estimatedCompletionTime" not in made(dataclasses.replace(RUNNING, seconds_left=float("inf")))


def test_the_five_most_frequent_errors() -> None:
    errors = [ErrorCount(f"HTTP50{n}", n, 100 + n) for n in range(8)]
    shown = made(dataclasses.replace(RUNNING, errors=errors))["errors"]
    assert [one["class"] for one in shown] == ["HTTP507", "HTTP506", "HTTP505", "HTTP504", "HTTP503"]


def test_the_limits_that_hold_are_told_while_rows_run() -> None:
    limits = LimitsTold("g", GroupLimits(600, 0, 4), GroupLimits(60, 0, 4), ("shop/slow",), ("shop/wide",))
    run = dataclasses.replace(RUNNING, limits=limits)
    document = made(run)
    assert document["limits"] == {
        "requestsPerMinute": 60,
        "maxInFlight": 4,
        "loweredBy": ["shop/slow"],
        "lowers": ["shop/wide"],
    }
    assert "limits" not in made(dataclasses.replace(run, phase=Phase.COMPLETE))
    assert "limits" not in made(dataclasses.replace(run, limits=LimitsTold("g", GroupLimits(), GroupLimits())))
    patch = merge_patch(document, made(dataclasses.replace(run, phase=Phase.SUSPENDED), previous=document))
    assert patch is not None
    assert patch["limits"] is None, "what held is taken back"


def test_a_class_that_is_none_is_not_shown() -> None:
    """A class is a CamelCase name; anything else may be a piece of somebody's row."""
    errors = [ErrorCount("no room for Ms Doe", 3, 8), ErrorCount("X" * 200, 2, 9), ErrorCount("Timeout", 1, 10)]
    document = made(dataclasses.replace(RUNNING, errors=errors))
    assert document["errors"] == [
        {"class": "Other", "count": 5, "exampleRow": 8},
        {"class": "Timeout", "count": 1, "exampleRow": 10},
    ]
    assert "Doe" not in json.dumps(document)


def test_a_refusal_makes_the_phase_invalid() -> None:
    document = made(RunStatus(), trouble=Trouble(Reason.INVALID_SPEC, "spec.executor: exactly one is needed"))
    assert document["phase"] == INVALID
    assert reason_of(document) == "InvalidSpec"


def test_a_trouble_is_told_and_the_phase_stays() -> None:
    document = made(trouble=Trouble(Reason.UNSCHEDULABLE, "no node has nvidia.com/gpu"))
    assert (document["phase"], reason_of(document)) == ("Running", "Unschedulable")


def test_writing_results_is_still_running() -> None:
    document = made(reason=Reason.WRITING_RESULTS, message="the results are being written")
    assert (document["phase"], reason_of(document)) == ("Running", "WritingResults")
    assert document["progress"] != "100%"


def test_what_the_engine_says_becomes_a_reason() -> None:
    waiting = dataclasses.replace(RUNNING, message=f"{WAITING}Redis at 10.0.0.9:6379 refuses connections")
    assert reason_of(made(waiting)) == "WaitingForStore"
    for demand in (Room(20, 100), Room(600, 100), Room(60, 90_000)):
        short = why_short(Capacity(locks=6400, connections=97), none=demand.connections > 20, demand=demand)
        assert reason_of(made(dataclasses.replace(RUNNING, message=short))) == "CapacityLimited"
    assert engine_trouble(RUNNING) is None
    said = made(dataclasses.replace(RUNNING, message="5 of 9 rows failed"))
    assert reason_of(said) == "Running"
    assert said["conditions"][3]["message"] == "5 of 9 rows failed"
    assert engine_trouble(dataclasses.replace(waiting, phase=Phase.COMPLETE)) is None
    seen = Trouble(Reason.IMAGE_PULL_FAILED, "the registry has no example/worker:9")
    assert reason_of(made(waiting, trouble=seen)) == "ImagePullFailed"


def test_the_engine_begins_that_message_so() -> None:
    assert f'f"{WAITING}{{error}}"' in Path(engine_module.__file__).read_text("utf-8")


def test_why_a_run_failed_is_read_of_the_engines_own_words() -> None:
    late = over_deadline(started_at=0.0, wall_now=100.0, deadline=50)
    policy = FailureRule(5.0, 10).verdict(succeeded=5, failed=5, at_end=True)
    assert late is not None
    assert policy is not None
    assert failure_reason(late) is Reason.DEADLINE_EXCEEDED
    assert failure_reason(policy) is Reason.FAILURE_POLICY_EXCEEDED
    document = made(dataclasses.replace(RUNNING, phase=Phase.FAILED, message=late))
    failed = next(one for one in document["conditions"] if one["type"] == "Failed")
    assert (failed["status"], failed["reason"], failed["message"]) == ("True", "DeadlineExceeded", late)


def test_a_job_that_is_deleted() -> None:
    assert reason_of(made(deleting=True)) == "Deleting"


texts = st.text(st.characters(), max_size=9000)
counts = st.integers(0, 10**15)
jobs = st.lists(st.from_regex(r"\A[a-z]{1,63}/[a-z]{1,63}\Z"), max_size=MOST_JOBS).map(tuple)
runs = st.builds(
    RunStatus,
    phase=st.sampled_from(list(Phase)),
    message=texts,
    generation=st.integers(0, 10**6),
    epoch=st.integers(0, 10**6),
    total=st.none() | counts,
    queued=st.integers(-5, 10**15),
    running=counts,
    succeeded=counts,
    failed=counts,
    retried=counts,
    deduplicated=counts,
    rows_per_minute=st.floats(0, 1e9),
    seconds_left=st.none() | st.floats(0, allow_nan=False),
    workers_desired=st.integers(0, 1000),
    workers_ready=st.integers(0, 1000),
    errors=st.lists(st.builds(ErrorCount, texts, counts, counts), max_size=12),
    limits=st.none()
    | st.builds(LimitsTold, texts, st.just(GroupLimits()), st.builds(GroupLimits, counts, counts, counts), jobs, jobs),
)


@settings(max_examples=60, deadline=None)
@given(
    run=runs,
    trouble=st.none() | st.builds(Trouble, st.sampled_from(list(Reason)), texts, st.floats(0, 1e6)),
    texts_=st.tuples(texts.filter(lambda text: cut(text, 9) != ""), texts, texts, texts, texts),
    deleting=st.booleans(),
)
def test_whatever_is_told_it_is_small_and_settles(
    run: RunStatus, trouble: Trouble | None, texts_: tuple[str, str, str, str, str], deleting: bool
) -> None:
    run_id, image, selector, uri, failures = texts_
    given_: dict[str, Any] = {
        "run_id": run_id,
        "trouble": trouble,
        "deleting": deleting,
        "workers": Workers(image, selector),
        "output": Output(uri, 10**9, failures),
    }
    first = made(run, **given_)
    assert size(first) < MAX_BYTES
    JobStatus.model_validate(first)  # as the resource's schema has it
    assert json.loads(json.dumps(first)) == first
    again = made(run, previous=first, **given_)
    # A minute later nothing has moved but what a patience or an estimate says.
    assert merge_patch(first, again) is None


def test_the_largest_texts_at_once() -> None:
    """Every text and number at its limit: messages are cut further, then addresses left out, before a count is lost."""
    awkward, most = '"\\' * 256, 2**63 - 1
    classes = [ErrorCount(f"E{n}" * 32, most, most) for n in range(5)]
    numbers: dict[str, Any] = dict.fromkeys(("total", "queued", "running", "succeeded", "retried", "epoch"), most)
    given_: dict[str, Any] = {
        "run_id": awkward,
        "trouble": Trouble(Reason.FROZEN_FIELD_CHANGED, awkward),
        "workers": Workers(awkward, awkward),
    }
    names = tuple(f"{'n' * 63}/{'j' * 62}{n}" for n in range(MOST_JOBS))
    limits = LimitsTold("g", GroupLimits(), GroupLimits(most, most, most), names, names)
    run = dataclasses.replace(RUNNING, errors=classes, limits=limits, **numbers)
    document = made(run, **given_, output=Output(awkward * 2, most, "s3://b/f"))
    assert 6000 < size(document) < MAX_BYTES
    assert document["output"] == {"uri": awkward * 2, "parts": most, "failures": "s3://b/f"}
    assert (document["limits"]["loweredBy"], document["limits"]["lowers"]) == ([*names], [*names])
    document = made(run, **given_, output=Output(awkward * 2, most, awkward * 2))
    assert 6000 < size(document) < MAX_BYTES
    assert document["rows"]["succeeded"] == most
    assert document["workers"]["image"] == awkward
    assert document["output"] == {"uri": awkward * 2, "parts": most}
    assert all(len(one.get("message", "")) <= 64 for one in document["conditions"])


def test_what_is_used_as_a_whole_is_never_a_piece() -> None:
    """An image is started and an address opened: rather none than half of one."""
    long = "s3://bucket/" + "x" * 3000
    document = made(workers=Workers(long, "a=b\n"), output=Output(long, 3, "s3://bucket/1/failures.jsonl"))
    assert document["workers"] == {"desired": 8, "ready": 7}
    assert document["output"] == {"parts": 3, "failures": "s3://bucket/1/failures.jsonl"}


@settings(max_examples=60, deadline=None)
@given(run=runs, reason=st.sampled_from([r for r in Reason if r not in REFUSALS]), message=texts, later=st.floats(0, 9))
def test_a_new_operator_says_the_same_again(run: RunStatus, reason: Reason, message: str, later: float) -> None:
    """What was told is enough to tell it again, so that a restart neither writes nor flaps."""
    kept = run.phase in (Phase.PENDING, Phase.RUNNING) and reason not in WELL
    trouble = Trouble(reason, message or "?") if kept else None
    # An estimate that has passed meanwhile is another matter.
    run = dataclasses.replace(
        run, message="" if kept else run.message, seconds_left=max(60.0, run.seconds_left or 60.0)
    )
    document = made(run, trouble=trouble)
    found = told(json.loads(json.dumps(document)), run_id="1", now=NOW + later)
    assert found is not None
    again = made(found.run, trouble=found.trouble, previous=document, now=NOW + later)
    if not run.message:
        assert merge_patch(document, again) is None
    assert (again["phase"], again["rows"]) == (document["phase"], document["rows"])
    assert again.get("errors") == document.get("errors")


SPENT = Spend(240, 36_000, 1_200, Decimal("0.91200"))


def test_what_was_used_and_what_all_rows_would_use() -> None:
    canary = RunStatus(phase=Phase.COMPLETE, total=200, succeeded=190, failed=10, spend=SPENT, source_rows=120_000)
    document = made(canary)
    assert document["spend"] == {
        "requests": 240,
        "inputTokens": 36_000,
        "outputTokens": 1_200,
        "cost": "0.912",
        "projected": {
            "rows": 120_000,
            "requests": 144_000,
            "inputTokens": 21_600_000,
            "outputTokens": 720_000,
            "cost": "547.2",
        },
    }
    JobStatus.model_validate(document)
    assert made(dataclasses.replace(canary, spend=Spend(240)))["spend"] == {
        "requests": 240,
        "projected": {"rows": 120_000, "requests": 144_000},
    }
    whole = dataclasses.replace(canary, source_rows=None)
    assert "projected" not in made(whole)["spend"], "all of it was done"
    assert "spend" not in made(dataclasses.replace(canary, spend=Spend()))
    large = dataclasses.replace(canary, spend=Spend(2**62, 2**61, 2**61, Decimal("1E+20")), source_rows=2**31)
    assert made(large)["spend"]["cost"] == "1" + 20 * "0", "without exponent"


PAUSED = {
    "budget": Pause(
        PauseReason.BUDGET,
        "the 240 calls of spec.budget.requests are used up. Raise it, or leave it out, to go on",
        NOW - 50,
        shortage=Shortage("requests", Decimal(1), Decimal(0)),
    ),
    "refused": Pause(PauseReason.REFUSED, "calls are refused. Mend the credentials", NOW - 50, until=NOW + 10, tries=2),
}


@pytest.mark.parametrize("name", PAUSED)
@pytest.mark.parametrize("source_rows", [None, 120_000])
def test_a_run_that_stands_still_says_so_again_after_a_restart(name: str, source_rows: int | None) -> None:
    pause = PAUSED[name]
    run = RunStatus(
        phase=Phase.SUSPENDED,
        message=pause.message,
        total=300,
        succeeded=200,
        spend=SPENT,
        source_rows=source_rows,
        pause=pause,
    )
    document = made(run)
    assert reason_of(document) == pause.reason
    ready = "Ready" if name == "budget" else "Stalled"
    assert {one["type"] for one in document["conditions"] if one["status"] == "True"} == {"Suspended", ready}
    assert {one["message"] for one in document["conditions"] if "message" in one} == {pause.message}
    found = told(json.loads(json.dumps(document)), run_id="1", now=NOW + 5)
    assert found is not None
    assert merge_patch(document, made(found.run, trouble=found.trouble, previous=document, now=NOW + 5)) is None
    assert found.run.spend == SPENT
    assert found.run.pause is not None
    assert (found.run.pause.reason, found.run.pause.until) == (pause.reason, None), "when to try is the ledger's to say"


@pytest.mark.parametrize(
    "spend",
    [None, 3, {"requests": "x"}, {"requests": -1, "cost": "much"}, {"cost": "-1"}, {"cost": "NaN", "projected": []}],
)
def test_a_malformed_spend_is_nothing(spend: Any) -> None:
    found = told(made() | {"spend": spend}, run_id="1", now=NOW)
    assert found is not None
    assert (found.run.spend, found.run.source_rows) == (Spend(), None)


def test_a_trouble_that_was_stalled_stays_so_over_a_restart() -> None:
    run = dataclasses.replace(RUNNING, workers_ready=0)
    old = made(run, trouble=Trouble(Reason.IMAGE_PULL_FAILED, "no such image", 999))
    found = told(old, run_id="1", now=NOW)
    assert found is not None
    assert merge_patch(old, made(found.run, trouble=found.trouble, previous=old)) is None
    assert [one["status"] for one in old["conditions"] if one["type"] == "Stalled"] == ["True"]


def test_a_refusal_is_judged_anew() -> None:
    found = told(made(trouble=Trouble(Reason.INVALID_SPEC, "spec.x")), run_id="1", now=NOW)
    assert found is not None
    assert (found.trouble, found.run.phase, found.run.succeeded) == (None, Phase.PENDING, 80_000)


@pytest.mark.parametrize(
    "status",
    [None, {}, {"run": 3}, {"run": {"id": "2"}}, made(run_id="2")],
)
def test_a_status_of_another_run_tells_nothing(status: Any) -> None:
    assert told(status, run_id="1", now=NOW) is None


STRANGE: list[Any] = [
    None,
    True,
    -1,
    7,
    "x",
    1.5,
    [],
    ["x"],
    [None],
    [{"type": "Ready"}],
    [{"class": []}],
    {"total": "x"},
]


@pytest.mark.parametrize("name", sorted(made(output=Output("s3://b/"), deleting=True)))
def test_a_strange_status_does_no_harm(name: str) -> None:
    for value in STRANGE:
        status = {**made(), name: value} if name != "run" else {**made(), "run": {"id": "1", "epoch": value}}
        found = told(status, run_id="1", now=NOW)
        assert found is not None
        again = made(found.run, trouble=found.trouble, previous=status)
        assert size(again) < MAX_BYTES
        if value != "x":  # a time that is none is refused before it gets there
            JobStatus.model_validate(again)


scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("xyz", max_size=1), inner, max_size=3)
)
documents = st.dictionaries(st.text("xyz", max_size=1), values, max_size=3)


def without_none(value: Any) -> Any:
    """As a server holds it: nulls of objects are no fields (those within lists stay)."""
    if isinstance(value, dict):
        return {key: without_none(inner) for key, inner in value.items() if inner is not None}
    return value


@given(old=documents, new=documents)
def test_a_merge_patch_makes_one_of_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    old, new = without_none(old), without_none(new)
    patch = merge_patch(old, new)
    assert applied(old, patch or {}) == new
    assert (patch is None) is (json.dumps(old, sort_keys=True) == json.dumps(new, sort_keys=True))


def test_a_patch_says_no_more_than_is_new() -> None:
    old = made(output=Output("s3://b/", parts=2))
    new = {**old, "rows": {**old["rows"], "succeeded": 80_001}, "done": "80013/120000"}
    del new["output"], new["errors"]
    assert merge_patch(old, new) == {
        "rows": {"succeeded": 80_001},
        "done": "80013/120000",
        "output": None,
        "errors": None,
    }
    assert merge_patch(old, dict(old)) is None
    assert merge_patch(None, {"a": 1, "b": None}) == {"a": 1}
    assert merge_patch({"a": [1, 2]}, {"a": [1]}) == {"a": [1]}
    assert merge_patch({"a": [True], "b": 0}, {"a": [1], "b": False}) == {"a": [1], "b": False}
