"""What a local cluster is made of, in one file, and the lock that keeps two commands apart.

States: no file (no cluster), `starting` (an `up` works, or died: the next one cleans up), `running`, `stopping`.
The file is written before a thing is made wherever that is possible, and removed last, so whatever is interrupted
can be undone by the next command. The invariant: a cluster's traces are on the machine only while the file is.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from .errors import ClusterError
from .settings import Network
from .shell import say

Phase = Literal["starting", "running", "stopping"]
FILE = "state.json"


@dataclasses.dataclass(kw_only=True)
class Component:
    """One process: `argv` starts it again; `pid` with `started` (clock ticks since boot) names it for sure."""

    argv: list[str]
    pid: int = 0
    started: int = 0


@dataclasses.dataclass(kw_only=True)
class State:
    """Everything that `down` has to know.

    `sysctls` are the values from before, `borrowed` the paths outside the state folder that did not exist before,
    `tables` the packet filter's tables that did.
    """

    phase: Phase
    boot: str
    binaries: str
    network: Network
    components: dict[str, Component] = dataclasses.field(default_factory=dict)
    sysctls: dict[str, str] = dataclasses.field(default_factory=dict)
    borrowed: list[str] = dataclasses.field(default_factory=list)
    tables: list[str] = dataclasses.field(default_factory=list)
    snapshotter: str = "overlayfs"


def boot_id() -> str:
    """Names this boot: pids of another boot mean nothing."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def save(folder: Path, state: State) -> None:
    """Write atomically: a reader sees the old state or the new one."""
    folder.mkdir(mode=0o711, parents=True, exist_ok=True)
    fresh = folder / f"{FILE}.new"
    fresh.write_text(json.dumps(dataclasses.asdict(state), indent=1))
    fresh.chmod(0o600)
    os.replace(fresh, folder / FILE)


def load(folder: Path) -> State | None:
    """The state, or None where there is no cluster. Raises ClusterError when the file is not one of ours."""
    try:
        raw: dict[str, Any] = json.loads((folder / FILE).read_text())
        raw["network"] = Network(**raw["network"])
        raw["components"] = {name: Component(**each) for name, each in raw["components"].items()}
        return State(**raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ClusterError(
            f"{folder / FILE} cannot be read: {error}",
            "it was written by another version: run that version's `hack/cluster down`",
        ) from None


@contextlib.contextmanager
def locked(name: str, *, patience_s: float = 1800.0) -> Iterator[None]:
    """Hold the machine-wide lock `name`; say so once when somebody else has it, and wait up to `patience_s`.

    An abstract socket address is the lock: the kernel frees it with its process, and no file is left behind.
    """
    deadline = time.monotonic() + patience_s
    told = False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        while True:
            try:
                lock.bind("\0rowmill:" + name[-90:])
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise ClusterError(f"another command has held {name} for {patience_s:.0f} s") from None
                if not told:
                    say("another `hack/cluster` or `hack/images` is at work: waiting for it")
                    told = True
                time.sleep(0.2)
        yield
