"""Where things lie and which addresses a local cluster uses: decided once, in `up`, and kept in its state."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from .errors import ClusterError

NODE_NAME = "rowmill-node"
BRIDGE = "rowmill0"
DNS_DOMAIN = "cluster.local"
STATE_VARIABLE = "ROWMILL_CLUSTER_STATE"
# In the environment of every component, and never in a person's: `down` knows strays by it.
MARK_VARIABLE = "ROWMILL_CLUSTER_COMPONENT_OF"
BINARIES_VARIABLE = "ROWMILL_KUBERNETES_BIN"
PROVIDER_VARIABLE = "ROWMILL_CLUSTER"
# Second octets of 10/8 that nothing uses by habit (not 0, 42, 43, 88, 96, 152, 233, 244): the first free one wins.
SECOND_OCTETS = (213, 217, 221, 229, 237, 183, 187, 199)
# Below both the kernel's ephemeral ports and Kubernetes' node ports, and none that a program uses by habit:
# a component that restarts must find its port still free.
FIRST_PORT = 21530
PORT_NAMES = (
    "apiserver",
    "etcd",
    "etcd_peer",
    "etcd_health",
    "controller_manager",
    "scheduler",
    "kubelet",
    "kubelet_health",
    "proxy_health",
    "proxy_metrics",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
    """The two folders outside the checkout: `cache` is kept for ever, `state` lives as long as the cluster."""

    cache: Path
    state: Path

    @property
    def tools(self) -> Path:
        """Where helm and kubectl lie."""
        return self.cache / "tools"

    @property
    def images(self) -> Path:
        """Where image archives lie."""
        return self.cache / "images"

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig of a local or kind cluster."""
        return self.state / "kubeconfig"

    @property
    def logs(self) -> Path:
        """One log for each component."""
        return self.state / "logs"

    @property
    def containerd_socket(self) -> Path:
        """The cluster's own containerd, apart from one that the machine may run."""
        return self.state / "containerd.sock"


def paths(environment: Mapping[str, str]) -> Paths:
    """Cache in `$XDG_CACHE_HOME/rowmill` (or `~/.cache/rowmill`), state in `$ROWMILL_CLUSTER_STATE` (or /var/lib).

    Raises ClusterError when the state folder cannot hold unix sockets (longer than 60 characters) or is relative.
    """
    base = environment.get("XDG_CACHE_HOME") or str(Path(environment.get("HOME") or "~").expanduser() / ".cache")
    state = Path(environment.get(STATE_VARIABLE) or "/var/lib/rowmill-cluster")
    if not state.is_absolute() or len(str(state)) > 60 or len(state.parts) < 3:
        raise ClusterError(
            f"{STATE_VARIABLE}={state} cannot hold a cluster's state",
            "name an absolute folder of its own, at least two levels deep, in at most 60 characters",
        )
    return Paths(cache=Path(base) / "rowmill", state=state)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Network:
    """Addresses of one cluster. `ports` maps each of PORT_NAMES to a port."""

    pods: str
    services: str
    node: str
    ports: dict[str, int]

    @property
    def kubernetes_service(self) -> str:
        """The ClusterIP of the service `kubernetes`: always the first of the range."""
        return str(next(ipaddress.ip_network(self.services).hosts()))

    @property
    def api(self) -> str:
        """The API server's address, from the host and from pods alike."""
        return f"https://{self.node}:{self.ports['apiserver']}"


def choose_network(taken: Iterable[str], port_is_free: Callable[[int], bool]) -> Network:
    """The first range of SECOND_OCTETS that overlaps none of `taken` (CIDRs of this machine's routes), with free ports.

    Pods get a /22 (a thousand addresses), services the /22 behind it; the node has the first address of the pods'.
    Raises ClusterError when nothing is free.
    """
    used = [ipaddress.ip_network(cidr, strict=False) for cidr in taken]
    for octet in SECOND_OCTETS:
        whole = ipaddress.ip_network(f"10.{octet}.64.0/20")
        if any(whole.overlaps(other) for other in used if other.version == 4 and other.prefixlen > 0):
            continue
        pods, _, services, _ = whole.subnets(new_prefix=22)
        ports = iter(port for port in range(FIRST_PORT, FIRST_PORT + 2000) if port_is_free(port))
        try:
            chosen = {name: next(ports) for name in PORT_NAMES}
        except StopIteration:
            raise ClusterError(
                f"fewer than {len(PORT_NAMES)} of the ports {FIRST_PORT} to {FIRST_PORT + 1999} are free",
                "see `ss -ltn` for what holds them",
            ) from None
        return Network(pods=str(pods), services=str(services), node=str(next(pods.hosts())), ports=chosen)
    raise ClusterError(
        "every address range that the cluster could use overlaps a route of this machine",
        "see `ip route`; use `--provider kind` or `--provider kubeconfig` instead",
    )


def environment_for_components(path: Paths) -> dict[str, str]:
    """What components see: no proxy, no credentials, and the mark by which `down` knows them again."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(path.state),
        MARK_VARIABLE: str(path.state),
    }


def is_root() -> bool:
    """Whether this process may make bridges and mounts."""
    return os.geteuid() == 0
