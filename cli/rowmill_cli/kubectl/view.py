"""A BatchJob as people ask about it: what its spec and its status say, whatever is missing in them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from rowmill.limits import GroupLimits, LimitsTold, say_limits
from rowmill.status import when_dropped
from rowmill_cli.kubectl.refusals import printable

ENDED: Final = ("Complete", "Failed")
_LIMITS: Final = ("requestsPerMinute", "tokensPerMinute", "maxInFlight")
_GITOPS: Final = (
    ("Flux", "labels", "kustomize.toolkit.fluxcd.io/name"),
    ("Flux", "labels", "helm.toolkit.fluxcd.io/name"),
    ("Argo CD", "labels", "argocd.argoproj.io/instance"),
    ("Argo CD", "annotations", "argocd.argoproj.io/tracking-id"),
)


@dataclass(frozen=True, slots=True)
class Rows:
    """Counts; `total` is None until the source was read to its end."""

    total: int | None
    queued: int
    running: int
    succeeded: int
    failed: int
    retried: int
    deduplicated: int

    @property
    def done(self) -> int:
        return self.succeeded + self.failed + self.deduplicated

    @property
    def open(self) -> int:
        """Rows without an outcome, as far as they are known."""
        return max(0, self.total - self.done) if self.total is not None else 0


class JobView:
    """One BatchJob. Texts are fit for a terminal; what a status lacks is None, 0 or empty."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self.body = body
        metadata = part(body, "metadata")
        self.spec, self.status = part(body, "spec"), part(body, "status")
        self.namespace, self.name = text(metadata, "namespace"), text(metadata, "name")
        self.uid = text(metadata, "uid")
        self.resource_version = text(metadata, "resourceVersion")
        self.generation = number(metadata, "generation")
        self.deleting = bool(metadata.get("deletionTimestamp"))
        self.run_id = text(part(self.status, "run"), "id")
        self.run_generation = number(part(self.status, "run"), "generation")
        self.retry_generation = number(self.spec, "retryGeneration")
        self.suspend = self.spec.get("suspend") is True
        rows = part(self.status, "rows")
        total = rows.get("total")
        self.rows = Rows(
            total if isinstance(total, int) else None,
            *(number(rows, name) for name in ("queued", "running", "succeeded", "failed", "retried", "deduplicated")),
        )
        self.conditions = {
            text(one, "type"): one for one in self.status.get("conditions") or () if isinstance(one, Mapping)
        }

    @property
    def where(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def seen(self) -> bool:
        """Whether the status speaks of the manifest as it is now."""
        return number(self.status, "observedGeneration") >= self.generation

    @property
    def phase(self) -> str:
        return text(self.status, "phase") or "Pending"

    @property
    def ended(self) -> bool:
        """Whether the run is over, with all that its manifest asks for now."""
        return self.seen and (self.true("Complete") or self.true("Failed"))

    @property
    def failed(self) -> bool:
        return self.ended and self.true("Failed")

    @property
    def refused(self) -> bool:
        """Whether nothing happens before the manifest is edited."""
        return self.seen and not self.ended and self.phase == "Invalid" and self.true("Stalled")

    @property
    def reason(self) -> str:
        return text(self.conditions.get("Ready", {}), "reason")

    @property
    def message(self) -> str:
        """Why it is as it is, in a sentence."""
        if not self.status:
            return "the operator has not looked at it yet"
        return text(self.conditions.get("Ready", {}), "message") or self.reason

    @property
    def output_uri(self) -> str:
        return text(part(self.status, "output"), "uri")

    @property
    def results_dropped(self) -> str | None:
        """That the recorded outcomes are gone, in a sentence."""
        dropped = self.time("resultsDroppedTime")
        if dropped is None:
            return None
        return (
            f"the results of {self.where}, run {self.run_id}, {when_dropped(dropped)}; change spec.runId to run again"
        )

    @property
    def image(self) -> str:
        return text(part(self.status, "workers"), "image")

    @property
    def limits(self) -> str:
        """Whose limits of its group hold, where jobs of it set different ones; "" where they do not."""
        wanted, held = part(self.spec, "limits"), part(self.status, "limits")
        return say_limits(
            LimitsTold(
                text(wanted, "group"),
                GroupLimits(*(number(wanted, name) for name in _LIMITS)),
                GroupLimits(*(number(held, name) for name in _LIMITS)),
                _texts(held, "loweredBy"),
                _texts(held, "lowers"),
            )
        )

    @property
    def gitops(self) -> str | None:
        """Which tool writes this resource from a repository, if one does."""
        metadata = part(self.body, "metadata")
        return next((tool for tool, kind, key in _GITOPS if part(metadata, kind).get(key)), None)

    def true(self, condition: str) -> bool:
        return self.conditions.get(condition, {}).get("status") == "True"

    def time(self, name: str) -> float | None:
        """A time of the status, in seconds since the epoch."""
        return seconds(self.status.get(name))


def part(value: object, name: str) -> Mapping[str, Any]:
    """The object at `name`, or an empty one."""
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def text(value: Mapping[str, Any], name: str) -> str:
    found = value.get(name)
    return printable(found) if isinstance(found, str) else ""


def _texts(value: Mapping[str, Any], name: str) -> tuple[str, ...]:
    found = value.get(name)
    return tuple(printable(one) for one in found if isinstance(one, str)) if isinstance(found, list) else ()


def number(value: Mapping[str, Any], name: str) -> int:
    found = value.get(name)
    return found if isinstance(found, int) and not isinstance(found, bool) else 0


def seconds(value: object) -> float | None:
    """An RFC 3339 time in seconds since the epoch."""
    if not isinstance(value, str):
        return None
    try:
        found = datetime.fromisoformat(value)
    except ValueError:
        return None
    return found.timestamp() if found.tzinfo is not None else None
