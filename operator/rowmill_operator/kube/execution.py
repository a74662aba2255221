"""One run of a job on the cluster: a Deployment of its workers, the engine that feeds them, its results.

The engine says how many workers there should be; the fleet has the Deployment follow, beside it and at its own pace,
and what keeps it from that is the fleet's trouble, never an error of the run. A run that is suspended is looked at once
more when its last pod is gone, for what those pods finished; the workers of a run that is over are removed, however
often that has to be tried.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from rowmill.spec import BatchJob
from rowmill.status import Phase, RunStatus
from rowmill.tasks import end_tasks, set_within
from rowmill.telemetry.logging import Logger
from rowmill.window import Window
from rowmill_operator.engine.lifecycle import ended
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import ApiAway, ApiError
from rowmill_operator.kube.body import Body, external_replicas, resumed_at
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.events import Involved
from rowmill_operator.kube.fleet import KubeFleet
from rowmill_operator.kube.remains import pods_gone
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.runner import drive
from rowmill_operator.kube.status import Workers
from rowmill_operator.kube.tools import Tools
from rowmill_operator.kube.troubles import RETRY_SECONDS, JobTrouble, problems_of
from rowmill_operator.kube.workload import build_workload


class Execution:
    """The runs of one job, one at a time. `body` is the resource as it was seen last."""

    def __init__(
        self,
        *,
        involved: Involved,
        body: Callable[[], Body],
        tools: Tools,
        log: Logger,
    ) -> None:
        self._namespace, self._name, self._uid = involved.namespace, involved.name, involved.uid
        self._body, self._tools, self._log = body, tools, log
        self._fleet: KubeFleet | None = None

    def trouble(self) -> Trouble | None:
        """What is in the way of the workers now; None while nothing runs."""
        return self._fleet.trouble() if self._fleet is not None else None

    def follow(self) -> None:
        """The number of workers that somebody outside wants may have changed."""
        if self._fleet is not None:
            self._fleet.follow(external_replicas(self._body()))

    async def run(
        self,
        job: BatchJob,
        identity: RunIdentity,
        *,
        ledger: Ledger,
        window: Window,
        report: JobReport,
        stop: asyncio.Event,
    ) -> RunStatus:
        """Until the run is over, suspended, or `stop`. Raises JobTrouble, and what engine and stores raise."""
        tools = self._tools
        settings = tools.workload
        if report.workers.image:
            settings = replace(settings, image=report.workers.image)
        try:
            workload = build_workload(job, uid=self._uid, settings=settings)
        except InvalidInput as error:
            raise JobTrouble(Reason.INVALID_SPEC, problems_of(error), edit=True) from error
        report.workers = Workers(settings.image, naming.selector_text(self._name))
        fleet = KubeFleet(
            api=tools.api,
            job=job,
            uid=self._uid,
            workload=workload,
            live=lambda: tools.live(self._namespace, workload.name),
            now=tools.now,
            wall=tools.wall,
            log=self._log,
        )
        fleet.follow(external_replicas(self._body()))
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
                report=report,
                tools=tools.run,
                stop=stop,
                resumed_at=resumed_at(self._body()),
            )
            status = await run()
            while status.phase is Phase.SUSPENDED and not stop.is_set():
                await fleet.settled(stop)
                if not await pods_gone(tools.api, namespace=self._namespace, name=self._name, stop=stop):
                    break
                # What the last workers finished counts as well. It may also be time to try again, and be in vain again.
                status = await run()
            if ended(status.phase) and not stop.is_set():
                await end_tasks([converging])
                await self._patiently(fleet.remove, stop)
            return status
        finally:
            self._fleet = None
            await end_tasks([converging])

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
