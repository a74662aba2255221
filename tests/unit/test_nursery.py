"""Processes that are born of the nursery: as real as any, and none outlives the tests."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil

from tests.support.endpoint import spawn
from tests.support.nursery import ROOT, Child, nursery
from tests.support.rig import eventually


def born(part: str, *arguments: str, output: Path, **environ: str) -> Child:
    with output.open("wb") as file:
        return nursery().bear(
            part, arguments, environ={**os.environ, **environ}, output=file.fileno(), errors=file.fileno()
        )


async def test_a_child_has_its_own_arguments_output_environment_and_exit_code(tmp_path: Path) -> None:
    child = born("worker", "--no-such-option", output=tmp_path / "usage")
    assert await child.wait() == child.returncode == 2
    assert "the following arguments are required: --job, --name" in (tmp_path / "usage").read_text()

    (tmp_path / "job.yaml").write_text("kind: Nothing")
    child = born("leaky", str(tmp_path / "job.yaml"), output=tmp_path / "one", ROWMILL_REDIS_URL="", POSTGRES="")
    assert await child.wait() == 1
    assert "KeyError: 'ROWMILL_POSTGRES_DSN'" in (tmp_path / "one").read_text(), "the fixtures' servers are not told"


async def test_a_child_is_seen_and_ends_by_signals_as_any_process(tmp_path: Path) -> None:
    async with spawn() as first, spawn() as second:
        process = psutil.Process(first.process.pid)
        assert process.name() == "rowmill-endpoint"[:15]
        assert {file.path for file in process.open_files()} == set(), "what a test opens stays with the test"
        first.process.send_signal(signal.SIGSTOP)
        await eventually(lambda: process.status() == psutil.STATUS_STOPPED)
        first.process.kill()
        assert await first.process.wait() == -signal.SIGKILL
        assert not psutil.pid_exists(process.pid), "it was reaped"
        first.process.kill()  # nobody: the number may be another's by now
        assert second.process.returncode is None
    assert second.process.returncode == 0, "told to end, it ended by itself"


BEARER = """
import asyncio, os, sys
from tests.support.nursery import nursery

async def main():
    child = nursery().bear("endpoint", ["--plan", "{}"], environ=os.environ, output=1, errors=2)
    print("bore", child.pid, nursery()._process.pid, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_children_end_with_the_tests_whatever_ends_those() -> None:
    bearer = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", BEARER),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert bearer.stdin is not None
    assert bearer.stdout is not None
    line = b""
    while not line.startswith(b"bore"):  # the child says its port on the same pipe
        line = await asyncio.wait_for(bearer.stdout.readline(), 60)
        assert line
    pids = [int(word) for word in line.split()[1:]]
    assert all(map(psutil.pid_exists, pids))
    bearer.stdin.close()
    assert await asyncio.wait_for(bearer.wait(), 60) == -signal.SIGKILL
    await eventually(lambda: not any(map(_lives, pids)))


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE  # its parent is gone: whoever inherits it reaps it
    except psutil.NoSuchProcess:
        return False
