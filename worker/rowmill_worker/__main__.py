"""`python -m rowmill_worker`: one worker, as a pod starts it. Needs nothing but what the `worker` extra installs.

Stores come from the environment alone, for they hold passwords. What ends a worker for good is also written to the file
that Kubernetes shows as the container's last message.

Exit codes: 0 drained · 1 a part of ours failed · 2 an option, the job or a store's settings are not usable.
"""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from rowmill.errors import InvalidInput, Problem
from rowmill_worker.main import WorkerSettings, main

REDIS_URL: Final = "ROWMILL_REDIS_URL"
POSTGRES_DSN: Final = "ROWMILL_POSTGRES_DSN"
TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes looks for a container's last words."""

LAST_WORDS_BYTES: Final = 4_096
"""More of them Kubernetes cuts off."""

_NAME_MAX: Final = 64


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput.one("rowmill_worker", "", f"{message}; see --help")


def _port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 5 or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port; give a number from 0 to 65535")
    return int(text)


def settings_from(
    arguments: Sequence[str], environ: Mapping[str, str], *, told: Callable[[str], None]
) -> WorkerSettings:
    """How the worker is started. `told` is given what ends it. Raises InvalidInput with everything that is missing."""
    parser = _Parser(
        prog="rowmill_worker", description="Take rows of one run and execute them, until SIGTERM.", allow_abbrev=False
    )
    parser.add_argument("--job", required=True, type=Path, metavar="FILE", help="the BatchJob manifest")
    parser.add_argument("--installation", required=True, metavar="NAME", help="which installation the run belongs to")
    parser.add_argument(
        "--name", default=environ.get("POD_NAME"), help="what this worker is called [default: POD_NAME]"
    )
    parser.add_argument("--http-host", help="where health and metrics are served [default: all of the pod's addresses]")
    parser.add_argument("--http-port", type=_port, default=8081, metavar="PORT", help="their port [default: 8081]")
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    given = parser.parse_args(arguments)
    examples = {
        REDIS_URL: "redis://:PASSWORD@HOST:6379/0",
        POSTGRES_DSN: "postgresql://USER:PASSWORD@HOST:5432/DATABASE",
    }
    missing = [
        Problem(name, f"is not set; a worker needs it, such as {example}")
        for name, example in examples.items()
        if not environ.get(name)
    ]
    if missing:
        raise InvalidInput("environment", missing)
    return WorkerSettings(
        manifest=given.job,
        installation=given.installation,
        name=given.name or f"{socket.gethostname()[:_NAME_MAX]}-{secrets.token_hex(4)}",
        redis_url=environ[REDIS_URL],
        postgres_dsn=environ[POSTGRES_DSN],
        http_host=given.http_host or _all_addresses(environ.get("POD_IP", "")),
        http_port=given.http_port,
        log_level=given.log_level,
        told=told,
    )


def _all_addresses(pod: str) -> str:
    """Every address of the family that the pod has, loopback with it: `kubectl port-forward` comes by that."""
    return "::" if ":" in pod else "0.0.0.0"


def last_words(text: str, *, file: Path = TERMINATION_LOG) -> None:
    """Leave a message where Kubernetes shows it, if there is such a place: a file that exists and can be written."""
    try:
        with file.open("r+b") as stream:
            stream.truncate()
            stream.write(text.encode("utf-8", "replace")[:LAST_WORDS_BYTES])
    except OSError:
        return  # not in a pod


def run(arguments: Sequence[str], environ: Mapping[str, str], *, told: Callable[[str], None]) -> int:
    """Run one worker to its end; returns the exit code."""
    try:
        settings = settings_from(arguments, environ, told=told)
    except InvalidInput as error:
        for line in error.lines():
            print(line, file=sys.stderr)  # noqa: T201 - there is no log yet
        told(str(error))
        return 2
    return main(settings)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], os.environ, told=last_words))
