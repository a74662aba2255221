"""`kubectl rowmill` by people: the real kubectl, real pods, and a user who has only what docs/kubectl.md gives."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from rowmill_cli.kubectl.reader_pod import APP
from tests.e2e.kubectl import PATIENCE_SECONDS, is_true, until
from tests.e2e.lab import Lab

ROOT = Path(__file__).parents[2]
READERS = f"app.kubernetes.io/name={APP}"


def plugin(lab: Lab, *arguments: str, user: str = "bob") -> subprocess.CompletedProcess[str]:
    """`kubectl rowmill …`, as a user, through kubectl itself."""
    return subprocess.run(
        ["kubectl", "rowmill", *arguments, "-n", lab.kubectl.namespace, "--as", user],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environ(lab),
    )


def environ(lab: Lab) -> dict[str, str]:
    given = {**os.environ, **lab.kubectl.environ}
    return {**given, "PATH": f"{given['PATH']}{os.pathsep}{Path(sys.executable).parent}"}


def grant(lab: Lab, user: str = "bob") -> dict[str, Any]:
    """The Role of the documentation, in the test's namespace; returns it."""
    text = (ROOT / "docs/kubectl.md").read_text()
    found = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "kind: Role" in block)
    role: dict[str, Any] = yaml.safe_load(found)
    role["metadata"]["namespace"] = lab.kubectl.namespace
    binding = {
        "apiVersion": role["apiVersion"],
        "kind": "RoleBinding",
        "metadata": {"name": user, "namespace": lab.kubectl.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": role["metadata"]["name"]},
        "subjects": [{"kind": "User", "name": user, "apiGroup": "rbac.authorization.k8s.io"}],
    }
    lab.kubectl.apply(role, binding)
    return role


def no_readers(lab: Lab) -> bool:
    return bool(until(lambda: lab.kubectl.list("pods", selector=READERS) == [], what="no reader"))


def interrupted(lab: Lab) -> int:
    """Press Ctrl-C as soon as the reader's pod is there; the exit code."""
    until(lambda: not lab.kubectl.list("pods", selector=READERS), what="the last reader's end")
    command = ["kubectl", "rowmill", "results", "job", "-n", lab.kubectl.namespace]
    reader = subprocess.Popen(command, env=environ(lab), stdout=subprocess.DEVNULL, start_new_session=True)
    until(lambda: lab.kubectl.list("pods", selector=READERS), what="a reader")
    os.killpg(reader.pid, signal.SIGINT)
    return reader.wait(PATIENCE_SECONDS)


async def test_status_results_retry(lab: Lab) -> None:
    rows, bad = 60, [3, 14]
    await lab.endpoint.play({"rows": {str(n): [400] for n in bad}})
    grant(lab)
    lab.apply(lab.job(rows=rows, key=["id"]))

    watched = plugin(lab, "status", "job", "--watch")
    assert watched.returncode == 0, watched.stderr
    assert f"100%   {rows} of {rows} rows" in watched.stdout
    assert "kubectl rowmill retry job" in watched.stdout

    every = plugin(lab, "results", "job")
    assert every.returncode == 0, every.stderr
    assert [json.loads(line)["seq"] for line in every.stdout.splitlines()] == list(range(1, rows + 1))
    failed = plugin(lab, "results", "job", "--failed", "-o", "csv")
    assert [int(row["seq"]) for row in csv.DictReader(io.StringIO(failed.stdout))] == bad
    assert no_readers(lab)

    again = plugin(lab, "retry", "job")
    assert again.returncode == 0, again.stderr
    assert "2 failed rows" in again.stdout
    assert plugin(lab, "retry", "job").returncode == 2, "it is not over, or nothing failed"
    lab.until(lambda seen: is_true(seen, "Complete") and seen["status"]["run"]["generation"] == 1)
    done = json.loads(plugin(lab, "status", "job", "-o", "json").stdout)
    assert (done["reason"], done["status"]["rows"]["succeeded"]) == ("Completed", rows)
    assert lab.kubectl.get("batchjob", "job")["spec"]["retryGeneration"] == 1  # type: ignore[index]


async def test_suspend_resume_and_an_interrupted_reader(lab: Lab) -> None:
    rows = 2000
    await lab.endpoint.play({"default": {"latency": 0.05}})
    grant(lab)
    lab.apply(lab.job(rows=rows, concurrency={"perWorker": 4}, workers={"maxReplicas": 1}))
    lab.until(lambda seen: (seen.get("status") or {}).get("rows", {}).get("succeeded", 0) > 10, what="rows")
    held = plugin(lab, "suspend", "job", "--wait")
    assert held.returncode == 0, held.stderr
    assert lab.all_pods() == []

    so_far = plugin(lab, "results", "job")
    assert so_far.returncode == 0, so_far.stderr
    assert "not over (Suspended)" in so_far.stderr
    assert len(so_far.stdout.splitlines()) == len(await lab.outcomes())

    await lab.endpoint.play({"default": "ok"})
    assert interrupted(lab) in (0, 130)
    assert no_readers(lab)

    assert plugin(lab, "resume", "job", "--wait").returncode == 0
    assert plugin(lab, "status", "job", "--watch").returncode == 0
    assert len(await lab.outcomes()) == rows


async def test_who_has_no_rights_is_told_which(lab: Lab) -> None:
    told = plugin(lab, "status", "job", user="alice")
    assert told.returncode == 2
    assert f"you (alice) may not get batchjobs.rowmill.dev in the namespace {lab.kubectl.namespace}" in told.stderr
