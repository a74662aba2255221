"""The peers' virtual environments: made from their locks on first use, kept in an ignored folder."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from bench.children import ROOT

FOLDER = ROOT / ".cache" / "bench"


class NoPeers(Exception):
    """The peers cannot be installed; the message says why and what to do."""


def python_of(lock: str) -> Path:
    """The interpreter of the environment that `bench/<lock>.lock` describes. Raises NoPeers."""
    file = ROOT / "bench" / f"{lock}.lock"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    folder = FOLDER / lock
    stamp = folder / ".installed"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    if stamp.is_file() and stamp.read_text() == digest:
        return python
    print(f"bench: installing what bench/{lock}.lock names into {folder.relative_to(ROOT)}", file=sys.stderr)
    steps = (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [
            *(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("--require-hashes", "-r", str(file)),
        ],
    )
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True)
        if done.returncode != 0:
            lines = done.stderr.strip().splitlines()
            raise NoPeers(
                f"the peers of bench/{lock}.lock cannot be installed ({lines[-1] if lines else 'no message'}); "
                "a package index must be reachable by pip"
            )
    stamp.write_text(digest)
    return python
