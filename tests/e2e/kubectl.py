"""The tests' hands on the cluster: the real kubectl and helm, JSON in and out, and waiting for what one sees.

Waiting polls the API server: what other processes do can only be looked at. Every wait has a bound and says at its end
what was seen last.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

POLL_SECONDS = 0.2
PATIENCE_SECONDS = 240.0
"""How long anything is waited for. A bound, no promise: a machine that is slow, or shared, fails no test. (A kubelet of
1.20 alone keeps a pod that was deleted while it started for a minute, until its containers are collected.)"""
CALL_SECONDS = 120.0

Json = dict[str, Any]


class CommandFailed(AssertionError):
    """A command ended with something else than 0; `stderr` is what it said."""

    def __init__(self, command: Sequence[str], code: int, stdout: str, stderr: str) -> None:
        self.code, self.stdout, self.stderr = code, stdout, stderr
        super().__init__(f"{' '.join(command)[:300]} ended with {code}:\n{stderr[-3000:]}\n{stdout[-1000:]}")


@dataclass(frozen=True)
class Kubectl:
    """`environ` names the cluster (KUBECONFIG) and where kubectl and helm are (PATH)."""

    environ: Mapping[str, str]
    namespace: str = "default"

    def within(self, namespace: str) -> Kubectl:
        return Kubectl(self.environ, namespace)

    @property
    def full_environ(self) -> dict[str, str]:
        """This process's variables, with those that lead to the cluster."""
        return {**os.environ, **self.environ}

    def run(self, *command: str, input: str | None = None, timeout: float = CALL_SECONDS) -> str:
        """Any command; returns its output. Raises CommandFailed."""
        done = subprocess.run(
            command, input=input, capture_output=True, text=True, timeout=timeout, env=self.full_environ
        )
        if done.returncode:
            raise CommandFailed(command, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def command(self, *arguments: str) -> list[str]:
        """A call of kubectl, for whoever runs it himself."""
        return ["kubectl", "--namespace", self.namespace, *arguments]

    def __call__(self, *arguments: str, input: str | None = None, timeout: float = CALL_SECONDS) -> str:
        return self.run(*self.command(*arguments), input=input, timeout=timeout)

    def apply(self, *documents: Mapping[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self("apply", "--validate=false", "-f", "-", input=json.dumps(listed))

    def get(self, kind: str, name: str) -> Json | None:
        """The object, or None where there is none."""
        found = self("get", kind, name, "--ignore-not-found", "-o", "json")
        parsed: Json | None = json.loads(found) if found.strip() else None
        return parsed

    def list(self, kind: str, *, selector: str = "") -> list[Json]:
        items: list[Json] = json.loads(self("get", kind, "-l", selector, "-o", "json"))["items"]
        return items

    def patch(self, kind: str, name: str, patch: Mapping[str, Any], *, subresource: str = "") -> None:
        extra = [f"--subresource={subresource}"] if subresource else []
        self("patch", kind, name, "--type=merge", "-p", json.dumps(patch), *extra)

    def delete(self, kind: str, name: str, *extra: str, timeout: float = PATIENCE_SECONDS) -> None:
        self("delete", kind, name, "--ignore-not-found", *extra, timeout=timeout)

    def api(self, path: str) -> str:
        return self("get", "--raw", path)


def until(
    reached: Callable[[], Any],
    *,
    within: float = PATIENCE_SECONDS,
    saying: Callable[[], object] = lambda: "",
    what: str = "",
) -> Any:
    """What `reached` returns once it is true; AssertionError with what `saying` tells after `within` seconds.

    A command that fails has not seen it yet: the API server may be away for a moment.
    """
    end = time.monotonic() + within
    while True:
        failed = ""
        try:
            if found := reached():
                return found
        except CommandFailed as error:
            failed = f"{error}\n"
        if time.monotonic() > end:
            raise AssertionError(f"waited {within:g} s in vain for {what or reached}: {failed}{saying()}")
        time.sleep(POLL_SECONDS)


def condition(job: Mapping[str, Any] | None, type_: str) -> Json:
    """One condition of a resource, or an empty one."""
    for one in ((job or {}).get("status") or {}).get("conditions") or []:
        if one["type"] == type_:
            found: Json = one
            return found
    return {}


def is_true(job: Mapping[str, Any] | None, type_: str) -> bool:
    return condition(job, type_).get("status") == "True"


def reason(job: Mapping[str, Any] | None) -> str:
    """The reason that a job tells, by its condition Ready."""
    return str(condition(job, "Ready").get("reason", ""))
