"""The health script for Argo CD, run by Lua 5.1 over every state, made by the operator's own functions.

Argo CD runs such a script without the standard libraries: so does this, with nothing but the language's basics.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import celpy
import pytest
import yaml
from lupa.lua51 import LuaRuntime

from rowmill.status import Phase, RunStatus
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.status import status_document
from tests.unit.kube_states import STATES, State

ROOT = Path(__file__).parents[2]
SCRIPT = (ROOT / "helm" / "argocd" / "health.lua").read_text("utf-8")
LIBRARIES = ("string", "table", "math", "os", "io", "debug", "package", "coroutine", "require", "dofile", "loadfile")
NOW = 1_767_261_600.0


def health(resource: dict[str, Any]) -> tuple[str, str]:
    """What the script makes of a resource: status and message."""
    lua = LuaRuntime(register_eval=False)
    names = lua.globals()
    names["obj"] = lua.table_from(resource, recursive=True)
    for library in LIBRARIES:
        names[library] = None
    found = lua.execute(SCRIPT)
    assert set(found.keys()) == {"status", "message"}
    return str(found["status"]), str(found["message"])


def resource(run: RunStatus, **given: Any) -> dict[str, Any]:
    status = status_document(run, **{"run_id": "1", "observed_generation": 4, "now": NOW, **given})
    return {"metadata": {"name": "triage", "generation": 4}, "status": status}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.name)
def test_every_state_is_read_right(state: State) -> None:
    status, message = health(state.resource())
    assert status == state.argo
    assert message
    if not state.facts.deleting:
        assert message.startswith(state.reason)


def test_the_message_says_what_is_wrong_and_where() -> None:
    trouble = Trouble(Reason.INVALID_SPEC, "spec.executor.http.url: is missing")
    assert health(resource(RunStatus(), trouble=trouble)) == (
        "Degraded",
        "InvalidSpec: spec.executor.http.url: is missing",
    )


def test_a_running_job_says_how_far_it_is() -> None:
    run = RunStatus(phase=Phase.RUNNING, total=120_000, succeeded=80_012)
    assert health(resource(run)) == ("Progressing", "Running: 80012/120000 rows (66%)")
    assert health(resource(dataclasses.replace(run, total=None))) == ("Progressing", "Running: 80012 rows")


def test_a_trouble_while_running_is_told_instead() -> None:
    run = RunStatus(phase=Phase.RUNNING, total=9)
    status, message = health(resource(run, trouble=Trouble(Reason.UNSCHEDULABLE, "no node has nvidia.com/gpu")))
    assert (status, message) == ("Progressing", "Unschedulable: no node has nvidia.com/gpu")


def test_failures_are_seen_in_a_healthy_job() -> None:
    status, message = health(resource(RunStatus(phase=Phase.COMPLETE, total=9, succeeded=7, failed=2)))
    assert status == "Healthy"
    assert message.startswith("CompletedWithFailures")
    assert "2 failed" in message


@pytest.mark.parametrize(
    "seen",
    [
        {"metadata": {"generation": 1}},
        {"metadata": {"generation": 1}, "status": {}},
        {"metadata": {"generation": 1}, "status": {"observedGeneration": 1, "conditions": []}},
        {},
    ],
)
def test_before_the_operator_saw_it_a_job_is_progressing(seen: dict[str, Any]) -> None:
    assert health(seen) == ("Progressing", "waiting for the operator to see the job")


def test_after_an_edit_the_old_end_counts_no_more() -> None:
    ended = resource(RunStatus(phase=Phase.COMPLETE, total=3, succeeded=3))
    assert health(ended)[0] == "Healthy"
    ended["metadata"]["generation"] = 5
    assert health(ended) == ("Progressing", "waiting for the operator to see the last edit")


def test_a_deleted_job_is_progressing() -> None:
    ended = resource(RunStatus(phase=Phase.FAILED, message="too late"))
    ended["metadata"]["deletionTimestamp"] = "2026-01-01T10:00:00Z"
    assert health(ended) == ("Progressing", "being deleted")


def test_it_keeps_to_local_names() -> None:
    """A global would outlive the script in a runtime that is used again."""
    assert not re.search(r"^(?!local\b)[a-z_]+\s*=[^=]", SCRIPT, re.MULTILINE)


GUIDE = (ROOT / "docs" / "gitops.md").read_text("utf-8")


def flux() -> dict[str, str]:
    """The expressions that the guide gives to Flux."""
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)]
    (found,) = [block["spec"]["healthCheckExprs"] for block in blocks if "healthCheckExprs" in block.get("spec", {})]
    (expressions,) = found
    assert (expressions.pop("apiVersion"), expressions.pop("kind")) == ("rowmill.dev/v1alpha1", "BatchJob")
    return dict(expressions)


def judged_by_flux(resource: dict[str, Any]) -> str:
    """By the order that Flux documents: in progress until one of them holds, a failure before all else."""
    environment = celpy.Environment()
    for name, verdict in (("failed", "Failed"), ("current", "Current")):
        program = environment.program(environment.compile(flux()[name]))
        if program.evaluate({"status": celpy.json_to_cel(resource["status"])}):
            return verdict
    return "InProgress"


@pytest.mark.parametrize("state", [s for s in STATES if not s.facts.deleting], ids=lambda state: state.name)
def test_the_guides_expressions_for_flux_agree_with_kstatus(state: State) -> None:
    assert judged_by_flux(state.resource()) == state.kstatus


def test_before_the_operator_saw_it_a_job_is_in_progress_for_flux() -> None:
    assert judged_by_flux({"status": {}}) == "InProgress"


def test_the_guides_table_of_conditions_is_true() -> None:
    """Each row's reasons, conditions and verdicts, against what the operator makes."""
    rows = [
        line.strip("| ").split(" | ") for line in GUIDE.splitlines() if line.startswith("| ") and line.count("|") == 5
    ]
    checked = set()
    for what, held, kstatus, argo in rows[1:]:
        reasons = {reason for reason in re.findall(r"`(\w+)`", what) if reason in set(Reason)} or {"Suspended"}
        for state in STATES:
            if state.reason not in reasons or state.facts.deleting or state.name.startswith("partial-"):
                continue
            checked.add(state.reason)
            late = ", then " in kstatus and state.name.startswith("old-")
            assert kstatus.split(", then ")[late] == state.kstatus, state.name
            assert argo.split(", then ")[late] == state.argo, state.name
            wanted = held.replace(" for two minutes", "").split(", then ")[late]
            assert set(wanted.split(", ")) == state.true, state.name
    assert len(checked) >= 20


def test_the_guide_names_the_key_that_argo_cd_looks_for() -> None:
    assert GUIDE.count("resource.customizations.health.rowmill.dev_BatchJob") == 2
    assert "resource.customizations.health.rowmill.dev_BatchJob" in SCRIPT
