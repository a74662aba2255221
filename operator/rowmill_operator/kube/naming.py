"""What the objects of a job are called, and the labels by which they are found.

A Deployment's selector can never be changed, so it is made of labels that follow from the job's name alone. Names are
cut where Kubernetes would refuse them, with a hash of the whole name instead of the rest: two jobs never share one.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from rowmill.spec import API_VERSION, KIND

FIELD_MANAGER: Final = "rowmill"
"""Owns every field that is applied, but for the number of replicas."""

JOB_LABEL: Final = "rowmill.dev/job"
FINALIZER: Final = "rowmill.dev/workers"
RESUMED_AT: Final = "rowmill.dev/resumed-at"
"""Annotation of a job: when a person last asked for it to go on though its calls were refused."""
WORKER: Final = "worker"
"""Name of the container that executes rows."""

APP: Final = "rowmill-worker"

_LABEL_MAX: Final = 63
_WORKERS_MAX: Final = 52
"""Of a Deployment's name: `-<10 characters>` of its ReplicaSet fit behind it into a label."""


def workers_name(job: str) -> str:
    """Name of the job's Deployment, Secret and NetworkPolicy: at most 52 characters."""
    return _cut(f"{job}-workers", _WORKERS_MAX)


def config_map_name(job: str, digest: str) -> str:
    """Name of the ConfigMap that holds the manifest of which `digest` is the beginning of the hash."""
    return f"{workers_name(job)}-{digest[:8]}"


def job_label(job: str) -> str:
    """The value of the label `rowmill.dev/job`: the job's name, cut to 63 characters."""
    return _cut(job, _LABEL_MAX)


def labels(job: str) -> dict[str, str]:
    """The labels of every object of a job, pods included."""
    return {
        "app.kubernetes.io/name": APP,
        "app.kubernetes.io/instance": job_label(job),
        "app.kubernetes.io/managed-by": "rowmill",
        JOB_LABEL: job_label(job),
    }


def selector(job: str) -> dict[str, str]:
    """The labels by which a Deployment and a NetworkPolicy know the job's pods. The same for ever."""
    return {"app.kubernetes.io/name": APP, JOB_LABEL: job_label(job)}


def selector_text(job: str) -> str:
    """`selector` as `kubectl get pods -l` and the scale subresource take it."""
    return ",".join(f"{name}={value}" for name, value in sorted(selector(job).items()))


def owner_reference(job: str, uid: str) -> dict[str, Any]:
    """What makes the BatchJob with this name and `uid` the owner: its objects go when it goes."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job,
        "uid": uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def is_owned(live: Mapping[str, Any], uid: str) -> bool:
    """Whether a live object belongs to the BatchJob with this `uid`.

    Ask before every apply: an object of that name may be a stranger's, or that of a deleted job of the same name which
    the garbage collector has not taken yet. Neither must be written to.
    """
    owners = live.get("metadata", {}).get("ownerReferences") or []
    return any(owner.get("uid") == uid and owner.get("controller") is True for owner in owners)


def _cut(name: str, limit: int) -> str:
    if len(name) <= limit:
        return name
    tail = blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{name[: limit - len(tail) - 1].rstrip('-.')}-{tail}"
