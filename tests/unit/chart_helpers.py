"""The chart as Helm renders it, and what an API server would refuse of it."""

from __future__ import annotations

import functools
import json
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from kubernetes import client
from pydantic import ValidationError

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "rowmill"
RELEASE, NAMESPACE = "mill", "batch"
OLDEST, MIDDLE, NEWEST = "1.20.2", "1.25.16", "1.36.0"
EXISTING: dict[str, Any] = {
    "redis": {"existingSecret": {"name": "stores", "key": "redis"}},
    "postgres": {"existingSecret": {"name": "stores", "key": "postgres"}},
}
"""The least that an installation says."""

DEMO: dict[str, Any] = {"demo": {"enabled": True}}

BUILT_IN = frozenset(
    {
        *("v1", "apps/v1", "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1", "apiextensions.k8s.io/v1"),
        *("policy/v1", "policy/v1beta1"),  # until 1.21 the latter, with the very fields of the former
    }
)


@functools.cache
def tool(name: str) -> str:
    """The path of `helm` or `kubectl`, fetched when the machine has none."""
    found = subprocess.run([ROOT / "hack" / "tools"], capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode == 0, found.stderr
    return str(Path(found.stdout.strip()) / name)


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([tool("helm"), *arguments], capture_output=True, text=True, check=False, timeout=60)


def try_render(values: Mapping[str, Any], *, kube: str = NEWEST) -> subprocess.CompletedProcess[str]:
    """`helm template`, whatever comes of it."""
    given = json.dumps(values)
    return subprocess.run(
        [tool("helm"), "template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", kube, "--values", "-"],
        input=given, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@functools.cache
def _rendered(values: str, kube: str) -> str:
    done = try_render(json.loads(values), kube=kube)
    assert done.returncode == 0, done.stderr
    return done.stdout


def render(values: Mapping[str, Any], *, kube: str = NEWEST) -> list[dict[str, Any]]:
    """The objects that Helm makes of these values; each call gives new ones."""
    text = _rendered(json.dumps(values, sort_keys=True), kube)
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def of_kind(objects: list[dict[str, Any]], kind: str, name: str | None = None) -> list[dict[str, Any]]:
    return [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]


def pods_of(objects: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name and the pod spec of each object that makes pods."""
    for found in objects:
        if found["kind"] == "Pod":
            yield found["metadata"]["name"], found["spec"]
        elif "template" in found.get("spec", {}):
            yield found["metadata"]["name"], found["spec"]["template"]["spec"]


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Later layers over earlier ones, as Helm merges values."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
            result[key] = merged(result[key], value) if both else value
    return result


def problems(manifest: dict[str, Any]) -> list[str]:
    """What of a built-in object has an unknown name, a wrong type or is missing, by the client's generated models."""
    if manifest["apiVersion"] not in BUILT_IN:
        return [f"{manifest['apiVersion']} is not known here"]
    model = getattr(client, f"V1{manifest['kind']}")
    try:
        model.model_validate_json(json.dumps(manifest), strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        return [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []


def restricted(name: str, pod: dict[str, Any]) -> list[str]:
    """What of a pod Pod Security "restricted" refuses, and what this project asks besides of a pod of its own."""
    found: list[str] = []

    def want(holds: bool, what: str) -> None:
        if not holds:
            found.append(f"{name}: {what}")

    security = pod.get("securityContext", {})
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        want(not pod.get(field), f"{field} is set")
    allowed = {
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    }
    for volume in pod.get("volumes", []):
        want(set(volume) - {"name"} <= allowed, f"volume {volume['name']} is of a kind that is not allowed")
        if "emptyDir" in volume:
            want("sizeLimit" in (volume["emptyDir"] or {}), f"volume {volume['name']} has no sizeLimit")
    want(not security.get("sysctls"), "sysctls are set")
    want("automountServiceAccountToken" in pod, "it is left open whether the token is mounted")
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        where = f"container {container['name']}"
        own = {**security, **container.get("securityContext", {})}
        want(own.get("runAsNonRoot") is True, f"{where}: runAsNonRoot")
        want(own.get("runAsUser") != 0, f"{where}: runAsUser 0")
        want(own.get("seccompProfile", {}).get("type") in ("RuntimeDefault", "Localhost"), f"{where}: seccompProfile")
        want(own.get("allowPrivilegeEscalation") is False, f"{where}: allowPrivilegeEscalation")
        want(not own.get("privileged"), f"{where}: privileged")
        want("ALL" in own.get("capabilities", {}).get("drop", []), f"{where}: capabilities not dropped")
        want(set(own.get("capabilities", {}).get("add", [])) <= {"NET_BIND_SERVICE"}, f"{where}: capabilities added")
        want(own.get("readOnlyRootFilesystem") is True, f"{where}: root file system can be written")
        want("memory" in container.get("resources", {}).get("limits", {}), f"{where}: no limit of memory")
        want(bool(container.get("resources", {}).get("requests")), f"{where}: no requests")
        want(not any(port.get("hostPort") for port in container.get("ports", [])), f"{where}: hostPort")
    return found
