"""Debian's packages that a local cluster is made of."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from .errors import ClusterError
from .settings import is_root
from .shell import run, say, step, succeeds

FOR_LOCAL_CLUSTER = (
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "dnsmasq-base",
    "ebtables",
    "etcd-server",
    "ethtool",
    "gcc",
    "iproute2",
    "iptables",
    "kmod",
    "libc6-dev",
    "mount",
    "nftables",
    "openssl",
    "runc",
    "socat",
)
FOR_KUBERNETES_BUILD = (
    "dpkg-dev",
    "golang-github-modern-go-reflect2-dev",
    "golang-go",
    "jq",
    "make",
    "rsync",
)
FOR_IMAGES = ("buildah", "debootstrap")
FOR_TOOLS = ("python3-venv",)
POLICY = Path("/usr/sbin/policy-rc.d")


def missing(names: Sequence[str]) -> list[str]:
    """Which of `names` are not installed."""
    installed = "install ok installed"
    return [name for name in names if not succeeds(["sh", "-c", f"dpkg -s {name} | grep -q '{installed}'"])]


def install(names: Sequence[str]) -> None:
    """Install what is missing, starting none of it. Raises ClusterError where that needs root or another system."""
    lacking = missing(names)
    if not lacking:
        return
    command = f"apt-get install --no-install-recommends {' '.join(lacking)}"
    if not is_root():
        raise ClusterError(f"packages are missing: {', '.join(lacking)}", f"as root: {command}")
    say(f"installing Debian's packages {', '.join(lacking)}")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    with step("installing packages"), _services_stay_off():
        run(["apt-get", "-qq", "update"], env=env, fix="see that this machine's package sources can be reached")
        run(["apt-get", "-qq", "-y", "install", "--no-install-recommends", *lacking], env=env)


@contextlib.contextmanager
def _services_stay_off() -> Iterator[None]:
    """Installing etcd or containerd must not start them: an administrator's own policy is left as it is."""
    if POLICY.exists():
        yield
        return
    POLICY.write_text("#!/bin/sh\nexit 101\n")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def codename() -> str:
    """`bookworm` on Debian 12; empty where that is unknown."""
    try:
        lines = Path("/etc/os-release").read_text().splitlines()
    except OSError:
        return ""
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    return found.get("VERSION_CODENAME", "").strip('"') if found.get("ID", "").strip('"') == "debian" else ""


def source_lists(name: str, text: str, suite: str) -> str:
    """The file `name` of apt's sources, turned to ask for source packages of `suite` (and its -updates, -security).

    Understands both of apt's formats; what is of no use (other suites, disabled entries) is left out.
    """
    if not name.endswith(".sources"):
        lines = [line.split("#")[0].strip() for line in text.splitlines()]
        kept = [line for line in lines if line.startswith("deb ") and f" {suite}" in line]
        return "".join("deb-src " + line.removeprefix("deb ") + "\n" for line in kept)
    stanzas = []
    for stanza in "\n".join(line.rstrip() for line in text.splitlines() if not line.startswith("#")).split("\n\n"):
        fields = [line for line in stanza.splitlines() if line]
        flat = {line.split(":")[0].lower(): line.partition(":")[2].strip() for line in fields if line[0] not in " \t"}
        if "deb" not in flat.get("types", "").split() or flat.get("enabled", "yes").lower() == "no":
            continue
        if any(word.split("-")[0] == suite for word in flat.get("suites", "").split()):
            stanzas.append("\n".join("Types: deb-src" if x.lower().startswith("types:") else x for x in fields))
    return "".join(stanza + "\n\n" for stanza in stanzas)


def write_source_lists(target: Path, suite: str, apt: Path = Path("/etc/apt")) -> None:
    """Put source entries for all of this machine's own package sources into the folder `target`.

    Raises ClusterError when the machine has none for `suite`.
    """
    target.mkdir(parents=True, exist_ok=True)
    found = False
    for file in (apt / "sources.list", *sorted((apt / "sources.list.d").glob("*"))):
        if file.is_file() and file.suffix in {".list", ".sources"}:
            text = source_lists(file.name, file.read_text(), suite)
            (target / file.name).write_text(text)
            found = found or bool(text)
    if not found:
        raise ClusterError(f"{apt} names no package source of {suite}", "add Debian's own to it")
