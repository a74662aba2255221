"""The command `hack/cluster`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from . import archives, footprint, providers, tools
from .components import ORDER
from .errors import ClusterError
from .settings import PROVIDER_VARIABLE, Paths, paths
from .state import locked

EPILOG = f"""
Without --provider (or {PROVIDER_VARIABLE}): kind where it is installed and a container engine answers, else, as root
on Debian 12, a real Kubernetes on this machine alone. An existing cluster is used only when asked for by name.
"""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="hack/cluster", description="A Kubernetes to try Rowmill on.", epilog=EPILOG)
    whole.add_argument("--provider", choices=providers.NAMES, help="where the cluster comes from")
    commands = whole.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser("up", help="bring the cluster up, or see that it is; the first time builds for ten minutes")
    commands.add_parser("down", help="take it away, leaving nothing behind but the cache")
    commands.add_parser("status", help="tell each component's health; exit code 1 when one is not healthy")
    commands.add_parser("env", help="print KUBECONFIG and PATH for `eval`")
    traces = commands.add_parser("footprint", help="list, as JSON, all that `down` has to leave as it was before `up`")
    traces.add_argument("--compare", type=Path, metavar="FILE", help="an earlier list: exit code 1 if anything differs")
    load = commands.add_parser("load", help="give the cluster's nodes the images of docker archives")
    load.add_argument("archives", nargs="+", type=Path, metavar="ARCHIVE")
    for name in ("restart", "stop", "start"):
        each = commands.add_parser(name, help=f"{name} one component")
        each.add_argument("component", help=", ".join(ORDER))
        if name != "start":
            each.add_argument("--kill", action="store_true", help="by force, without a goodbye")
    return whole


def main() -> int:
    """Run the command; the exit code is 1 for whatever a person has to read."""
    options = parser().parse_args()
    os.umask(0o022)  # dnsmasq and pods read some files as users of their own
    try:
        return _run(options, paths(os.environ))
    except ClusterError as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cluster: interrupted; `hack/cluster down` cleans up", file=sys.stderr)
        return 130


def _run(options: argparse.Namespace, where: Paths) -> int:
    if options.command == "footprint":
        return _footprint(footprint.take(where), options.compare)
    chosen = providers.provider(options.provider, paths=where, environment=os.environ)
    if options.command == "env":
        print("\n".join(providers.environment_lines(chosen, where, os.environ.get("PATH", ""))))
        return 0
    if options.command == "status":
        return _status(chosen)
    with locked(f"cluster:{where.state}"):
        if options.command == "up":
            tools.folder(where)
            chosen.up()
        elif options.command == "down":
            chosen.down()
        elif options.command == "load":
            for archive in options.archives:
                load(chosen, archive)
        else:
            chosen.change(
                options.component,
                stop=options.command != "start",
                start=options.command != "stop",
                kill=getattr(options, "kill", False),
            )
    return 0


def _footprint(now: dict[str, list[str]], earlier: Path | None) -> int:
    if earlier is None:
        print(json.dumps(now, indent=1))
        return 0
    try:
        lines = footprint.differences(json.loads(earlier.read_text()), now)
    except (ValueError, AttributeError, TypeError) as error:
        raise ClusterError(f"{earlier} is no footprint: {error}", "write one with `hack/cluster footprint`") from None
    print("\n".join(lines) or "nothing differs")
    return 1 if lines else 0


def load(chosen: providers.Provider, archive: Path) -> None:
    """Load one archive, after a look at whether it is one."""
    try:
        names = archives.references(archive)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"{archive} is no docker archive: {error}", "write one with `docker save` or `hack/images`"
        ) from None
    chosen.load(archive)
    print(f"cluster: loaded {', '.join(names) or archive}", file=sys.stderr)


def _status(chosen: providers.Provider) -> int:
    found = chosen.status()
    for name, problem in found.items():
        print(f"{name:20} {problem or 'healthy'}")
    return 1 if any(found.values()) else 0
