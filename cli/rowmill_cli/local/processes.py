"""Processes of ours: started so that they end with us, recorded so that a later command can find and end them.

A process is told apart by pid, start time and a text in its command line, all three: pids are used again, in a
container even the same ones after each start, and ending a stranger is worse than leaving something behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import psutil

_LAUNCHER = Path(__file__).with_name("launch.py")
_START_TIME_TOLERANCE = 2.0
"""Seconds by which two readings of one start time may differ: the boot time that they rest on moves with the clock."""

Steps = Sequence[tuple[int, float]]
"""Signals to send in turn, each with the seconds to wait for the end before the next one."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What is kept of a process: `created` in seconds since the epoch, `marker` a text of its command line."""

    pid: int
    created: float
    marker: str

    @classmethod
    def of(cls, pid: int, marker: str) -> ProcessRecord:
        """Record the live process `pid`. A process that is gone already gets a start time that matches none."""
        try:
            return cls(pid, psutil.Process(pid).create_time(), marker)
        except psutil.Error:
            return cls(pid, 0.0, marker)

    @classmethod
    def from_json(cls, value: Any) -> ProcessRecord | None:
        """The record that `to_json` gave, or None for anything else (a file from a crash, or from a person)."""
        try:
            return cls(int(value["pid"]), float(value["created"]), str(value["marker"]))
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def find(self) -> psutil.Process | None:
        """The process itself, if it still runs and is the recorded one."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) > _START_TIME_TOLERANCE:
                return None
            if process.status() == psutil.STATUS_ZOMBIE or self.marker not in " ".join(process.cmdline()):
                return None
        except psutil.Error:
            return None
        return process


def spawn(
    command: Sequence[str],
    *,
    output: IO[bytes] | int,
    env: Mapping[str, str] | None = None,
    parent_death_signal: int = signal.SIGTERM,
    user: str | None = None,
    folder: Path | None = None,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start `command` in a session of its own (a Ctrl-C at the terminal is ours to pass on, or not).

    `output` takes standard output and error. The kernel ends it with `parent_death_signal` when the calling *thread*
    ends, so call this from the main thread. `user` and `folder`: see `launch.py`.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("spawn() outside the main thread: the process would end with the thread")
    return subprocess.Popen(
        [
            *(sys.executable, "-I", "-S", str(_LAUNCHER), str(os.getpid()), str(int(parent_death_signal))),
            *(user or "-", str(folder) if folder else "-"),
            *command,
        ],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=None if env is None else dict(env),
        cwd=cwd,
        start_new_session=True,
    )


def end_child(process: subprocess.Popen[bytes], steps: Steps) -> None:
    """End a child of ours by `steps`, and reap it. The last step must be one that nothing survives."""
    for number, seconds in steps:
        if process.poll() is not None:
            return
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            return
    process.wait()


def end_recorded(records: Sequence[ProcessRecord], steps: Steps) -> list[ProcessRecord]:
    """End what is left of `records`, all at once, by `steps`. Returns those that were still there."""
    left = {record: process for record in records if (process := record.find()) is not None}
    waiting = list(left.values())
    for number, seconds in steps:
        if not waiting:
            break
        for process in waiting:
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)
        deadline = time.monotonic() + seconds
        while waiting and time.monotonic() < deadline:
            waiting = [process for process in waiting if _runs(process)]
            if waiting:
                time.sleep(0.02)
    return list(left)


def _runs(process: psutil.Process) -> bool:
    # An orphan whose new parent never reaps (a container without an init) stays a zombie for ever: that is ended too.
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
