"""Servers of the tests on this machine's loopback, made reachable from pods: the same port on the node's address.

Whoever is cut off here sees what a load balancer shows: a connection that ends.
"""

from __future__ import annotations

import socket
import subprocess
import time
from types import TracebackType

START_SECONDS = 60.0


class Forwards:
    """Runs a `socat` for each port until the block is left."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Forwards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)

    def to(self, port: int) -> int:
        """Have `port` of the loopback on the node's address too; returns it."""
        listen = f"TCP-LISTEN:{port},bind={self.address},fork,reuseaddr,nodelay"
        self._processes.append(subprocess.Popen(["socat", listen, f"TCP:127.0.0.1:{port},nodelay"]))
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                socket.create_connection((self.address, port), timeout=1).close()
                return port
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def there(self, url: str) -> str:
        """`url` of a server on the loopback, as pods see it."""
        return url.replace("127.0.0.1", self.address)
