"""What of a job is left on the cluster when it goes: the pods of its workers, and our finalizer, which holds its
resource until they are gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rowmill.tasks import set_within
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import CONFLICT, NOT_FOUND, ApiAway, ApiError, KubeApi, path_of
from rowmill_operator.kube.body import Body, finalizers

PODS_GONE_SECONDS = 1.0
"""Between two looks at the pods that are left."""


class Finalizer:
    """Ours, on the resource of this name and uid; on another of that name nothing is done."""

    def __init__(self, *, api: KubeApi, namespace: str, name: str, uid: str) -> None:
        self._api = api
        self._namespace, self._name, self._uid = namespace, name, uid

    async def put_on(self, body: Body) -> None:
        """Hold the resource, so that no deletion leaves rows in Redis. Raises ApiAway and ApiError."""
        if naming.FINALIZER not in finalizers(body):
            await self._set(lambda held: [*held, naming.FINALIZER] if naming.FINALIZER not in held else None)

    async def take_off(self) -> None:
        """Let the resource go. Raises ApiAway and ApiError."""
        await self._set(
            lambda held: [one for one in held if one != naming.FINALIZER] if naming.FINALIZER in held else None
        )

    async def _set(self, change: Callable[[list[str]], list[str] | None]) -> None:
        """Lists are replaced whole by a patch, so it names the version that it was made for."""
        path = path_of("batchjobs", self._namespace, self._name)
        for _ in range(8):
            try:
                current = await self._api.get(path)
                if current["metadata"]["uid"] != self._uid or (wanted := change(finalizers(current))) is None:
                    return
                version = current["metadata"]["resourceVersion"]
                await self._api.merge(path, {"metadata": {"finalizers": wanted, "resourceVersion": version}})
                return
            except ApiError as error:
                if error.status == NOT_FOUND:
                    return
                if error.status != CONFLICT:
                    raise
        raise ApiAway(f"{path} changes faster than its finalizers can be set")


async def pods_gone(api: KubeApi, *, namespace: str, name: str, stop: asyncio.Event) -> bool:
    """Wait until no pod of the job is left, or `stop`; whether there was one. Raises ApiAway and ApiError."""
    waited = False
    while not stop.is_set() and await _pods(api, namespace, name):
        waited = True
        await set_within(stop, PODS_GONE_SECONDS)
    return waited


async def _pods(api: KubeApi, namespace: str, name: str) -> int:
    selector = {"labelSelector": naming.selector_text(name), "limit": "1"}
    return len((await api.get(path_of("pods", namespace), **selector)).get("items") or [])
