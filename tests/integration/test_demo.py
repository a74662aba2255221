"""`make demo` from start to end on the table's first rows: it completes, shows results, and leaves nothing running."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

DEMO = Path(__file__).parents[2] / "examples" / "demo" / "run.py"


def running(state: Path) -> list[str]:
    """The command lines of processes that belong to this demo."""
    found = []
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
            environ = process.environ()
        except psutil.Error:
            continue
        if str(state) in line or environ.get("ROWMILL_DEMO_TEST") == str(state):
            found.append(line)
    return found


async def start(state: Path, *options: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, str(DEMO), "--state", str(state), *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "ROWMILL_DEMO_TEST": str(state)},
        start_new_session=True,
    )


async def test_the_demo_completes_and_leaves_nothing_running(tmp_path: Path) -> None:
    process = await start(tmp_path, "--limit", "60")
    output, _ = await asyncio.wait_for(process.communicate(), 90)
    assert process.returncode == 0, output.decode()
    results = tmp_path / "airport-names.jsonl"
    lines = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, 61))
    assert lines[0]["result"]["slug"] == "thigpen-bay-springs-ms"
    assert lines[0]["columns"] == {"iata": "00M", "name": "Thigpen"}
    assert f"all of them: {results}" in output.decode()
    assert running(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
async def test_an_interrupted_demo_leaves_nothing_running(tmp_path: Path, number: signal.Signals) -> None:
    process = await start(tmp_path)
    assert process.stdout is not None
    seen = b""
    while b"  Running  " not in seen:
        seen += await asyncio.wait_for(process.stdout.readline(), 60)
    if number is signal.SIGINT:  # a terminal's Ctrl-C goes to the whole group
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 130
    assert running(tmp_path) == []
