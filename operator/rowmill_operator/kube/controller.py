"""One BatchJob from the first sight of it to its end.

    seen → told (observedGeneration, a condition) → checked → finalizer → other runs closed → the engine drives
      an edit            begins anew: the engine stops where it is, the next one goes on from the ledger
      a refusal          is told; nothing is tried before the next edit
      a trouble          is told, and tried again
      refused calls      the run stands still, and is tried again after a while
    over → results written → workers gone → told → the time to live is over → deleted
    being deleted → workers gone, streams gone → finalizer off

Everything that decides is in the ledger and in the resource: this may be killed anywhere and begun again, by another
operator too. What the steps leave behind when one fails is found by the next attempt. A trouble of one job is told on
it and tried again; nothing of it is raised to anybody else.

Suspended and finished runs need nothing of an engine: they are left alone until an edit, and found so after a restart
by what their status says. A run's engine and workers are in `execution`, the way out in `deletion`, what a resource
says in `body`.
"""

from __future__ import annotations

import asyncio

from rowmill.errors import InvalidInput, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Kept, Ledger
from rowmill.spec import BatchJob, Place, identity_of, not_available, parse_job
from rowmill.status import Phase
from rowmill.tasks import end_tasks, first_of, set_within
from rowmill.window import Window
from rowmill_operator.engine.closing import close_run
from rowmill_operator.engine.lifecycle import ended
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import Json, path_of
from rowmill_operator.kube.body import (
    Body,
    deleting,
    generation,
    part,
    seconds_to_live,
    settled,
    told_output,
    told_workers,
    work_of,
)
from rowmill_operator.kube.conditions import Reason
from rowmill_operator.kube.deletion import Deletion
from rowmill_operator.kube.events import Involved
from rowmill_operator.kube.execution import Execution
from rowmill_operator.kube.fleet import remove_workers
from rowmill_operator.kube.metrics import JobNumbers
from rowmill_operator.kube.notices import JobNotices
from rowmill_operator.kube.remains import Finalizer
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.told import told
from rowmill_operator.kube.tools import Tools
from rowmill_operator.kube.troubles import RETRY_SECONDS, JobTrouble, met, problems_of
from rowmill_operator.kube.writer import StatusWriter

STOP_SECONDS = 10.0
"""How long an engine that is told to stop may take before it is cancelled; what it held is found again."""
FLUSH_SECONDS = 5.0
FIRST_WORD_SECONDS = 5.0
"""How long the work on a manifest waits, at most, for the first word on it to be written: of many that come at once all
are answered before one is begun."""
NOTICES_SECONDS = 600.0
"""How much longer a job stays whose time to live is over while its webhook does not take what it is told."""


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
        self._writer = StatusWriter(
            patch=self._patch_status, current=body.get("status"), log=self._log, now=tools.now, wrote=tools.wrote
        )
        involved = Involved(self.namespace, self.name, self.uid)
        self._finalizer = Finalizer(api=tools.api, namespace=self.namespace, name=self.name, uid=self.uid)
        self._execution = Execution(involved=involved, body=lambda: self._body, tools=tools, log=self._log)
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
            fleet_trouble=self._execution.trouble,
            log=self._log,
            said=self._notices.saw,
        )
        self._deletion = Deletion(
            involved=involved,
            body=lambda: self._body,
            gone=lambda: self._gone,
            tools=tools,
            report=self._report,
            notices=self._notices,
            finalizer=self._finalizer,
            log=self._log,
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
        if work_of(before) != work_of(body):
            self._changed.set()
            return
        self._execution.follow()
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
        work = asyncio.create_task(self._deletion.run(stop) if ends else self._pursue(stop))
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
        if (refused := self._tools.shared_keys.refusal(job)) is not None:
            await self._stop_workers(refused)
            raise refused
        self._report.tell()
        await self._writer.flush(timeout=FIRST_WORD_SECONDS)
        await self._finalizer.put_on(body)
        ledger, window = await self._tools.stores.get()
        await self._close_others(identity, ledger=ledger, window=window)
        self._tools.reconciled(self._tools.now() - began)
        status = await self._execution.run(job, identity, ledger=ledger, window=window, report=self._report, stop=stop)
        if stop.is_set():
            return
        self._report.finished(status)
        if status.pause is not None and status.pause.until is not None:
            await set_within(stop, max(0.0, status.pause.until - self._tools.wall()))
            return
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

    async def _stop_workers(self, refused: JobTrouble) -> None:
        """A permission was taken away: what has run so far is kept, and nothing of the run goes on."""
        self._report.met(met(refused).trouble)
        name = naming.workers_name(self.name)
        await remove_workers(self._tools.api, namespace=self.namespace, name=name, uid=self.uid)

    def _at_rest(self, body: Body) -> BatchJob | None:
        """The job of a resource that is done with, where it has a webhook: what was not heard yet is told on."""
        if not part(body, "spec").get("notify"):
            return None
        try:
            return self._checked(body)
        except JobTrouble:
            return None

    async def _rest(self, body: Body, stop: asyncio.Event) -> None:
        """Over or suspended: until an edit, or the end of the time to live."""
        left = seconds_to_live(body, self._writer.document, now=self._tools.wall())
        if left is None:
            await stop.wait()
            return
        if await set_within(stop, max(0.0, left)):
            return
        await self._writer.flush(timeout=FLUSH_SECONDS)
        if await first_of(stop, self._notices.courier.ended(within=NOTICES_SECONDS)):
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

    async def _patch_status(self, patch: Json) -> object:
        return await self._tools.api.merge(path_of("batchjobs", self.namespace, self.name, "status"), {"status": patch})

    def _remember(self) -> None:
        """After a restart an unchanged job says nothing new."""
        status = part(self._body, "status")
        run_id = part(status, "run").get("id")
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
