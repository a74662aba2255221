"""Which occasion a run's status speaks of, and what is told of it. Pure.

The status document is what everybody else reads too, so that a notification never says anything else: counts, classes
of errors and addresses, bounded as the status is, never a row's content.

An occasion is told once. The end of a run is one by its generation and epoch, which the ledger keeps: the same end seen
again, by another operator or of a manifest that was applied again, is the same occasion. A pause or a standstill is one
by the time since when it lasts.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from rowmill.identity import RunIdentity
from rowmill.ledger import Notice
from rowmill.spec.job import API_VERSION
from rowmill.spec.naming import SIMULATED

KIND: Final = "Notification"
BODY_BYTES: Final = 16_384
"""Of a body; a status is less than half of it."""

_DELETING: Final = "Deleting"
_CARRIED: Final = ("rows", "successRate", "startTime", "completionTime", "output", "errors")


@dataclass(frozen=True, slots=True)
class Occasion:
    """Something to be told. `mark` tells it from an earlier one of the same event and generation."""

    event: str
    run_id: str
    generation: int
    mark: str
    body: Mapping[str, Any]

    @property
    def key(self) -> tuple[str, int, str, str]:
        return self.run_id, self.generation, self.event, self.mark


def occasion_of(document: Mapping[str, Any], *, events: Collection[str], namespace: str, name: str) -> Occasion | None:
    """What a status document tells of `events`, or None.

    Complete or Failed is the occasion where it holds: a run that failed is stalled too, and that is told as Failed.
    Else it is Stalled or Suspended; of a run that is both (its calls are refused) the first of them that is asked for.
    Nothing is told of a job that is being deleted. What is malformed is passed over, for a status may be anybody's.
    """
    conditions = {str(one.get("type")): one for one in _list(document.get("conditions")) if isinstance(one, Mapping)}
    held = [e for e in ("Complete", "Failed", "Stalled", "Suspended") if _true(conditions.get(e))]
    told = held[:1] if {"Complete", "Failed"} & set(held) else held
    event = next((e for e in told if e in events), None)
    if event is None:
        return None
    condition = conditions[event]
    if _map(conditions.get("Ready")).get("reason") == _DELETING:
        return None
    run = _map(document.get("run"))
    since = str(condition.get("lastTransitionTime", ""))
    over = event in ("Complete", "Failed")
    mark = str(_number(run.get("epoch"))) if over else re.sub(r"[^0-9A-Za-z]", "", since)
    run_id, generation = str(run.get("id", "")), _number(run.get("generation"))
    body = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "event": event,
        "time": (document.get("completionTime") if over else None) or since,
        "job": {
            "namespace": namespace,
            "name": name,
            "runId": run_id.removesuffix(SIMULATED),
            "generation": generation,
            "mode": "Simulate" if run_id.endswith(SIMULATED) else "Run",
        },
        "phase": str(document.get("phase", "")),
        "reason": str(condition.get("reason", "")),
        "message": str(condition.get("message", "")),
        **{part: document[part] for part in _CARRIED if part in document},
    }
    return Occasion(event, run_id, generation, mark, body)


def request_id(identity: RunIdentity, *, event: str, generation: int) -> str:
    """`namespace/name/runId#event.generation`: as rows' requests are named, so that one grep finds both."""
    return f"{identity}#{event}.{generation}"


def body_of(notice: Notice) -> Mapping[str, Any]:
    """The body as it is sent: what was recorded, with the id under which it is told however often."""
    return {"id": notice.uid, **notice.body}


def _true(condition: object) -> bool:
    return _map(condition).get("status") == "True"


def _number(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _map(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
