"""A kubectl that plays back answers recorded from the real one (1.35, against Kubernetes 1.20), and notes its calls.

Each answer has the words that a call must hold, its output, and whether it stays (`again`) or is used up. A call that
no answer fits ends with 99, so that a test cannot pass by a call that it did not foresee.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

SCRIPT = """#!{python} -IS
import json, os, signal, sys, time
folder = {folder!r}
arguments = sys.argv[1:]
with open(os.path.join(folder, "answers.json")) as file:
    answers = json.load(file)
given = sys.stdin.read() if "-f" in arguments else ""
with open(os.path.join(folder, "calls.jsonl"), "a") as file:
    file.write(json.dumps([arguments, given]) + "\\n")
line = " ".join(arguments)
for at, answer in enumerate(answers):
    if all(word in line for word in answer["when"]):
        break
else:
    sys.stderr.write("no answer for: " + line)
    sys.exit(99)
if not answer["again"]:
    del answers[at]
    with open(os.path.join(folder, "answers.json"), "w") as file:
        json.dump(answers, file)
sys.stderr.write(answer["err"])
sys.stderr.flush()
sys.stdout.write(answer["out"])
sys.stdout.flush()
if answer["hangs"]:
    open(os.path.join(folder, "hanging"), "w").close()
    signal.pause()
sys.exit(answer["code"])
"""


class KubectlDouble:
    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self._folder = folder
        self._answers: list[dict[str, Any]] = []
        self.binary = folder / "kubectl"
        self.binary.write_text(SCRIPT.format(python=sys.executable, folder=str(folder)))
        self.binary.chmod(self.binary.stat().st_mode | stat.S_IXUSR)
        self.hanging = folder / "hanging"
        """Appears when an answer that hangs was given."""
        self._write()

    def answers(
        self, *when: str, out: Any = "", err: str = "", code: int = 0, again: bool = True, hangs: bool = False
    ) -> None:
        """What calls with all of these words get. Answers are tried in order."""
        text = out if isinstance(out, str) else json.dumps(out, indent=4) + "\n"
        self._answers.append({"when": when, "out": text, "err": err, "code": code, "again": again, "hangs": hangs})
        self._write()

    def fails(self, *when: str, err: str, code: int = 1, again: bool = True) -> None:
        self.answers(*when, err=err, code=code, again=again)

    @property
    def calls(self) -> list[list[str]]:
        """The arguments of each call."""
        return [arguments for arguments, _ in self._noted()]

    def called(self, *words: str) -> list[list[str]]:
        return [call for call in self.calls if all(word in " ".join(call) for word in words)]

    def given(self, *words: str) -> Any:
        """What the first call with these words was given on standard input, as JSON."""
        return next(json.loads(text) for call, text in self._noted() if all(word in " ".join(call) for word in words))

    def _noted(self) -> list[tuple[list[str], str]]:
        file = self._folder / "calls.jsonl"
        return [(a, b) for a, b in map(json.loads, file.read_text().splitlines())] if file.exists() else []

    def _write(self) -> None:
        # At once, for the double may read at any time.
        temporary = self._folder / "answers.new"
        temporary.write_text(json.dumps(self._answers))
        os.replace(temporary, self._folder / "answers.json")


def batch_job(
    *,
    phase: str = "Running",
    name: str = "triage",
    namespace: str = "support",
    generation: int = 2,
    observed: int | None = None,
    spec: dict[str, Any] | None = None,
    rows: dict[str, int] | None = None,
    reason: str | None = None,
    message: str = "",
    true: tuple[str, ...] | None = None,
    run: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    version: str = "100",
    **status: Any,
) -> dict[str, Any]:
    """A BatchJob as the API server gives it, its defaults written out."""
    usual = {
        "Running": (("Reconciling",), "Running", "rows are being worked on"),
        "Pending": (("Reconciling",), "Pending", "the run has not begun yet"),
        "Suspended": (("Suspended", "Ready"), "Suspended", "suspended: set spec.suspend to false to go on"),
        "Complete": (("Complete", "Ready"), "Completed", "every row has an outcome, none failed"),
        "Failed": (("Failed", "Stalled"), "FailurePolicyExceeded", "6 of 100 rows failed"),
        "Invalid": (("Stalled",), "InvalidSpec", "spec.executor.http.url: is no address"),
    }[phase]
    chosen = true if true is not None else usual[0]
    counted = {
        "total": 120_000,
        "queued": 0,
        "running": 0,
        "succeeded": 0,
        "failed": 0,
        "retried": 0,
        "deduplicated": 0,
    }
    conditions = [
        {
            "type": kind,
            "status": "True" if kind in chosen else "False",
            "reason": reason or usual[1],
            "lastTransitionTime": "2026-01-01T10:00:00Z",
            **({"message": message or usual[2]} if kind in chosen or kind == "Ready" else {}),
        }
        for kind in ("Complete", "Failed", "Suspended", "Ready", "Reconciling", "Stalled")
    ]
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-of-{name}",
            "generation": generation,
            "resourceVersion": version,
            **(metadata or {}),
        },
        "spec": {"runId": "1", "retryGeneration": 0, "suspend": False, "timeoutSeconds": 60, **(spec or {})},
        "status": {
            "observedGeneration": generation if observed is None else observed,
            "phase": phase,
            "conditions": conditions,
            "run": run or {"id": "1", "generation": 0, "epoch": 1},
            "rows": {"total": 120_000, **counted, **(rows or {})},
            "workers": {"desired": 0, "ready": 0, "image": "localhost/rowmill-worker:dev"},
            **status,
        },
    }
