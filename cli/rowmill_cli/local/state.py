"""The folder that `--state` names: everything that a run on this machine leaves between two commands.

    lock            held (flock) by the command that works here; the kernel lets go of it whatever kills the command
    state.json      the run that was worked on last, and the retry generation of each run
    job.yaml        its manifest as engine, workers and `rowmill retry` read it: options applied
    servers/        Redis (nothing to keep) and Postgres (the ledger: what makes the folder worth keeping)
    workers.json    the worker processes, so that those of a killed command can be ended
    logs/           what the engine and each worker said
    cache/          copies of sources that had to be fetched
    results.jsonl   the last export, unless the manifest or `--output` names another place

One folder may hold several runs, one after the other; that is how jobs of one machine share dedupe claims.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowmill.errors import InvalidInput, StateInUse
from rowmill.identity import RunIdentity
from rowmill_cli.local.files import load_json, save_json, save_text

LAYOUT = 1
"""The number of this layout. A folder of a newer one is refused, never guessed at."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The run that a state folder worked on last."""

    identity: RunIdentity
    manifest: Path
    """The manifest as a person knows it; relative paths in it count from its folder."""
    output: Path | None
    """Where `--output` asked the results to go; None where it was not given."""


class State:
    """An opened state folder; made by `State.hold`, valid inside of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logs = folder / "logs"
        self.servers = folder / "servers"
        self.cache = folder / "cache"
        self.job_file = folder / "job.yaml"
        self.workers_file = folder / "workers.json"

    @classmethod
    @contextlib.contextmanager
    def hold(cls, folder: Path, *, create: bool) -> Iterator[State]:
        """Take the folder for this command, until the block ends or the process dies.

        `create` makes it where it is absent; else an absent folder, or one that no run was started in, raises
        InvalidInput. Raises StateInUse, naming the holder, while another command has it.
        """
        folder = Path(os.path.realpath(folder))
        if not create and not (folder / "state.json").is_file():
            raise InvalidInput.one(
                str(folder),
                "",
                "no run was started with this --state folder; `rowmill run FILE --state DIR` starts one",
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not (folder / "state.json").exists():
                _refuse_foreign(folder)
                # Results and ledgers do not belong into a repository.
                save_text(folder / ".gitignore", "*\n")
            descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidInput.one(
                str(folder),
                "",
                f"cannot be used as --state folder ({error.strerror}); name another one with --state DIR",
            ) from error
        with os.fdopen(descriptor, "r+", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StateInUse(_in_use(folder, lock.read(4096))) from None
            lock.truncate(0)
            lock.write(json.dumps({"pid": os.getpid(), "command": " ".join(["rowmill", *sys.argv[1:]])[:500]}))
            lock.flush()
            state = cls(folder)
            state._check_layout()
            for part in (state.logs, state.servers, state.cache):
                part.mkdir(exist_ok=True)
            yield state
            lock.seek(0)
            lock.truncate(0)

    def remember(self, run: LastRun, *, job: str) -> None:
        """Make this the run that the folder worked on last. `job` is the manifest's text that workers read."""
        save_text(self.job_file, job, mode=0o600)
        self._save(
            {
                "run": dict(run.identity._asdict()),
                "manifest": str(run.manifest),
                "output": None if run.output is None else str(run.output),
            }
        )

    def last_run(self) -> LastRun:
        """The run that the folder worked on last. Raises InvalidInput where the record is damaged."""
        content = self._load()
        try:
            output = content.get("output")
            return LastRun(
                RunIdentity(**content["run"]),
                Path(content["manifest"]),
                None if output is None else Path(output),
            )
        except (KeyError, TypeError) as error:
            raise InvalidInput.one(
                str(self.folder / "state.json"), "", f"is damaged ({error!r}); run `rowmill run FILE --state DIR` again"
            ) from error

    def retry_generation(self, identity: RunIdentity) -> int:
        """How often `rowmill retry` was asked for this run."""
        generations = self._load().get("retryGenerations")
        value = generations.get(_key(identity), 0) if isinstance(generations, Mapping) else 0
        return value if isinstance(value, int) else 0

    def raise_retry_generation(self, identity: RunIdentity, generation: int) -> None:
        """Let this run be at `generation` from now on, if it was below."""
        generations = dict(self._load().get("retryGenerations") or {})
        generations[_key(identity)] = max(generation, self.retry_generation(identity))
        self._save({"retryGenerations": generations})

    def lower_retry_generation(self, identity: RunIdentity, generation: int) -> None:
        """Take back a generation that was asked for and refused."""
        self._save({"retryGenerations": {**(self._load().get("retryGenerations") or {}), _key(identity): generation}})

    def _check_layout(self) -> None:
        layout = self._load().get("layout", LAYOUT)
        if layout != LAYOUT:
            raise InvalidInput.one(
                str(self.folder),
                "",
                f"was written by another version of rowmill (layout {layout}, this one knows {LAYOUT}); "
                "use that version, or another --state folder",
            )

    def _load(self) -> dict[str, Any]:
        content = load_json(self.folder / "state.json")
        return content if isinstance(content, dict) else {}

    def _save(self, changes: Mapping[str, Any]) -> None:
        save_json(self.folder / "state.json", self._load() | {"layout": LAYOUT} | dict(changes))


def default_folder(manifest: Path, identity: RunIdentity) -> Path:
    """Where a run's state is kept when `--state` does not say: beside the manifest, one folder a job."""
    return manifest.absolute().parent / ".rowmill" / f"{identity.namespace}-{identity.name}"


def _key(identity: RunIdentity) -> str:
    return str(identity)


def _refuse_foreign(folder: Path) -> None:
    """A folder with other things in it is somebody's: only an empty one, or one that a start was cut in, is ours."""
    ours = {"lock", "logs", "servers", "cache", "job.yaml"}
    foreign = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    foreign = [name for name in foreign if name not in ours]
    if foreign:
        raise InvalidInput.one(
            str(folder),
            "",
            f"holds other things already ({foreign[0]}, …); name a new or an empty folder with --state DIR",
        )


def _in_use(folder: Path, content: str) -> str:
    try:
        holder = json.loads(content)
        who = f"process {int(holder['pid'])} ({holder['command']})"
    except (ValueError, KeyError, TypeError):
        who = "another rowmill command"
    return (
        f"{folder}: this --state folder is in use by {who}: "
        "wait until it has ended, stop it with Ctrl-C or SIGTERM, or name another folder with --state DIR"
    )
