"""What a status said, read back: where an operator goes on that has just started. Pure.

The status is a view and may be anybody's; nothing is decided by it. It only keeps a restart from telling that a job
which has been running for hours is pending, or that a stalled one is well, before anybody has looked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

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
    counts = {name: _count(rows.get(name)) for name in ("queued", "running", "succeeded", "failed", "retried")}
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
        errors=[
            ErrorCount(str(e.get("class")), _count(e.get("count")), _count(e.get("exampleRow")))
            for e in (errors if isinstance(errors, list) else [])
            if isinstance(e, dict)
        ],
        **counts,
    )
    kept = phase in (Phase.PENDING, Phase.RUNNING) and reason not in WELL | REFUSALS and bool(reason)
    return Told(
        replace(found, fed=found.done + found.queued + found.running), Trouble(reason, message) if kept else None
    )


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
