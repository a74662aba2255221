"""All BatchJobs that the watch has seen: a controller task each, and the Deployments of their workers.

The watch only hands over what it saw; nothing here waits for anything. A controller that fails in a way that nobody
foresaw is started again, later each time, and keeps nobody else from going on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rowmill.tasks import end_tasks, set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.controller import JobController

Body = Mapping[str, Any]
Key = tuple[str, str]

RESTART_SECONDS = (1.0, 60.0)
STOP_SECONDS = 15.0


class Deployments:
    """The Deployments of workers as the watch saw them last, by namespace and name."""

    def __init__(self) -> None:
        self._seen: dict[Key, Body] = {}

    def saw(self, kind: str | None, body: Body) -> None:
        key = key_of(body)
        if kind == "DELETED":
            self._seen.pop(key, None)
        else:
            self._seen[key] = body

    def get(self, namespace: str, name: str) -> Body | None:
        return self._seen.get((namespace, name))


class Hub:
    """`make` builds a controller for a resource; the hub runs it until the resource is gone or `close`."""

    def __init__(self, *, make: Callable[[Body], JobController], log: Logger) -> None:
        self._make = make
        self._log = log
        self._controllers: dict[str, JobController] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._closing = asyncio.Event()

    def saw(self, kind: str | None, body: Body) -> None:
        """An event of the watch; `kind` is None for what is listed at the start."""
        uid = body["metadata"]["uid"]
        controller = self._controllers.get(uid)
        if kind == "DELETED":
            if controller is not None:
                controller.gone()
            return
        if controller is not None:
            controller.saw(body)
            return
        if self._closing.is_set():
            return
        controller = self._controllers[uid] = self._make(body)
        self._tasks[uid] = asyncio.create_task(self._keep(uid, controller), name=f"job {'/'.join(key_of(body))}")

    def gone(self, uids: Iterable[str]) -> None:
        """These resources are not there any more."""
        for uid in uids:
            if (controller := self._controllers.get(uid)) is not None:
                controller.gone()

    @property
    def controllers(self) -> list[JobController]:
        return list(self._controllers.values())

    async def close(self) -> None:
        """Let every engine stop where it is; workers go on without."""
        self._closing.set()
        for controller in self.controllers:
            controller.stop()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_SECONDS)
        await end_tasks(task for task in tasks if not task.done())

    async def _keep(self, uid: str, controller: JobController) -> None:
        delay = RESTART_SECONDS[0]
        try:
            while True:
                try:
                    await controller.run()
                    return
                except Exception:
                    self._log.exception("a job's controller failed; it is started again", job=controller.name)
                if await set_within(self._closing, delay):
                    return
                delay = min(delay * 2, RESTART_SECONDS[1])
        finally:
            self._controllers.pop(uid, None)
            self._tasks.pop(uid, None)


def key_of(body: Body) -> Key:
    """Namespace and name."""
    metadata = body["metadata"]
    return metadata["namespace"], metadata["name"]
