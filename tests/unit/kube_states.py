"""Every state that a BatchJob can be in, and how each must be read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rowmill.status import Phase
from rowmill_operator.kube.conditions import INVALID, PATIENCE_SECONDS, Facts, Reason, Trouble, conditions

NOW = 1_800_000_000.0
GENERATION = 4
LONG = PATIENCE_SECONDS + 1


@dataclass(frozen=True)
class State:
    """`kstatus` and `argo` are the verdicts, `true` the conditions that hold, besides them."""

    name: str
    facts: Facts
    reason: str
    kstatus: str
    argo: str
    true: frozenset[str]

    def made(self, previous: list[dict[str, Any]] | None = None, *, now: float = NOW) -> list[dict[str, Any]]:
        return conditions(previous, self.facts, observed_generation=GENERATION, now=now)

    def resource(self) -> dict[str, Any]:
        metadata: dict[str, Any] = {"name": "triage", "namespace": "support", "generation": GENERATION}
        if self.facts.deleting:
            metadata["deletionTimestamp"] = "2027-01-15T08:00:00Z"
        status: dict[str, Any] = {"observedGeneration": GENERATION, "conditions": self.made(), "done": "3/9"}
        return {"metadata": metadata, "status": {**status, "progress": "33%"}}


def _state(name: str, facts: Facts, reason: str, verdict: str, *true: str) -> State:
    argo = {"InProgress": "Progressing", "Terminating": "Progressing", "Failed": "Degraded", "Current": "Healthy"}
    held = frozenset(true)
    waits = verdict == "Current" and "Suspended" in held
    return State(name, facts, reason, verdict, "Suspended" if waits else argo[verdict], held)


def _trouble(reason: str, seconds: float = 0.0, *, phase: str = Phase.RUNNING, ready: int = 0) -> Facts:
    return Facts(phase=phase, trouble=Trouble(reason, f"{reason} is in the way", seconds), workers_ready=ready)


REFUSED = (
    *("InvalidSpec", "FrozenFieldChanged", "ResultsDropped", "NotAvailable"),
    *("DedupeNotPermitted", "SourceInvalid", "SourceChanged"),
)
PASSING = ("WaitingForStore", "Unschedulable", "QuotaExceeded", "CapacityLimited")
PATIENT = (
    "SourceUnavailable",
    "OutputUnavailable",
    "SecretMissing",
    "ConfigMapMissing",
    "ServiceAccountMissing",
    "ImagePullFailed",
    "WorkersFailing",
    "PodsRefused",
    "RunInUse",
)
PHASES = (Phase.PENDING, Phase.RUNNING, Phase.SUSPENDED, Phase.COMPLETE, Phase.FAILED, INVALID)

STATES = [
    _state("pending", Facts(phase=Phase.PENDING), "Pending", "InProgress", "Reconciling"),
    _state("running", Facts(phase=Phase.RUNNING, failed_rows=3), "Running", "InProgress", "Reconciling"),
    _state(
        "writing",
        Facts(phase=Phase.RUNNING, reason=Reason.WRITING_RESULTS, message="the last part is being written"),
        "WritingResults",
        "InProgress",
        "Reconciling",
    ),
    _state("suspended", Facts(phase=Phase.SUSPENDED), "Suspended", "Current", "Suspended", "Ready"),
    _state(
        "budget-used-up",
        Facts(phase=Phase.SUSPENDED, reason=Reason.BUDGET_EXHAUSTED, message="the 5 calls are used up. Raise it"),
        "BudgetExhausted",
        "Current",
        "Suspended",
        "Ready",
    ),
    _state(
        "calls-refused",
        Facts(phase=Phase.SUSPENDED, reason=Reason.CALLS_REFUSED, message="calls are refused. Mend the credentials"),
        "CallsRefused",
        "Failed",
        "Suspended",
        "Stalled",
    ),
    _state("complete", Facts(phase=Phase.COMPLETE), "Completed", "Current", "Complete", "Ready"),
    _state(
        "complete-with-failures",
        Facts(phase=Phase.COMPLETE, failed_rows=12),
        "CompletedWithFailures",
        "Current",
        "Complete",
        "Ready",
    ),
    _state(
        "failed",
        Facts(phase=Phase.FAILED, reason=Reason.FAILURE_POLICY_EXCEEDED, message="5 of 9 rows failed"),
        "FailurePolicyExceeded",
        "Failed",
        "Failed",
        "Stalled",
    ),
    _state(
        "too-late",
        Facts(phase=Phase.FAILED, reason=Reason.DEADLINE_EXCEEDED),
        "DeadlineExceeded",
        "Failed",
        "Failed",
        "Stalled",
    ),
    _state("namespace-going", _trouble("NamespaceTerminating"), "NamespaceTerminating", "Failed", "Stalled"),
    *(_state(f"refused-{one}", _trouble(one, phase=INVALID), one, "Failed", "Stalled") for one in REFUSED),
    *(_state(f"passing-{one}", _trouble(one, LONG), one, "InProgress", "Reconciling") for one in PASSING),
    *(_state(f"new-{one}", _trouble(one), one, "InProgress", "Reconciling") for one in PATIENT),
    *(_state(f"old-{one}", _trouble(one, LONG), one, "Failed", "Stalled") for one in PATIENT),
    *(_state(f"partial-{one}", _trouble(one, LONG, ready=1), one, "InProgress", "Reconciling") for one in PATIENT),
    *(
        _state(f"deleting-{phase}", Facts(phase=phase, deleting=True), "Deleting", "Terminating", "Reconciling", *still)
        for phase, still in zip(PHASES, [(), (), ("Suspended",), ("Complete",), ("Failed",), ()], strict=True)
    ),
]
