"""A BatchJob that is being deleted, or gone already: until nothing of it is left but what the ledger keeps.

    told → workers told to go → window closed → pods gone → its webhook asked once → finalizer off

A step that fails is tried again from the first: what is done already is found done. Where the resource is gone before
its finalizer (somebody took it off), only the window is left to close, unless a job of that name was made anew: what
there is of runs is that one's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rowmill.errors import RowmillError
from rowmill.tasks import first_of, set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.engine.closing import close_run
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import NOT_FOUND, ApiError, path_of
from rowmill_operator.kube.body import Body, finalizers
from rowmill_operator.kube.conditions import Trouble
from rowmill_operator.kube.events import Involved
from rowmill_operator.kube.fleet import remove_workers
from rowmill_operator.kube.notices import JobNotices
from rowmill_operator.kube.remains import Finalizer, pods_gone
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.tools import Tools
from rowmill_operator.kube.troubles import RETRY_SECONDS, met

FIRST_TRIES_SECONDS = 3.0
"""How long a deletion waits for a webhook to be asked at all. After that it is not told any more."""


class Deletion:
    """`body` is the resource as it was seen last, `gone` whether it is not there any more."""

    def __init__(
        self,
        *,
        involved: Involved,
        body: Callable[[], Body],
        gone: Callable[[], bool],
        tools: Tools,
        report: JobReport,
        notices: JobNotices,
        finalizer: Finalizer,
        log: Logger,
    ) -> None:
        self._namespace, self._name, self._uid = involved.namespace, involved.name, involved.uid
        self._body, self._gone = body, gone
        self._tools, self._report, self._notices = tools, report, notices
        self._finalizer = finalizer
        self._log = log

    async def run(self, stop: asyncio.Event) -> bool:
        """Until nothing of the job is left but what the ledger keeps; whether that is so."""
        if not self._gone():
            self._report.deleting()
        delay = RETRY_SECONDS[0]
        while not stop.is_set():
            try:
                if not self._gone() and naming.FINALIZER not in finalizers(self._body()):
                    await stop.wait()  # others hold it
                    return False
                if self._gone() and await self._succeeded():
                    return True
                if not await self._clear(stop):
                    return False
                if not self._gone():
                    await first_of(stop, self._notices.courier.tried(within=FIRST_TRIES_SECONDS))
                    await self._finalizer.take_off()
                return True
            except RowmillError as error:
                trouble = met(error).trouble
                self._log.warning("the job cannot be cleared away yet", reason=str(error))
                if not self._gone():
                    self._report.met(Trouble(trouble.reason, f"being deleted, and waiting: {error}"))
            await set_within(stop, delay)
            delay = min(delay * 2, RETRY_SECONDS[1])
        return False

    async def _succeeded(self) -> bool:
        """Whether a job of this name was made anew: what there is of runs is its own now."""
        try:
            found = await self._tools.api.get(path_of("batchjobs", self._namespace, self._name))
        except ApiError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return bool(found["metadata"]["uid"] != self._uid)

    async def _clear(self, stop: asyncio.Event) -> bool:
        """Workers are told to go, the window is closed, and the last pod is waited for; False when told to stop."""
        tools = self._tools
        if not self._gone():
            await remove_workers(
                tools.api, namespace=self._namespace, name=naming.workers_name(self._name), uid=self._uid
            )
        ledger, window = await tools.stores.get()
        for record in await ledger.runs.of_job(tools.installation, self._namespace, self._name):
            await close_run(record, ledger=ledger, window=window, why="the BatchJob was deleted; apply it to go on")
        if not self._gone():
            await pods_gone(tools.api, namespace=self._namespace, name=self._name, stop=stop)
        return not stop.is_set()
