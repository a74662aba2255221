"""One BatchJob from the first sight of it to its end.

    seen → told (observedGeneration, a condition) → checked → finalizer → other runs closed → the engine drives
      an edit            begins anew: the engine stops where it is, the next one goes on from the ledger
      a refusal          is told; nothing is tried before the next edit
      a trouble          is told, and tried again
    over → results written → workers gone → told → the time to live is over → deleted
    being deleted → workers gone, streams gone → finalizer off

Everything that decides is in the ledger and in the resource: this may be killed anywhere and begun again, by another
operator too. What the steps leave behind when one fails is found by the next attempt. A trouble of one job is told on
it and tried again; nothing of it is raised to anybody else.

Suspended and finished runs need nothing of an engine: they are left alone until an edit, and found so after a restart
by what their status says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from rowmill.errors import InvalidInput, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Kept, Ledger
from rowmill.spec import BatchJob, Place, identity_of, not_available, parse_job
from rowmill.status import Phase, RunStatus
from rowmill.tasks import end_tasks, set_within
from rowmill.telemetry.logging import Logger
from rowmill.window import Window
from rowmill_operator.engine.closing import close_run
from rowmill_operator.engine.lifecycle import ended
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import CONFLICT, NOT_FOUND, ApiAway, ApiError, Json, KubeApi, path_of
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.events import EventRecorder, Involved
from rowmill_operator.kube.fleet import KubeFleet, remove_workers
from rowmill_operator.kube.metrics import JobNumbers
from rowmill_operator.kube.notices import JobNotices, NotifyTools
from rowmill_operator.kube.pod_template import WorkloadSettings
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.runner import RunTools, drive
from rowmill_operator.kube.status import Output, Workers
from rowmill_operator.kube.stores import Stores
from rowmill_operator.kube.told import told
from rowmill_operator.kube.troubles import RETRY_SECONDS, JobTrouble, met, problems_of
from rowmill_operator.kube.workload import build_workload
from rowmill_operator.kube.writer import StatusWriter

Body = Mapping[str, Any]

STOP_SECONDS = 10.0
"""How long an engine that is told to stop may take before it is cancelled; what it held is found again."""
PODS_GONE_SECONDS = 1.0
FLUSH_SECONDS = 5.0
FIRST_WORD_SECONDS = 5.0
"""How long the work on a manifest waits, at most, for the first word on it to be written: of many that come at once all
are answered before one is begun."""
NOTICES_SECONDS = 600.0
"""How much longer a job stays whose time to live is over while its webhook does not take what it is told."""
FIRST_TRIES_SECONDS = 3.0
"""How long a deletion waits for a webhook to be asked at all. After that it is not told any more."""


@dataclass(frozen=True, slots=True)
class Tools:
    """What every controller works with; one of each for all jobs."""

    api: KubeApi
    stores: Stores
    events: EventRecorder
    installation: str
    workload: WorkloadSettings
    live: Callable[[str, str], Mapping[str, Any] | None]
    run: RunTools
    notify: NotifyTools
    now: Callable[[], float]
    wall: Callable[[], float]
    log: Logger
    wrote: Callable[[str], None]
    reconciled: Callable[[float], None]


class JobController:
    """Runs until its resource is gone, or `stop`."""

    def __init__(self, body: Body, *, tools: Tools) -> None:
        metadata = body["metadata"]
        self.namespace, self.name, self.uid = metadata["namespace"], metadata["name"], metadata["uid"]
        self._tools = tools
        self._log = tools.log.bind(job=f"{self.namespace}/{self.name}")
        self._body = body
        self._changed = asyncio.Event()
        self._gone = False
        self._stopping = False
        self._fleet: KubeFleet | None = None
        self._writer = StatusWriter(
            patch=self._patch_status, current=body.get("status"), log=self._log, now=tools.now, wrote=tools.wrote
        )
        involved = Involved(self.namespace, self.name, self.uid)
        self._notices = JobNotices(
            involved=involved,
            api=tools.api,
            stores=tools.stores,
            installation=tools.installation,
            events=tools.events,
            tools=tools.notify,
            log=self._log,
        )
        self._report = JobReport(
            involved=involved,
            writer=self._writer,
            events=tools.events,
            now=tools.now,
            wall=tools.wall,
            fleet_trouble=lambda: self._fleet.trouble() if self._fleet is not None else None,
            log=self._log,
            said=self._notices.saw,
        )
        self._remember()

    @property
    def numbers(self) -> JobNumbers:
        """For metrics: what the resource was told last."""
        phase = str(self._writer.document.get("phase", Phase.PENDING))
        return JobNumbers(self.namespace, self.name, phase, self._report.run)

    def saw(self, body: Body) -> None:
        """The watch saw the resource again."""
        before, self._body = self._body, body
        if _work(before) != _work(body):
            self._changed.set()
            return
        if self._fleet is not None:
            self._fleet.follow(external_replicas(body))
        if generation(body) != generation(before):
            self._report.generation = generation(body)
            self._report.tell()

    def kept(self) -> Kept | None:
        """What the manifest of a job at rest says of its results; None of any other job."""
        if not settled(self._body):
            return None
        try:
            job = self._checked(self._body)
        except JobTrouble:
            return None
        return Kept(identity_of(job, installation=self._tools.installation), job.spec.results_retention_seconds)

    def results_dropped(self, identity: RunIdentity, at: float) -> None:
        """The outcomes of this run were dropped (seconds since the epoch); a job at rest tells it."""
        if settled(self._body) and self._report.run_id == identity.run_id:
            self._report.dropped(at)

    def gone(self) -> None:
        """The resource is not there any more."""
        self._gone = True
        self._changed.set()

    def stop(self) -> None:
        """This operator ends; the workers go on."""
        self._stopping = True
        self._changed.set()

    async def run(self) -> None:
        writing = asyncio.create_task(self._writer.run(), name="status writer")
        telling = asyncio.create_task(self._notices.run(), name="notices")
        try:
            while True:
                self._changed.clear()
                if self._stopping:
                    await self._writer.flush(timeout=FLUSH_SECONDS)
                    return
                if await self._turn():
                    self._tools.events.forget(self.uid)
                    return
        finally:
            await end_tasks([writing, telling])

    async def _turn(self) -> bool:
        """Pursue what the resource asks for until it changes; whether it is gone for good."""
        body = self._body
        stop = asyncio.Event()
        ends = self._gone or deleting(body)
        work = asyncio.create_task(self._end(stop) if ends else self._pursue(stop))
        changed = asyncio.create_task(self._changed.wait())
        try:
            await asyncio.wait({work, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                stop.set()
                await asyncio.wait({work}, timeout=STOP_SECONDS)
            return work.done() and ends and bool(work.result())
        finally:
            await end_tasks([changed, work])
            if work.done() and not work.cancelled() and (error := work.exception()) is not None:
                raise error

    # -- alive

    async def _pursue(self, stop: asyncio.Event) -> bool:
        """Try until the run is over or `stop`; every trouble is told."""
        delay = RETRY_SECONDS[0]
        while not stop.is_set():
            began = self._tools.now()
            try:
                await self._attempt(self._body, stop)
                return False
            except RowmillError as error:
                found = met(error)
                self._log.warning("the job cannot go on", reason=found.trouble.reason, message=found.trouble.message)
                self._report.met(found.trouble)
                if found.edit:
                    await stop.wait()
                    return False
            if self._tools.now() - began > 2 * RETRY_SECONDS[1]:
                delay = RETRY_SECONDS[0]
            await set_within(stop, delay)
            delay = min(delay * 2, RETRY_SECONDS[1])
        return False

    async def _attempt(self, body: Body, stop: asyncio.Event) -> None:
        self._report.begin(generation=generation(body))
        if settled(body):
            self._notices.follow(self._at_rest(body))
            self._notices.saw(self._writer.document)
            await self._rest(body, stop)
            return
        began = self._tools.now()
        try:
            job = self._checked(body)
        except JobTrouble:
            self._notices.follow(None)  # nothing of a manifest that is refused is trusted, its webhook neither
            raise
        self._notices.follow(job)
        identity = identity_of(job, installation=self._tools.installation)
        self._report.concerns(identity.run_id)
        self._report.tell()
        await self._writer.flush(timeout=FIRST_WORD_SECONDS)
        await self._hold(body)
        ledger, window = await self._tools.stores.get()
        await self._close_others(identity, ledger=ledger, window=window)
        self._tools.reconciled(self._tools.now() - began)
        status = await self._drive(job, identity, ledger=ledger, window=window, stop=stop)
        if stop.is_set():
            return
        self._report.finished(status)
        await self._rest(self._body, stop)

    def _checked(self, body: Body) -> BatchJob:
        where = f"BatchJob {self.namespace}/{self.name}"
        try:
            job = parse_job({name: part for name, part in body.items() if name != "status"}, where=where)
        except InvalidInput as error:
            raise JobTrouble(
                Reason.INVALID_SPEC, f"{problems_of(error)}. Correct it and apply again", edit=True
            ) from error
        if problems := not_available(job, Place.CLUSTER):
            raise JobTrouble(Reason.NOT_AVAILABLE, problems_of(InvalidInput(where, problems)), edit=True)
        return job

    def _at_rest(self, body: Body) -> BatchJob | None:
        """The job of a resource that is done with, where it has a webhook: what was not heard yet is told on."""
        if not _part(body, "spec").get("notify"):
            return None
        try:
            return self._checked(body)
        except JobTrouble:
            return None

    async def _drive(
        self, job: BatchJob, identity: RunIdentity, *, ledger: Ledger, window: Window, stop: asyncio.Event
    ) -> RunStatus:
        """The engine, its workers and its results, until the run is over, suspended, or `stop`."""
        tools = self._tools
        settings = tools.workload
        if self._report.workers.image:
            settings = replace(settings, image=self._report.workers.image)
        try:
            workload = build_workload(job, uid=self.uid, settings=settings)
        except InvalidInput as error:
            raise JobTrouble(Reason.INVALID_SPEC, problems_of(error), edit=True) from error
        self._report.workers = Workers(settings.image, naming.selector_text(self.name))
        fleet = KubeFleet(
            api=tools.api,
            job=job,
            uid=self.uid,
            workload=workload,
            live=lambda: tools.live(self.namespace, workload.name),
            now=tools.now,
            wall=tools.wall,
            log=self._log,
        )
        fleet.follow(external_replicas(self._body))
        self._fleet = fleet
        converging = asyncio.create_task(fleet.run(), name="fleet")
        try:
            run = partial(
                drive,
                job,
                identity,
                ledger=ledger,
                window=window,
                fleet=fleet,
                report=self._report,
                tools=tools.run,
                stop=stop,
            )
            status = await run()
            if status.phase is Phase.SUSPENDED and not stop.is_set():
                await fleet.settled(stop)
                if await self._pods_gone(stop):
                    status = await run()  # what the last workers finished counts as well
            if ended(status.phase) and not stop.is_set():
                await end_tasks([converging])
                await self._patiently(fleet.remove, stop)
            return status
        finally:
            self._fleet = None
            await end_tasks([converging])

    async def _rest(self, body: Body, stop: asyncio.Event) -> None:
        """Over or suspended: until an edit, or the end of the time to live."""
        left = seconds_to_live(body, self._writer.document, now=self._tools.wall())
        if left is None:
            await stop.wait()
            return
        if await set_within(stop, max(0.0, left)):
            return
        await self._writer.flush(timeout=FLUSH_SECONDS)
        if await _either(stop, self._notices.courier.ended(within=NOTICES_SECONDS)):
            return
        self._log.info("its time to live is over; it is deleted", ttl_seconds=body["spec"]["ttlSecondsAfterFinished"])
        await self._tools.api.delete(path_of("batchjobs", self.namespace, self.name), uid=self.uid)
        await stop.wait()

    async def _close_others(self, identity: RunIdentity, *, ledger: Ledger, window: Window) -> None:
        """Rows of another run of this job are not worked on any more; what it has done stays in the ledger."""
        for record in await ledger.runs.of_job(identity.installation, identity.namespace, identity.name):
            # One that is over may still have results to write: nobody does that any more.
            if record.identity != identity and (not ended(record.phase) or record.output_pending):
                await close_run(record, ledger=ledger, window=window, why=f"spec.runId became {identity.run_id}")

    # -- being deleted

    async def _end(self, stop: asyncio.Event) -> bool:
        """Until nothing of the job is left but what the ledger keeps; whether that is so."""
        if not self._gone:
            self._report.deleting()
        delay = RETRY_SECONDS[0]
        while not stop.is_set():
            try:
                if not self._gone and naming.FINALIZER not in finalizers(self._body):
                    await stop.wait()  # others hold it
                    return False
                if self._gone and await self._succeeded():
                    return True
                if not await self._clear(stop):
                    return False
                if not self._gone:
                    await _either(stop, self._notices.courier.tried(within=FIRST_TRIES_SECONDS))
                    await self._release()
                return True
            except RowmillError as error:
                trouble = met(error).trouble
                self._log.warning("the job cannot be cleared away yet", reason=str(error))
                if not self._gone:
                    self._report.met(Trouble(trouble.reason, f"being deleted, and waiting: {error}"))
            await set_within(stop, delay)
            delay = min(delay * 2, RETRY_SECONDS[1])
        return False

    async def _succeeded(self) -> bool:
        """Whether a job of this name was made anew: what there is of runs is its own now."""
        try:
            found = await self._tools.api.get(path_of("batchjobs", self.namespace, self.name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return bool(found["metadata"]["uid"] != self.uid)

    async def _clear(self, stop: asyncio.Event) -> bool:
        """Workers are told to go, the window is closed, and the last pod is waited for; False when told to stop."""
        tools = self._tools
        if not self._gone:
            await remove_workers(tools.api, namespace=self.namespace, name=naming.workers_name(self.name), uid=self.uid)
        ledger, window = await tools.stores.get()
        for record in await ledger.runs.of_job(tools.installation, self.namespace, self.name):
            await close_run(record, ledger=ledger, window=window, why="the BatchJob was deleted; apply it to go on")
        if not self._gone:
            await self._pods_gone(stop)
        return not stop.is_set()

    async def _pods_gone(self, stop: asyncio.Event) -> bool:
        """Wait until no pod of the job is left, or `stop`; whether there was one."""
        waited = False
        while not stop.is_set() and await self._pods():
            waited = True
            await set_within(stop, PODS_GONE_SECONDS)
        return waited

    async def _pods(self) -> int:
        selector = {"labelSelector": naming.selector_text(self.name), "limit": "1"}
        return len((await self._tools.api.get(path_of("pods", self.namespace), **selector)).get("items") or [])

    # -- the resource itself

    async def _hold(self, body: Body) -> None:
        """Put our finalizer on, so that no deletion leaves rows in Redis."""
        if naming.FINALIZER not in finalizers(body):
            await self._set_finalizers(lambda held: [*held, naming.FINALIZER] if naming.FINALIZER not in held else None)

    async def _release(self) -> None:
        await self._set_finalizers(
            lambda held: [one for one in held if one != naming.FINALIZER] if naming.FINALIZER in held else None
        )

    async def _set_finalizers(self, change: Callable[[list[str]], list[str] | None]) -> None:
        """Lists are replaced whole by a patch, so it names the version that it was made for."""
        path = path_of("batchjobs", self.namespace, self.name)
        for _ in range(8):
            try:
                current = await self._tools.api.get(path)
                if current["metadata"]["uid"] != self.uid or (wanted := change(finalizers(current))) is None:
                    return
                version = current["metadata"]["resourceVersion"]
                await self._tools.api.merge(path, {"metadata": {"finalizers": wanted, "resourceVersion": version}})
                return
            except ApiError as error:
                if error.status == NOT_FOUND:
                    return
                if error.status != CONFLICT:
                    raise
        raise ApiAway(f"{path} changes faster than its finalizers can be set")

    async def _patch_status(self, patch: Json) -> object:
        return await self._tools.api.merge(path_of("batchjobs", self.namespace, self.name, "status"), {"status": patch})

    async def _patiently(self, call: Callable[[], Any], stop: asyncio.Event) -> None:
        delay = RETRY_SECONDS[0]
        while not stop.is_set():
            try:
                await call()
                return
            except (ApiAway, ApiError) as error:
                self._log.warning("the workers of a finished run cannot be removed yet", reason=str(error))
            await set_within(stop, delay)
            delay = min(delay * 2, RETRY_SECONDS[1])

    def _remember(self) -> None:
        """After a restart an unchanged job says nothing new."""
        status = _part(self._body, "status")
        run_id = _part(status, "run").get("id")
        if isinstance(run_id, str) and (known := told(status, run_id=run_id, now=self._tools.wall())) is not None:
            self._report.resume(known, generation=int(status.get("observedGeneration", 0)), run_id=run_id)
            self._report.workers, self._report.output = told_workers(status), told_output(status)
        for one in (self._body.get("status") or {}).get("conditions") or []:
            if isinstance(one, dict) and one.get("type") == "Ready":
                self._tools.events.seed(
                    Involved(self.namespace, self.name, self.uid),
                    reason=str(one.get("reason", "")),
                    message=str(one.get("message", "")),
                )


async def _either(stop: asyncio.Event, waiting: Coroutine[Any, Any, object]) -> bool:
    """Wait for `stop` or for what ends by itself; whether it was `stop`."""
    tasks = [asyncio.ensure_future(stop.wait()), asyncio.ensure_future(waiting)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(tasks)
    return stop.is_set()


# -- what a resource says. Pure.


def generation(body: Body) -> int:
    return int(body["metadata"].get("generation", 1))


def deleting(body: Body) -> bool:
    return bool(body["metadata"].get("deletionTimestamp"))


def finalizers(body: Body) -> list[str]:
    return list(body["metadata"].get("finalizers") or [])


def external_replicas(body: Body) -> int | None:
    """`spec.workers.replicas` where something outside owns the number of workers."""
    workers = _part(body.get("spec"), "workers")
    if workers.get("scaling") != "External":
        return None
    found = workers.get("replicas", 0)
    return found if isinstance(found, int) else 0


def settled(body: Body) -> bool:
    """Whether the status tells that this very generation of the manifest is done with."""
    status = _part(body, "status")
    return (
        status.get("observedGeneration") == generation(body)
        and status.get("phase") in (Phase.COMPLETE, Phase.FAILED)
        and not deleting(body)
    )


def told_workers(status: Mapping[str, Any]) -> Workers:
    """The image that the run of this status began with: a newer operator does not change it under way."""
    workers = _part(status, "workers")
    return Workers(_text(workers, "image"), _text(workers, "selector"))


def told_output(status: Mapping[str, Any]) -> Output | None:
    """Where the results of the run of this status are."""
    output = _part(status, "output")
    parts = output.get("parts")
    if not (uri := _text(output, "uri")):
        return None
    return Output(uri, parts if isinstance(parts, int) else None, _text(output, "failures") or None)


def seconds_to_live(body: Body, status: Mapping[str, Any], *, now: float) -> float | None:
    """Seconds until `ttlSecondsAfterFinished` is over; None for a job that has not ended, or that stays."""
    ttl = _part(body, "spec").get("ttlSecondsAfterFinished")
    finished = status.get("completionTime")
    if not isinstance(ttl, int) or not isinstance(finished, str) or status.get("phase") not in ("Complete", "Failed"):
        return None
    return datetime.fromisoformat(finished).timestamp() + ttl - now


def _work(body: Body) -> Any:
    """What of a resource makes a difference to what is to be done. A number of workers that others set is followed."""
    spec = body.get("spec")
    if isinstance(spec, dict) and external_replicas(body) is not None:
        spec = {**spec, "workers": {**spec["workers"], "replicas": None}}
    return (spec, deleting(body))


def _text(part: Mapping[str, Any], name: str) -> str:
    found = part.get(name)
    return found if isinstance(found, str) else ""


def _part(value: Any, name: str) -> Mapping[str, Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}
