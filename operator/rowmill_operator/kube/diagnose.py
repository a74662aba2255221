"""Why a job's workers do not run: from what the cluster says of its Deployment and pods to one sentence. Pure.

Everything is plain JSON as the API server gives it. Pods that are going away say nothing; pods that were made a moment
ago are given a grace, as most of what is missing then comes by itself. Of several troubles the gravest is told: what
keeps all pods away before what keeps one from running. The same cause gives the same message, whichever pod and
however often; how long it has lasted is told apart from it.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.container_trouble import crash, image_trouble, items_at, missing_object, not_configured
from rowmill_operator.kube.refusals import of_refused_pods, stable
from rowmill_operator.kube.unschedulable import gated, unschedulable

GRACE_SECONDS: Final = 10.0
"""Since a pod was made (or its container started again) until what it lacks is a trouble."""

EVICTION_SECONDS: Final = 600.0
"""How long an evicted pod, which stays as a record, counts as a trouble."""

GRAVITY: Final = (
    Reason.NAMESPACE_TERMINATING,
    Reason.SERVICE_ACCOUNT_MISSING,
    Reason.PODS_REFUSED,
    Reason.SECRET_MISSING,
    Reason.CONFIG_MAP_MISSING,
    Reason.IMAGE_PULL_FAILED,
    Reason.WORKERS_FAILING,
    Reason.QUOTA_EXCEEDED,
    Reason.UNSCHEDULABLE,
)
"""The gravest first. The last two leave the workers that run already at work."""

_IMAGE: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
    | {"RegistryUnavailable", "SignatureValidationFailed"}
)
_CANNOT_START: Final = frozenset(
    {"CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError"}
)
_SANDBOX: Final = frozenset({"FailedCreatePodSandBox"})
_MOUNT: Final = frozenset({"FailedMount"})
_FAILED: Final = frozenset({"Failed"})

Json = Mapping[str, Any]


def diagnose(
    *,
    deployment: Json | None,
    pods: Iterable[Json],
    events: Iterable[Json] = (),
    now: datetime,
    grace: float = GRACE_SECONDS,
) -> Trouble | None:
    """The gravest trouble of a job's workers, or None. `events` are the core/v1 events of the namespace, in any order;
    those of other objects are passed over. `now` has a time zone."""
    found = list(_of_deployment(deployment or {}, now))
    told = list(events)
    for pod in pods:
        if not pod.get("metadata", {}).get("deletionTimestamp"):
            found += _of_pod(pod, told, now, grace)
    if not found:
        return None
    gravest = min(found, key=lambda trouble: (GRAVITY.index(Reason(trouble.reason)), trouble.message))
    lasted = max(t.seconds for t in found if (t.reason, t.message) == (gravest.reason, gravest.message))
    return Trouble(gravest.reason, gravest.message, lasted)


def _of_deployment(deployment: Json, now: datetime) -> Iterator[Trouble]:
    for condition in items_at(deployment, "status", "conditions"):
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            trouble = of_refused_pods(str(condition.get("message", "")))
            yield Trouble(trouble.reason, trouble.message, _since(condition.get("lastTransitionTime"), now))


def _of_pod(pod: Json, events: list[Json], now: datetime, grace: float) -> list[Trouble]:
    phase = pod.get("status", {}).get("phase")
    if phase == "Succeeded":
        return []
    if phase == "Failed":
        return list(_taken_away(pod, now))
    found = [*_crashes(pod, now, grace)]
    if _since(pod.get("metadata", {}).get("creationTimestamp"), now) >= grace:
        found += [*_scheduling(pod), *_waiting(pod, events)]
    lasted = _not_ready_for(pod, now)
    return [Trouble(trouble.reason, trouble.message, lasted) for trouble in found]


def _scheduling(pod: Json) -> Iterator[Trouble]:
    for condition in items_at(pod, "status", "conditions"):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            if condition.get("reason") == "SchedulingGated":
                yield gated(pod)
            elif condition.get("reason") == "Unschedulable":
                yield unschedulable(str(condition.get("message", "")), pod)


def _waiting(pod: Json, events: list[Json]) -> Iterator[Trouble]:
    """Of containers that have not started: what they wait for."""
    for status in _statuses(pod):
        waiting = status.get("state", {}).get("waiting") or {}
        reason, message = str(waiting.get("reason", "")), str(waiting.get("message", ""))
        container = str(status.get("name", ""))
        if reason in _IMAGE:
            before = [str(event.get("message", "")) for event in _of(pod, events, _FAILED)]
            yield image_trouble(pod, container, reason, message, before)
        elif reason == "CreateContainerConfigError":
            yield not_configured(pod, container, message)
        elif reason in _CANNOT_START:
            yield Trouble(
                Reason.WORKERS_FAILING,
                f"the container {container} cannot be started: {stable(message) or reason}; check its image and "
                "command in spec.workers.podTemplate",
            )
        elif reason in ("ContainerCreating", "PodInitializing"):
            yield from _before_the_start(pod, events)


def _before_the_start(pod: Json, events: list[Json]) -> Iterator[Trouble]:
    """Of a pod whose node has not started it, only events tell why: the latest that says something."""
    for event in _of(pod, events, _MOUNT):
        missing = missing_object(pod, str(event.get("message", "")))
        if missing is not None:
            yield missing
            return
    for event in _of(pod, events, _SANDBOX):
        yield Trouble(
            Reason.WORKERS_FAILING,
            f"the node cannot start the workers' pods: {stable(str(event.get('message', '')))}; look at the node",
        )
        return


def _crashes(pod: Json, now: datetime, grace: float) -> Iterator[Trouble]:
    """Of containers that started and ended: again and again, or just now."""
    for status in _statuses(pod):
        state, last = status.get("state", {}), status.get("lastState", {}).get("terminated")
        if state.get("waiting", {}).get("reason") == "CrashLoopBackOff":
            yield crash(pod, status, last or {})
        elif state.get("terminated") and (status.get("restartCount") or 0) > 0:
            yield crash(pod, status, state["terminated"])
        elif state.get("running") and last and not status.get("ready") and last.get("exitCode") != 0:
            # Between two ends the cause is the same; a container that ended once, long ago, has the grace to get ready.
            again = (status.get("restartCount") or 0) > 1
            if again or _since(state["running"].get("startedAt"), now) >= grace:
                yield crash(pod, status, last)


def _taken_away(pod: Json, now: datetime) -> Iterator[Trouble]:
    """Of a pod that its node gave up: what it did wrong, as long as that is news."""
    status = pod.get("status", {})
    reason, message = str(status.get("reason", "")), str(status.get("message", ""))
    times = [condition.get("lastTransitionTime") for condition in items_at(pod, "status", "conditions")]
    ended = min((_since(t, now) for t in [*times, status.get("startTime")] if t), default=EVICTION_SECONDS)
    if ended >= EVICTION_SECONDS:
        return
    if reason == "Evicted" and ("exceeds the" in message):
        yield Trouble(
            Reason.WORKERS_FAILING,
            f"workers are evicted: {stable(message)}; let them write less, or raise the limit in "
            "spec.workers.podTemplate",
            ended,
        )
    elif reason == "UnexpectedAdmissionError":
        yield Trouble(
            Reason.WORKERS_FAILING, f"a node refuses workers after all: {stable(message)}; look at the node", ended
        )


def _of(pod: Json, events: list[Json], reasons: Container[str]) -> list[Json]:
    """The events of a pod with one of these reasons, the latest first."""
    meta = pod.get("metadata", {})
    found = [event for event in events if event.get("reason") in reasons and _is_about(event, meta)]
    return sorted(found, key=lambda e: str(e.get("lastTimestamp") or e.get("eventTime") or ""), reverse=True)


def _is_about(event: Json, meta: Json) -> bool:
    about = event.get("involvedObject", {})
    if about.get("uid") and meta.get("uid"):
        return bool(about["uid"] == meta["uid"])
    return bool(about.get("name")) and bool(about["name"] == meta.get("name"))


def _not_ready_for(pod: Json, now: datetime) -> float:
    for condition in items_at(pod, "status", "conditions"):
        if condition.get("type") == "Ready" and condition.get("status") == "False":
            return _since(condition.get("lastTransitionTime"), now)
    return _since(pod.get("metadata", {}).get("creationTimestamp"), now)


def _since(time: Any, now: datetime) -> float:
    """Seconds since a time of the API server; 0 where there is none."""
    if not isinstance(time, str):
        return 0.0
    try:
        then = datetime.fromisoformat(time)
    except ValueError:
        return 0.0
    return max(0.0, (now - then).total_seconds()) if then.tzinfo is not None else 0.0


def _statuses(pod: Json) -> Iterator[Json]:
    yield from items_at(pod, "status", "initContainerStatuses")
    yield from items_at(pod, "status", "containerStatuses")
