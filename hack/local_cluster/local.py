"""The cluster made of Debian's own packages: up, down, status, restart, load.

`up`: binaries → clean slate → plan and state file → certificates → bridge → components one by one, each waited for →
images → node ready. Whatever fails names the component, its log and the log's end, and leaves everything for a look;
the next `up` (or `down`) cleans up. The invariant that `down` keeps: interfaces, routes, packet filter, mounts,
cgroups, processes, kernel settings and folders outside the cache are as before `up`.
"""

from __future__ import annotations

import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from . import components, containers, health, network, packages, pki, processes, state
from .errors import ClusterError
from .pause import pause_archive
from .settings import BINARIES_VARIABLE, Paths, choose_network, environment_for_components
from .shell import run, say, step, tail_of_file

PATIENCE_S = {"apiserver": 90.0, "kubelet": 60.0}
ALIASES = {f"kube-{name}": name for name in ("apiserver", "controller-manager", "scheduler")}


class LocalCluster:
    """One cluster on this machine. `binaries` finds (or builds) the folder of Kubernetes' binaries."""

    def __init__(self, *, paths: Paths, binaries: Callable[[], Path]) -> None:
        self._paths = paths
        self._binaries = binaries

    def up(self) -> None:
        """Bring the cluster up, or see that it is. Raises ClusterError with the component, its log and the way on."""
        began = time.monotonic()
        present = state.load(self._paths.state)
        if present is not None and present.phase == "running" and present.boot == state.boot_id():
            self._revive(present)
            return
        packages.install(packages.FOR_LOCAL_CLUSTER)
        binaries = self._binaries()
        if present is not None:
            say(f"a cluster was left in the phase {present.phase}: cleaning up")
            self.down()
        elif other := network.foreign_kubernetes():
            raise ClusterError(
                f"another Kubernetes runs on this machine, or was never cleaned up: found {other}",
                "use it with `--provider kubeconfig`, or remove it first",
            )
        with step("starting a local Kubernetes"):
            new = self._prepare(binaries)
            self._start_all(new)
            new.phase = "running"
            state.save(self._paths.state, new)
        say(f"the cluster is up after {time.monotonic() - began:.0f} s; `hack/cluster env` prints how to reach it")

    def down(self) -> None:
        """Take everything away. Safe to run twice, after a crash, and where there is nothing."""
        old = state.load(self._paths.state)
        if old is None:
            say("there is no local cluster")
            return
        old.phase = "stopping"
        state.save(self._paths.state, old)
        same_boot = old.boot == state.boot_id()
        with step("removing the local Kubernetes"):
            if same_boot:
                processes.stop(old.components.values(), kill=True)
                containers.kill_pods()
            containers.kill_strays(self._paths.state)
            containers.unmount_below(str(self._paths.state))
            if same_boot:
                network.clean_filter(old.tables)
                network.drop_bridge(old.network)
                for name in network.restore_sysctls(old.sysctls):
                    say(f"the kernel setting {name} could not be put back to {old.sysctls[name]}")
            containers.remove_leftovers(self._paths.state, old.borrowed)
            shutil.rmtree(self._paths.state)

    def status(self) -> dict[str, str]:
        """Component → empty when it is healthy, else what is wrong. Raises ClusterError when there is no cluster."""
        present = self._running()
        found = {"cluster": "" if present.phase == "running" else f"in the phase {present.phase}"}
        for name, component in present.components.items():
            if processes.is_alive(component):
                found[name] = health.probe(name, self._paths, present.network)
            else:
                found[name] = "not running"
        found["node"] = health.node_problem(health.Api(self._paths.kubeconfig))
        return found

    def change(self, name: str, *, stop: bool, start: bool, kill: bool = False) -> None:
        """Stop and/or start one component with the command line that it had."""
        present = self._running()
        name = ALIASES.get(name, name)
        if name not in present.components:
            raise ClusterError(f"there is no component {name}", f"components: {', '.join(present.components)}")
        if stop:
            processes.stop([present.components[name]], kill=kill)
        if start:
            self._launch(present, name)
            self._await_component(present, name)
            if name == "kubelet" and processes.is_alive(present.components["apiserver"]):
                self._await_node(present)

    def load(self, archive: Path) -> None:
        """Import a docker archive so that pods can use it."""
        snapshotter = self._running().snapshotter
        containerd = ["ctr", "--address", str(self._paths.containerd_socket), "--namespace=k8s.io"]
        run(
            [*containerd, "images", "import", f"--snapshotter={snapshotter}", str(archive)],
            fix="is it an archive as `docker save` writes it?",
        )

    def _running(self) -> state.State:
        present = state.load(self._paths.state)
        if present is None or present.boot != state.boot_id():
            raise ClusterError("there is no local cluster", "run `hack/cluster up` first")
        return present

    def _revive(self, present: state.State) -> None:
        for name, component in present.components.items():
            if not processes.is_alive(component):
                say(f"{name} had ended: starting it again")
        self._start_all(present)
        say("the cluster is up already")

    def _prepare(self, binaries: Path) -> state.State:
        folder = self._paths.state
        if folder.exists() and any(folder.iterdir()):
            raise ClusterError(
                f"{folder} holds files of something else", "remove it, or name another by ROWMILL_CLUSTER_STATE"
            )
        new = state.State(
            phase="starting",
            boot=state.boot_id(),
            binaries=str(binaries),
            network=choose_network(network.taken_ranges(), network.port_is_free),
            sysctls=network.read_sysctls(),
            borrowed=containers.absent(),
            tables=network.filter_tables(),
        )
        state.save(folder, new)
        new.snapshotter = containers.snapshotter_for(folder)
        plan = components.Plan(
            paths=self._paths,
            network=new.network,
            binaries=binaries,
            minor=minor_version(run([binaries / "kube-apiserver", "--version"])),
            snapshotter=new.snapshotter,
            may_raise_priority=containers.may_raise_priority(Path("/proc/self/status").read_text()),
            python=sys.executable,
        )
        for name, text in components.files(plan).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        shutil.copy(Path(__file__).with_name("dns_updater.py"), folder / "dns" / "updater.py")
        pki.make_certificates(folder / "pki", new.network)
        pki.write_kubeconfigs(folder, new.network, pki.make_tokens(folder / "pki" / "tokens.csv"))
        new.components = {name: state.Component(argv=argv) for name, argv in components.command_lines(plan).items()}
        state.save(folder, new)
        network.raise_bridge(new.network)
        return new

    def _start_all(self, present: state.State) -> None:
        for stage in components.STAGES:
            for name in stage:
                self._launch(present, name)
            for name in stage:
                self._await_component(present, name)
            if "containerd" in stage:
                self.load(pause_archive(self._paths.images))
        self._settle(present)

    def _launch(self, present: state.State, name: str) -> None:
        component = present.components[name]
        if processes.is_alive(component):
            return
        env = environment_for_components(self._paths)
        try:
            processes.start(component, log=self._paths.logs / f"{name}.log", env=env, cwd=self._paths.state)
        except OSError as error:
            raise ClusterError(
                f"{name} cannot be started: {error}",
                f"unset {BINARIES_VARIABLE}, or reinstall the package that has {component.argv[0]}",
            ) from None
        state.save(self._paths.state, present)

    def _await_component(self, present: state.State, name: str) -> None:
        self._await(
            name,
            lambda: health.probe(name, self._paths, present.network),
            alive=lambda: processes.is_alive(present.components[name]),
            log=self._paths.logs / f"{name}.log",
        )

    def _settle(self, present: state.State) -> None:
        """Healthy components are not yet a cluster: pods need the node, an account to run as, and names."""
        api = health.Api(self._paths.kubeconfig)
        account = "/api/v1/namespaces/default/serviceaccounts/default"
        self._await_node(present)
        for name, log, check in (
            ("the default service account", "controller-manager", lambda: health.exists(api, account)),
            ("DNS", "dns-updater", lambda: health.probe("dns-updater", self._paths, present.network)),
        ):
            self._await(name, check, alive=lambda: True, log=self._paths.logs / f"{log}.log")

    def _await_node(self, present: state.State) -> None:
        api = health.Api(self._paths.kubeconfig)
        kubelet = present.components["kubelet"]
        self._await(
            "the node",
            lambda: health.node_problem(api),
            alive=lambda: processes.is_alive(kubelet),
            log=self._paths.logs / "kubelet.log",
        )

    def _await(self, name: str, check: Callable[[], str], *, alive: Callable[[], bool], log: Path) -> None:
        deadline = time.monotonic() + PATIENCE_S.get(name, 45.0)
        while problem := check():
            processes.reap()
            died = not alive()
            if died or time.monotonic() > deadline:
                how = "ended" if died else f"is not healthy after {PATIENCE_S.get(name, 45.0):.0f} s ({problem})"
                raise ClusterError(
                    f"{name} {how}. The end of its log, {log}:\n{tail_of_file(log)}",
                    "`hack/cluster down` cleans up; `hack/cluster up` starts anew",
                )
            time.sleep(0.1)


def minor_version(printed: str) -> int:
    """20 from `Kubernetes v1.20.2`. Raises ClusterError for anything else."""
    match = re.search(r"v1\.(\d+)\.", printed)
    if match is None:
        raise ClusterError(f"kube-apiserver calls itself {printed.strip()!r}", f"see {BINARIES_VARIABLE}")
    return int(match[1])
