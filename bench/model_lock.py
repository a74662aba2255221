"""What a resolver wrote of requirements/embeddings.txt, parted by builds of torch; a step of `make lock`.

    python -m bench.model_lock requirements/embeddings.lock

The build of torch that package indexes serve for Linux wants 3 GB of CUDA beside it, which no test needs; the one
without is served by some indexes only, under a version of its own. So torch and what it wants of CUDA go into
`embeddings-torch.lock`, and `embeddings-torch-cpu.lock`, kept by hand, pins the build without: bench/model_env.py takes
that where it can be had.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

TORCH: Final = "embeddings-torch.lock"
TORCH_CPU: Final = "embeddings-torch-cpu.lock"
_OF_TORCH: Final = re.compile(r"(torch==|nvidia-|cuda-|triton==)")


def parted(locked: str) -> tuple[str, str]:
    """A lock without torch, and torch with what it wants of CUDA."""
    blocks = re.split(r"\n(?=[a-z0-9])", locked.strip())
    rest, torch = ([b for b in blocks if bool(_OF_TORCH.match(b)) is wanted] for wanted in (False, True))
    return "\n".join(rest) + "\n", "\n".join(torch) + "\n"


def version_of(locked: str) -> str:
    """The version of torch that a lock pins, without what tells its build."""
    found = re.search(r"^torch==([0-9.]+)", locked, re.MULTILINE)
    return found[1] if found else ""


if __name__ == "__main__":
    path = Path(sys.argv[1])
    rest, torch = parted(path.read_text())
    path.write_text(rest)
    path.with_name(TORCH).write_text(torch)
    by_hand = path.with_name(TORCH_CPU)
    if version_of(by_hand.read_text()) != version_of(torch):
        sys.exit(f"{by_hand} pins another torch than {TORCH}: name {version_of(torch)}+cpu and its hash there")
