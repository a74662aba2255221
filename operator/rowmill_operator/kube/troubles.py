"""From an error to what a person is told, and to when it is tried again. Pure.

A refusal waits for an edit of the manifest; everything else is tried again, later each time, because its cause may go
away without anybody touching the job: a ConfigMap that is applied a moment after it, a file that is put back.
"""

from __future__ import annotations

from dataclasses import dataclass

from rowmill.errors import (
    FrozenChanged,
    InvalidInput,
    PlaceUnavailable,
    ResultsDropped,
    RowmillError,
    SourceChanged,
    StateInUse,
    StoreUnavailable,
    StoreUnsafe,
)
from rowmill.ledger import Superseded
from rowmill_operator.kube.api import FORBIDDEN, ApiAway, ApiError
from rowmill_operator.kube.conditions import Reason, Trouble

RETRY_SECONDS = (1.0, 60.0)


class JobTrouble(RowmillError):
    """A trouble whose reason is known where it was met. `edit` says that only an edit of the manifest mends it."""

    def __init__(self, reason: Reason, message: str, *, edit: bool = False) -> None:
        self.reason = reason
        self.edit = edit
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Met:
    """A trouble that was met; `edit`: nothing is tried before the manifest changes."""

    trouble: Trouble
    edit: bool = False


def met(error: RowmillError) -> Met:
    """What an error of the engine, of a store or of the API server means for a job."""
    match error:
        case JobTrouble():
            return Met(Trouble(error.reason, str(error)), error.edit)
        case FrozenChanged():
            return Met(Trouble(Reason.FROZEN_FIELD_CHANGED, problems_of(error)), edit=True)
        case ResultsDropped():
            return Met(Trouble(Reason.RESULTS_DROPPED, problems_of(error)), edit=True)
        case InvalidInput():
            # The manifest itself was checked before: what is met later is what it leads to, and that may be mended.
            return Met(Trouble(Reason.SOURCE_INVALID, str(error)))
        case SourceChanged():
            return Met(Trouble(Reason.SOURCE_CHANGED, str(error)))
        case PlaceUnavailable():
            return Met(Trouble(Reason.SOURCE_UNAVAILABLE, str(error)))
        case StateInUse() | Superseded():
            return Met(Trouble(Reason.RUN_IN_USE, f"{error}. It is tried again until the other lets go"))
        case StoreUnavailable() | StoreUnsafe():
            return Met(Trouble(Reason.WAITING_FOR_STORE, str(error)))
        case ApiError() if terminating(error):
            return Met(Trouble(Reason.NAMESPACE_TERMINATING, "the namespace is being deleted; apply the job elsewhere"))
        case ApiError() if quota(error):
            return Met(Trouble(Reason.QUOTA_EXCEEDED, f"{error}. Raise the quota, or free some of it"))
        case ApiAway():
            return Met(Trouble(Reason.WAITING_FOR_STORE, str(error)))
        case ApiError():
            return Met(Trouble(Reason.PODS_REFUSED, str(error)))
        case _:
            return Met(Trouble(Reason.WORKERS_FAILING, str(error)))


def problems_of(error: InvalidInput) -> str:
    """All problems in one line, without the object's name: it stands on the resource itself."""
    return "; ".join(": ".join(part for part in (p.path, p.message) if part) for p in error.problems)


def terminating(error: ApiError) -> bool:
    """Whether the API server refused because the namespace is being deleted."""
    return error.status == FORBIDDEN and "being terminated" in str(error)


def quota(error: ApiError) -> bool:
    """Whether a ResourceQuota forbade it."""
    return error.status == FORBIDDEN and "exceeded quota" in str(error)
