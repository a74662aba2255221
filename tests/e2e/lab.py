"""One test's corner of the cluster: a namespace, an endpoint, jobs, and what they left in every store."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RunRecord
from rowmill.outcome import Outcome
from rowmill_cli.export import export
from tests.e2e.forward import Forwards
from tests.e2e.install import Install
from tests.e2e.kubectl import PATIENCE_SECONDS, Json, Kubectl, condition, is_true, reason, until
from tests.support.checker import check_history
from tests.support.endpoint import Call, RemoteEndpoint, read_log
from tests.support.history import History
from tests.support.s3 import s3_client
from tests.support.servers import PrivateServers

PODS = "app.kubernetes.io/name=rowmill-worker"
ROW_SECONDS = 300
"""`timeoutSeconds` of jobs: rows that a test holds do not end by themselves, however long the rest takes."""


@dataclass
class Lab:
    """Jobs are in `kubectl.namespace`; `folder` is on this machine."""

    kubectl: Kubectl
    stores: PrivateServers
    forwards: Forwards
    install: Install
    endpoint: RemoteEndpoint
    folder: Path
    applied: list[str] = field(default_factory=list)

    # -- jobs

    def table(self, rows: int, name: str = "table.csv") -> Path:
        """A CSV of so many rows; column `id` is the row's number."""
        path = self.folder / name
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows([n, f"some text of a row {n}"] for n in range(1, rows + 1))
        return path

    def job(self, name: str = "job", *, rows: int | None = None, **spec: Any) -> Json:
        """A manifest: through the endpoint, over `rows` inline rows or over what `spec` says."""
        source = {"rows": [{"id": n} for n in range(1, rows + 1)]} if rows is not None else {}
        return {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": name, "namespace": self.kubectl.namespace},
            "spec": {
                **({"source": source} if source else {}),
                "executor": {
                    "http": {
                        "url": self.forwards.there(self.endpoint.url),
                        "method": "POST",
                        "body": {"row": "{{ row.id }}"},
                    }
                },
                "timeoutSeconds": ROW_SECONDS,
                "retry": {"maxAttempts": 5, "initialSeconds": 1, "maxSeconds": 2},
                **spec,
            },
        }

    def apply(self, job: Mapping[str, Any]) -> None:
        self.kubectl.apply(job)
        self.applied.append(job["metadata"]["name"])

    def see(self, name: str = "job") -> Json:
        """The resource as it is now."""
        found = self.kubectl.get("batchjob", name)
        assert found is not None, f"there is no BatchJob {name}"
        return found

    def status(self, name: str = "job") -> Json:
        found: Json = self.see(name).get("status") or {}
        return found

    def until(self, reached: Callable[[Json], Any], name: str = "job", *, what: str = "") -> Json:
        """Wait for a resource that has a status and of which `reached` is true; returns it."""
        seen: list[Json] = [{}]

        def look() -> Json | None:
            seen[0] = self.kubectl.get("batchjob", name) or {}
            return seen[0] if seen[0].get("status") and reached(seen[0]) else None

        found: Json = until(look, what=what, saying=lambda: f"{self.said(seen[0])}\n{self.install.logs(15)}")
        return found

    def complete(self, name: str = "job") -> Json:
        """Wait for Complete; returns the resource."""
        return self.until(lambda job: is_true(job, "Complete"), name, what="Complete")

    def told(self, why: str, name: str = "job") -> Json:
        """Wait until the job tells this reason; returns the condition Ready."""
        return condition(self.until(lambda job: reason(job) == why, name, what=why), "Ready")

    @staticmethod
    def said(job: Json) -> str:
        status = job.get("status") or {}
        return json.dumps({name: status.get(name) for name in ("phase", "rows", "workers", "errors", "conditions")})

    # -- pods

    def pods(self, name: str = "job") -> list[Json]:
        """The workers of a job that are not on their way out."""
        found = self.kubectl.list("pods", selector=f"{PODS},rowmill.dev/job={name}")
        return [pod for pod in found if not pod["metadata"].get("deletionTimestamp")]

    def all_pods(self, name: str = "job") -> list[Json]:
        return self.kubectl.list("pods", selector=f"{PODS},rowmill.dev/job={name}")

    def ready_pods(self, name: str = "job") -> list[Json]:
        return [pod for pod in self.pods(name) if is_true(pod, "Ready")]

    # -- what is left behind

    def identity(self, name: str = "job", run_id: str = "1") -> RunIdentity:
        return RunIdentity("rowmill", self.kubectl.namespace, name, run_id)

    async def record(self, name: str = "job", run_id: str = "1") -> RunRecord:
        ledger = await Ledger.connect(self.stores.postgres_dsn)
        try:
            record = await ledger.find_run(self.identity(name, run_id))
            assert record is not None
            return record
        finally:
            await ledger.close()

    async def outcomes(self, name: str = "job", run_id: str = "1") -> list[Outcome]:
        record = await self.record(name, run_id)
        ledger = await Ledger.connect(self.stores.postgres_dsn)
        try:
            return [outcome async for page in ledger.results(record) for outcome in page]
        finally:
            await ledger.close()

    async def called(self, *, in_flight: int = 0, calls: int = 0, idle: bool = False) -> None:
        """Wait until the endpoint has so many calls in flight, has had so many, or has none in flight."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                await self.endpoint.wait(in_flight=in_flight, calls=calls, idle=idle, timeout=30)
                return
            except TimeoutError:
                if time.monotonic() > end:
                    raise

    def calls(self) -> list[Call]:
        assert self.endpoint.log is not None
        return read_log(self.endpoint.log)

    def keys(self, token: str) -> list[str]:
        """What Redis holds of a run."""
        with redis.Redis.from_url(self.stores.redis_url) as client:
            return sorted(key.decode() for key in client.scan_iter(match=f"rowmill:{{{token}*", count=1000))

    async def history(self, source: Path, name: str = "job", run_id: str = "1") -> History:
        """Source, endpoint, ledger, results and Redis, compared; call it when the run has ended."""
        record = await self.record(name, run_id)
        results = self.folder / f"{name}-{run_id}.jsonl"
        ledger = await Ledger.connect(self.stores.postgres_dsn)
        try:
            await export(ledger.results(record), results)
        finally:
            await ledger.close()
        return await check_history(
            source=source,
            endpoint_log=self.endpoint.log,
            postgres_dsn=self.stores.postgres_dsn,
            identity=self.identity(name, run_id),
            export=results,
            redis_url=self.stores.redis_url,
        )

    def tell(self, test: str) -> None:
        """Shown with a test that fails."""
        print(f"--- {test}: jobs of {self.kubectl.namespace}")
        for command in (("get", "batchjobs,deployments,pods"), ("get", "events", "--sort-by=.lastTimestamp")):
            try:
                print(self.kubectl(*command)[-4000:])
            except AssertionError as error:
                print(error)
        print(self.install.logs())


class ObjectStore:
    """A real S3 server over a socket, on the node's address."""

    def __init__(self, keys: dict[str, str]) -> None:
        self._keys = keys
        self.client = s3_client(keys)

    def bucket(self, name: str) -> str:
        self.client.create_bucket(Bucket=name)
        return name

    def secret(self, name: str, namespace: str) -> Json:
        """The credentials, as a job names them."""
        return {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": self._keys,
        }

    def listed(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """Every object below a prefix, with its content."""
        found = self.client.list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents") or []
        return {o["Key"]: self.client.get_object(Bucket=bucket, Key=o["Key"])["Body"].read() for o in found}
