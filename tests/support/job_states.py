"""Where a BatchJob may come to rest: for each reason the phases and the conditions that go with it."""

from __future__ import annotations

from rowmill.status import Phase
from rowmill_operator.kube.conditions import INVALID, REFUSALS, Reason

ON_ITS_WAY = frozenset({Reason.PENDING, Reason.RUNNING, Reason.WRITING_RESULTS, Reason.DELETING})
"""What a job says while it moves: nothing to settle in."""

HELD_UP = frozenset(
    {
        *(Reason.WAITING_FOR_STORE, Reason.SOURCE_UNAVAILABLE, Reason.OUTPUT_UNAVAILABLE, Reason.RUN_IN_USE),
        *(Reason.SECRET_MISSING, Reason.CONFIG_MAP_MISSING, Reason.SERVICE_ACCOUNT_MISSING, Reason.IMAGE_PULL_FAILED),
        *(Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.CAPACITY_LIMITED, Reason.NAMESPACE_TERMINATING),
        *(Reason.WORKERS_FAILING, Reason.PODS_REFUSED),
    }
)
"""What a job that is not over waits for; said as Reconciling, or as Stalled where a person is needed."""

State = tuple[set[str], set[frozenset[str]]]
"""The phases that a reason goes with, and the conditions that may be True together."""


def states() -> dict[Reason, State]:
    """Every reason that a job may settle in."""
    complete: State = {Phase.COMPLETE}, {frozenset({"Complete", "Ready"})}
    failed: State = {Phase.FAILED}, {frozenset({"Failed", "Stalled"})}
    waiting: State = {Phase.PENDING, Phase.RUNNING}, {frozenset({"Reconciling"}), frozenset({"Stalled"})}
    return {
        **dict.fromkeys(HELD_UP, waiting),
        **dict.fromkeys(REFUSALS, ({INVALID}, {frozenset({"Stalled"})})),
        **dict.fromkeys((Reason.COMPLETED, Reason.COMPLETED_WITH_FAILURES), complete),
        **dict.fromkeys((Reason.FAILURE_POLICY_EXCEEDED, Reason.DEADLINE_EXCEEDED), failed),
        **dict.fromkeys(
            (Reason.SUSPENDED, Reason.BUDGET_EXHAUSTED), ({Phase.SUSPENDED}, {frozenset({"Suspended", "Ready"})})
        ),
        Reason.CALLS_REFUSED: ({Phase.SUSPENDED}, {frozenset({"Suspended", "Stalled"})}),
    }


STATES = states()
