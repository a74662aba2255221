"""The environment of the real model is pinned whole, whichever build of torch can be had."""

from __future__ import annotations

import re
from pathlib import Path

from bench.model_env import REQUIREMENTS, TORCH, TORCH_CPU
from bench.model_lock import parted, version_of

NAMES = REQUIREMENTS.with_suffix(".txt")


def pins(path: Path) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9.-]+)==([^\s;]+)", path.read_text("utf-8"), re.MULTILINE))


def test_every_pin_has_a_hash_and_no_lock_names_an_address() -> None:
    for path in (REQUIREMENTS, TORCH, TORCH_CPU):
        blocks = re.split(r"\n(?=[a-z0-9])", path.read_text("utf-8").strip())
        assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", block) for block in blocks)
        assert "://" not in path.read_text("utf-8")


def test_the_locks_pin_what_is_named_and_both_builds_of_torch_are_of_one_version() -> None:
    locked = pins(REQUIREMENTS) | pins(TORCH)
    for name, version in pins(NAMES).items():
        assert locked[name] == version
    assert version_of(TORCH_CPU.read_text()) == version_of(TORCH.read_text()) == pins(NAMES)["torch"]
    assert "torch" not in pins(REQUIREMENTS)


def test_what_torch_wants_of_cuda_goes_with_it() -> None:
    names = ("anyio==1", "nvidia-nccl==2 ; x", "torch==3.1", "triton==4", "tritonclient==5")
    anyio, nccl, torch, triton, client = (f"{name} \\\n    --hash=sha256:{name[0]}\n" for name in names)
    assert parted(anyio + nccl + torch + triton + client) == (anyio + client, nccl + torch + triton)
