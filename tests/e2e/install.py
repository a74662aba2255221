"""The chart on the cluster: installed, upgraded, looked at, removed."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.e2e.kubectl import Kubectl, until

ROOT = Path(__file__).parents[2]
RELEASE = "rowmill"
SYSTEM = "rowmill-system"
OPERATOR = "app.kubernetes.io/name=rowmill,app.kubernetes.io/component=operator"
ROLL_OUT_SECONDS = 180.0


class Install:
    """One release in its own namespace, with stores that live outside the cluster."""

    def __init__(self, kubectl: Kubectl, *, redis_url: str, dsn: str) -> None:
        self.kubectl = kubectl.within(SYSTEM)
        self._redis_url, self._dsn = redis_url, dsn

    def up(self, chart: Path = ROOT / "helm/rowmill", **values: Any) -> None:
        """Install or upgrade, and wait until the operator runs."""
        self.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM}})
        for name, key, value in (("redis", "url", self._redis_url), ("postgres", "dsn", self._dsn)):
            self.kubectl.apply(
                {
                    "apiVersion": "v1",
                    "kind": "Secret",
                    "metadata": {"name": name, "namespace": SYSTEM},
                    "stringData": {key: value},
                }
            )
        self.helm(
            "upgrade",
            "--install",
            RELEASE,
            str(chart),
            "-f",
            "-",
            "--wait=watcher",
            "--timeout",
            "3m",
            values=self.values(values),
        )

    def values(self, more: dict[str, Any]) -> dict[str, Any]:
        return {
            "image": {"repository": "localhost/rowmill-operator", "tag": "dev"},
            "worker": {"image": {"repository": "localhost/rowmill-worker", "tag": "dev"}},
            "redis": {"existingSecret": {"name": "redis", "key": "url"}},
            "postgres": {"existingSecret": {"name": "postgres", "key": "dsn"}},
            **more,
        }

    def helm(self, *arguments: str, values: dict[str, Any] | None = None) -> str:
        given = json.dumps(values) if values is not None else None
        return self.kubectl.run("helm", "--namespace", SYSTEM, *arguments, input=given, timeout=ROLL_OUT_SECONDS + 60)

    def down(self) -> None:
        self.helm("uninstall", RELEASE, "--ignore-not-found", "--wait")

    def operator(self) -> dict[str, Any]:
        """The pod of the operator that runs."""

        def running() -> dict[str, Any] | None:
            pods = [
                p for p in self.kubectl.list("pods", selector=OPERATOR) if not p["metadata"].get("deletionTimestamp")
            ]
            return next((p for p in pods if p["status"].get("phase") == "Running"), None)

        found: dict[str, Any] = until(running, within=ROLL_OUT_SECONDS, what="the operator's pod")
        return found

    def kill_operator(self) -> str:
        """Delete its pod with no grace; the name of the pod that was."""
        name = str(self.operator()["metadata"]["name"])
        self.kubectl.delete("pod", name, "--grace-period=0", "--force")
        return name

    def scale_operator(self, replicas: int) -> None:
        self.kubectl("scale", "deployment", RELEASE, f"--replicas={replicas}")

    def metrics(self) -> str:
        """What the operator tells Prometheus, through the API server."""
        name = self.operator()["metadata"]["name"]
        return self.kubectl.api(f"/api/v1/namespaces/{SYSTEM}/pods/{name}:8080/proxy/metrics")

    def logs(self, tail: int = 60, *, since: datetime | None = None) -> str:
        """The last lines of the operator's log, or all that came `since` then and were not more than `tail`."""
        begin = [f"--since-time={since.isoformat(timespec='seconds')}"] if since is not None else []
        try:
            return self.kubectl("logs", "-l", OPERATOR, f"--tail={tail}", *begin)
        except AssertionError as error:
            return str(error)
