"""What both local servers share: where they listen, what they see of our environment, who they run as."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Mapping

from rowmill.errors import StoreUnavailable

LOOPBACK = "127.0.0.1"
_PASSED_ON = ("PATH", "HOME", "TMPDIR", "TZ", "LD_LIBRARY_PATH")


def pick_port(preferred: int = 0) -> int:
    """`preferred` if nobody listens there now, else a port that is free now (which another may take before us)."""
    if preferred:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, preferred))
            except OSError:
                pass
            else:
                return preferred
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def server_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """A small environment: neither secrets of ours nor `PG…` variables that would bend the server's settings."""
    source = os.environ if environ is None else environ
    return {name: source[name] for name in _PASSED_ON if name in source} | {"LC_ALL": "C"}


def unprivileged_user() -> str | None:
    """Who Postgres runs as: None (ourselves) but for root, whom Postgres refuses."""
    if os.geteuid() != 0:
        return None
    for name in ("nobody", "postgres"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    raise StoreUnavailable(
        "Postgres refuses to run as root, and there is neither a user nobody nor postgres to run it as: "
        "run rowmill as an ordinary user, or set ROWMILL_POSTGRES_DSN to a server of your own"
    )
