"""One run's engine and the writer of its results, side by side, with what they need of the cluster.

    engine ─ drives until the run is over, suspended, or told to stop
    writer ─ writes whole parts meanwhile; when the run is over, what is missing, and the failures

The end of a run is told only when its results are written. A store that denies them holds nothing else up: the rows go
on, the trouble is told, and what was computed stays in the ledger.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import Mapping
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rowmill.errors import InvalidInput, PlaceUnavailable, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from rowmill.results import vectors_of
from rowmill.sources import Content
from rowmill.spec import BatchJob
from rowmill.status import RunStatus
from rowmill.storage import AddressPolicy
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger
from rowmill.telemetry.metrics import EngineMetrics
from rowmill.window import Window
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.lifecycle import ended
from rowmill_operator.engine.run_source import SourcePlaces
from rowmill_operator.kube.api import NOT_FOUND, ApiError, KubeApi, path_of
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.fleet import KubeFleet
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.status import Output
from rowmill_operator.kube.troubles import JobTrouble
from rowmill_operator.results import OutputSummary, PartsWriter, Shape, open_folder, states

SHOW_SECONDS = 10.0
"""How long the end of a run whose results were dropped waits for a look at its folder."""
REOPEN_SECONDS = 60.0
"""How long a writer that is refused keeps the credentials that it was opened with."""


@dataclass(frozen=True, slots=True)
class RunTools:
    """What every run works with; one of each for all. `threads` feed, `fetchers` and `uploaders` wait for servers of
    others: a slow one holds up no feeding. `uploads` bounds the parts that are written at once."""

    api: KubeApi
    threads: ThreadPool
    fetchers: ThreadPool
    uploaders: ThreadPool
    uploads: asyncio.Semaphore
    cache: Path
    cache_bytes: int
    policy: AddressPolicy
    ambient: bool
    metrics: EngineMetrics
    log: Logger


async def drive(
    job: BatchJob,
    identity: RunIdentity,
    *,
    ledger: Ledger,
    window: Window,
    fleet: KubeFleet,
    report: JobReport,
    tools: RunTools,
    stop: asyncio.Event,
    resumed_at: float | None = None,
) -> RunStatus:
    """Until the run is over and its results are written, or it is suspended, or `stop`. Raises RowmillError."""
    cluster = Cluster(tools.api, job)
    results = None
    writing: asyncio.Task[None] | None = None
    if job.spec.output.uri is not None:
        results = Results(job, identity, ledger=ledger, cluster=cluster, report=report, tools=tools)
        writing = asyncio.create_task(results.run(stop), name="results")
    engine = Engine(
        job=job,
        identity=identity,
        ledger=ledger,
        window=window,
        fleet=fleet,
        sink=report,
        places=SourcePlaces(
            base=tools.cache,
            cache=tools.cache,
            content=cluster.table,
            credentials=cluster.source_credentials,
            policy=tools.policy,
            ambient=tools.ambient,
            cache_bytes=tools.cache_bytes,
        ),
        log=tools.log,
        metrics=tools.metrics,
        threads=tools.threads,
        fetchers=tools.fetchers,
        output_pending=results is not None,
        resumed_at=resumed_at,
    )
    try:
        status = await engine.run(stop=stop)
    finally:
        if writing is not None:
            await end_tasks([writing])
    if results is not None and ended(status.phase) and not stop.is_set():
        await (results.finish() if status.dropped_at is None else results.show())
    return status


class Results:
    """The output of one run. Its store is opened when it can be, and again after a failure."""

    def __init__(
        self,
        job: BatchJob,
        identity: RunIdentity,
        *,
        ledger: Ledger,
        cluster: Cluster,
        report: JobReport,
        tools: RunTools,
    ) -> None:
        assert job.spec.output.uri is not None
        self._uri = job.spec.output.uri
        self._identity = identity
        self._output = job.spec.output
        self._vectors = vectors_of(job.spec)
        self._ledger = ledger
        self._cluster = cluster
        self._report = report
        self._tools = tools
        self._writer: PartsWriter | None = None

    async def run(self, stop: asyncio.Event) -> None:
        """While the run goes. Never raises: what is in the way is told with the status, and by `finish`."""
        delay = 5.0
        while not stop.is_set():
            try:
                writer = await self._opened()
            except RowmillError as error:
                self._report.output_trouble(Trouble(_reason(error), str(error)))
                await asyncio.sleep(delay)
                delay = min(delay * 2, 60.0)
                continue
            self._report.output_trouble(None)
            self._report.output_problem = partial(getattr, writer, "problem")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REOPEN_SECONDS):
                    await writer.run(stop)
            if writer.problem is not None:
                self._writer = None  # the Secret may have been mended

    async def finish(self) -> OutputSummary:
        """Write what is missing. Raises JobTrouble with what is in the way."""
        self._report.writing_results()
        try:
            summary = await (await self._opened()).finish()
        except (InvalidInput, PlaceUnavailable) as error:
            raise JobTrouble(Reason.OUTPUT_UNAVAILABLE, str(error)) from error
        self._tell(summary)
        return summary

    async def show(self) -> None:
        """Of a run whose outcomes were dropped: what its folder holds, where that can be seen. Nothing else is owed."""
        with contextlib.suppress(RowmillError, TimeoutError):
            async with asyncio.timeout(SHOW_SECONDS):
                self._tell(await (await self._opened()).finish())

    def _tell(self, summary: OutputSummary) -> None:
        failures = f"{summary.uri}failures.jsonl" if summary.failures else None
        self._report.output = Output(summary.uri, summary.parts, failures)

    async def _opened(self) -> PartsWriter:
        if self._writer is None:
            credentials = await self._cluster.credentials(self._output.secret_name, "spec.output.secretName")
            tools = self._tools
            folder = await asyncio.get_running_loop().run_in_executor(
                tools.uploaders,
                lambda: open_folder(
                    self._uri,
                    self._identity.run_id,
                    credentials=credentials,
                    ambient=tools.ambient,
                    policy=tools.policy,
                    spool=tools.cache,
                ),
            )
            self._writer = PartsWriter(
                identity=self._identity,
                runs=self._ledger.runs,
                folder=folder,
                shape=Shape(
                    self._output.effective_format,
                    states(self._output.include),
                    tuple(self._output.columns),
                    self._vectors,
                ),
                log=tools.log,
                threads=tools.uploaders,
                slots=tools.uploads,
            )
            self._report.output = Output(folder.uri)
        return self._writer


class Cluster:
    """What a run reads of its own namespace: the table in a ConfigMap, the credentials of stores."""

    def __init__(self, api: KubeApi, job: BatchJob) -> None:
        self._api = api
        self._source = job.spec.source
        self._namespace = job.metadata.namespace

    async def table(self) -> Content:
        """The table of `source.configMap`. Raises JobTrouble where it is missing."""
        reference = self._source.config_map
        assert reference is not None
        found = await self._get("configmaps", reference.name, "spec.source.configMap", Reason.CONFIG_MAP_MISSING)
        where = f"ConfigMap {self._namespace}/{reference.name}, key {reference.key}"
        if reference.key in (found.get("data") or {}):
            return Content(found["data"][reference.key].encode(), reference.key, where)
        if reference.key in (found.get("binaryData") or {}):
            return Content(_decoded(found["binaryData"][reference.key]), reference.key, where)
        keys = sorted({**(found.get("data") or {}), **(found.get("binaryData") or {})})
        raise JobTrouble(
            Reason.CONFIG_MAP_MISSING,
            f"spec.source.configMap: the ConfigMap {reference.name} has no key {reference.key} "
            f"({'it has ' + ', '.join(keys[:10]) if keys else 'it is empty'}). Add the key, or correct the name",
        )

    async def source_credentials(self) -> Mapping[str, str] | None:
        return await self.credentials(self._source.secret_name, "spec.source.secretName")

    async def credentials(self, name: str | None, field: str) -> Mapping[str, str] | None:
        """The content of a Secret; None where none is named. Raises JobTrouble where it is missing."""
        if name is None:
            return None
        found = await self._get("secrets", name, field, Reason.SECRET_MISSING)
        return {key: _decoded(value).decode(errors="replace") for key, value in (found.get("data") or {}).items()}

    async def _get(self, resource: str, name: str, field: str, reason: Reason) -> dict[str, Any]:
        kind = {"configmaps": "ConfigMap", "secrets": "Secret"}[resource]
        try:
            return await self._api.get(path_of(resource, self._namespace, name))
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            raise JobTrouble(
                reason, f"{field}: there is no {kind} {name} in the namespace {self._namespace}. Create it"
            ) from error


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _reason(error: Exception) -> Reason:
    return error.reason if isinstance(error, JobTrouble) else Reason.OUTPUT_UNAVAILABLE
