"""The bench runs: every figure but the one that installs its peers, at sizes that measure nothing."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIGURES = ("row_overhead", "executor_overhead", "feed", "outcomes", "memory", "adaptive", "limits")


@pytest.mark.timeout(240)
@pytest.mark.slow
async def test_quick_figures(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    output = tmp_path / "figures.json"
    environ = {**os.environ, "ROWMILL_REDIS_URL": redis_url, "ROWMILL_POSTGRES_DSN": postgres_dsn}
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "--quick", "--output", str(output), *FIGURES),
        cwd=ROOT,
        env=environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await asyncio.wait_for(bench.communicate(), 220)
    assert bench.returncode == 0, said.decode()
    written = json.loads(output.read_text())
    assert written["settings"]["quick"] is True
    assert written["settings"]["postgres"]["synchronous_commit"] == "on"
    figures = {figure["name"]: figure for figure in written["figures"]}
    measured = {"row_overhead", *(f"outcomes_{n}" for n in (32, 100, 300, 1000))}
    measured |= {f"executor_overhead_{kind}" for kind in ("openai", "dify_blocking", "dify_streaming", "comfyui")}
    measured |= {f"memory_{part}" for part in ("engine", "worker", "redis")} | {
        "adaptive",
        "limits",
        "limits_overshoot",
    }
    if shutil.which("redis-benchmark"):
        measured.add("feed")
    else:
        assert "apt-get install redis-tools" in figures["feed"]["reason"]
    assert set(figures) == measured | {"feed"}
    for name in measured - {"memory_redis", "limits_overshoot"}:  # nothing at all is the best that can be
        assert figures[name]["value"] > 0, figures[name]
    assert figures["memory_redis"]["parts"]["keys left"] == 0


async def test_an_unknown_figure_is_named() -> None:
    bench = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench", "sped"), cwd=ROOT, stderr=asyncio.subprocess.PIPE
    )
    _, said = await asyncio.wait_for(bench.communicate(), 60)
    assert bench.returncode == 2
    assert b"there is no figure sped; there are noop_rows, row_overhead, executor_overhead, feed, outcomes" in said
