"""What of this machine a cluster touches, listed so that before `up` and after `down` can be compared line by line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from . import containers, network, processes
from .settings import MARK_VARIABLE, Paths
from .shell import run


def without_counters(saved: str) -> list[str]:
    """The output of iptables-save without what changes by itself: comments and packet counters."""
    lines = (line for line in saved.splitlines() if not line.startswith("#"))
    return [re.sub(r"\s*\[\d+:\d+\]", "", line) for line in lines]


def differences(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """One line for each trace that is there on one side alone: `+` for what is left behind, `-` for what is missing."""
    lines = []
    for kind in sorted({*before, *after}):
        old, new = Counter(before.get(kind, [])), Counter(after.get(kind, []))
        lines += [f"+ {kind}: {trace}" for trace in (new - old).elements()]
        lines += [f"- {kind}: {trace}" for trace in (old - new).elements()]
    return lines


def take(paths: Paths) -> dict[str, list[str]]:
    """Kind of trace → what is there now, sorted (the packet filter's rules keep their order)."""
    mounts = [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    cgroups = [str(path) for top in (containers.CGROUPS, *containers.CGROUPS.glob("*")) for path in top.glob("*/")]
    return {
        "interfaces": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "routes": sorted(network.taken_ranges()),
        **{family: without_counters(run([f"{family}-save"])) for family in network.FAMILIES},
        # What lies in the cache is not the cluster's: images may be building there.
        "mounts": sorted(point for point in mounts if not point.startswith(f"{paths.cache}/")),
        "cgroups": sorted(cgroups),
        "processes": sorted(map(str, processes.marked(f"{MARK_VARIABLE}={paths.state}"))),
        "settings": sorted(f"{name}={value}" for name, value in network.read_sysctls().items()),
        "paths": sorted(
            {*containers.FIXED_PATHS, str(paths.state)}
            - set(containers.absent((*containers.FIXED_PATHS, str(paths.state))))
        ),
    }
