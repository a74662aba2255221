"""The workers of one run as a Deployment.

The engine says how many workers it wants (`scale`) and goes on at once; `run` brings the cluster to it and looks why
pods do not come, on its own time: an API server that is away keeps nobody from feeding rows.

    wanted → the job's objects there and as they should be → replicas → enough ready? else: why not

What each failure leads to: an object that cannot be written, or a pod that does not run, becomes the trouble that the
job's status tells, and is tried again. A Deployment that somebody deleted is made anew. One that belongs to somebody
else, or to a deleted job of the same name, is never touched. Replicas have one owner: this, by merge patch; what is
applied never names them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from rowmill.errors import RowmillError
from rowmill.spec import BatchJob
from rowmill.tasks import set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube import naming
from rowmill_operator.kube.api import CONFLICT, NOT_FOUND, ApiAway, ApiError, Json, KubeApi, path_of
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.diagnose import diagnose
from rowmill_operator.kube.refusals import of_refused_object
from rowmill_operator.kube.troubles import JobTrouble, met
from rowmill_operator.kube.workload import Workload, at_creation, stale_config_maps

APPLIED = "rowmill.dev/applied"
"""Annotation of the Deployment: a digest of what was applied last. The same digest is not applied again."""

RETRY_SECONDS = (1.0, 30.0)
SETTLE_SECONDS = 2.0
"""How long the watch may take to show what was written before it is written again."""
SETTLED_POLL_SECONDS = 0.2
LOOK_SECONDS = 5.0
"""Between looks at pods that are missing."""

MOUNTED = frozenset({Reason.SECRET_MISSING, Reason.CONFIG_MAP_MISSING})
"""What a pod says that waits for an object which may be ours."""


class KubeFleet:
    """Implements the engine's `Fleet`. `live` gives the Deployment as the watch saw it last, None where there is none.

    `wall` is seconds since the epoch.
    """

    def __init__(
        self,
        *,
        api: KubeApi,
        job: BatchJob,
        uid: str,
        workload: Workload,
        live: Callable[[], Mapping[str, Any] | None],
        now: Callable[[], float],
        wall: Callable[[], float],
        log: Logger,
    ) -> None:
        self._api = api
        self._namespace = job.metadata.namespace
        self._job = job.metadata.name
        self._uid = uid
        self._workload = workload
        self._live = live
        self._now = now
        self._wall = wall
        self._log = log
        self._wanted: int | None = None
        """None before the engine has said: workers that an engine before it has left go on meanwhile."""
        self._external: int | None = None
        self._most = job.spec.workers.max_replicas
        self._woken = asyncio.Event()
        self._applied = False
        self._missing = False
        self._sent: tuple[int, float] | None = None
        self._short_since: float | None = None
        self._looked_at = float("-inf")
        self._refused: Trouble | None = None
        self._pods_trouble: Trouble | None = None

    # -- what the engine and the controller say

    def wants(self, desired: int) -> int:
        """As many as somebody outside says, where they own the number. Nothing to do needs nobody, whoever owns it."""
        if self._external is None or desired == 0:
            return desired
        return min(self._external, self._most)

    async def scale(self, desired: int) -> None:
        if desired != self._wanted:
            self._wanted = desired
        self._woken.set()

    async def ready(self) -> int:
        return _number(self._live(), "status", "readyReplicas")

    async def failure(self) -> str | None:
        trouble = self.trouble()
        return trouble.message if trouble is not None else None

    def trouble(self) -> Trouble | None:
        """Why there are fewer workers than wanted, or None."""
        return self._refused or self._pods_trouble

    def follow(self, replicas: int | None) -> None:
        """Have this many workers while there is work, whatever the engine wants; None: as the engine wants. More than
        there are only when the engine has asked for room for them (`wants`), within two seconds."""
        self._external = replicas
        self._woken.set()

    @property
    def desired(self) -> int:
        """Workers that there should be: never more than the engine found room for."""
        return min(self._wanted or 0, self._external if self._external is not None else self._most)

    # -- bringing the cluster to it

    async def run(self) -> None:
        """Until cancelled."""
        delay = RETRY_SECONDS[0]
        while True:
            self._woken.clear()
            try:
                await self._converge()
                await self._look()
                self._refused, delay = None, RETRY_SECONDS[0]
                await set_within(self._woken, LOOK_SECONDS)
            except (ApiError, ApiAway, JobTrouble) as error:
                self._refused = _refusal(error)
                self._log.warning("workers cannot be brought to their number", reason=str(error), wanted=self.desired)
            except Exception as error:  # unforeseen: rows would wait for workers for ever, and nobody be told
                self._refused = Trouble(
                    Reason.WORKERS_FAILING,
                    f"the operator failed at making workers ({type(error).__name__}); its log tells more",
                )
                self._log.exception("bringing workers to their number failed; it is tried again")
            else:
                continue
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_SECONDS[1])

    async def settled(self, stop: asyncio.Event) -> None:
        """Wait until the number of replicas is what is wanted, or `stop`."""
        while not stop.is_set():
            live = self._live()
            if live is None or _number(live, "spec", "replicas") == self.desired:
                return
            await set_within(stop, SETTLED_POLL_SECONDS)

    async def remove(self) -> None:
        """Delete the Deployment; its pods drain. What they mount goes with the job: the address of the ledger stays for
        those who read results."""
        await remove_workers(self._api, namespace=self._namespace, name=self._workload.name, uid=self._uid)
        if not self._applied:
            await self._apply("secrets", self._workload.secret)  # of a run that needed no worker this time
        self._applied = False

    async def _converge(self) -> None:
        live = self._live()
        if self._wanted is None or (live is None and self.desired == 0):
            return
        if live is not None and not naming.is_owned(live, self._uid):
            raise JobTrouble(
                Reason.PODS_REFUSED,
                f"the Deployment {self._workload.name} belongs to somebody else, or to a deleted job of this name; "
                "it is waited until it is gone. Delete it if it stays",
            )
        if self.desired > 0 and (not self._applied or live is None):
            await self._write_objects(live)
        await self._write_replicas()

    async def _write_objects(self, live: Mapping[str, Any] | None) -> None:
        work = self._workload
        digest = _digest(work)
        known = live is not None and live["metadata"].get("annotations", {}).get(APPLIED) == digest
        if known and not self._missing:
            self._applied = True
            return
        for resource, body in (
            ("configmaps", work.config_map),
            ("secrets", work.secret),
            ("networkpolicies", work.network_policy),
        ):
            await self._apply(resource, body)
        self._missing = False
        deployment = json.loads(json.dumps(work.deployment))
        deployment["metadata"].setdefault("annotations", {})[APPLIED] = digest
        if live is None:
            await self._create(deployment)
        else:
            await self._change(deployment, live)
        self._applied = True
        await self._tidy()

    async def _create(self, deployment: Json) -> None:
        try:
            await self._api.create(path_of("deployments", self._namespace), at_creation(deployment))
        except ApiError as error:
            if error.status != CONFLICT:
                raise
            found = await self._api.get(self._path("deployments"))
            if not naming.is_owned(found, self._uid):
                raise JobTrouble(
                    Reason.PODS_REFUSED,
                    f"there is a Deployment {self._workload.name} that is not this job's; delete it",
                ) from error
            await self._change(deployment, found)

    async def _change(self, deployment: Json, live: Mapping[str, Any]) -> None:
        """Have our template in the place of the one that is there, whole: a field that we no longer name is gone.

        Not by server-side apply, which leaves what the creation wrote to the creation.
        """
        metadata = live["metadata"]
        ours, spec = deployment["metadata"], deployment["spec"]
        operations = [
            {"op": "test", "path": "/metadata/uid", "value": metadata["uid"]},
            {"op": "add", "path": "/metadata/labels", "value": {**metadata.get("labels", {}), **ours["labels"]}},
            {
                "op": "add",
                "path": "/metadata/annotations",
                "value": {**metadata.get("annotations", {}), **ours["annotations"]},
            },
            *(
                {"op": "add", "path": f"/spec/{name}", "value": value}
                for name, value in spec.items()
                if name not in ("selector", "replicas")
            ),
        ]
        await self._api.change(self._path("deployments"), operations)

    async def _apply(self, resource: str, body: Json) -> None:
        """Make an object of ours, or bring it to what it should be. One of somebody else's is not touched."""
        path = path_of(resource, self._namespace, body["metadata"]["name"])
        try:
            found = await self._api.get(path)
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
        else:
            if not naming.is_owned(found, self._uid):
                raise JobTrouble(
                    Reason.PODS_REFUSED,
                    f"there is a {body['kind']} {body['metadata']['name']} that is not this job's: "
                    "rename or delete it, or give the job another name",
                )
        try:
            await self._api.apply(path, body, manager=naming.FIELD_MANAGER)
        except ApiError as error:
            if resource == "configmaps" and error.status == CONFLICT:
                return  # immutable, and named by its content
            raise

    async def _write_replicas(self) -> None:
        live, desired = self._live(), self.desired
        held = _number(live, "spec", "replicas", default=0) if live is not None else 0
        if held == desired:
            self._sent = None
            return
        if self._sent is not None and self._sent[0] == desired and self._now() - self._sent[1] < SETTLE_SECONDS:
            return
        self._sent = (desired, self._now())
        try:
            await self._api.merge(self._path("deployments"), {"spec": {"replicas": desired}})
        except ApiError as error:
            if error.status != NOT_FOUND:
                raise
            self._applied, self._sent = False, None

    async def _look(self) -> None:
        """Why workers are missing, if they are for a while."""
        now = self._now()
        if self.desired == 0 or await self.ready() >= self.desired:
            self._short_since, self._pods_trouble = None, None
            return
        self._short_since = self._short_since if self._short_since is not None else now
        if now - self._short_since < SETTLE_SECONDS or now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        selector = {"labelSelector": naming.selector_text(self._job)}
        pods = (await self._api.get(path_of("pods", self._namespace), **selector)).get("items") or []
        events: list[Json] = []
        if any(_waits(pod) for pod in pods):
            field = "involvedObject.kind=Pod,type=Warning"
            found = await self._api.get(path_of("events", self._namespace), fieldSelector=field, limit="500")
            events = found.get("items") or []
        self._pods_trouble = diagnose(
            deployment=self._live(), pods=pods, events=events, now=datetime.fromtimestamp(self._wall(), UTC)
        )
        if self._pods_trouble is not None and self._pods_trouble.reason in MOUNTED:
            # It may be one of ours that somebody deleted: they are looked at, and made anew where they are gone.
            self._applied, self._missing = False, True

    async def _tidy(self) -> None:
        """Remove ConfigMaps of manifests that no pod mounts any more."""
        selector = {"labelSelector": naming.selector_text(self._job)}
        found = await self._api.get(path_of("configmaps", self._namespace), **selector)
        maps = [one for one in found.get("items") or [] if naming.is_owned(one, self._uid)]
        current = self._workload.config_map["metadata"]["name"]
        if len(maps) < 2:
            return
        pods = (await self._api.get(path_of("pods", self._namespace), **selector)).get("items") or []
        for name in stale_config_maps(maps, current=current, pods=pods):
            await self._api.delete(path_of("configmaps", self._namespace, name))

    def _path(self, resource: str) -> str:
        return path_of(resource, self._namespace, self._workload.name)


async def remove_workers(api: KubeApi, *, namespace: str, name: str, uid: str) -> None:
    """Delete the Deployment of the BatchJob with this `uid`; another's of the same name stays."""
    path = path_of("deployments", namespace, name)
    try:
        live = await api.get(path)
    except ApiError as error:
        if error.status != NOT_FOUND:
            raise
        return
    if naming.is_owned(live, uid):
        await api.delete(path, uid=live["metadata"]["uid"])


def _refusal(error: RowmillError) -> Trouble:
    """What an answer of the API server means; it may name the very object that is missing."""
    if isinstance(error, ApiError):
        found = of_refused_object(error.status, str(error), what="the workers' Deployment")
        if found is not None:
            return found
    return met(error).trouble


def _digest(work: Workload) -> str:
    text = json.dumps([work.config_map, work.secret, work.network_policy, work.deployment], sort_keys=True)
    return blake2b(text.encode(), digest_size=8).hexdigest()


def _number(live: Mapping[str, Any] | None, part: str, name: str, default: int = 0) -> int:
    found = (live or {}).get(part, {}).get(name, default)
    return found if isinstance(found, int) else default


def _waits(pod: Mapping[str, Any]) -> bool:
    return bool(pod.get("status", {}).get("phase") == "Pending")
