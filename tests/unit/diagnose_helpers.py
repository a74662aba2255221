"""Pods, Deployments and events as clusters show them when something is wrong."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rowmill_operator.kube.conditions import MESSAGE_BYTES, Trouble
from rowmill_operator.kube.diagnose import diagnose

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
IMAGE = "registry.example/team/worker:1.2"


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


def refused(message: str) -> dict[str, Any]:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreate",
        "message": message,
        "lastTransitionTime": ago(90),
    }
    return {"status": {"conditions": [{"type": "Available", "status": "False"}, condition]}}


def pod(name: str = "triage-workers-6d5f7c9b8-abcde", *, age: float = 60, **parts: Any) -> dict[str, Any]:
    spec = {
        "containers": [{"name": "worker", "image": IMAGE}],
        "volumes": [
            {"name": "job", "configMap": {"name": "triage-workers-0a1b2c3d"}},
            {
                "name": "secrets",
                "projected": {
                    "sources": [
                        {"secret": {"name": "triage", "items": [{"key": "token", "path": "triage/token"}]}},
                        {"secret": {"name": "other", "items": [{"key": "user", "path": "other/user"}]}},
                    ]
                },
            },
        ],
        **parts.get("spec", {}),
    }
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-of-{name}",
            "creationTimestamp": ago(age),
            "labels": {"rowmill.dev/job": "triage"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "triage-workers-6d5f7c9b8"}],
            **parts.get("metadata", {}),
        },
        "spec": spec,
        "status": {"phase": "Pending", **parts.get("status", {})},
    }


def unschedulable(message: str, *, name: str = "p", reason: str = "Unschedulable", **parts: Any) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": reason,
        "message": message,
        "lastTransitionTime": ago(60),
    }
    return pod(name, status={"conditions": [condition]}, **parts)


def container(name: str = "worker", **fields: Any) -> dict[str, Any]:
    return {"name": name, "ready": False, "restartCount": 0, "image": IMAGE, "state": {}, "lastState": {}, **fields}


def waiting(
    reason: str, message: str = "", *, name: str = "triage-workers-6d5f7c9b8-abcde", **parts: Any
) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return pod(name, status={"containerStatuses": [container(state=state)]}, **parts)


def crashing(*, code: int, reason: str = "Error", message: str = "", name: str = "p", **fields: Any) -> dict[str, Any]:
    ended = {"exitCode": code, "reason": reason, "startedAt": ago(40), "finishedAt": ago(30), "message": message}
    backing_off = (
        f"back-off 40s restarting failed container=worker pod={name}_support(0f6c1d2e-1111-4222-8333-944455566677)"
    )
    status = {
        "state": {"waiting": {"reason": "CrashLoopBackOff", "message": backing_off}},
        "lastState": {"terminated": ended},
        "restartCount": 4,
        **fields,
    }
    return pod(name, status={"phase": "Running", "containerStatuses": [container(**status)]})


def event(of: dict[str, Any], reason: str, message: str, *, age: float = 20) -> dict[str, Any]:
    meta = of["metadata"]
    return {
        "reason": reason,
        "message": message,
        "type": "Warning",
        "involvedObject": {"kind": "Pod", "name": meta["name"], "uid": meta["uid"]},
        "lastTimestamp": ago(age),
    }


def found(*pods: dict[str, Any], deployment: dict[str, Any] | None = None, events: Any = ()) -> Trouble | None:
    return diagnose(deployment=deployment, pods=pods, events=events, now=NOW)


def trouble(*pods: dict[str, Any], **more: Any) -> Trouble:
    result = found(*pods, **more)
    assert result is not None
    assert len(result.message.encode()) <= MESSAGE_BYTES, "more is cut off in a condition"
    assert "\n" not in result.message
    return result


GPU_NOW = (
    "0/3 nodes are available: 1 node(s) had untolerated taint {node-role.kubernetes.io/control-plane: }, 2 "
    "Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 1 Preemption is not helpful for scheduling, 2 "
    "No preemption victims found for incoming pod."
)
