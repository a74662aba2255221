"""The bridge, its routes, the guard that keeps packets on the machine, and taking all of it away again.

Pods live on a bridge of their own. Nothing is masqueraded, and two rules make sure of it: the filter's FORWARD refuses
whatever comes from the bridge and does not stay on it (a pod sees "connection refused" at once), and mangle's
POSTROUTING drops what any other rule may have let through. Addresses of services that do not exist are refused too.
Forwarding is switched on for the bridge alone, never for the machine.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

from .errors import ClusterError
from .settings import BRIDGE, Network
from .shell import run, succeeds

OUR_PREFIXES = ("KUBE-", "ROWMILL-")
# What kubelet and kube-proxy write for the whole machine; `down` puts the old values back.
SYSCTLS = (
    "net/ipv4/conf/all/route_localnet",
    "net/netfilter/nf_conntrack_max",
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
# Command → the name that nft has for its family.
FAMILIES = {"iptables": "ip", "ip6tables": "ip6"}


def taken_ranges() -> list[str]:
    """The destinations of this machine's routes, as CIDRs."""
    routes = json.loads(run(["ip", "-json", "-4", "route", "show", "table", "all"]) or "[]")
    return [route["dst"] for route in routes if route["dst"] != "default"]


def port_is_free(port: int) -> bool:
    """Whether nothing listens on this TCP port, on any address."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
        return True


def read_sysctls(root: Path = Path("/proc/sys")) -> dict[str, str]:
    """The present values of SYSCTLS, as far as this kernel has them."""
    return {name: (root / name).read_text().strip() for name in SYSCTLS if (root / name).exists()}


def restore_sysctls(values: dict[str, str], root: Path = Path("/proc/sys")) -> list[str]:
    """Put back what changed since; returns those that could not be written."""
    failed = []
    for name, value in values.items():
        try:
            if (root / name).read_text().strip() != value:
                (root / name).write_text(value)
        except OSError:
            failed.append(name)
    return failed


def guard_rules(network: Network) -> str:
    """The guard, for `iptables-restore --noflush`."""
    return f"""*filter
:ROWMILL-GUARD - [0:0]
-A ROWMILL-GUARD -i {BRIDGE} ! -o {BRIDGE} -j REJECT --reject-with icmp-admin-prohibited
-A ROWMILL-GUARD ! -i {BRIDGE} -o {BRIDGE} -j REJECT --reject-with icmp-admin-prohibited
-A ROWMILL-GUARD -d {network.services} -j REJECT --reject-with icmp-host-unreachable
-A ROWMILL-GUARD -i {BRIDGE} -o {BRIDGE} -j ACCEPT
-I FORWARD 1 -j ROWMILL-GUARD
COMMIT
*mangle
:ROWMILL-GUARD - [0:0]
-A ROWMILL-GUARD -o lo -j RETURN
-A ROWMILL-GUARD -o {BRIDGE} -j RETURN
-A ROWMILL-GUARD -s {network.pods} -j DROP
-A ROWMILL-GUARD -d {network.services} -j DROP
-I POSTROUTING 1 -j ROWMILL-GUARD
COMMIT
"""


def raise_bridge(network: Network) -> None:
    """Make the bridge, its routes and the guard. Raises ClusterError when a bridge of that name exists."""
    width = network.pods.rpartition("/")[2]
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        raise ClusterError(
            f"a network interface {BRIDGE} exists that this cluster did not make",
            f"if nothing needs it: `ip link delete {BRIDGE}`",
        )
    _see_bridged_packets()
    run(["iptables-restore", "--noflush"], stdin=guard_rules(network))
    run(["ip", "link", "add", BRIDGE, "type", "bridge", "nf_call_iptables", "1"])
    (Path("/proc/sys/net/ipv6/conf") / BRIDGE / "disable_ipv6").write_text("1")
    (Path("/proc/sys/net/ipv4/conf") / BRIDGE / "forwarding").write_text("1")
    run(["ip", "address", "add", f"{network.node}/{width}", "dev", BRIDGE])
    run(["ip", "link", "set", BRIDGE, "up"])
    # Programs on the host reach services too, from the bridge's address.
    run(["ip", "route", "add", network.services, "dev", BRIDGE, "src", network.node])
    for cidr in (network.services, network.pods):
        # Should the bridge ever go away, the default route must not be next.
        run(["ip", "route", "add", "unreachable", cidr, "metric", "4096"])


def _see_bridged_packets(settings: Path = Path("/proc/sys/net/bridge")) -> None:
    """Services need the kernel's br_netfilter: on our bridge alone, so bridges of others stay as they were."""
    if settings.exists():
        return
    succeeds(["modprobe", "br_netfilter"])
    if not settings.exists():
        raise ClusterError(
            "this kernel has no br_netfilter, without which pods cannot reach services",
            "use another kernel, `--provider kind` or `--provider kubeconfig`",
        )
    for name in ("iptables", "ip6tables", "arptables"):
        (settings / f"bridge-nf-call-{name}").write_text("0")


def drop_bridge(network: Network) -> None:
    """Remove the bridge and its routes, as far as they are there."""
    if Path(f"/sys/class/net/{BRIDGE}").exists():
        run(["ip", "link", "delete", BRIDGE])
    for cidr in (network.services, network.pods):
        succeeds(["ip", "route", "delete", "unreachable", cidr, "metric", "4096"])


def cleanup_script(saved: str, prefixes: Iterable[str] = OUR_PREFIXES) -> str:
    """From the output of iptables-save: what removes every chain with one of `prefixes`, and every jump to one.

    For `iptables-restore --noflush`; empty when there is nothing to remove. Rules of others stay as they are.
    """
    ours = re.compile("|".join(re.escape(prefix) for prefix in prefixes))
    tables: dict[str, tuple[list[str], list[str]]] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            tables[table] = ([], [])
        elif line.startswith(":") and ours.match(line[1:]):
            tables[table][0].append(line[1:].split()[0])
        elif line.startswith("-A "):
            words = line.split()
            target = next((words[at + 1] for at in range(len(words) - 1) if words[at] in ("-j", "-g")), "")
            if not ours.match(words[1]) and ours.match(target):
                tables[table][1].append("-D " + line[3:])
    script = []
    for name, (chains, jumps) in tables.items():
        if chains or jumps:
            flush = [f":{chain} - [0:0]" for chain in chains]
            script += [f"*{name}", *flush, *jumps, *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "\n".join(script) + "\n" if script else ""


def filter_tables() -> list[str]:
    """The packet filter's tables that exist, as `iptables nat`."""
    return [
        f"{family} {line[1:].strip()}"
        for family in FAMILIES
        for line in run([f"{family}-save"]).splitlines()
        if line.startswith("*")
    ]


def foreign_kubernetes() -> str:
    """What of another Kubernetes is on this machine: a chain or a cgroup's path; empty when there is none."""
    for folder in (Path("/sys/fs/cgroup/kubepods"), *Path("/sys/fs/cgroup").glob("*/kubepods*")):
        if folder.exists():
            return f"the cgroup {folder}"
    for family in FAMILIES:
        script = cleanup_script(run([f"{family}-save"]))
        if script:
            return f"the packet filter's chain {next(x for x in script.split() if x.startswith(':'))[1:]}"
    return ""


def new_empty_tables(saved: str, before: Iterable[str]) -> list[str]:
    """From the output of iptables-save: tables that are not in `before` and hold nobody's rules or chains."""
    empty: dict[str, bool] = {}
    table = ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:].strip()
            empty[table] = True
        elif line.startswith(("-A", ":")):
            empty[table] = empty[table] and line.split()[1:2] == ["ACCEPT"]
    return [name for name, is_empty in empty.items() if is_empty and name not in set(before)]


def clean_filter(tables_before: Iterable[str], execute: Callable[..., str] = run) -> None:
    """Remove our chains and Kubernetes', and the tables that did not exist before and are empty now."""
    before = list(tables_before)
    for family, kind in FAMILIES.items():
        script = cleanup_script(execute([f"{family}-save"]))
        if script:
            execute([f"{family}-restore", "--noflush"], stdin=script)
        for table in new_empty_tables(
            execute([f"{family}-save"]), {each.partition(" ")[2] for each in before if each.startswith(f"{family} ")}
        ):
            # iptables itself cannot: the table exists as soon as it has been used once. (With the older
            # implementation of iptables there is nothing to delete, and this fails without harm.)
            succeeds(["nft", "delete", "table", kind, table])
