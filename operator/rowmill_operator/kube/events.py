"""Kubernetes Events of BatchJobs: what `kubectl describe` shows below a job. Few, and never in anybody's way.

An event is made when what a job tells (reason and message) becomes another, and then only

    - once for as long as it stays so (nothing is counted up);
    - not again within `REPEAT_SECONDS` for what the job told a short while ago (a cause that comes and goes);
    - at most every `WORDING_SECONDS` for other words of the same reason.

It goes into a bounded queue and from there, at a bounded rate over all jobs, to the API server. A queue that is full
drops the event, and the job may tell it again. A server that is away is tried a few times (an event has its name from
the start, so one whose reply was lost is not there twice); a refusal, such as a namespace that is gone or being
deleted, ends the event. Events are for people: nothing waits for one, nothing depends on one.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.conditions import cut, rfc3339

COMPONENT = "rowmill-operator"
REPEAT_SECONDS = 300.0
WORDING_SECONDS = 60.0
QUEUE_EVENTS = 256
BURST_EVENTS = 25
EVENTS_A_SECOND = 5.0
TRIES = 4
RETRY_SECONDS = 1.0
"""After the first try; twice as long after each further one."""

SEND_TIMEOUT_SECONDS = 10.0
MESSAGE_BYTES = 1024
TOLD_A_JOB = 8
"""What a job told last, remembered for `REPEAT_SECONDS`."""

JOBS = 10_000
"""Jobs that are remembered; the one that has been silent for longest is forgotten first."""

_NAME_CHARS = 253
_ASIDE = "/aside"
CONFLICT = 409

Send = Callable[[str, dict[str, Any]], Awaitable[object]]


@dataclass(frozen=True, slots=True)
class Involved:
    """The object that events speak of."""

    namespace: str
    name: str
    uid: str
    api_version: str = "rowmill.dev/v1alpha1"
    kind: str = "BatchJob"
    resource_version: str = ""


def event_manifest(
    involved: Involved, *, reason: str, message: str, warning: bool, token: str, instance: str, now: float
) -> dict[str, Any]:
    """A core/v1 Event.

    `token` (lower-case letters and digits) makes its name unique within the job; `instance` names the operator's pod;
    `now` is the wall clock in seconds since the epoch.
    """
    at = rfc3339(now)
    reference = {
        "apiVersion": involved.api_version,
        "kind": involved.kind,
        "namespace": involved.namespace,
        "name": involved.name,
        "uid": involved.uid,
    }
    if involved.resource_version:
        reference["resourceVersion"] = involved.resource_version
    # The name is cut, never the token; what is left of it must not end in a dot.
    stem = involved.name[: _NAME_CHARS - len(token) - 1].rstrip(".-")
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": involved.namespace, "name": f"{stem}.{token}"},
        "involvedObject": reference,
        "reason": _reason(reason),
        "message": cut(message, MESSAGE_BYTES),
        "type": "Warning" if warning else "Normal",
        "count": 1,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "source": {"component": COMPONENT, "host": instance},
        "reportingComponent": COMPONENT,
        "reportingInstance": instance,
    }


@dataclass(slots=True)
class _Telling:
    """What one job tells now, and what it told before: (reason, message) → when (monotonic seconds)."""

    now: tuple[str, str]
    before: OrderedDict[tuple[str, str], float] = field(default_factory=OrderedDict)


class EventRecorder:
    """Makes events of transitions and sends them one after the other.

    `send(namespace, manifest)` creates an event; what it raises is looked at for `.status`. `now` is monotonic, `wall`
    seconds since the epoch, `token` makes a fresh name each time (lower-case letters and digits). `wrote` is called
    with how each event ended: "ok", "failed" (given up), "dropped" (the queue was full).
    """

    def __init__(
        self,
        *,
        send: Send,
        instance: str,
        log: Logger,
        now: Callable[[], float],
        wall: Callable[[], float],
        token: Callable[[], str],
        wrote: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._send = send
        self._instance = instance
        self._log = log
        self._now = now
        self._wall = wall
        self._token = token
        self._wrote = wrote
        self._jobs: OrderedDict[str, _Telling] = OrderedDict()
        self._queue: deque[dict[str, Any]] = deque()
        self._filled = asyncio.Event()
        self._credit = float(BURST_EVENTS)
        self._credit_at = now()

    def seed(self, involved: Involved, *, reason: str, message: str) -> None:
        """Take it that the job has told this already: what its conditions say when the operator starts."""
        telling = self._jobs.get(involved.uid) or _Telling((reason, message))
        telling.now = (reason, cut(message, MESSAGE_BYTES))
        self._keep(involved.uid, telling)

    def tell(self, involved: Involved, *, reason: str, message: str, warning: bool) -> bool:
        """What the job tells now. Returns whether that became an event (which may still be lost on its way)."""
        return self._tell(involved.uid, involved, reason=reason, message=message, warning=warning)

    def remark(self, involved: Involved, *, reason: str, message: str, warning: bool) -> bool:
        """The same of something beside the job's own state, which goes on being what the job tells."""
        return self._tell(involved.uid + _ASIDE, involved, reason=reason, message=message, warning=warning)

    def _tell(self, who: str, involved: Involved, *, reason: str, message: str, warning: bool) -> bool:
        what = (reason, cut(message, MESSAGE_BYTES))
        telling = self._jobs.get(who)
        if telling is None:
            telling = _Telling(what)
        elif telling.now == what:
            return False
        elif self._too_soon(telling, what):
            if telling.now[0] != reason and who == involved.uid:
                telling.now = what  # a remark is made again by whoever made it, and is not to look told then
            return False
        if len(self._queue) >= QUEUE_EVENTS:
            self._wrote("dropped")
            return False
        telling.now = what
        telling.before[what] = self._now()
        telling.before.move_to_end(what)
        while len(telling.before) > TOLD_A_JOB:
            telling.before.popitem(last=False)
        self._keep(who, telling)
        self._queue.append(
            event_manifest(
                involved,
                reason=reason,
                message=message,
                warning=warning,
                token=self._token(),
                instance=self._instance,
                now=self._wall(),
            )
        )
        self._filled.set()
        return True

    def forget(self, uid: str) -> None:
        """The job is gone."""
        self._jobs.pop(uid, None)
        self._jobs.pop(uid + _ASIDE, None)

    async def run(self) -> None:
        """Send until cancelled."""
        while True:
            self._filled.clear()
            if not self._queue:
                await self._filled.wait()
                continue
            if (pause := self._pause()) > 0:
                await asyncio.sleep(pause)
            self._credit -= 1
            await self._deliver(self._queue.popleft())

    def _keep(self, uid: str, telling: _Telling) -> None:
        self._jobs[uid] = telling
        self._jobs.move_to_end(uid)
        while len(self._jobs) > JOBS:
            self._jobs.popitem(last=False)

    def _too_soon(self, telling: _Telling, what: tuple[str, str]) -> bool:
        """Whether the job told this, or other words of its present reason, a short while ago."""
        now = self._now()
        if now - telling.before.get(what, float("-inf")) < REPEAT_SECONDS:
            return True
        same = [at for (reason, _), at in telling.before.items() if reason == what[0]]
        return telling.now[0] == what[0] and any(now - at < WORDING_SECONDS for at in same)

    def _pause(self) -> float:
        """Seconds until the next event may go."""
        now = self._now()
        self._credit = min(float(BURST_EVENTS), self._credit + (now - self._credit_at) * EVENTS_A_SECOND)
        self._credit_at = now
        return max(0.0, (1.0 - self._credit) / EVENTS_A_SECOND)

    async def _deliver(self, manifest: Mapping[str, Any]) -> None:
        namespace = str(manifest["metadata"]["namespace"])
        for attempt in range(TRIES):
            try:
                async with asyncio.timeout(SEND_TIMEOUT_SECONDS):
                    await self._send(namespace, dict(manifest))
            except Exception as error:  # whatever a client may raise: an event is not worth a controller
                status = getattr(error, "status", None)
                if status == CONFLICT and attempt:
                    self._wrote("ok")  # it arrived the time before, only the reply did not
                    return
                final = isinstance(status, int) and 400 <= status < 500 and status not in (408, 429)
                if final or attempt == TRIES - 1:
                    self._give_up(manifest, error)
                    return
                await asyncio.sleep(RETRY_SECONDS * 2**attempt)
            else:
                self._wrote("ok")
                return

    def _give_up(self, manifest: Mapping[str, Any], error: Exception) -> None:
        self._wrote("failed")
        self._log.debug(
            "an event could not be written",
            job=f"{manifest['metadata']['namespace']}/{manifest['involvedObject']['name']}",
            event_reason=manifest["reason"],
            reason=f"{type(error).__name__}: {error}"[:300],
        )


def _reason(text: str) -> str:
    """A reason as the API wants it: a CamelCase word of at most 128 characters."""
    return re.sub(r"[^A-Za-z0-9]", "", text)[:128] or "Unknown"
