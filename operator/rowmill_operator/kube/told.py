"""What a status said, read back: where an operator goes on that has just started. Pure.

The status is a view and may be anybody's; nothing is decided by it. It only keeps a restart from telling that a job
which has been running for hours is pending, or that a stalled one is well, before anybody has looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

from rowmill.limits import MOST_JOBS, GroupLimits, LimitsTold
from rowmill.spend import Pause, Spend
from rowmill.spend import Reason as PauseReason
from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_operator.kube.conditions import REFUSALS, WELL, Trouble, cut
from rowmill_operator.kube.status import RUN_ID_BYTES


@dataclass(frozen=True, slots=True)
class Told:
    """What a status said of a run: enough to say the same again before anybody has looked anew."""

    run: RunStatus
    trouble: Trouble | None


def told(status: Mapping[str, Any] | None, *, run_id: str, now: float) -> Told | None:
    """What `status` (as an operator finds it when it starts) says of this run; None when it speaks of none or another.

    `status_document` makes the same status of it again. A refusal is not kept: the manifest is judged anew anyway. What
    is malformed counts as 0, for a resource's status may be anybody's.
    """
    status = _dict(status)
    run = _dict(status.get("run"))
    if run.get("id") != cut(run_id, RUN_ID_BYTES):
        return None
    rows, workers = _dict(status.get("rows")), _dict(status.get("workers"))
    phase = next((phase for phase in Phase if phase == status.get("phase")), Phase.PENDING)
    held = status.get("conditions")
    ready: Mapping[str, Any] = (
        next((c for c in held if _dict(c).get("type") == "Ready"), {}) if isinstance(held, list) else {}
    )
    reason, message = str(ready.get("reason", "")), str(ready.get("message", ""))
    errors = status.get("errors")
    found = RunStatus(
        phase=phase,
        message=message if phase in (Phase.COMPLETE, Phase.FAILED, Phase.SUSPENDED) else "",
        generation=_count(run.get("generation")),
        epoch=_count(run.get("epoch")),
        total=_count(rows["total"]) if "total" in rows else None,
        deduplicated=_count(rows.get("deduplicated")),
        rows_per_minute=float(_count(status.get("rowsPerMinute"))),
        seconds_left=_seconds_until(status.get("estimatedCompletionTime"), now=now),
        workers_desired=_count(workers.get("desired")),
        workers_ready=_count(workers.get("ready")),
        dropped_at=_time(status.get("resultsDroppedTime")),
        limits=_limits(status.get("limits")),
        errors=[
            ErrorCount(str(e.get("class")), _count(e.get("count")), _count(e.get("exampleRow")))
            for e in (errors if isinstance(errors, list) else [])
            if isinstance(e, dict)
        ],
        spend=spend_told(status),
        source_rows=_count(_dict(_dict(status.get("spend")).get("projected")).get("rows")) or None,
        pause=_pause(phase, reason, message),
        queued=_count(rows.get("queued")),
        running=_count(rows.get("running")),
        succeeded=_count(rows.get("succeeded")),
        failed=_count(rows.get("failed")),
        retried=_count(rows.get("retried")),
    )
    kept = phase in (Phase.PENDING, Phase.RUNNING) and reason not in WELL | REFUSALS and bool(reason)
    return Told(
        replace(found, fed=found.done + found.queued + found.running), Trouble(reason, message) if kept else None
    )


def spend_told(status: Mapping[str, Any]) -> Spend:
    """What a status says was used."""
    said = _dict(status.get("spend"))
    try:
        cost = Decimal(str(said.get("cost", "0")))
    except ArithmeticError:
        cost = Decimal(0)
    tokens = _count(said.get("inputTokens")), _count(said.get("outputTokens"))
    return Spend(_count(said.get("requests")), *tokens, cost if cost.is_finite() and cost >= 0 else Decimal(0))


def _pause(phase: Phase, reason: str, message: str) -> Pause | None:
    """Why it stood still, in words; when it is tried again is for the engine to say."""
    if phase is not Phase.SUSPENDED or reason not in tuple(PauseReason):
        return None
    return Pause(PauseReason(reason), message, 0.0)


def _limits(value: object) -> LimitsTold | None:
    """What was told to hold. The manifest's own numbers and group are for the engine to say again."""
    if not isinstance(value, Mapping):
        return None
    held = GroupLimits(*(_count(value.get(name)) for name in ("requestsPerMinute", "tokensPerMinute", "maxInFlight")))
    return LimitsTold("", held, held, _names(value.get("loweredBy")), _names(value.get("lowers")))


def _names(value: object) -> tuple[str, ...]:
    return tuple(one for one in value if isinstance(one, str))[:MOST_JOBS] if isinstance(value, list) else ()


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _seconds_until(time: object, *, now: float) -> float | None:
    """None of what is no time, or has passed."""
    at = _time(time)
    return at - now if at is not None and at > now else None


def _time(text: object) -> float | None:
    """Seconds since the epoch; None of what is no time."""
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except (ValueError, OverflowError):
        return None


def _dict(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
