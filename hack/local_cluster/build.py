"""Kubernetes' binaries: a folder that somebody names, or Debian's source package, built once and cached.

Debian 12's source package `kubernetes` holds a whole Kubernetes 1.20.2 with everything that it needs. One of its
vendored libraries (reflect2 1.0.1) reads maps as Go laid them out before 1.18, and crashes the API server at the first
custom resource: Debian's package of 1.0.2 takes its place. The build happens beside its target and is renamed into
place at the end, so a build that was interrupted is never taken for a finished one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from . import packages
from .errors import ClusterError
from .settings import BINARIES_VARIABLE, Paths
from .shell import run, step
from .state import locked

VERSION = "1.20.2"
RECIPE = "r1"  # counted up whenever what is built changes
BINARIES = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
REFLECT2 = Path("/usr/share/gocode/src/github.com/modern-go/reflect2")


def binaries(paths: Paths, environment: Mapping[str, str]) -> Path:
    """The folder of BINARIES: `$ROWMILL_KUBERNETES_BIN`, or the cached build (built now if there is none)."""
    if named := environment.get(BINARIES_VARIABLE):
        lacking = [name for name in BINARIES if not os.access(Path(named) / name, os.X_OK)]
        if lacking:
            raise ClusterError(
                f"{BINARIES_VARIABLE}={named} has no {', '.join(lacking)}", "name a folder with all five"
            )
        return Path(named).resolve()
    target = paths.cache / f"kubernetes-{VERSION}-{RECIPE}" / "bin"
    if not target.exists():
        with locked(f"build:{target}"):
            if not target.exists():
                _build(target)
    return target


def _build(target: Path) -> None:
    if packages.codename() != "bookworm":
        raise ClusterError(
            "only Debian 12 (bookworm) has a source package of all of Kubernetes",
            f"name a folder with {', '.join(BINARIES)} in {BINARIES_VARIABLE}, or use `--provider kind`",
        )
    packages.install(packages.FOR_KUBERNETES_BUILD)
    home = target.parent
    home.mkdir(parents=True, exist_ok=True)
    for leftover in home.glob("build-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix="build-", dir=home) as scratch:
        folder = Path(scratch)
        with step("fetching the source of Kubernetes"):
            tree = _fetch(folder)
        with step(f"building Kubernetes {VERSION} (once; about ten minutes on two cores, log: {home / 'build.log'})"):
            _patch(tree)
            run(
                ["make", "all", "WHAT=" + " ".join(f"cmd/{name}" for name in BINARIES), "GOLDFLAGS=-s -w"],
                cwd=tree,
                env=_build_environment(folder),
                log=home / "build.log",
                fix="`hack/cluster up` tries again; 4 GB of memory and 6 GB of disk are needed",
            )
        ready = folder / "bin"
        ready.mkdir()
        for name in BINARIES:
            shutil.move(tree / "_output" / "bin" / name, ready / name)
        os.rename(ready, target)


def _fetch(folder: Path) -> Path:
    packages.write_source_lists(folder / "sources", "bookworm")
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True)
    options = {
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": folder / "sources",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder,
        "APT::Sandbox::User": "root",
        "APT::Get::List-Cleanup": "false",
    }
    apt = ["apt-get", "-qq", *(f"-o{key}={value}" for key, value in options.items())]
    fix = "see that this machine's package sources can be reached and have source packages"
    run([*apt, "update"], cwd=folder, fix=fix)
    run([*apt, "source", "--only-source", "kubernetes"], cwd=folder, fix=fix)
    return next(path for path in folder.glob("kubernetes-*") if path.is_dir())


def _patch(tree: Path) -> None:
    vendored = tree / "vendor" / "github.com" / "modern-go" / "reflect2"
    for old in (*vendored.glob("*.go"), *vendored.glob("*.s")):
        old.unlink()
    for new in (*REFLECT2.glob("*.go"), *REFLECT2.glob("*.s")):
        if not new.name.endswith("_test.go"):
            shutil.copy(new, vendored)


def _build_environment(folder: Path) -> dict[str, str]:
    major, minor, _ = VERSION.split(".")
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "GOPROXY": "off",
        "KUBE_GIT_VERSION": f"v{VERSION}",
        "KUBE_GIT_MAJOR": major,
        "KUBE_GIT_MINOR": minor,
        "KUBE_GIT_COMMIT": "debian",
        "KUBE_GIT_TREE_STATE": "clean",
    }
