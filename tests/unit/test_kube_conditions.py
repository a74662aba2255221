"""Conditions, judged by those who read them: kstatus by its rules, `kubectl wait` by the condition's status."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.status import Phase
from rowmill_operator.kube.conditions import (
    INVALID,
    MESSAGE_BYTES,
    PATIENCE_SECONDS,
    TYPES,
    Facts,
    Reason,
    Trouble,
    conditions,
    cut,
    rfc3339,
    telling,
)
from tests.support.job_states import ON_ITS_WAY
from tests.support.job_states import STATES as AT_REST
from tests.unit.kstatus import kstatus
from tests.unit.kube_states import GENERATION, NOW, PASSING, PATIENT, PHASES, REFUSED, STATES, State

BY_NAME = {state.name: state for state in STATES}
by_name = pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)


def true_of(made: list[dict[str, Any]]) -> set[str]:
    return {one["type"] for one in made if one["status"] == "True"}


def named(made: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(one for one in made if one["type"] == name)


@by_name
def test_kstatus_reads_every_state_right(state: State) -> None:
    assert kstatus(state.resource()) == state.kstatus


def test_every_reason_says_where_a_job_may_come_to_rest() -> None:
    """By this table the jobs that are made up on a cluster are judged; a new reason has to be in it."""
    assert set(AT_REST) | ON_ITS_WAY == set(Reason)
    assert not set(AT_REST) & ON_ITS_WAY


@by_name
def test_exactly_these_conditions_hold(state: State) -> None:
    made = state.made()
    assert true_of(made) == state.true
    assert {one["reason"] for one in made} == {state.reason}


@by_name
def test_all_six_are_there_in_their_order_and_complete(state: State) -> None:
    made = state.made()
    assert [one["type"] for one in made] == list(TYPES)
    for one in made:
        assert set(one) - {"message"} == {"type", "status", "observedGeneration", "lastTransitionTime", "reason"}
        assert one.get("message") != ""  # Kubernetes 1.20 takes an empty text for none, and refuses the status
        assert one["observedGeneration"] == GENERATION
        assert one["reason"] in set(Reason)
    assert named(made, "Ready")["message"]
    assert all(one.get("message") for one in made if one["status"] == "True")


@by_name
def test_never_both_reconciling_and_stalled_and_one_end_at_most(state: State) -> None:
    held = true_of(state.made())
    assert not held >= {"Reconciling", "Stalled"}
    assert len(held & {"Complete", "Failed", "Suspended"}) <= 1
    assert ("Ready" in held) is (not held & {"Reconciling", "Stalled"})


def test_the_table_has_every_reason() -> None:
    assert {state.reason for state in STATES} == set(Reason)
    assert len(REFUSED) + len(PASSING) + len(PATIENT) + 1 == len(set(Reason)) - 11


def test_what_kubectl_waits_for() -> None:
    """`kubectl wait --for=condition=X` wants status "True", of the generation that it asked for."""
    held = {name: true_of(BY_NAME[name].made()) for name in ("complete", "complete-with-failures", "failed", "running")}
    assert "Complete" in held["complete"]
    assert "Complete" in held["complete-with-failures"]
    assert "Failed" in held["failed"]
    assert not {"Complete", "Failed"} & held["running"]
    assert "Stalled" in true_of(BY_NAME["refused-InvalidSpec"].made())


def test_before_the_operator_saw_an_edit_it_is_in_progress() -> None:
    resource = BY_NAME["complete"].resource()
    resource["metadata"]["generation"] = GENERATION + 1
    assert kstatus(resource) == "InProgress"


def test_failures_are_seen_in_a_complete_job() -> None:
    message = named(BY_NAME["complete-with-failures"].made(), "Complete")["message"]
    assert "12 failed" in message
    assert "retryGeneration" in message


@pytest.mark.parametrize("before", STATES, ids=lambda state: state.name)
def test_the_transition_time_moves_with_the_status_and_only_then(before: State) -> None:
    held = before.made(now=NOW)
    for state in STATES:
        after = state.made(held, now=NOW + 60)
        for old, new in zip(held, after, strict=True):
            wanted = NOW if old["status"] == new["status"] else NOW + 60
            assert new["lastTransitionTime"] == rfc3339(wanted), (state.name, new["type"])


def test_other_words_move_no_transition_time() -> None:
    def running(message: str, now: float, held: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
        facts = Facts(phase=Phase.RUNNING, trouble=Trouble(Reason.UNSCHEDULABLE, message))
        return conditions(held, facts, observed_generation=1, now=now)

    first = running("no node has a GPU", NOW, None)
    second = running("no node has memory", NOW + 5, first)
    assert named(second, "Reconciling")["message"] == "no node has memory"
    assert [one["lastTransitionTime"] for one in second] == [one["lastTransitionTime"] for one in first]


def test_the_same_state_again_changes_nothing() -> None:
    for state in STATES:
        made = state.made(now=NOW)
        assert state.made(made, now=NOW + 3600) == made


def test_a_trouble_is_patient_first_and_then_stays_stalled_until_it_goes() -> None:
    def made(seconds: float, held: list[dict[str, Any]] | None, reason: str = "SecretMissing") -> list[dict[str, Any]]:
        facts = Facts(phase=Phase.PENDING, trouble=Trouble(reason, "apply Secret triage", seconds))
        return conditions(held, facts, observed_generation=1, now=NOW)

    first = made(PATIENCE_SECONDS - 1, None)
    assert true_of(first) == {"Reconciling"}
    stalled = made(PATIENCE_SECONDS, first)
    assert true_of(stalled) == {"Stalled"}
    # An operator that starts anew does not know for how long it has been so: no flapping.
    assert true_of(made(0, stalled)) == {"Stalled"}
    assert true_of(made(0, stalled, "ImagePullFailed")) == {"Reconciling"}
    assert true_of(conditions(stalled, Facts(phase=Phase.RUNNING), observed_generation=1, now=NOW)) == {"Reconciling"}


@pytest.mark.parametrize("phase", [Phase.SUSPENDED, Phase.COMPLETE, Phase.FAILED])
def test_what_needs_no_pods_has_none_of_their_troubles(phase: Phase) -> None:
    usual = conditions(None, Facts(phase=phase), observed_generation=1, now=NOW)
    for reason in (*PASSING, *PATIENT, "NamespaceTerminating"):
        facts = Facts(phase=phase, trouble=Trouble(reason, "in the way", 9999))
        assert conditions(None, facts, observed_generation=1, now=NOW) == usual


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("reason", REFUSED)
def test_a_refused_edit_is_told_whatever_the_run_did(phase: str, reason: str) -> None:
    facts = Facts(phase=phase, trouble=Trouble(reason, "spec.source.uri: change spec.runId"))
    made = conditions(None, facts, observed_generation=1, now=NOW)
    assert true_of(made) == {"Stalled"}
    assert named(made, "Stalled")["message"] == "spec.source.uri: change spec.runId"


def test_an_invalid_job_that_is_mended_goes_on() -> None:
    refused = BY_NAME["refused-InvalidSpec"].made()
    mended = BY_NAME["running"].made(refused, now=NOW + 9)
    assert kstatus({"metadata": {"generation": 4}, "status": {"conditions": mended}}) == "InProgress"


@pytest.mark.parametrize(
    "held",
    [None, [], ["x"], [{}], [{"type": "Ready"}], [{"type": "Ready", "status": "False", "lastTransitionTime": 7}]],
)
def test_conditions_that_are_none_are_passed_over(held: Any) -> None:
    made = conditions(held, Facts(phase=Phase.RUNNING), observed_generation=1, now=NOW)
    assert [one["lastTransitionTime"] for one in made] == [rfc3339(NOW)] * 6


def test_conditions_of_others_are_not_kept() -> None:
    held = [{"type": "Strange", "status": "True", "reason": "X", "message": "", "lastTransitionTime": "2020"}]
    assert [one["type"] for one in conditions(held, Facts(phase=INVALID), observed_generation=1, now=NOW)] == list(
        TYPES
    )


@pytest.mark.parametrize(
    ("name", "warns"),
    [
        ("running", False),
        ("pending", False),
        ("writing", False),
        ("suspended", False),
        ("complete", False),
        ("deleting-Running", False),
        ("complete-with-failures", True),
        ("failed", True),
        ("too-late", True),
        ("refused-InvalidSpec", True),
        ("passing-Unschedulable", True),
        ("passing-WaitingForStore", True),
        ("new-SecretMissing", True),
    ],
)
def test_what_conditions_tell_in_a_line(name: str, warns: bool) -> None:
    state = BY_NAME[name]
    told = telling(state.made())
    assert told is not None
    assert told[0] == state.reason
    assert told[1]
    assert told[2] is warns


def test_no_conditions_tell_nothing() -> None:
    assert telling([]) is None


def test_times_are_those_of_the_api_server() -> None:
    assert rfc3339(0) == "1970-01-01T00:00:00Z"
    assert rfc3339(1_767_261_600.9) == "2026-01-01T10:00:00Z"


def test_characters_that_an_api_server_refuses_are_replaced() -> None:
    assert cut("half \ud83d, \x00 nothing,\r\n a bell\x07", 99) == "half \ufffd, nothing, a bell"


def encoded(text: str) -> int:
    return len(json.dumps(text, ensure_ascii=False).encode()) - 2


@given(text=st.text(st.characters(), max_size=400), limit=st.integers(3, 300))
def test_a_cut_text_fits_and_is_one_line(text: str, limit: int) -> None:
    result = cut(text, limit)
    assert encoded(result) <= limit
    assert "\n" not in result
    assert all(ord(c) >= 32 for c in result)


@given(text=st.text(st.characters(categories=["L", "N", "P"]), max_size=100))
def test_a_text_that_fits_stays_whole_and_only_a_cut_one_says_so(text: str) -> None:
    if encoded(text) <= 100:
        assert cut(text, 100) == text
    else:
        assert cut(text, 100).endswith("…")
        assert text.startswith(cut(text, 100)[:-1])


@given(message=st.text(st.characters(), max_size=3000), phase=st.sampled_from(PHASES), failed=st.integers(0, 10**12))
def test_whatever_the_message_conditions_are_small(message: str, phase: str, failed: int) -> None:
    facts = Facts(phase=phase, message=message, failed_rows=failed, trouble=Trouble("InvalidSpec", message * 3))
    for one in conditions(None, facts, observed_generation=1, now=NOW):
        assert encoded(one.get("message", "")) <= MESSAGE_BYTES
