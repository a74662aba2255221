"""Where a cluster comes from: one that exists (`kubeconfig`), kind, or this machine itself (`local`).

A kubeconfig is used only when somebody asks for it by name: `make e2e` must never run against the cluster that
a person happens to be logged in to.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from . import archives, build, tools
from .errors import ClusterError
from .local import LocalCluster
from .settings import PROVIDER_VARIABLE, Paths, is_root
from .shell import run, say, step, succeeds

NAMES = ("kubeconfig", "kind", "local")
KIND_CLUSTER = "rowmill"


class Provider(Protocol):
    """What the commands need of a cluster."""

    name: str

    def up(self) -> None:
        """Bring it up, or see that it answers."""

    def down(self) -> None:
        """Take away what `up` made."""

    def status(self) -> dict[str, str]:
        """Part → empty when healthy, else what is wrong."""

    def load(self, archive: Path) -> None:
        """Give its nodes the images of a docker archive."""

    def change(self, name: str, *, stop: bool, start: bool, kill: bool = False) -> None:
        """Stop and/or start one component."""

    def kubeconfig(self) -> str:
        """The value of KUBECONFIG; empty for kubectl's own default."""


def engine() -> str | None:
    """`docker` or `podman` when one of them answers."""
    return next((name for name in ("docker", "podman") if succeeds([name, "info"], timeout=10.0)), None)


def choose(wanted: str | None, *, kind_works: bool, root: bool, local_exists: bool) -> str:
    """The provider's name: what is `wanted`, else the local cluster that exists, else kind, else local.

    Raises ClusterError for an unknown name, and when nothing is possible.
    """
    if wanted:
        if wanted not in NAMES:
            raise ClusterError(f"there is no provider {wanted}", f"choose one of {', '.join(NAMES)}")
        return wanted
    if local_exists:
        return "local"
    if kind_works:
        return "kind"
    if root:
        return "local"
    raise ClusterError(
        "no cluster can be made here: no container engine with kind answers, and only root can make a local one",
        f"install kind, run as root on Debian 12, or set {PROVIDER_VARIABLE}=kubeconfig to use your own cluster",
    )


def provider(wanted: str | None, *, paths: Paths, environment: Mapping[str, str]) -> Provider:
    """The provider that `wanted` (a flag), the environment or this machine decides for."""
    wanted = wanted or environment.get(PROVIDER_VARIABLE)
    name = choose(
        wanted,
        kind_works=not wanted and shutil.which("kind") is not None and engine() is not None,
        root=is_root(),
        local_exists=(paths.state / "state.json").exists(),
    )
    if name == "kubeconfig":
        return Kubeconfig(paths=paths, environment=environment)
    if name == "kind":
        return Kind(paths=paths)
    if not is_root():
        raise ClusterError("only root can work on a local cluster (bridges, mounts, cgroups)", "use sudo")
    return Local(paths=paths, environment=environment)


class Local(LocalCluster):
    """The cluster on this machine itself."""

    name = "local"

    def __init__(self, *, paths: Paths, environment: Mapping[str, str]) -> None:
        super().__init__(paths=paths, binaries=lambda: build.binaries(paths, environment))
        self._file = paths.kubeconfig

    def kubeconfig(self) -> str:
        """The administrator's kubeconfig within the cluster's state."""
        return str(self._file)


class Kubeconfig:
    """A cluster that exists, as `$KUBECONFIG` and its current context tell."""

    name = "kubeconfig"

    def __init__(self, *, paths: Paths, environment: Mapping[str, str]) -> None:
        self._paths = paths
        self._file = environment.get("KUBECONFIG", "")

    def up(self) -> None:
        """See that it answers."""
        kubectl = tools.folder(self._paths) / "kubectl"
        context = run([kubectl, "config", "current-context"], fix="set KUBECONFIG, or choose a context").strip()
        run(
            [kubectl, "--request-timeout=15s", "get", "--raw", "/readyz"],
            fix=f"the context {context} does not answer: see its server and credentials",
        )
        say(f"the cluster of the context {context} answers")

    def down(self) -> None:
        """Nothing was made, so nothing is taken away."""
        say("this cluster was not made here: it stays as it is")

    def status(self) -> dict[str, str]:
        """Only whether it answers."""
        try:
            self.up()
        except ClusterError as error:
            return {"cluster": error.what}
        return {"cluster": ""}

    def load(self, archive: Path) -> None:
        """Refuses: only a registry reaches the nodes of a cluster that is not ours."""
        names = ", ".join(archives.references(archive))
        raise ClusterError(
            f"{names} cannot be put on the nodes of a cluster that was not made here",
            "push to a registry that its nodes can pull from (`skopeo copy docker-archive:FILE docker://REGISTRY/NAME:TAG`)"
            " and give the chart that name",
        )

    def change(self, name: str, *, stop: bool, start: bool, kill: bool = False) -> None:
        """Refuses: its components are not ours."""
        raise ClusterError(f"{name} of a cluster that was not made here stays as it is", "use `--provider local`")

    def kubeconfig(self) -> str:
        """What the environment says."""
        return self._file


class Kind:
    """A kind cluster called `rowmill`."""

    name = "kind"

    def __init__(self, *, paths: Paths) -> None:
        self._paths = paths
        self._file = paths.cache / "kind.kubeconfig"

    def _exists(self) -> bool:
        fix = "install kind and start Docker or Podman"
        return KIND_CLUSTER in run(["kind", "get", "clusters"], fix=fix).split()

    def up(self) -> None:
        """Create it, or see that it is there."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        named = ["--name", KIND_CLUSTER, "--kubeconfig", str(self._file)]
        if self._exists():
            run(["kind", "export", "kubeconfig", *named])
            say("the kind cluster is up already")
            return
        with step("creating a kind cluster"):
            run(["kind", "create", "cluster", "--wait", "120s", *named])

    def down(self) -> None:
        """Delete it."""
        with step("deleting the kind cluster"):
            run(["kind", "delete", "cluster", "--name", KIND_CLUSTER, "--kubeconfig", self._file])
        self._file.unlink(missing_ok=True)

    def status(self) -> dict[str, str]:
        """Whether it exists and its API server answers."""
        if not self._exists():
            raise ClusterError("there is no kind cluster", "run `hack/cluster up` first")
        kubectl = tools.folder(self._paths) / "kubectl"
        ready = succeeds([kubectl, "--kubeconfig", self._file, "--request-timeout=10s", "get", "--raw", "/readyz"])
        return {"apiserver": "" if ready else "does not answer"}

    def load(self, archive: Path) -> None:
        """Put the images on its node."""
        run(["kind", "load", "image-archive", "--name", KIND_CLUSTER, archive])

    def change(self, name: str, *, stop: bool, start: bool, kill: bool = False) -> None:
        """Restart a static pod of the control plane: kubelet starts it again as soon as its container ends."""
        if not (stop and start):
            raise ClusterError("kind's components can only be restarted", "use `restart`, or `--provider local`")
        node = [engine() or "docker", "exec", f"{KIND_CLUSTER}-control-plane"]
        component = name if name == "etcd" else f"kube-{name.removeprefix('kube-')}"
        found = run([*node, "crictl", "ps", "--quiet", "--name", f"^{component}$"]).split()
        if not found:
            raise ClusterError(
                f"kind runs no {component}", "components: etcd, apiserver, controller-manager, scheduler"
            )
        run([*node, "crictl", "stop", "--timeout", "0" if kill else "10", *found])
        deadline = time.monotonic() + 90.0
        while not set(run([*node, "crictl", "ps", "--quiet", "--name", f"^{component}$"]).split()) - set(found):
            if time.monotonic() > deadline:
                raise ClusterError(f"kind's {component} has not come back after 90 s", "see `kind export logs`")
            time.sleep(0.2)
        pods = ["--namespace=kube-system", "pod", "--selector", f"component={component}"]
        kubectl = tools.folder(self._paths) / "kubectl"
        run([kubectl, "--kubeconfig", self._file, "wait", "--for=condition=Ready", *pods, "--timeout=90s"])

    def kubeconfig(self) -> str:
        """A file of its own: kind would otherwise change the person's default context."""
        return str(self._file)


def environment_lines(chosen: Provider, paths: Paths, path: str) -> list[str]:
    """What a shell evaluates to reach the cluster, given the present PATH."""
    folder = str(tools.folder(paths))
    lines = [f"export KUBECONFIG={chosen.kubeconfig()}"] if chosen.kubeconfig() else []
    parts = [part for part in path.split(os.pathsep) if part and part != folder]
    return [*lines, f"export PATH={os.pathsep.join([folder, *parts])}"]
