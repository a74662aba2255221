"""A BatchJob's conditions: what machines read of a job. Pure.

Always the same six, in this order. Complete, Failed and Suspended tell what became of the run, for `kubectl wait`.
Ready, Reconciling and Stalled are the standard ones by which kstatus (and so Flux), Argo CD and alerts judge:

    state                                 Complete Failed Suspended Ready Reconciling Stalled   kstatus
    Pending, Running, WaitingForStore, …     -       -       -        -       True       -      InProgress
    Suspended, its budget is used up         -       -      True     True       -        -      Current
    suspended as its calls are refused       -       -      True       -        -      True     Failed
    Completed, CompletedWithFailures        True     -       -       True       -        -      Current
    FailurePolicyExceeded, DeadlineExceeded  -      True     -        -         -       True    Failed
    InvalidSpec and other refusals           -       -       -        -         -       True    Failed
    a trouble that waits for a person        -       -       -        -         -       True    Failed
    Deleting                                 as before                -        True      -      Terminating

A suspended job is Ready: what its manifest asks for is the case, so a pipeline that waits for it goes on.

Who waits with Flux stops waiting at the first Stalled, so it is said only of what will not pass by itself. Troubles
are told apart by that:

- *refusals* (the manifest or its source cannot be used as they are): Stalled at once, whatever the run did before;
- *passing* troubles (a store is away, no room for pods yet): Reconciling for as long as they last. Nodes are added,
  quota is given back, a failover ends; whoever waits sets the timeout;
- the rest *may pass* (a Secret applied a moment after the job, a registry's hiccup): Reconciling for
  `PATIENCE_SECONDS`, then Stalled, and Stalled it stays until the trouble has gone. While a worker is ready rows go on
  and nothing is stalled, whatever keeps other workers away.

`lastTransitionTime` moves only when `status` does. Messages hold no numbers that move.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import msgspec

from rowmill.status import Phase

INVALID = "Invalid"
"""The phase of a job whose manifest or source is refused; the engine does not run."""

TYPES = ("Complete", "Failed", "Suspended", "Ready", "Reconciling", "Stalled")
PATIENCE_SECONDS = 120.0
MESSAGE_BYTES = 768
"""Of a message as JSON in UTF-8. At most three conditions carry it."""

Condition = dict[str, Any]

_PLAIN = re.compile(r"(?! )[ !#-\[\]-~]*(?<! )")
"""A line of which each character is one byte within JSON."""


class Reason(StrEnum):
    """Every reason that a condition may have, and an event with it."""

    PENDING = "Pending"
    RUNNING = "Running"
    WAITING_FOR_STORE = "WaitingForStore"
    WRITING_RESULTS = "WritingResults"
    SUSPENDED = "Suspended"
    BUDGET_EXHAUSTED = "BudgetExhausted"
    CALLS_REFUSED = "CallsRefused"
    COMPLETED = "Completed"
    COMPLETED_WITH_FAILURES = "CompletedWithFailures"
    FAILURE_POLICY_EXCEEDED = "FailurePolicyExceeded"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    INVALID_SPEC = "InvalidSpec"
    FROZEN_FIELD_CHANGED = "FrozenFieldChanged"
    RESULTS_DROPPED = "ResultsDropped"
    NOT_AVAILABLE = "NotAvailable"
    DEDUPE_NOT_PERMITTED = "DedupeNotPermitted"
    SOURCE_INVALID = "SourceInvalid"
    SOURCE_CHANGED = "SourceChanged"
    SOURCE_UNAVAILABLE = "SourceUnavailable"
    OUTPUT_UNAVAILABLE = "OutputUnavailable"
    SECRET_MISSING = "SecretMissing"
    CONFIG_MAP_MISSING = "ConfigMapMissing"
    SERVICE_ACCOUNT_MISSING = "ServiceAccountMissing"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    QUOTA_EXCEEDED = "QuotaExceeded"
    WORKERS_FAILING = "WorkersFailing"
    PODS_REFUSED = "PodsRefused"
    NAMESPACE_TERMINATING = "NamespaceTerminating"
    RUN_IN_USE = "RunInUse"
    CAPACITY_LIMITED = "CapacityLimited"
    DELETING = "Deleting"


REFUSALS = frozenset(
    {
        Reason.INVALID_SPEC,
        Reason.FROZEN_FIELD_CHANGED,
        Reason.RESULTS_DROPPED,
        Reason.NOT_AVAILABLE,
        Reason.DEDUPE_NOT_PERMITTED,
        Reason.SOURCE_INVALID,
        Reason.SOURCE_CHANGED,
    }
)
"""Mended only by an edit; `DedupeNotPermitted` also by a permission. They count in every phase: a finished run whose
manifest is edited badly is told so."""

PASSING = frozenset({Reason.WAITING_FOR_STORE, Reason.UNSCHEDULABLE, Reason.QUOTA_EXCEEDED, Reason.CAPACITY_LIMITED})
"""Never Stalled: a failover ends, an autoscaler adds nodes, other jobs give their quota back."""

HOPELESS = frozenset({Reason.NAMESPACE_TERMINATING})
"""Stalled at once, but only of a run that still needs pods."""

WELL = frozenset(
    {Reason.PENDING, Reason.RUNNING, Reason.WRITING_RESULTS, Reason.SUSPENDED, Reason.COMPLETED, Reason.DELETING}
)
"""Nobody needs to look. Every other reason is worth a warning."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is in the way. `message` says what, where and what to do, without numbers that move (they would be written
    again and again); `seconds` is how long the trouble has lasted, 0 when that is not known."""

    reason: str
    message: str
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Facts:
    """What conditions are made of.

    `phase` is a `Phase` or `INVALID`. `message` is a sentence on the phase, "" for the usual one; `reason` replaces
    the phase's usual reason (a failed run needs one; `WritingResults` while running). `workers_ready` 0 when unknown.
    """

    phase: str
    message: str = ""
    reason: str | None = None
    trouble: Trouble | None = None
    failed_rows: int = 0
    workers_ready: int = 0
    deleting: bool = False


def conditions(
    previous: Iterable[Mapping[str, Any]] | None, facts: Facts, *, observed_generation: int, now: float
) -> list[Condition]:
    """The six conditions, in the order of `TYPES`.

    `previous` are those that the resource has (anything that is no condition is passed over), `observed_generation` the
    `metadata.generation` that `facts` speak of, `now` the wall clock in seconds since the epoch.
    """
    before = _by_type(previous)
    true, reason, message = _judge(facts, before)
    message = cut(message, MESSAGE_BYTES)
    return [
        _condition(
            name,
            "True" if name in true else "False",
            reason=reason,
            message=message if name in true or name == "Ready" else "",
            generation=observed_generation,
            before=before.get(name),
            now=now,
        )
        for name in TYPES
    ]


def telling(made: Iterable[Mapping[str, Any]]) -> tuple[str, str, bool] | None:
    """What conditions say in one line: reason, message, and whether it is a warning. None of an empty list."""
    by_type = _by_type(made)
    if (ready := by_type.get("Ready")) is None:
        return None
    reason = str(ready.get("reason", ""))
    return reason, str(ready.get("message", "")), reason not in WELL


def rfc3339(seconds: float) -> str:
    """A wall clock's seconds as the API server writes times: UTC, whole seconds."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def cut(text: str, limit: int) -> str:
    """`text` in one line, of at most `limit` bytes within JSON (UTF-8, without the quotes); "…" tells that it was cut.

    Control characters become spaces and half characters U+FFFD, so that any API server takes it.
    """
    if len(text) <= limit and _PLAIN.fullmatch(text) and "  " not in text:
        return text
    line = " ".join("".join(c if c.isprintable() else _plain(c) for c in text[: 4 * limit]).split())
    if len(text) <= 4 * limit and _size(line) <= limit:
        return line
    low, high = 0, min(len(line), limit)
    while low < high:  # the longest beginning that fits, with its "…"
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _size(line[:middle]) + 3 <= limit else (low, middle - 1)
    return line[:low].rstrip() + "…" if limit >= 3 else ""


def _plain(character: str) -> str:
    return "\ufffd" if "\ud800" <= character <= "\udfff" else " "


def _size(text: str) -> int:
    return len(msgspec.json.encode(text)) - 2


def _judge(facts: Facts, before: Mapping[str, Mapping[str, Any]]) -> tuple[frozenset[str], str, str]:
    """The types that are True, the reason and the message."""
    true, reason, message = _of_phase(facts)
    trouble = facts.trouble
    if trouble is not None and _counts(trouble, facts.phase):
        stalled = trouble.reason in REFUSALS | HOPELESS or _out_of_patience(trouble, facts, before.get("Stalled"))
        true, reason, message = frozenset({"Stalled" if stalled else "Reconciling"}), trouble.reason, trouble.message
    if facts.deleting:
        true = (true & {"Complete", "Failed", "Suspended"}) | {"Reconciling"}
        reason, message = Reason.DELETING, "being deleted: workers end and the rows on their way are forgotten"
    return true, str(reason), message


def _of_phase(facts: Facts) -> tuple[frozenset[str], str, str]:
    match facts.phase:
        case Phase.COMPLETE if facts.failed_rows:
            usual = (
                f"every row has an outcome, {facts.failed_rows:,} failed; mend the cause and raise "
                "spec.retryGeneration to run the failed rows again"
            )
            reason = facts.reason or Reason.COMPLETED_WITH_FAILURES
            return frozenset({"Complete", "Ready"}), reason, facts.message or usual
        case Phase.COMPLETE:
            reason, usual = facts.reason or Reason.COMPLETED, "every row has an outcome, none failed"
            return frozenset({"Complete", "Ready"}), reason, facts.message or usual
        case Phase.FAILED:
            reason = facts.reason or Reason.FAILURE_POLICY_EXCEEDED
            return frozenset({"Failed", "Stalled"}), reason, facts.message or "the run ended before every row was done"
        case Phase.SUSPENDED:
            usual = "suspended: set spec.suspend to false to go on; finished rows are kept"
            # Where calls are refused somebody has to mend something; a budget that is used up was asked for.
            other = "Stalled" if facts.reason == Reason.CALLS_REFUSED else "Ready"
            return frozenset({"Suspended", other}), facts.reason or Reason.SUSPENDED, facts.message or usual
        case Phase.RUNNING:
            reason, usual = facts.reason or Reason.RUNNING, "rows are being worked on"
            return frozenset({"Reconciling"}), reason, facts.message or usual
        case Phase.PENDING:
            reason, usual = facts.reason or Reason.PENDING, "the run has not begun yet"
            return frozenset({"Reconciling"}), reason, facts.message or usual
        case _:
            usual = "the manifest cannot be used as it is"
            return frozenset({"Stalled"}), facts.reason or Reason.INVALID_SPEC, facts.message or usual


def _counts(trouble: Trouble, phase: str) -> bool:
    """Whether a trouble matters: a run that needs no pods and no stores has none of their troubles."""
    return trouble.reason in REFUSALS or phase in (Phase.PENDING, Phase.RUNNING, INVALID)


def _out_of_patience(trouble: Trouble, facts: Facts, stalled: Mapping[str, Any] | None) -> bool:
    if trouble.reason in PASSING or facts.workers_ready > 0:
        return False
    was = stalled is not None and stalled.get("status") == "True" and stalled.get("reason") == trouble.reason
    return was or trouble.seconds >= PATIENCE_SECONDS


def _by_type(found: Iterable[Mapping[str, Any]] | None) -> dict[str, Mapping[str, Any]]:
    return {str(one.get("type")): one for one in found or () if isinstance(one, Mapping)}


def _condition(
    name: str,
    status: str,
    *,
    reason: str,
    message: str,
    generation: int,
    before: Mapping[str, Any] | None,
    now: float,
) -> Condition:
    since = before.get("lastTransitionTime") if before is not None and before.get("status") == status else None
    made = {
        "type": name,
        "status": status,
        "observedGeneration": generation,
        "lastTransitionTime": since if isinstance(since, str) and since else rfc3339(now),
        "reason": reason,
    }
    # An empty one is left out: Kubernetes 1.20 takes it for null and refuses the whole status.
    return {**made, "message": message} if message else made
