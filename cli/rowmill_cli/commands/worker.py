"""`rowmill worker`: one worker process; `rowmill run` and a cluster's pods start it."""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path

import click

from rowmill.errors import InvalidInput


@click.command(short_help="One worker process; started by run.")
@click.option(
    "--job",
    "manifest",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The BatchJob manifest whose rows it takes.",
)
@click.option(
    "--base",
    default=None,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where relative files of secrets are found. [default: the folder of the manifest]",
)
@click.option("--installation", default="local", show_default=True, help="Which installation the run belongs to.")
@click.option("--name", default=None, help="What this worker is called, once: never used again by another process.")
@click.option("--http-host", default="127.0.0.1", show_default=True, help="Where health and metrics are served.")
@click.option("--http-port", default=0, show_default="any free one", type=click.IntRange(0, 65535), help="Their port.")
@click.option(
    "--log-level",
    default="info",
    show_default=True,
    type=click.Choice(["debug", "info", "warning", "error"]),
)
def worker(
    manifest: Path,
    base: Path | None,
    installation: str,
    name: str | None,
    http_host: str,
    http_port: int,
    log_level: str,
) -> int:
    """Take rows of one run and execute them, until SIGTERM: then finish what runs, hand back the rest, exit.

    `rowmill run` starts workers by itself; start more by hand (on other machines, say) for a run whose stores are your
    own. The stores come from the environment, for they hold passwords: ROWMILL_REDIS_URL and ROWMILL_POSTGRES_DSN.
    """
    from rowmill_worker.main import WorkerSettings
    from rowmill_worker.main import main as work

    return work(
        WorkerSettings(
            manifest=manifest,
            installation=installation,
            name=name or f"{socket.gethostname()[:40]}-{secrets.token_hex(4)}",
            redis_url=_required("ROWMILL_REDIS_URL", "redis://:PASSWORD@HOST:6379/0"),
            postgres_dsn=_required("ROWMILL_POSTGRES_DSN", "postgresql://USER:PASSWORD@HOST:5432/DATABASE"),
            http_host=http_host,
            http_port=http_port,
            log_level=log_level,
            secrets_base=base,
        )
    )


def _required(variable: str, example: str) -> str:
    value = os.environ.get(variable)
    if not value:
        raise InvalidInput.one("environment", variable, f"is not set; a worker needs it, such as {example}")
    return value
