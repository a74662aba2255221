"""The command `hack/images`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import images, providers
from .errors import ClusterError
from .main import load
from .settings import paths
from .state import locked


def main() -> int:
    """Run the command; the exit code is 1 for whatever a person has to read."""
    whole = argparse.ArgumentParser(prog="hack/images", description="Rowmill's images, with or without Docker.")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="build operator, worker and demo stores, and load them into the cluster")
    build.add_argument("--tag", default="dev", help="default: dev")
    build.add_argument("--target", action="append", choices=images.TARGETS, help="only this one (may be repeated)")
    build.add_argument(
        "--context", type=Path, default=Path(__file__).resolve().parents[2], help="default: this checkout"
    )
    build.add_argument("--no-load", action="store_true", help="only write the archives")
    build.add_argument("--provider", choices=providers.NAMES, help="whose nodes get them, as for hack/cluster")
    commands.add_parser("base", help="make the base image where there is no Docker; prints its archive's path")
    options = whole.parse_args()
    os.umask(0o022)
    try:
        where = paths(os.environ)
        if options.command == "base":
            print(images.base(where))
            return 0
        built = images.build(
            options.context,
            where,
            tag=options.tag,
            environment=os.environ,
            targets=options.target or images.TARGETS,
        )
        images.report(built)
        if not options.no_load:
            chosen = providers.provider(options.provider, paths=where, environment=os.environ)
            with locked(f"cluster:{where.state}"):
                for archive in built:
                    load(chosen, archive)
    except ClusterError as error:
        print(f"images: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"images: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
