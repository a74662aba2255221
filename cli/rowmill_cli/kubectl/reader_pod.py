"""The pod that reads a job's results: made for one command, in the job's namespace, and deleted with it. Pure.

It is there because the ledger is reached from the cluster and not from people's desks. It runs the image of the job's
workers, takes the ledger's address from the Secret that the operator made for them, and does nothing until somebody
executes the reader in it. Pod Security "restricted" in full, no credentials for the API server. It ends by itself
after `LIFE_SECONDS`, is the job's (so it goes with the job), and no selector of the job's workers finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

from rowmill.spec import API_VERSION, KIND
from rowmill_cli.kubectl.errors import ClusterError, NotNow
from rowmill_cli.kubectl.refusals import printable
from rowmill_cli.kubectl.view import JobView, part, text
from rowmill_operator.kube import naming

APP: Final = "rowmill-results"
CONTAINER: Final = "reader"
LIFE_SECONDS: Final = 3600
USER: Final = 10001
"""Of the images; a number, for a kubelet that is told `runAsNonRoot` cannot look a name up."""

VARIABLES: Final = ("ROWMILL_POSTGRES_DSN", "ROWMILL_INSTALLATION")
WAIT: Final = (
    "import signal; wanted = {signal.SIGTERM}; signal.pthread_sigmask(signal.SIG_BLOCK, wanted); "
    f"signal.sigtimedwait(wanted, {LIFE_SECONDS})"
)
"""Wait to be told to end. The first process of a container must ask for its SIGTERM, else it has none."""

_NAME_MAX: Final = 45
_PLACES: Final = ("kubernetes.io/arch", "kubernetes.io/os")
"""What of the workers' nodeSelector an image needs; nodes with GPUs are not woken for a reader."""
_IMAGE: Final = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError"}
)


class Look(Enum):
    """What a pod is seen to be."""

    READY = "ready"
    WAITING = "waiting"


def pod_name(job: str, suffix: str) -> str:
    """A name that tells the job; `suffix` makes it unique."""
    return f"{job[:_NAME_MAX].rstrip('-.')}-results-{suffix}"


def labels(job: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": APP,
        "app.kubernetes.io/instance": naming.job_label(job),
        "app.kubernetes.io/managed-by": "kubectl-rowmill",
        naming.JOB_LABEL: naming.job_label(job),
    }


def selector_text(job: str) -> str:
    """Finds the readers of a job."""
    return f"app.kubernetes.io/name={APP},{naming.JOB_LABEL}={naming.job_label(job)}"


def reader_pod(
    job: JobView, *, suffix: str, image: str | None = None, pull_secrets: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The manifest. `image` and `pull_secrets` replace those of the workers."""
    workers = part(job.spec, "workers")
    given = part(part(workers, "podTemplate"), "spec").get("imagePullSecrets")
    secrets = [{"name": name} for name in pull_secrets] or (given if isinstance(given, list) else [])
    places = {name: value for name, value in part(workers, "nodeSelector").items() if name in _PLACES}
    stores = naming.workers_name(job.name)
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFE_SECONDS,
        "terminationGracePeriodSeconds": 5,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": image or job.image,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python", "-c", WAIT],
                "env": [
                    *(
                        {"name": name, "valueFrom": {"secretKeyRef": {"name": stores, "key": name}}}
                        for name in VARIABLES
                    ),
                    {"name": "HOME", "value": "/tmp"},
                ],
                "resources": {
                    "requests": {"cpu": "50m", "memory": "128Mi"},
                    "limits": {"cpu": "1", "memory": "512Mi"},
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "privileged": False,
                    "readOnlyRootFilesystem": True,
                },
            }
        ],
    }
    if secrets:
        spec["imagePullSecrets"] = secrets
    if places:
        spec["nodeSelector"] = places
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod_name(job.name, suffix),
            "namespace": job.namespace,
            "labels": labels(job.name),
            # Not its controller, and it holds no deletion up: that would need a right that readers do not have.
            "ownerReferences": [{"apiVersion": API_VERSION, "kind": KIND, "name": job.name, "uid": job.uid}],
        },
        "spec": spec,
    }


def arguments(job: JobView, *, failed: bool, format: str) -> list[str]:
    """What is executed in the pod."""
    given = [
        *("python", "-m", "rowmill.results", "--receipt"),
        *("--namespace", job.namespace, "--name", job.name, "--run-id", job.run_id, "--format", format),
    ]
    if failed:
        given.append("--failed")
    columns = part(job.spec, "output").get("columns")
    if format == "csv" and isinstance(columns, list):
        given += [f"--column={name}" for name in columns if isinstance(name, str)]
    return given


def look(pod: Mapping[str, Any], job: JobView) -> Look:
    """Whether the pod is ready, or may become so. Raises ClusterError with why it never will, NotNow where there is
    nothing to read yet."""
    status = part(pod, "status")
    if status.get("phase") in ("Failed", "Succeeded"):
        why = text(status, "message") or text(status, "reason") or _terminated(status)
        raise ClusterError(f"the reader's pod ended before it was used ({why}). Try again")
    for container in status.get("containerStatuses") or ():
        state = part(container, "state")
        if "running" in state:
            return Look.READY
        waiting = part(state, "waiting")
        reason, message = text(waiting, "reason"), text(waiting, "message")
        if reason == "CreateContainerConfigError":
            raise _not_configured(message, job)
        if reason in _IMAGE:
            image = text(part(pod, "spec")["containers"][0], "image")
            raise ClusterError(
                f"the workers' image {image} cannot be pulled for the reader's pod ({message or reason}). Name a "
                "pull secret of the namespace with --pull-secret, or another image of Rowmill's workers with --image"
            )
        if reason in ("CreateContainerError", "RunContainerError"):
            raise ClusterError(f"the reader's pod cannot be started: {reason}: {message}")
    return Look.WAITING


def why_waiting(pod: Mapping[str, Any]) -> str:
    """What a pod that is not ready waits for, as far as it says."""
    status = part(pod, "status")
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return f"no node takes it: {text(condition, 'message') or text(condition, 'reason')}"
    for container in status.get("containerStatuses") or ():
        if reason := text(part(part(container, "state"), "waiting"), "reason"):
            return reason
    return text(status, "phase") or "nothing is known of it"


def _not_configured(message: str, job: JobView) -> ClusterError:
    secret = naming.workers_name(job.name)
    if "not found" in message and secret in message:
        if not job.rows.done:
            return NotNow(f"{job.where} has no results yet: no worker of it has run so far")
        return NotNow(
            f"the outcomes of {job.where} are recorded, but the Secret {secret} that says where is not there. The "
            "operator makes it as soon as a worker is needed; ask whoever runs it, or see spec.output.uri for results "
            "in a store of your own"
        )
    return ClusterError(f"the reader's pod cannot be made: {printable(message)}")


def _terminated(status: Mapping[str, Any]) -> str:
    for container in status.get("containerStatuses") or ():
        ended = part(part(container, "state"), "terminated")
        if ended:
            return text(ended, "message") or f"{text(ended, 'reason')}, exit code {ended.get('exitCode')}"
    return text(status, "phase")
