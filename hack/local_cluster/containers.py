"""What containers leave on a machine (processes, mounts, cgroups, folders), and how it is taken away.

The order matters: containers die by their cgroup, their shims by the mark in their environment, and only then can
mounts and cgroups go. Nothing here asks containerd, which may be dead.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from . import processes
from .errors import ClusterError
from .settings import MARK_VARIABLE
from .shell import run, succeeds

CGROUPS = Path("/sys/fs/cgroup")
# Paths that are fixed in the code of kubelet, containerd and the CNI plugins. `down` removes those that were not there
# before: the kubelet's own entirely (there is no other kubelet), the others once nothing of anybody is left in them.
KUBELET_PATHS = ("/run/xtables.lock", "/var/lib/kubelet", "/var/log/containers", "/var/log/pods")
SHARED_PATHS = ("/run/containerd", "/var/lib/cni")
FIXED_PATHS = (*KUBELET_PATHS, *SHARED_PATHS)


def absent(paths: Iterable[str] = FIXED_PATHS) -> list[str]:
    """Which of `paths` do not exist: what appears there later is the cluster's."""
    return [path for path in paths if not os.path.lexists(path)]


def pod_cgroups(root: Path = CGROUPS) -> list[Path]:
    """The kubelet's top cgroup in every hierarchy (cgroup v1, v2 and both at once)."""
    return [folder for folder in (root / "kubepods", *sorted(root.glob("*/kubepods"))) if folder.is_dir()]


def _inside(tops: Iterable[Path]) -> set[int]:
    found: set[int] = set()
    for top in tops:
        for listing in top.rglob("cgroup.procs"):
            try:
                found.update(int(pid) for pid in listing.read_text().split())
            except OSError:
                continue
    return found - {0}


def kill_pods(*, patience_s: float = 15.0) -> None:
    """Kill every process in the pods' cgroups, then remove the cgroups.

    Raises ClusterError when some will not die or a cgroup stays busy for `patience_s`.
    """
    deadline = time.monotonic() + patience_s
    while tops := pod_cgroups():
        processes.signal_all(_inside(tops), signal.SIGKILL)
        for top in tops:
            folders = sorted((entry.parent for entry in top.rglob("cgroup.procs")), key=lambda path: -len(path.parts))
            for folder in folders:
                try:
                    folder.rmdir()
                except OSError:
                    break
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the pods' cgroups stay busy: {', '.join(map(str, tops))}, processes {sorted(_inside(tops))}",
                "end them by hand and run `hack/cluster down` again",
            )
        time.sleep(0.02)


def kill_strays(state: Path, *, patience_s: float = 10.0) -> None:
    """Kill what carries the cluster's mark: shims, and components that an interrupted `up` did not write down."""
    mark = f"{MARK_VARIABLE}={state}"
    deadline = time.monotonic() + patience_s
    while pids := [pid for pid in processes.marked(mark) if processes.start_time(pid) is not None]:
        processes.signal_all(pids, signal.SIGKILL)
        processes.reap()
        if time.monotonic() > deadline:
            raise ClusterError(f"processes {pids} of the cluster do not end", "see what holds them with `ps -fp`")
        time.sleep(0.02)


def mounts_below(folder: str, mountinfo: str) -> list[str]:
    """Mount points in or below `folder`, deepest and newest first, from the text of /proc/self/mountinfo."""
    points = []
    for line in mountinfo.splitlines():
        point = line.split(" ")[4].encode().decode("unicode_escape")
        if point == folder or point.startswith(folder + "/"):
            points.append(point)
    points.reverse()
    return sorted(points, key=lambda point: -point.count("/"))


def unmount_below(folder: str) -> None:
    """Unmount everything in `folder`, lazily where something is still open. Raises ClusterError if any stays."""
    for point in mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        succeeds(["umount", point]) or succeeds(["umount", "-l", point])
    if left := mounts_below(folder, Path("/proc/self/mountinfo").read_text()):
        raise ClusterError(f"cannot unmount {', '.join(left)}", "see `fuser -vm` for what uses it")


def remove(path: str) -> None:
    """Unmount and delete `path` with everything below, if it is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        unmount_below(path)
        shutil.rmtree(path)
    else:
        Path(path).unlink(missing_ok=True)


def remove_empty(path: str) -> None:
    """Delete `path` and the folders below as far as they hold nothing."""
    for folder, _, _ in os.walk(path, topdown=False):
        if not os.listdir(folder):
            os.rmdir(folder)


def remove_leftovers(state: Path, borrowed: Iterable[str], root: Path = Path("/")) -> None:
    """Outside the state folder: shims' sockets, CNI's results, pods' logs, and the `borrowed` of FIXED_PATHS."""
    for address in (state / "containerd" / "state").glob("*/*/*/address"):
        Path(address.read_text().strip().removeprefix("unix://")).unlink(missing_ok=True)
    sandboxes = {folder.name for folder in (state / "containerd/root/io.containerd.grpc.v1.cri/sandboxes").glob("*")}
    for result in (root / "var/lib/cni/results").glob("*-*-*"):
        if result.name.split("-")[-2] in sandboxes:
            result.unlink()
    pods = {folder.name for folder in (state / "kubelet" / "pods").glob("*")}
    for logs in (root / "var/log/pods").glob("*_*_*"):
        if logs.name.rpartition("_")[2] in pods:
            shutil.rmtree(logs)
    for link in (root / "var/log/containers").glob("*.log"):
        if link.is_symlink() and not link.exists():
            link.unlink()
    for path in borrowed:
        (remove if path in KUBELET_PATHS else remove_empty)(str(root / path.lstrip("/")))


def snapshotter_for(folder: Path) -> str:
    """overlayfs where a file system can be its lower layer; copies (`native`) where `folder` is an overlay itself."""
    kind = run(["stat", "--file-system", "--format=%T", folder]).strip()
    return "native" if kind in {"overlayfs", "tmpfs", "fuseblk", "nfs"} else "overlayfs"


def may_raise_priority(status: str) -> bool:
    """Whether /proc/self/status shows CAP_SYS_RESOURCE (bit 24) in effect."""
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 24 & 1)
