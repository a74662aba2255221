"""What kopf watches, and nothing more: every event is handed over at once.

kopf keeps the watch alive, lists again after it broke, and renews its credentials. All work is done by controllers of
our own (`hub`), so that a hundred jobs cost little more than one, no event waits for another's work, and resources
carry neither kopf's annotations nor its finalizer.

kopf looks once for the resources that it is to watch. Whether the API server serves BatchJobs at all is looked at here,
every few seconds, in the discovery that every service account may read: a CustomResourceDefinition that is installed
after the operator, or removed and installed again, needs neither a restart nor more rights.

    not served → (looked at again) → served: kopf watches → not served: kopf ends, every resource is gone
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import kopf

from rowmill.tasks import end_tasks, set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import GROUPS, NOT_FOUND, ApiAway, ApiError, KubeApi

Saw = Callable[[str | None, Mapping[str, Any]], None]

CONNECT_SECONDS = 10.0
SERVER_SECONDS = 300
"""A watch is asked for anew this often (a whole number: the API server takes no other): one that the network forgot is
noticed at the latest then."""

SERVED_SECONDS = 3.0
"""Between looks whether BatchJobs are served."""


def watch_registry(*, jobs: Saw, deployments: Saw) -> kopf.OperatorRegistry:
    """Handlers that pass on what is seen of BatchJobs and of the Deployments of their workers."""
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    def login(**asked: Any) -> kopf.ConnectionInfo | None:
        # As the pod's service account, whose token is read again when it has run out; elsewhere as the person.
        return kopf.login_with_service_account(**asked) or kopf.login_with_kubeconfig(**asked)

    @kopf.on.event("rowmill.dev", "v1alpha1", "batchjobs", registry=registry)
    async def saw_job(event: kopf.RawEvent, **_: Any) -> None:
        jobs(event["type"], event["object"])

    @kopf.on.event(
        "apps",
        "v1",
        "deployments",
        registry=registry,
        labels={"app.kubernetes.io/name": naming.APP, naming.JOB_LABEL: kopf.PRESENT},
    )
    async def saw_deployment(event: kopf.RawEvent, **_: Any) -> None:
        deployments(event["type"], event["object"])

    return registry


def watch_settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False  # events are ours
    settings.scanning.disabled = True  # and so is the look for the CustomResourceDefinition
    settings.watching.connect_timeout = CONNECT_SECONDS
    settings.watching.server_timeout = SERVER_SECONDS
    settings.watching.client_timeout = SERVER_SECONDS + 2 * CONNECT_SECONDS
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = CONNECT_SECONDS
    return settings


class Watch:
    """Watches while BatchJobs are served.

    `unserved` is called when they no longer are; `signals` sets the process's own signal handlers, which kopf replaces
    by its own each time that it starts.
    """

    def __init__(
        self,
        *,
        api: KubeApi,
        make_registry: Callable[[], kopf.OperatorRegistry],
        namespaces: Sequence[str],
        unserved: Callable[[], None],
        signals: Callable[[], None],
        log: Logger,
    ) -> None:
        self._api = api
        self._make_registry = make_registry
        self._namespaces = list(namespaces)
        self._unserved = unserved
        self._signals = signals
        self._log = log
        self.missing: str | None = "BatchJobs are not watched yet"

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop`. Raises what kopf ends with."""
        while not stop.is_set():
            if not await self._served():
                if self.missing is None or "not served" not in self.missing:
                    self._log.warning("the API server serves no BatchJobs: install the CustomResourceDefinition")
                self.missing = "BatchJobs are not served: the CustomResourceDefinition is not installed"
                await set_within(stop, SERVED_SECONDS)
                continue
            await self._watch(stop)

    async def _watch(self, stop: asyncio.Event) -> None:
        end, ready = asyncio.Event(), asyncio.Event()
        watching = asyncio.create_task(
            kopf.operator(
                registry=self._make_registry(),
                settings=watch_settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=end,
                ready_flag=ready,
            ),
            name="kopf",
        )
        helpers = [asyncio.create_task(stop.wait()), asyncio.create_task(self._until_unserved())]
        try:
            started = asyncio.create_task(ready.wait())
            await asyncio.wait({watching, started}, return_when=asyncio.FIRST_COMPLETED)
            await end_tasks([started])
            self._signals()
            self.missing = None
            await asyncio.wait({watching, *helpers}, return_when=asyncio.FIRST_COMPLETED)
            if helpers[1].done() and not stop.is_set():
                self._unserved()
            end.set()
            served = not helpers[1].done()
            try:
                await watching
            except Exception as error:
                # A watch on what is not served any more ends as it can.
                if served and not stop.is_set():
                    raise
                self._log.info("the watch ended", reason=f"{type(error).__name__}: {error}"[:300])
        finally:
            await end_tasks([*helpers, watching])
            self._signals()

    async def _until_unserved(self) -> None:
        """Two looks must say so: one may be that of an API server that is only just starting."""
        missed = 0
        while missed < 2:
            await asyncio.sleep(SERVED_SECONDS)
            missed = 0 if await self._served() else missed + 1

    async def _served(self) -> bool:
        """An API server that does not answer says nothing."""
        with contextlib.suppress(ApiAway):
            try:
                found = await self._api.get(f"/{GROUPS['batchjobs']}")
            except ApiError as error:
                return error.status != NOT_FOUND
            return any(one.get("name") == "batchjobs" for one in found.get("resources") or [])
        return True
