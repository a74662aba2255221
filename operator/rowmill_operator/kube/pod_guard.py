"""What a worker's pod must never be, whatever the tenant's pod template says.

The operator may create Deployments in namespaces whose tenants may not: it must not lend them its hand. So a finished
pod template is held against three things, and refused with the field's name:

- Pod Security "restricted" in its current form, all of it, whether or not the cluster enforces it;
- no credentials for the API server: no token mounted, none projected;
- what Rowmill itself needs: its labels, its container, its mounts and variables, time enough to drain.

Everything else is the tenant's: images, further containers and volumes, placement, priority, probes. What further
containers leave out of their security context is filled in first, so that a sidecar needs no twenty lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from rowmill.errors import InvalidInput, Problem
from rowmill_operator.kube.merge import PATH
from rowmill_operator.kube.naming import WORKER

RESERVED_VARIABLES: Final = re.compile(r"ROWMILL_[A-Z0-9_]*|POD_NAME|POD_IP")
"""Environment variables of our container that only Rowmill sets."""

VOLUME_KINDS: Final = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
SAFE_SYSCTLS: Final = frozenset(
    {
        "kernel.shm_rmid_forced",
        "net.ipv4.ip_local_port_range",
        "net.ipv4.ip_local_reserved_ports",
        "net.ipv4.ip_unprivileged_port_start",
        "net.ipv4.ping_group_range",
        "net.ipv4.tcp_fin_timeout",
        "net.ipv4.tcp_keepalive_intvl",
        "net.ipv4.tcp_keepalive_probes",
        "net.ipv4.tcp_keepalive_time",
        "net.ipv4.tcp_rmem",
        "net.ipv4.tcp_syncookies",
        "net.ipv4.tcp_wmem",
    }
)
_SELINUX_TYPES: Final = frozenset({"", "container_engine_t", "container_init_t", "container_kvm_t", "container_t"})
_PROFILES: Final = frozenset({"RuntimeDefault", "Localhost"})
_CONTAINER_LISTS: Final = ("initContainers", "containers")
_APPARMOR: Final = "container.apparmor.security.beta.kubernetes.io/"
_SECCOMP: Final = ("seccomp.security.alpha.kubernetes.io/", "container.seccomp.security.alpha.kubernetes.io/")

HARDENED: Final[Mapping[str, Any]] = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
"""What every container's security context holds where nothing else is said."""


def hardened(template: Mapping[str, Any]) -> dict[str, Any]:
    """The template with `HARDENED` filled in for containers that are silent; parts of a wrong type are left alone."""
    result = deepcopy(dict(template))
    spec = result.get("spec")
    for kind in _CONTAINER_LISTS:
        containers = spec.get(kind) if isinstance(spec, dict) else None
        for container in containers if isinstance(containers, list) else ():
            if not isinstance(container, dict):
                continue
            context = container.get("securityContext", {})
            if not isinstance(context, dict):
                continue
            context.setdefault("allowPrivilegeEscalation", HARDENED["allowPrivilegeEscalation"])
            capabilities = context.setdefault("capabilities", {})
            if isinstance(capabilities, dict):
                capabilities.setdefault("drop", list(HARDENED["capabilities"]["drop"]))
            container["securityContext"] = context
    return result


def check_pod_template(ours: Mapping[str, Any], merged: Mapping[str, Any], *, where: str = "") -> None:
    """Raises InvalidInput with every field in which `merged`, made of `ours`, goes too far."""
    problems = list(dict.fromkeys([*_metadata(ours, merged), *_own(ours, merged), *_pod(merged), *_containers(merged)]))
    if problems:
        raise InvalidInput(where, problems)


def _metadata(ours: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[Problem]:
    for name in merged:
        if name not in ("metadata", "spec"):
            yield Problem(f"{PATH}.{name}", "is no field of a pod template; it holds metadata and spec")
    metadata = _object(merged, "metadata")
    for name in metadata:
        if name not in ("labels", "annotations"):
            yield Problem(f"{PATH}.metadata.{name}", "cannot be set; workers take labels and annotations")
            continue
        for key, text in _object(metadata, name).items():
            if not isinstance(text, str):
                yield Problem(f"{PATH}.metadata.{name}.{key}", 'must be text; put it in quotes, as "1" or "true"')
    labels = _object(metadata, "labels")
    for key, value in ours["metadata"]["labels"].items():
        if labels.get(key) != value:
            yield Problem(
                f"{PATH}.metadata.labels.{key}", "is set by Rowmill, which finds its pods by it; leave it out"
            )
    for key, value in _object(metadata, "annotations").items():
        loose = key.startswith(_SECCOMP) and value not in ("runtime/default", "docker/default")
        if (loose and not str(value).startswith("localhost/")) or (
            key.startswith(_APPARMOR) and value != "runtime/default" and not str(value).startswith("localhost/")
        ):
            yield Problem(f"{PATH}.metadata.annotations.{key}", "must be runtime/default or localhost/<profile>")


def _own(ours: Mapping[str, Any], merged: Mapping[str, Any]) -> Iterator[Problem]:
    """What Rowmill needs to be as it made it."""
    if not isinstance(merged.get("spec"), Mapping):
        yield Problem(f"{PATH}.spec", "cannot be removed; leave it out")
        return
    before, after = ours["spec"], merged["spec"]
    if after.get("restartPolicy", "Always") != "Always":
        yield Problem(f"{PATH}.spec.restartPolicy", "must be Always: workers are run by a Deployment; leave it out")
    if after.get("automountServiceAccountToken") is not False:
        yield Problem(
            f"{PATH}.spec.automountServiceAccountToken",
            "must be false: workers have no credentials for the API server; leave it out",
        )
    grace, least = after.get("terminationGracePeriodSeconds"), before["terminationGracePeriodSeconds"]
    if not isinstance(grace, int) or isinstance(grace, bool) or grace < least:
        yield Problem(
            f"{PATH}.spec.terminationGracePeriodSeconds",
            f"must be at least {least}, which spec.timeoutSeconds asks for: calls that run could not end, and would be "
            "paid again; leave it out, or lower spec.timeoutSeconds in a new run",
        )
    our_volumes = {volume["name"]: volume for volume in before["volumes"]}
    volumes = {v.get("name"): v for v in _list(after, "volumes") if isinstance(v, Mapping)}
    for name in our_volumes.keys() - {"tmp"}:
        if volumes.get(name) != our_volumes[name]:
            yield Problem(f"{PATH}.spec.volumes[name={name}]", "is Rowmill's; give your volume another name")
    theirs = next((c for c in _list(after, "containers") if isinstance(c, Mapping) and c.get("name") == WORKER), None)
    at = f"{PATH}.spec.containers[name={WORKER}]"
    if theirs is None:
        yield Problem(at, "executes the rows and cannot be removed; leave it out, or set its image")
        return
    yield from _own_container(before["containers"][0], theirs, at)


def _own_container(ours: Mapping[str, Any], theirs: Mapping[str, Any], at: str) -> Iterator[Problem]:
    mounts = {mount.get("mountPath"): mount for mount in _list(theirs, "volumeMounts") if isinstance(mount, Mapping)}
    own = {mount["mountPath"]: mount for mount in ours["volumeMounts"] if mount["name"] != "tmp"}
    for path, mount in own.items():
        if mounts.get(path) != mount:
            yield Problem(f"{at}.volumeMounts[mountPath={path}]", "is Rowmill's; leave it as it is")
    for given in mounts:
        if any(str(given).startswith(f"{path}/") for path in own):
            yield Problem(f"{at}.volumeMounts[mountPath={given}]", "lies in a folder of Rowmill's; mount it elsewhere")
    variables = {one["name"]: one for one in ours["env"]}
    found = {one.get("name"): one for one in _list(theirs, "env") if isinstance(one, Mapping)}
    for key in dict.fromkeys([*variables, *found]):
        name = str(key)
        if RESERVED_VARIABLES.fullmatch(name) and found.get(name) != variables.get(name):
            yield Problem(f"{at}.env[name={name}]", "is set by Rowmill alone; leave it out")
    port = ours["ports"][0]
    if port not in _list(theirs, "ports"):
        number = port["containerPort"]
        yield Problem(f"{at}.ports[containerPort={number}]", "serves health and metrics; leave it as it is")


def _pod(merged: Mapping[str, Any]) -> Iterator[Problem]:
    """Pod Security: what is said of the pod as a whole."""
    spec = _object(merged, "spec")
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name) not in (None, False):
            yield Problem(f"{PATH}.spec.{name}", "must be false: workers never share the node's namespaces")
    if spec.get("ephemeralContainers"):
        yield Problem(f"{PATH}.spec.ephemeralContainers", "cannot stand in a pod template; take it out")
    if _object(spec, "os").get("name") == "windows":
        yield Problem(f"{PATH}.spec.os.name", "must be linux")
    yield from _volumes(spec)
    context = _object(spec, "securityContext")
    at = f"{PATH}.spec.securityContext"
    yield from _context(context, at)
    for i, sysctl in enumerate(_list(context, "sysctls")):
        if not isinstance(sysctl, Mapping) or sysctl.get("name") not in SAFE_SYSCTLS:
            yield Problem(f"{at}.sysctls[{i}]", "is not among the sysctls that Pod Security allows; take it out")


def _volumes(spec: Mapping[str, Any]) -> Iterator[Problem]:
    for i, volume in enumerate(_list(spec, "volumes")):
        if not isinstance(volume, Mapping):
            yield Problem(f"{PATH}.spec.volumes[{i}]", "must be an object")
            continue
        at = f"{PATH}.spec.volumes[name={volume.get('name')}]"
        for kind in volume.keys() - {"name"} - VOLUME_KINDS:
            yield Problem(f"{at}.{kind}", f"is no volume a worker may have; take {', '.join(sorted(VOLUME_KINDS))}")
        for n, source in enumerate(_list(_object(volume, "projected"), "sources")):
            for kind in ("serviceAccountToken", "podCertificate"):
                if isinstance(source, Mapping) and kind in source:
                    yield Problem(
                        f"{at}.projected.sources[{n}].{kind}",
                        "is refused: workers have no credentials for the API server",
                    )


def _containers(merged: Mapping[str, Any]) -> Iterator[Problem]:
    """Pod Security: what is said of each container."""
    spec = _object(merged, "spec")
    pod = _object(spec, "securityContext")
    for kind in _CONTAINER_LISTS:
        given = spec.get(kind)
        if given is not None and not isinstance(given, list):
            yield Problem(f"{PATH}.spec.{kind}", "must be a list")
        for container in _list(spec, kind):
            at = f"{PATH}.spec.{kind}[name={container.get('name')}]"
            yield from _container(container, pod, at)


def _container(container: Mapping[str, Any], pod: Mapping[str, Any], at: str) -> Iterator[Problem]:
    context = _object(container, "securityContext")
    inside = f"{at}.securityContext"
    yield from _context(context, inside)
    if context.get("privileged") not in (None, False):
        yield Problem(f"{inside}.privileged", "must be false")
    if context.get("allowPrivilegeEscalation") is not False:
        yield Problem(f"{inside}.allowPrivilegeEscalation", "must be false")
    if context.get("procMount") not in (None, "Default"):
        yield Problem(f"{inside}.procMount", "must be Default")
    capabilities = _object(context, "capabilities")
    if "ALL" not in _list(capabilities, "drop"):
        yield Problem(f"{inside}.capabilities.drop", "must hold ALL")
    if any(name != "NET_BIND_SERVICE" for name in _list(capabilities, "add")):
        yield Problem(f"{inside}.capabilities.add", "may hold NET_BIND_SERVICE only")
    if context.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        field = inside if "runAsNonRoot" in context else f"{PATH}.spec.securityContext"
        yield Problem(f"{field}.runAsNonRoot", "must be true")
    profile = context.get("seccompProfile", pod.get("seccompProfile"))
    if not isinstance(profile, Mapping) or profile.get("type") not in _PROFILES:
        field = inside if "seccompProfile" in context else f"{PATH}.spec.securityContext"
        yield Problem(f"{field}.seccompProfile.type", "must be RuntimeDefault or Localhost")
    for i, port in enumerate(_list(container, "ports")):
        if isinstance(port, Mapping) and port.get("hostPort") not in (None, 0):
            yield Problem(f"{at}.ports[{i}].hostPort", "cannot be set: workers open no port of the node")
    for name, handler in _handlers(container):
        for action in ("httpGet", "tcpSocket"):
            if _object(handler, action).get("host") not in (None, ""):
                yield Problem(f"{at}.{name}.{action}.host", "cannot be set: a probe asks its own pod; leave it out")


def _context(context: Mapping[str, Any], at: str) -> Iterator[Problem]:
    """What Pod Security says alike of a pod's security context and of a container's."""
    if context.get("runAsUser") == 0:
        yield Problem(f"{at}.runAsUser", "must not be 0: workers never run as root")
    if context.get("runAsNonRoot") not in (None, True):
        yield Problem(f"{at}.runAsNonRoot", "must be true")
    if _object(context, "windowsOptions").get("hostProcess") not in (None, False):
        yield Problem(f"{at}.windowsOptions.hostProcess", "must be false")
    selinux = _object(context, "seLinuxOptions")
    if selinux.get("type") is not None and selinux.get("type") not in _SELINUX_TYPES:
        yield Problem(f"{at}.seLinuxOptions.type", f"must be one of {', '.join(sorted(_SELINUX_TYPES - {''}))}")
    for name in ("user", "role"):
        if selinux.get(name) not in (None, ""):
            yield Problem(f"{at}.seLinuxOptions.{name}", "cannot be set")
    for name in ("seccompProfile", "appArmorProfile"):
        profile = context.get(name)
        if profile is not None and (not isinstance(profile, Mapping) or profile.get("type") not in _PROFILES):
            yield Problem(f"{at}.{name}.type", "must be RuntimeDefault or Localhost")


def _handlers(container: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        yield name, _object(container, name)
    for name in ("postStart", "preStop"):
        yield f"lifecycle.{name}", _object(_object(container, "lifecycle"), name)


def _object(parent: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, Mapping) else {}


def _list(parent: Mapping[str, Any], name: str) -> Sequence[Any]:
    value = parent.get(name)
    return value if isinstance(value, list) else ()
