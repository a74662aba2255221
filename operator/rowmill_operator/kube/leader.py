"""One operator leads: a Lease, by the official client's election.

Two that believe to lead for a moment do no harm: every run is led by an advisory lock of its own, and every write
carries a term. The Lease keeps them from getting in each other's way. A leader that ends well gives the Lease back, so
that an upgrade does not wait for it to run out; one that loses it ends its process, and begins anew as a follower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from kubernetes.aio.client.exceptions import ApiException
from kubernetes.aio.leaderelection.electionconfig import Config
from kubernetes.aio.leaderelection.leaderelection import LeaderElection
from kubernetes.aio.leaderelection.resourcelock.leaselock import LeaseLock

from rowmill.errors import RowmillError
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.api import CONFLICT, ApiError, KubeApi, path_of

LEASE_SECONDS = 15
RENEW_SECONDS = 10
RETRY_SECONDS = 2


CALL_SECONDS = 5.0
"""For one look at the Lease, or one renewal: a server that says nothing must not hide that the Lease ran out."""


class LeaseLost(RowmillError):
    """The Lease could not be renewed in time: somebody else may lead by now."""


async def lead(
    work: Callable[[], Awaitable[None]],
    *,
    api: KubeApi,
    name: str,
    namespace: str,
    identity: str,
    stop: asyncio.Event,
    log: Logger,
) -> None:
    """Wait for the Lease, do `work` while it is ours, give it back. Returns when `work` does or `stop` is set.

    Raises LeaseLost, and whatever `work` raises.
    """
    working: list[asyncio.Task[None]] = []
    began = asyncio.Event()

    async def started() -> None:
        log.info("leading", lease=f"{namespace}/{name}")
        working.append(asyncio.ensure_future(work()))
        began.set()

    election = LeaderElection(
        Config(
            _PatientLock(name, namespace, identity, api.client),
            lease_duration=LEASE_SECONDS,
            renew_deadline=RENEW_SECONDS,
            retry_period=RETRY_SECONDS,
            onstarted_leading=started,
            onstopped_leading=_nothing,
        )
    )
    await _make(api, name=name, namespace=namespace)
    log.info("waiting for the lease", lease=f"{namespace}/{name}")
    electing = asyncio.create_task(election.run(), name="election")
    stopping = asyncio.create_task(stop.wait())
    beginning = asyncio.create_task(began.wait())
    try:
        await asyncio.wait({electing, stopping, beginning}, return_when=asyncio.FIRST_COMPLETED)
        if electing.done():
            electing.result()
        if working:
            await asyncio.wait({electing, working[0]}, return_when=asyncio.FIRST_COMPLETED)
            if not working[0].done():
                raise LeaseLost(f"the Lease {namespace}/{name} was lost; this operator begins anew as a follower")
            working[0].result()
    finally:
        await end_tasks([electing, stopping, beginning, *working])
        if working:
            with contextlib.suppress(RowmillError):
                await _give_back(api, name=name, namespace=namespace, identity=identity)


class _PatientLock(LeaseLock):
    """An API server that is away for a moment is tried again until the Lease has run out.

    The client's own lock takes a refusal so, but lets a connection that fails through: the lead would be lost at once.
    """

    async def get(self, name: str, namespace: str) -> Any:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await super().get(name, namespace)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return False, ApiException(status=0, reason=f"no answer: {error or type(error).__name__}")

    async def update(self, name: str, namespace: str, updated_record: Any) -> bool:
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await super().update(name, namespace, updated_record)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False


async def _make(api: KubeApi, *, name: str, namespace: str) -> None:
    """Have a Lease that nobody holds, where there is none: the client's own way to make one fails in its release 37."""
    body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}, "spec": {}}
    try:
        await api.create(path_of("leases", namespace), body)
    except ApiError as error:
        if error.status != CONFLICT:
            raise


async def _nothing() -> None:
    """The loss of the Lease is noticed by the end of the election."""


async def _give_back(api: KubeApi, *, name: str, namespace: str, identity: str) -> None:
    path = path_of("leases", namespace, name)
    lease = await api.get(path)
    if lease["spec"].get("holderIdentity") == identity:
        version = lease["metadata"]["resourceVersion"]
        await api.merge(path, {"metadata": {"resourceVersion": version}, "spec": {"holderIdentity": None}})
