"""Processes that a figure starts: each is waited for, and says what it measured as the last line of its output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).parents[1]
TIMEOUT_SECONDS = 300.0


class ChildFailed(Exception):
    """A process of the bench ended badly; the message holds the end of what it said."""


class Child:
    """A process started by `started`; `result` waits for its end."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.name = name
        self.process = process
        self._log = log

    def result(self, *, within: float = TIMEOUT_SECONDS) -> dict[str, Any]:
        """What it measured. Raises ChildFailed."""
        assert self.process.stdout is not None
        try:
            output, _ = self.process.communicate(timeout=within)
        except subprocess.TimeoutExpired:
            raise ChildFailed(f"{self.name} was not done after {within:g} s\n{self._tail()}") from None
        lines = output.decode(errors="replace").strip().splitlines()
        if self.process.returncode != 0 or not lines:
            raise ChildFailed(f"{self.name} ended with code {self.process.returncode}\n{self._tail()}")
        measured: dict[str, Any] = json.loads(lines[-1])
        return measured

    def _tail(self) -> str:
        self._log.seek(0)
        return self._log.read()[-3000:].decode(errors="replace")


@contextmanager
def started(
    name: str,
    command: Sequence[str],
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path = ROOT,
    stdin: bool = False,
) -> Iterator[Child]:
    """Run `command` for the length of the block; what still runs at its end is killed."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **(environ or {})},
            cwd=cwd,
        )
        try:
            yield Child(name, process, log)
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs one of the bench's own modules."""
    return [sys.executable, "-m", f"bench.{name}", *arguments]


def peak_rss() -> int:
    """The most memory that this process ever had resident, in bytes (of its own: not what it was forked from)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
