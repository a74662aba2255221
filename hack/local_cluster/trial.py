"""The command `hack/try`: the cluster, the images, the chart with stores of its own, and a sample job to its end.

Each step may be repeated: what is there is kept, and what a broken attempt left is used or replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import images, providers, tools
from .errors import ClusterError
from .main import load
from .settings import paths
from .shell import run, say, step
from .state import locked

ROOT = Path(__file__).resolve().parents[2]
RELEASE, NAMESPACE, SAMPLE = "rowmill", "rowmill-system", "clean-airport-names"
WAIT_SECONDS = 300.0
POLL_SECONDS = 1.0


def main() -> int:
    """Run the command; the exit code is 1 for whatever a person has to read."""
    options = _parser().parse_args()
    os.umask(0o022)
    where = paths(os.environ)
    try:
        chosen = providers.provider(options.provider, paths=where, environment=os.environ)
        with locked(f"cluster:{where.state}"):
            folder = tools.folder(where)
            chosen.up()
        built = images.build(ROOT, where, tag="dev", environment=os.environ, targets=images.TARGETS)
        with locked(f"cluster:{where.state}"):
            for archive in built:
                load(chosen, archive)
        env = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"}
        if chosen.kubeconfig():
            env["KUBECONFIG"] = chosen.kubeconfig()
        with step("installing the chart"):
            _install(env)
        _sample(env)
    except (ClusterError, OSError) as error:
        print(f"try: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hack/try",
        description="Bring a cluster up, build and load Rowmill's images, install the chart with a Redis and a "
        "Postgres of its own, run a sample job and show its results. `hack/cluster down` takes it all away.",
    )
    parser.add_argument("--provider", choices=providers.NAMES, help="where the cluster comes from, as for hack/cluster")
    return parser


def _install(env: Mapping[str, str]) -> None:
    command = ["helm", "upgrade", "--install", RELEASE, str(ROOT / "helm/rowmill"), "--namespace", NAMESPACE]
    run(
        [*command, "--create-namespace", "--values", ROOT / "hack/demo/values.yaml", "--wait=watcher", "--timeout=5m"],
        env=env,
        fix="look at `kubectl --namespace rowmill-system get pods,events`",
    )


def _sample(env: Mapping[str, str]) -> None:
    """Apply the chart's sample job and follow it."""
    kept = _kubectl(env, NAMESPACE, "get", "configmap", f"{RELEASE}-sample", "--output", "json")
    run(
        ["kubectl", "--namespace", "default", "apply", "--filename", "-"],
        stdin=json.loads(kept)["data"]["job.yaml"],
        env=env,
    )
    with step(f"running the sample job {SAMPLE}"):
        end = time.monotonic() + WAIT_SECONDS
        while True:
            job = json.loads(_kubectl(env, "default", "get", "batchjob", SAMPLE, "--output", "json"))
            true = {c["type"] for c in job.get("status", {}).get("conditions", []) if c["status"] == "True"}
            if "Complete" in true:
                break
            if "Failed" in true or time.monotonic() > end:
                told = _kubectl(env, "default", "describe", "batchjob", SAMPLE)
                raise ClusterError(f"the sample job did not complete:\n{told}", "look at the operator's log")
            time.sleep(POLL_SECONDS)
    sys.stdout.write(_kubectl(env, "default", "get", "batchjobs"))
    say('Rowmill runs. To use it: eval "$(hack/cluster env)"; to take it all away: hack/cluster down')


def _kubectl(env: Mapping[str, str], namespace: str, *arguments: str) -> str:
    command: Sequence[str] = ["kubectl", "--namespace", namespace, *arguments]
    return run(command, env=env)
