"""A BatchJob's status: a small view of a run, never its truth. Pure.

The document is made anew from a snapshot each time; what must not move by itself (the start, the end, the estimate) is
taken over from the document before, as long as that one speaks of the same run. `merge_patch` then says what a server
that has the one needs to be told to have the other. A document is under `MAX_BYTES` whatever the texts in it, and
holds counts, classes and addresses, never a row's content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from rowmill.ledger.budget import SHARED
from rowmill.spend import Spend
from rowmill.status import Phase, RunStatus
from rowmill_operator.kube.conditions import (
    INVALID,
    REFUSALS,
    Facts,
    Reason,
    Trouble,
    conditions,
    cut,
    rfc3339,
)
from rowmill_operator.kube.patches import without_nulls

MAX_BYTES = 8192
"""Of a status as JSON in UTF-8."""

TOP_ERRORS = 5
ADDRESS_BYTES = 2048
"""Of an address. A longer one is left out: a piece of it would be used as if it were whole."""

NAME_BYTES = 1024
"""Of an image and a selector; the same."""

RUN_ID_BYTES = 128
MESSAGE_STEPS = (256, 64)
"""To what messages are cut when the whole is too long."""

CLASS_BYTES = 64
_CLASS = re.compile(rf"[A-Za-z][A-Za-z0-9]{{0,{CLASS_BYTES - 1}}}", re.ASCII)
UNNAMED_CLASS = "Other"
"""What errors are counted under whose class is no CamelCase name: it might hold a piece of a row."""

WAITING = "waiting: "
"""How the engine begins its message while a store is away."""

WAITING_FOR_SOURCE = "waiting for the source: "
"""And while the place of its source is."""

_STEPS = ((120, 10), (3600, 60), (86_400, 600), (float("inf"), 3600))
"""By how much an estimate is rounded (seconds), by the time that is left."""


@dataclass(frozen=True, slots=True)
class Workers:
    """What is told of the workers besides their number: the image that the run is pinned to, the pods' selector."""

    image: str = ""
    selector: str = ""


@dataclass(frozen=True, slots=True)
class Output:
    """Where the results are: the folder's address, how many parts are written, the address of the failures' file."""

    uri: str
    parts: int | None = None
    failures: str | None = None


def status_document(
    run: RunStatus,
    *,
    run_id: str,
    observed_generation: int,
    now: float,
    previous: Mapping[str, Any] | None = None,
    trouble: Trouble | None = None,
    reason: str | None = None,
    message: str = "",
    deleting: bool = False,
    workers: Workers | None = None,
    output: Output | None = None,
    started_at: float | None = None,
    ended_at: float | None = None,
) -> dict[str, Any]:
    """The whole status, without empty fields, ready for `merge_patch`.

    `previous` is the status that the resource has (or the last document), `now` the wall clock in seconds since the
    epoch; `started_at` and `ended_at` are the run's own times on it, where they are known. `trouble` is what the
    operator sees to be in the way; without one, what the engine says in `run.message` is told. `reason` and
    `message` replace the phase's usual ones (`WritingResults`, with a run that still says Running).
    """
    before = dict(previous or {})
    phase = shown_phase(run, trouble)
    facts = Facts(
        phase=phase,
        message=message or run.message,
        reason=reason or _reason_of(run, phase),
        trouble=trouble or engine_trouble(run),
        failed_rows=run.failed,
        workers_ready=run.workers_ready,
        deleting=deleting,
    )
    held = before.get("conditions")
    made = conditions(held if isinstance(held, list) else None, facts, observed_generation=observed_generation, now=now)
    run_id = cut(run_id, RUN_ID_BYTES)
    same = _dict(before.get("run")).get("id") == run_id
    document = {
        "observedGeneration": observed_generation,
        "phase": phase,
        "conditions": made,
        "run": {"id": run_id, "generation": run.generation, "epoch": run.epoch},
        "rows": _rows(run),
        "done": str(run.done) if run.total is None else f"{run.done}/{run.total}",
        "progress": progress(run),
        "successRate": success_rate(run),
        "rowsPerMinute": max(0, round(run.rows_per_minute)) if phase == Phase.RUNNING else 0,
        **_times(run, before if same else {}, now=now, started_at=started_at, ended_at=ended_at),
        "resultsDroppedTime": rfc3339(run.dropped_at) if run.dropped_at is not None else None,
        "workers": _workers(run, workers),
        "output": _output(output),
        "errors": _errors(run),
        "spend": _spend(run),
        "limits": _limits(run),
    }
    return _within(without_nulls(document))


def _reason_of(run: RunStatus, phase: str) -> str | None:
    if phase == Phase.FAILED:
        return failure_reason(run.message)
    return run.pause.reason if phase == Phase.SUSPENDED and run.pause is not None else None


def shown_phase(run: RunStatus, trouble: Trouble | None) -> str:
    """The run's phase, or `INVALID` when what is in the way is a refusal."""
    return INVALID if trouble is not None and trouble.reason in REFUSALS else str(run.phase)


def engine_trouble(run: RunStatus) -> Trouble | None:
    """What the engine's own message says to be in the way of a run that is not over; None of any other message."""
    if run.phase in (Phase.PENDING, Phase.RUNNING):
        if run.message.startswith(WAITING_FOR_SOURCE):
            return Trouble(Reason.SOURCE_UNAVAILABLE, run.message)
        if run.message.startswith(WAITING):
            return Trouble(Reason.WAITING_FOR_STORE, run.message)
        if SHARED in run.message:
            return Trouble(Reason.CAPACITY_LIMITED, run.message)
    return None


def failure_reason(message: str) -> Reason:
    """Why a run failed, of the engine's message: the ledger keeps no more than that over a restart. It names the
    manifest's field that ended the run."""
    return Reason.DEADLINE_EXCEEDED if "activeDeadlineSeconds" in message else Reason.FAILURE_POLICY_EXCEEDED


def progress(run: RunStatus) -> str | None:
    """Rows with an outcome as a whole percentage, rounded down: "100%" only of a run that is over. None while the
    number of rows is not known."""
    if run.total is None:
        return None
    over = run.phase in (Phase.COMPLETE, Phase.FAILED)
    percent = 100 * run.done // run.total if run.total else (100 if over else 0)
    return f"{max(0, min(percent, 100 if over else 99))}%"


def success_rate(run: RunStatus) -> str | None:
    """Share of the finished rows that did not fail, rounded down: "100.00%" only when none failed. None before the
    first one."""
    if not run.done:
        return None
    hundredths = 10_000 * (run.succeeded + run.deduplicated) // run.done
    return f"{hundredths // 100}.{hundredths % 100:02d}%"


def size(document: Mapping[str, Any]) -> int:
    """Bytes of a document as compact JSON in UTF-8."""
    return len(msgspec.json.encode(document))


def _rows(run: RunStatus) -> dict[str, int | None]:
    return {
        "total": run.total,
        "queued": max(0, run.queued),
        "running": max(0, run.running),
        "succeeded": run.succeeded,
        "failed": run.failed,
        "retried": run.retried,
        "deduplicated": run.deduplicated,
    }


def _times(
    run: RunStatus, before: Mapping[str, Any], *, now: float, started_at: float | None, ended_at: float | None
) -> dict[str, str | None]:
    started = rfc3339(started_at) if started_at is not None else _time(before.get("startTime"))
    if started is None and run.phase is not Phase.PENDING:
        started = rfc3339(now)
    completed = estimate = None
    if run.phase in (Phase.COMPLETE, Phase.FAILED):
        again = _dict(before.get("run")).get("generation") != run.generation
        kept = None if again else _time(before.get("completionTime"))
        completed = rfc3339(ended_at) if ended_at is not None else kept or rfc3339(now)
    elif run.phase is Phase.RUNNING and run.seconds_left is not None:
        estimate = _estimate(run.seconds_left, before.get("estimatedCompletionTime"), now=now)
    return {"startTime": started, "completionTime": completed, "estimatedCompletionTime": estimate}


def _estimate(seconds_left: float, before: object, *, now: float) -> str | None:
    """The time of the end, rounded up; the one that was told stays as long as the new one is within a step of it."""
    step = next(step for limit, step in _STEPS if seconds_left < limit or limit == float("inf"))
    try:
        end = int(-(-(now + max(0.0, seconds_left)) // step) * step)
        near = (rfc3339(end - step), rfc3339(end), rfc3339(end + step))
    except (OverflowError, ValueError, OSError):
        return None  # further away than a calendar reaches
    # Times of this form sort as text.
    if isinstance(before, str) and near[0] <= before <= near[2] and before >= rfc3339(now):
        return before
    return near[1]


def _workers(run: RunStatus, workers: Workers | None) -> dict[str, Any]:
    workers = workers or Workers()
    return {
        "desired": max(0, run.workers_desired),
        "ready": max(0, run.workers_ready),
        "image": _whole(workers.image, NAME_BYTES),
        "selector": _whole(workers.selector, NAME_BYTES),
    }


def _output(output: Output | None) -> dict[str, Any] | None:
    if output is None:
        return None
    failures = _whole(output.failures or "", ADDRESS_BYTES)
    return {"uri": _whole(output.uri, ADDRESS_BYTES), "parts": output.parts, "failures": failures}


def _spend(run: RunStatus) -> dict[str, Any] | None:
    """What was used, and what all rows would use; nothing before the first call."""
    if not run.spend.requests:
        return None
    told = _amounts(run.spend)
    if (projected := run.projected) is not None:
        told["projected"] = {"rows": run.source_rows or run.total, **_amounts(projected)}
    return told


def _amounts(spend: Spend) -> dict[str, Any]:
    tokens = {"inputTokens": spend.input_tokens, "outputTokens": spend.output_tokens} if spend.tokens else {}
    cost = {"cost": f"{spend.cost.normalize():f}"} if spend.cost else {}
    return {"requests": spend.requests, **tokens, **cost}


def _limits(run: RunStatus) -> dict[str, Any] | None:
    """Those that hold, while rows run: of a run that is over none does."""
    if run.limits is None or run.phase is not Phase.RUNNING:
        return None
    held = run.limits.held
    told: dict[str, Any] = {
        "requestsPerMinute": held.requests_per_minute,
        "tokensPerMinute": held.tokens_per_minute,
        "maxInFlight": held.max_in_flight,
        "loweredBy": list(run.limits.lowered_by),
        "lowers": list(run.limits.lowers),
    }
    return {name: value for name, value in told.items() if value} or None


def _errors(run: RunStatus) -> list[dict[str, Any]] | None:
    counted: dict[str, list[int]] = {}
    for error in run.errors:
        name = error.error_class if _CLASS.fullmatch(error.error_class) else UNNAMED_CLASS
        entry = counted.setdefault(name, [0, error.example_row])
        entry[0] += error.count
    most = sorted(counted.items(), key=lambda item: (-item[1][0], item[0]))[:TOP_ERRORS]
    return [{"class": name, "count": count, "exampleRow": row} for name, (count, row) in most] or None


def _time(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _whole(text: str, limit: int) -> str | None:
    return text if text and cut(text, limit) == text else None


def _within(document: dict[str, Any]) -> dict[str, Any]:
    """The document under `MAX_BYTES`: messages are cut shorter first, then addresses and names are left out; counts
    stay."""
    for limit in MESSAGE_STEPS:
        if size(document) < MAX_BYTES:
            return document
        made = [
            {**one, "message": cut(one["message"], limit)} if "message" in one else one
            for one in document["conditions"]
        ]
        document = {**document, "conditions": made}
    for part, name in (
        *(("output", "failures"), ("output", "uri"), ("workers", "image"), ("workers", "selector")),
        *(("limits", "lowers"), ("limits", "loweredBy")),
    ):
        if size(document) >= MAX_BYTES and part in document:
            document = {**document, part: {key: value for key, value in document[part].items() if key != name}}
    return document


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
