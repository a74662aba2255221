"""What a BatchJob says as the API server has it: its metadata, its spec before it is checked, and its status. Pure.

Nothing here trusts the shape of what it reads: a spec may be refused, and a status may have been edited by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from rowmill.status import Phase
from rowmill_operator.kube import naming
from rowmill_operator.kube.status import Output, Workers

Body = Mapping[str, Any]


def generation(body: Body) -> int:
    return int(body["metadata"].get("generation", 1))


def deleting(body: Body) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))


def finalizers(body: Body) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])


def resumed_at(body: Body) -> float | None:
    """When somebody last asked for a run to go on whose calls were refused (seconds since the epoch)."""
    said = _text(part(body["metadata"], "annotations"), naming.RESUMED_AT)
    try:
        return datetime.fromisoformat(said).timestamp()
    except (ValueError, OverflowError):
        return None


def external_replicas(body: Body) -> int | None:
    """`spec.workers.replicas` where something outside owns the number of workers."""
    workers = part(body.get("spec"), "workers")
    if workers.get("scaling") != "External":
        return None
    found = workers.get("replicas", 0)
    return found if isinstance(found, int) else 0


def settled(body: Body) -> bool:
    """Whether the status tells that this very generation of the manifest is done with."""
    status = part(body, "status")
    return (
        status.get("observedGeneration") == generation(body)
        and status.get("phase") in (Phase.COMPLETE, Phase.FAILED)
        and not deleting(body)
    )


def told_workers(status: Mapping[str, Any]) -> Workers:
    """The image that the run of this status began with: a newer operator does not change it under way."""
    workers = part(status, "workers")
    return Workers(_text(workers, "image"), _text(workers, "selector"))


def told_output(status: Mapping[str, Any]) -> Output | None:
    """Where the results of the run of this status are."""
    output = part(status, "output")
    parts = output.get("parts")
    if not (uri := _text(output, "uri")):
        return None
    return Output(uri, parts if isinstance(parts, int) else None, _text(output, "failures") or None)


def seconds_to_live(body: Body, status: Mapping[str, Any], *, now: float) -> float | None:
    """Seconds until `ttlSecondsAfterFinished` is over; None for a job that has not ended, or that stays."""
    ttl = part(body, "spec").get("ttlSecondsAfterFinished")
    finished = status.get("completionTime")
    if not isinstance(ttl, int) or not isinstance(finished, str) or status.get("phase") not in ("Complete", "Failed"):
        return None
    return datetime.fromisoformat(finished).timestamp() + ttl - now


def work_of(body: Body) -> Any:
    """What of a resource makes a difference to what is to be done. A number of workers that others set is followed."""
    spec = body.get("spec")
    if isinstance(spec, dict) and external_replicas(body) is not None:
        spec = {**spec, "workers": {**spec["workers"], "replicas": None}}
    return (spec, deleting(body), resumed_at(body))


def _text(within: Mapping[str, Any], name: str) -> str:
    found = within.get(name)
    return found if isinstance(found, str) else ""


def part(value: Any, name: str) -> Mapping[str, Any]:
    """A mapping within another; empty where it is none, for whoever wrote it need not have been us."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}
