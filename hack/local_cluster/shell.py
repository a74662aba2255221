"""Running other programs, with errors that show what they said, and one progress line for each long step."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from .errors import ClusterError

TAIL_LINES = 15


def tail(text: str, lines: int = TAIL_LINES) -> str:
    """The last `lines` lines of `text`, indented as they are shown below an error."""
    return "\n".join(f"    {line}" for line in text.rstrip().splitlines()[-lines:])


def tail_of_file(path: Path, lines: int = TAIL_LINES) -> str:
    """The end of a log, or a word on why there is none. Reads at most the last 64 KiB."""
    try:
        with path.open("rb") as log:
            log.seek(0, 2)
            log.seek(max(0, log.tell() - 65536))
            text = log.read().decode(errors="replace")
            # Go prints the stack of every thread after its last words.
            return tail(text.partition("\ngoroutine ")[0], lines) or "    (the log is empty)"
    except OSError as error:
        return f"    (no log: {error})"


def run(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
    fix: str = "",
) -> str:
    """Run a program to its end and return what it printed.

    With `log`, both streams go into that file instead (appended) and the result is empty.
    Raises ClusterError when it is missing or fails, with the end of its output and `fix`.
    """
    command = [str(part) for part in argv]
    try:
        if log is not None:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as sink:
                done = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink, env=env, cwd=cwd, check=False
                )
            if done.returncode:
                raise ClusterError(
                    f"{command[0]} failed (exit {done.returncode}); its log is {log}:\n{tail_of_file(log)}", fix
                )
            return ""
        result = subprocess.run(
            command,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError:
        raise ClusterError(f"{command[0]} is not on this machine", fix or "install it and try again") from None
    if result.returncode:
        said = tail(result.stderr or result.stdout)
        raise ClusterError(f"`{' '.join(command[:6])}` failed (exit {result.returncode}):\n{said}", fix)
    return result.stdout


def succeeds(argv: Sequence[str | Path], *, timeout: float = 20.0) -> bool:
    """Whether a program is there and exits with 0 within `timeout` seconds; what it prints is dropped."""
    try:
        done = subprocess.run(
            [str(part) for part in argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def say(text: str) -> None:
    """One line for the person who waits. On stderr, so that what `env` prints on stdout can be evaluated."""
    print(f"cluster: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def step(text: str) -> Iterator[None]:
    """A long step: says what begins, and how many seconds it took."""
    say(f"{text} ...")
    began = time.monotonic()
    yield
    say(f"{text}: done in {time.monotonic() - began:.0f} s")
