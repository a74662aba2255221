"""What the scheduler says of a pod that no node takes, told to a person. Pure.

Its message counts nodes, and the counts move; the causes do not. Both forms are read: "1 node(s) had taint {a: b}, that
the pod didn't tolerate" of Kubernetes 1.20, and "1 node(s) had untolerated taint {a: b}" with a sentence about
preemption behind it of today.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from rowmill_operator.kube.conditions import Reason, Trouble

_HEAD: Final = re.compile(r"^\s*\d+/\d+ nodes are available:?\s*")
_TAIL: Final = re.compile(r"[.,]?\s*(?:preemption:|no new claims to deallocate).*$", re.DOTALL)
_COUNT: Final = re.compile(r"(?:^|, )\d+ (?=\S)")
_INSUFFICIENT: Final = re.compile(r"^[Ii]nsufficient (?P<what>\S+)$")
_STANDARD: Final = frozenset({"cpu", "memory", "ephemeral-storage", "pods"})
_SELECTOR: Final = re.compile(r"didn't match (?:Pod's )?node (?:affinity|selector)|didn't match scheduler-enforced")
_TAINT: Final = re.compile(r"taint")
_CLAIM: Final = re.compile(r"persistentvolumeclaim|PersistentVolumeClaim|volume node affinity", re.IGNORECASE)
_MAX_CAUSES: Final = 6


def unschedulable(message: str, pod: Mapping[str, Any]) -> Trouble:
    """Why no node takes a pod; `message` is that of its condition `PodScheduled`."""
    causes = _causes(message)
    spec = pod.get("spec") or {}
    steps: list[str] = []
    for cause in causes:
        if (found := _INSUFFICIENT.match(cause)) and found["what"] not in _STANDARD:
            steps.append(f"add nodes that have {found['what']} free, or correct spec.workers.gpu")
        elif found:
            steps.append("lower spec.workers.resources, or add nodes")
        elif _SELECTOR.search(cause):
            wanted = ", ".join(f"{k}={v}" for k, v in sorted((spec.get("nodeSelector") or {}).items()))
            told = f" ({wanted})" if wanted else ""
            steps.append(f"label nodes as spec.workers.nodeSelector asks{told}, or correct it")
        elif _TAINT.search(cause):
            steps.append("tolerate the taint in spec.workers.tolerations if workers may run there")
        elif _CLAIM.search(cause):
            steps.append("look at the PersistentVolumeClaims of spec.workers.podTemplate")
    if not steps:
        steps.append("add nodes, or correct where spec.workers lets its pods run")
    listed = "; ".join(causes[:_MAX_CAUSES]) or "there are no nodes to choose from"
    return Trouble(
        Reason.UNSCHEDULABLE, f"no node takes the workers: {listed}. Next: {', '.join(dict.fromkeys(steps))}"
    )


def gated(pod: Mapping[str, Any]) -> Trouble:
    """The pods are held back on purpose, by a queue for instance."""
    gates = sorted(str(gate.get("name")) for gate in (pod.get("spec") or {}).get("schedulingGates") or ())
    return Trouble(
        Reason.UNSCHEDULABLE,
        f"the workers wait for admission ({', '.join(gates) or 'a scheduling gate'}); see the queue that they were put "
        "into, or take its label off the job",
    )


def _causes(message: str) -> list[str]:
    """The causes, each once, in an order that does not depend on how many nodes each holds for."""
    text = _TAIL.sub("", _HEAD.sub("", message.strip()))
    parts = [part.strip(" .,") for part in _COUNT.split(text)]
    if text and not _COUNT.search(text):
        parts = [text.strip(" .,")]
    return sorted({part for part in parts if part and part != "no nodes available to schedule pods"})
