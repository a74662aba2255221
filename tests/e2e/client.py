"""The cluster by the official asyncio client: many calls at once, and a watch that tells when something was first seen.

`kubectl` takes a good part of a second of CPU to start, which is more than what some tests measure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

from kubernetes.aio import client, config, watch

from tests.e2e.kubectl import PATIENCE_SECONDS, Json, Kubectl

GROUP, VERSION, PLURAL = "rowmill.dev", "v1alpha1", "batchjobs"
QUIET_SECONDS = 60
"""How long a watch may say nothing."""

Reached = Callable[[Mapping[str, Any]], Any]


def noticed(job: Mapping[str, Any]) -> bool:
    """Whether the operator has answered this generation of a manifest: `observedGeneration`, and a condition."""
    status = job.get("status") or {}
    return status.get("observedGeneration") == job["metadata"]["generation"] and bool(status.get("conditions"))


class Client:
    """BatchJobs of one namespace. `async with connected(kubectl) as it`."""

    def __init__(self, api: client.ApiClient, namespace: str) -> None:
        self._api = api
        self._jobs = client.CustomObjectsApi(api)
        self.namespace = namespace

    async def create(self, job: Mapping[str, Any]) -> Json:
        """POST it; returns what the server stored. Raises ApiException."""
        body = dict(job)
        return cast(
            Json, await self._jobs.create_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL, body)
        )

    async def listed(self) -> tuple[list[Json], str]:
        """Every BatchJob, and the version of the list."""
        found = cast(Json, await self._jobs.list_namespaced_custom_object(GROUP, VERSION, self.namespace, PLURAL))
        return found["items"], found["metadata"]["resourceVersion"]

    async def first_seen(
        self, names: Iterable[str], reached: Reached, *, since: str, within: float = PATIENCE_SECONDS
    ) -> dict[str, tuple[float, Json]]:
        """When each job was first seen to be so (monotonic), and how it looked; TimeoutError with those that were not.

        `since` is a version of the list from before anything of interest happened: no event is missed.
        """
        missing = set(names)
        seen: dict[str, tuple[float, Json]] = {}

        async def look() -> None:
            version = since
            while missing:
                watching = watch.Watch()  # type: ignore[no-untyped-call]
                stream = watching.stream(  # type: ignore[no-untyped-call]
                    self._jobs.list_namespaced_custom_object,
                    GROUP,
                    VERSION,
                    self.namespace,
                    PLURAL,
                    resource_version=version,
                    timeout_seconds=QUIET_SECONDS,
                )
                async with stream:
                    async for event in stream:
                        now, job = time.monotonic(), event["raw_object"]
                        version = job["metadata"]["resourceVersion"]
                        name = job["metadata"]["name"]
                        if name in missing and reached(job):
                            seen[name] = (now, job)
                            missing.discard(name)
                            if not missing:
                                return

        try:
            async with asyncio.timeout(within):
                await look()
        except TimeoutError:
            raise TimeoutError(f"not so after {within:g} s: {sorted(missing)}") from None
        return seen

    async def answered_in(
        self, jobs: Iterable[Mapping[str, Any]], *, within: float = PATIENCE_SECONDS
    ) -> dict[str, float]:
        """Create all of them at once; seconds from each POST's answer to the first sight of the operator's word."""
        jobs = list(jobs)
        _, version = await self.listed()
        names = [job["metadata"]["name"] for job in jobs]
        watching = asyncio.create_task(self.first_seen(names, noticed, since=version, within=within))

        async def post(job: Mapping[str, Any]) -> float:
            await self.create(job)
            return time.monotonic()

        try:
            posted = dict(zip(names, await asyncio.gather(*map(post, jobs)), strict=True))
            seen = await watching
        finally:
            watching.cancel()
        return {name: max(0.0, seen[name][0] - posted[name]) for name in names}

    async def echoed_in(self, names: Iterable[str], *, within: float = PATIENCE_SECONDS) -> list[float]:
        """The same as `answered_in` of something that has no other work: ConfigMaps, patched by us as soon as seen."""
        core: Any = client.CoreV1Api(self._api)
        names = list(names)
        found = await core.list_namespaced_config_map(self.namespace)
        posted: dict[str, float] = {}
        seen: dict[str, float] = {}
        patches: list[asyncio.Task[Any]] = []

        async def echo() -> None:
            watching = watch.Watch()  # type: ignore[no-untyped-call]
            stream = watching.stream(  # type: ignore[no-untyped-call]
                core.list_namespaced_config_map, self.namespace, resource_version=found.metadata.resource_version
            )
            async with stream:
                async for event in stream:
                    name = event["raw_object"]["metadata"]["name"]
                    if name not in names:
                        continue
                    if event["raw_object"].get("data"):
                        seen.setdefault(name, time.monotonic())
                        if len(seen) == len(names):
                            return
                    else:
                        patch = core.patch_namespaced_config_map(name, self.namespace, {"data": {"seen": "yes"}})
                        patches.append(asyncio.create_task(patch))

        async def post(name: str) -> None:
            await core.create_namespaced_config_map(self.namespace, {"metadata": {"name": name}})
            posted[name] = time.monotonic()

        echoing = asyncio.create_task(echo())
        try:
            async with asyncio.timeout(within):
                await asyncio.gather(*map(post, names))
                await echoing
                await asyncio.gather(*patches)
        finally:
            echoing.cancel()
        return [max(0.0, seen[name] - posted[name]) for name in names]

    async def pinged(self, path: str, stop: asyncio.Event, *, every: float = 0.05) -> list[float]:
        """How long each of many GETs took, one after the other, until `stop`."""
        took: list[float] = []
        while not stop.is_set():
            began = time.monotonic()
            prepared = await self._api.param_serialize("GET", path, auth_settings=["BearerToken"])
            answer = await self._api.call_api(prepared[0], prepared[1], header_params=prepared[2])
            await answer.read()  # type: ignore[no-untyped-call]
            took.append(time.monotonic() - began)
            await asyncio.sleep(every)
        return took


@asynccontextmanager
async def connected(kubectl: Kubectl) -> AsyncIterator[Client]:
    """A client with the kubeconfig of `kubectl`, in its namespace."""
    settings = client.Configuration()
    await config.load_kube_config(  # type: ignore[no-untyped-call]
        config_file=kubectl.environ["KUBECONFIG"], client_configuration=settings
    )
    settings.connection_pool_maxsize = 64
    async with client.ApiClient(configuration=settings) as api:
        yield Client(api, kubectl.namespace)
