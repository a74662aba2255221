"""How kstatus (Flux, kpt, `cli-utils`) judges a resource that it has no special rules for, by its documented rules.

In this order: a deletion timestamp is Terminating; an `observedGeneration` that is there and is not the generation is
InProgress; of the conditions, the first that is Reconciling=True (InProgress) or Stalled=True (Failed) decides; then
Ready: True is Current, anything else InProgress; and a resource that says nothing of all this is Current.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kstatus(resource: Mapping[str, Any]) -> str:
    metadata, status = resource["metadata"], resource.get("status", {})
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    if "observedGeneration" in status and status["observedGeneration"] != metadata["generation"]:
        return "InProgress"
    found = status.get("conditions", [])
    for condition in found:
        if condition["type"] == "Reconciling" and condition["status"] == "True":
            return "InProgress"
        if condition["type"] == "Stalled" and condition["status"] == "True":
            return "Failed"
    for condition in found:
        if condition["type"] == "Ready":
            return "Current" if condition["status"] == "True" else "InProgress"
    return "Current"
