"""The pod of a worker, before and after the tenant's template is merged in. Pure.

It is Pod Security "restricted" in full, has no credentials for the API server, and drains on its end: its grace follows
from `timeoutSeconds`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Final

from rowmill.errors import InvalidInput
from rowmill.spec import BatchJob
from rowmill.spec.base import Part
from rowmill.spec.executors import ValueFrom
from rowmill.spec.source import KeyReference
from rowmill.storage import CREDENTIALS
from rowmill_operator.kube import naming
from rowmill_operator.kube.merge import merge_pod_template
from rowmill_operator.kube.pod_guard import HARDENED, check_pod_template, hardened
from rowmill_operator.kube.resources import worker_resources

REDIS_URL: Final = "ROWMILL_REDIS_URL"
POSTGRES_DSN: Final = "ROWMILL_POSTGRES_DSN"
INSTALLATION: Final = "ROWMILL_INSTALLATION"
SECRETS_DIR: Final = "ROWMILL_SECRETS_DIR"
JOB_KEY: Final = "job.yaml"
JOB_FOLDER: Final = "/etc/rowmill/job"
SECRETS_FOLDER: Final = "/etc/rowmill/secrets"
STORES_ANNOTATION: Final = "rowmill.dev/stores"

USER: Final = 10001
"""Of the images; a number, for a kubelet that is told `runAsNonRoot` cannot look a name up."""

DRAIN_SECONDS: Final = 30
"""Of a pod's grace beyond `timeoutSeconds`. A call that runs has 5 s more than its timeout; the rest is for the last
commit, for handing rows back and for closing what is open."""

_MODE: Final = 0o444


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadSettings:
    """How this installation makes workers.

    `redis_url` and `postgres_dsn` are what workers connect to. `api_server` holds the API server's addresses as CIDRs,
    which workers cannot reach where a policy engine runs; `http_port` serves health and metrics.
    """

    image: str
    installation: str
    redis_url: str = field(repr=False)
    postgres_dsn: str = field(repr=False)
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: tuple[str, ...] = ()
    api_server: tuple[str, ...] = ()
    http_port: int = 8081
    log_level: str = "info"


def pod_template(job: BatchJob, *, settings: WorkloadSettings, config_map: str) -> dict[str, Any]:
    """The finished template. Raises InvalidInput, which names each field of the manifest at fault."""
    where = _where(job)
    ours = _our_template(job, settings, config_map)
    template = hardened(merge_pod_template(ours, job.spec.workers.pod_template, where=where))
    check_pod_template(ours, template, where=where)
    if job.spec.workers.gpu is not None:
        _tolerate(template["spec"], job.spec.workers.gpu.resource)
    return template


def secret_references(job: BatchJob) -> list[KeyReference]:
    """The keys of Secrets that the executor names, each once, in order."""
    found = {(r.name, r.key): r for r in _references(job.spec.executor.chosen)}
    return [found[pair] for pair in sorted(found)]


def store_secrets(job: BatchJob) -> list[str]:
    """The Secrets whose keys, as far as they have them, are credentials of stores that workers write to."""
    comfyui = job.spec.executor.comfyui
    store = comfyui.store if comfyui is not None else None
    return [store.secret_name] if store is not None and store.secret_name is not None else []


def _references(part: Any) -> Iterator[KeyReference]:
    if isinstance(part, ValueFrom):
        if part.secret_key_ref is not None:
            yield part.secret_key_ref
    elif isinstance(part, Part):
        for name in type(part).model_fields:
            yield from _references(getattr(part, name))
    elif isinstance(part, tuple | list):
        for item in part:
            yield from _references(item)


def _our_template(job: BatchJob, settings: WorkloadSettings, config_map: str) -> dict[str, Any]:
    """The pods as they are before the tenant's template."""
    workers = job.spec.workers
    volumes, mounts = _volumes(job, config_map)
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": job.spec.timeout_seconds + DRAIN_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "nodeSelector": dict(workers.node_selector),
        "tolerations": [deepcopy(one) for one in workers.tolerations],
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": naming.selector(job.metadata.name)},
            }
        ],
        "imagePullSecrets": [{"name": name} for name in settings.image_pull_secrets],
        "volumes": volumes,
        "containers": [_container(job, settings, mounts)],
    }
    for name in ("nodeSelector", "tolerations", "imagePullSecrets"):
        if not spec[name]:
            del spec[name]
    return {
        "metadata": {
            "labels": naming.labels(job.metadata.name),
            "annotations": {
                STORES_ANNOTATION: _stores(settings),
                "kubectl.kubernetes.io/default-container": naming.WORKER,
            },
        },
        "spec": spec,
    }


def _volumes(job: BatchJob, config_map: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod, and where they are mounted."""
    volumes: list[dict[str, Any]] = [
        {"name": "job", "configMap": {"name": config_map, "defaultMode": _MODE}},
        {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "job", "mountPath": JOB_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
    ]
    references = secret_references(job)
    for reference in references:
        if reference.key.startswith("..") or reference.key == ".":
            raise InvalidInput.one(
                _where(job), f"spec.executor.{job.spec.executor.kind}", f"{reference.key!r} cannot be a key of a Secret"
            )
    sources: list[dict[str, Any]] = [
        {"secret": {"name": name, "items": [{"key": key, "path": f"{name}/{key}"} for key in keys]}}
        for name, keys in _by_secret(references).items()
    ]
    for name in store_secrets(job):
        # A store takes some of these; whichever a Secret lacks are passed over, and no path may be there twice.
        named = {reference.key for reference in references if reference.name == name}
        items = [{"key": key, "path": f"{name}/{key}"} for key in CREDENTIALS if key not in named]
        sources.append({"secret": {"name": name, "items": items, "optional": True}})
    if sources:
        volumes.append({"name": "secrets", "projected": {"sources": sources, "defaultMode": _MODE}})
        mounts.append({"name": "secrets", "mountPath": SECRETS_FOLDER, "readOnly": True})
    return volumes, mounts


def _by_secret(references: Iterable[KeyReference]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for reference in references:
        found.setdefault(reference.name, []).append(reference.key)
    return found


def _container(job: BatchJob, settings: WorkloadSettings, mounts: list[dict[str, Any]]) -> dict[str, Any]:
    stores = naming.workers_name(job.metadata.name)
    return {
        "name": naming.WORKER,
        "image": settings.image,
        "imagePullPolicy": settings.image_pull_policy,
        "command": ["python", "-m", "rowmill_worker"],
        "args": [
            *("--job", f"{JOB_FOLDER}/{JOB_KEY}"),
            *("--installation", settings.installation),
            *("--http-port", str(settings.http_port)),
            *("--log-level", settings.log_level),
        ],
        "env": [
            {"name": "POD_NAME", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}}},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.podIP"}}},
            *(
                {"name": name, "valueFrom": {"secretKeyRef": {"name": stores, "key": name}}}
                for name in (REDIS_URL, POSTGRES_DSN)
            ),
            {"name": SECRETS_DIR, "value": SECRETS_FOLDER},
            {"name": "HOME", "value": "/tmp"},  # of a root that is read-only, libraries find nothing else to write to
        ],
        "ports": [{"name": "http", "containerPort": settings.http_port, "protocol": "TCP"}],
        "resources": worker_resources(job),
        "volumeMounts": mounts,
        "securityContext": {
            **deepcopy(dict(HARDENED)),
            "privileged": False,
            "readOnlyRootFilesystem": True,
        },
        # Alive is a loop that turns, whatever is away; ready is a worker that could execute a row. Only a process that
        # has not answered for two minutes is killed.
        "startupProbe": _probe("/healthz", settings, period=1, failures=300),
        "readinessProbe": _probe("/readyz", settings, period=5, failures=2),
        "livenessProbe": _probe("/healthz", settings, period=10, failures=12),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _probe(path: str, settings: WorkloadSettings, *, period: int, failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": settings.http_port, "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
        "successThreshold": 1,
    }


def _tolerate(spec: dict[str, Any], taint: str) -> None:
    """Nodes with an extended resource are tainted by its name, so that only those who need it are put there."""
    tolerations = spec.setdefault("tolerations", [])
    wanted = {"key": taint, "operator": "Exists"}
    if wanted not in tolerations:
        tolerations.append(wanted)


def _stores(settings: WorkloadSettings) -> str:
    """Tells that an address or password changed. Sixteen bits: too few to try passwords against."""
    both = json.dumps([settings.redis_url, settings.postgres_dsn])
    return blake2b(both.encode(), digest_size=2).hexdigest()


def _where(job: BatchJob) -> str:
    return f"{job.metadata.namespace}/{job.metadata.name}"
