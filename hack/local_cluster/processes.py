"""Starting and ending processes that outlive the command, known by pid and start time."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from .state import Component

PROC = Path("/proc")


def start_time(pid: int, *, proc: Path = PROC) -> int | None:
    """Clock ticks from boot to the start of `pid`; None when it has ended (or is a zombie that nobody reaped)."""
    try:
        after_name = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else int(after_name[19])
    except (OSError, IndexError, ValueError):
        return None


def is_alive(component: Component, *, proc: Path = PROC) -> bool:
    """Whether the very process that was started still runs: a recycled pid has another start time."""
    return component.pid > 0 and start_time(component.pid, proc=proc) == component.started


def start(component: Component, *, log: Path, env: Mapping[str, str], cwd: Path) -> None:
    """Start `component` in a session of its own, its output appended to `log`; fills in pid and start time."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as sink:
        process = subprocess.Popen(
            component.argv,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
    component.pid = process.pid
    component.started = start_time(process.pid) or 0
    # It outlives this command: nobody here waits for it.
    process.returncode = 0


def marked(mark: str, *, proc: Path = PROC) -> list[int]:
    """Processes whose environment holds `mark` (as NAME=value), this one and its ancestors left out."""
    spared = {os.getpid(), os.getppid()}
    found = []
    for folder in proc.iterdir():
        if folder.name.isdigit() and int(folder.name) not in spared:
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if mark.encode() in environment:
                found.append(int(folder.name))
    return found


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to each; those that have ended already are left out."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap() -> None:
    """Collect children that have ended, so that they are not seen as zombies for ever."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def stop(components: Iterable[Component], *, patience_s: float = 10.0, kill: bool = False) -> None:
    """End them together: politely, then after `patience_s` (or at once with `kill`) by force. Waits for their end."""
    alive = [each for each in components if is_alive(each)]
    signal_all((each.pid for each in alive), signal.SIGKILL if kill else signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while alive:
        reap()
        alive = [each for each in alive if is_alive(each)]
        if alive and time.monotonic() > deadline:
            signal_all((each.pid for each in alive), signal.SIGKILL)
            deadline = time.monotonic() + patience_s
        time.sleep(0.02)
