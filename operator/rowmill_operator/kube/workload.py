"""The objects that a job's workers are made of. Pure: a checked job in, plain manifests out.

    ConfigMap      what workers read of the manifest; immutable, its name ends in a hash of its content
    Secret         where Redis and Postgres are, and the installation's name
    NetworkPolicy  in: the port of health and metrics; out: everything but the API server
    Deployment     the pods, with the tenant's `workers.podTemplate` merged in, see `pod_template`

A change that workers must see is a new ConfigMap, so a new pod template, so a rolling replacement in which every old
worker drains. What workers do not read (suspend, replicas, deadlines, …) changes nothing here: no worker is restarted
for it. A new address of a store is seen by its annotation.

Replicas have one owner, the fleet. `deployment` never names them; `at_creation` adds 0, for the POST that makes the
Deployment: one without a number would begin with one worker.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from rowmill.spec import BatchJob
from rowmill_operator.kube import naming
from rowmill_operator.kube.pod_template import (
    INSTALLATION,
    JOB_KEY,
    POSTGRES_DSN,
    REDIS_URL,
    WorkloadSettings,
    pod_template,
)
from rowmill_operator.kube.worker_manifest import manifest_text

KUEUE: Final = "kueue.x-k8s.io/"
"""Labels of this prefix go to the Deployment as well: Kueue looks there for the name of its queue."""

PROGRESS_SECONDS: Final = 1_800
"""Until a Deployment calls itself stuck: nodes with GPUs are slow to come, and their images large."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The objects of one job, in the order in which they are applied."""

    config_map: dict[str, Any]
    secret: dict[str, Any]
    network_policy: dict[str, Any]
    deployment: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the Deployment, the Secret and the NetworkPolicy."""
        return str(self.deployment["metadata"]["name"])

    @property
    def image(self) -> str:
        """The image that rows are executed by: the installation's, or the pod template's."""
        containers = self.deployment["spec"]["template"]["spec"]["containers"]
        return next(str(one["image"]) for one in containers if one["name"] == naming.WORKER)


def build_workload(job: BatchJob, *, uid: str, settings: WorkloadSettings) -> Workload:
    """The objects of a job whose BatchJob has this `uid`. The same input gives the same manifests.

    Raises InvalidInput, with every field that cannot be used, for what only the operator can judge: the pod template,
    resources, secrets that no pod can mount, a manifest too large for a ConfigMap.
    """
    made = config_map(job, uid=uid)
    return Workload(
        config_map=made,
        secret=secret(job, uid=uid, settings=settings),
        network_policy=network_policy(job, uid=uid, settings=settings),
        deployment=deployment(job, uid=uid, settings=settings, config_map=made["metadata"]["name"]),
    )


def config_map(job: BatchJob, *, uid: str) -> dict[str, Any]:
    """The manifest for workers. Raises InvalidInput where it is too large."""
    text = manifest_text(job)
    digest = blake2b(text.encode(), digest_size=4).hexdigest()
    made = _object(job, "v1", "ConfigMap", naming.config_map_name(job.metadata.name, digest), uid)
    return {**made, "immutable": True, "data": {JOB_KEY: text}}


def secret(job: BatchJob, *, uid: str, settings: WorkloadSettings) -> dict[str, Any]:
    """Where the stores are, and by which name the installation's runs are found there: all that a reader of results
    needs."""
    made = _object(job, "v1", "Secret", naming.workers_name(job.metadata.name), uid)
    data = {REDIS_URL: settings.redis_url, POSTGRES_DSN: settings.postgres_dsn, INSTALLATION: settings.installation}
    return {**made, "type": "Opaque", "stringData": data}


def network_policy(job: BatchJob, *, uid: str, settings: WorkloadSettings) -> dict[str, Any]:
    """In: health and metrics, from anywhere. Out: everything but the API server's addresses.

    Pods are named beside the addresses, as some policy engines do not count pods among them.
    """
    made = _object(job, "networking.k8s.io/v1", "NetworkPolicy", naming.workers_name(job.metadata.name), uid)
    denied = {4: list[str](), 6: list[str]()}
    for cidr in settings.api_server:
        network = ipaddress.ip_network(cidr, strict=False)
        denied[network.version].append(str(network))
    blocks = [
        {"ipBlock": {"cidr": all_, **({"except": sorted(set(denied[version]))} if denied[version] else {})}}
        for version, all_ in ((4, "0.0.0.0/0"), (6, "::/0"))
    ]
    return {
        **made,
        "spec": {
            "podSelector": {"matchLabels": naming.selector(job.metadata.name)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{"ports": [{"port": settings.http_port, "protocol": "TCP"}]}],
            "egress": [{"to": [*blocks, {"namespaceSelector": {}}]}],
        },
    }


def deployment(job: BatchJob, *, uid: str, settings: WorkloadSettings, config_map: str) -> dict[str, Any]:
    """The workers, without their number. Raises InvalidInput, which names each field of the manifest at fault."""
    template = pod_template(job, settings=settings, config_map=config_map)
    made = _object(job, "apps/v1", "Deployment", naming.workers_name(job.metadata.name), uid)
    queue = {**job.metadata.labels, **template["metadata"]["labels"]}
    made["metadata"]["labels"] |= {name: value for name, value in queue.items() if name.startswith(KUEUE)}
    return {
        **made,
        "spec": {
            "selector": {"matchLabels": naming.selector(job.metadata.name)},
            # Old workers go first and drain while their successors start: a surge would ask for GPUs, quota and
            # connections that are not there. Of one worker, Kubernetes takes the one.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0}},
            "minReadySeconds": 0,
            "revisionHistoryLimit": 1,
            "progressDeadlineSeconds": PROGRESS_SECONDS,
            "template": template,
        },
    }


def at_creation(deployment: Mapping[str, Any]) -> dict[str, Any]:
    """A Deployment as it is made: with no worker yet."""
    made = deepcopy(dict(deployment))
    made["spec"]["replicas"] = 0
    return made


def stale_config_maps(
    config_maps: Iterable[Mapping[str, Any]], *, current: str, pods: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Names of a job's ConfigMaps that no pod needs any more: neither the current one, nor one that a pod mounts."""
    used = {current}
    for pod in pods:
        for volume in pod.get("spec", {}).get("volumes") or ():
            used.add((volume.get("configMap") or {}).get("name", ""))
    return sorted({str(one["metadata"]["name"]) for one in config_maps} - used)


def _object(job: BatchJob, api_version: str, kind: str, name: str, uid: str) -> dict[str, Any]:
    return {
        "apiVersion": api_version,
        "kind": kind,
        "metadata": {
            "name": name,
            "namespace": job.metadata.namespace,
            "labels": naming.labels(job.metadata.name),
            "ownerReferences": [naming.owner_reference(job.metadata.name, uid)],
        },
    }
