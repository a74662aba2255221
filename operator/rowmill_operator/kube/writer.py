"""Writes one BatchJob's status, seldom enough for the API server and soon enough for people.

    submit(document) → what is new? → how urgent? → wait → one merge patch → nothing new, or again

How long a change waits, counted from the patch before it:

    the first word on a generation       not at all: `observedGeneration` tells that the edit was seen
    another phase, a condition that flips  `BETWEEN_SECONDS`, at once when nothing was written for that long
    counts, rates, reasons               `COUNTS_SECONDS`
    only the wording of a condition      `WORDING_SECONDS`

The latest document wins; those before it are never sent. What the server has is known from the resource at the start,
so that an operator that comes back to an unchanged job writes nothing.

Failure. A patch that fails may have been applied all the same (its reply was lost), so what it spoke of counts as
unknown: the next patch says all of it again, whatever the document says by then. Until then it waits: twice as long
each time, or as long as `Retry-After` says. A resource that is gone (404) ends the writer. Nothing is ever raised to
whoever submits.

Invariant: when `flush()` returned True the server was told the last submitted document, in full.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from typing import Any

from rowmill.tasks import set_within
from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.patches import Document, merge_patch, merged, retouched, touching

BETWEEN_SECONDS = 2.0
COUNTS_SECONDS = 5.0
WORDING_SECONDS = 30.0
BACKOFF_SECONDS = (1.0, 30.0)
RETRY_AFTER_SECONDS = 60.0
"""The longest `Retry-After` that is believed."""

PATCH_TIMEOUT_SECONDS = 10.0
NOT_FOUND = 404

Patch = Callable[[dict[str, Any]], Awaitable[object]]


class Urgency(IntEnum):
    """Of what a document changes."""

    NONE = 0
    WORDING = 1
    COUNTS = 2
    FLIP = 3
    GENERATION = 4


def urgency(told: Document, document: Document) -> Urgency:
    """How urgent it is to tell `document` to who was told `told`."""
    if told.get("observedGeneration") != document.get("observedGeneration"):
        return Urgency.GENERATION
    if told.get("phase") != document.get("phase") or _flips(told) != _flips(document):
        return Urgency.FLIP
    if merge_patch(_without_wording(told), _without_wording(document)) is not None:
        return Urgency.COUNTS
    return Urgency.NONE if merge_patch(told, document) is None else Urgency.WORDING


class StatusWriter:
    """The writer of one resource's status.

    `patch` sends a merge patch *of the status* (`{"phase": …}`, to be put under `status`) to the status subresource;
    what it raises is looked at for `.status` and `.headers`, as the usual clients' errors have them. `current` is the
    resource's status as it was read. `now` is monotonic. `wrote` is called after each try with how it ended: "ok",
    "gone", "failed".
    """

    def __init__(
        self,
        *,
        patch: Patch,
        current: Document | None,
        log: Logger,
        now: Callable[[], float],
        wrote: Callable[[str], None] = lambda _: None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._patch = patch
        self._told: Document = _plain(current or {})
        self._document: Document = self._told
        self._unsure: dict[str, Any] = {}
        self._log = log
        self._now = now
        self._wrote = wrote
        self._jitter = jitter
        self._last = float("-inf")
        self._not_before = float("-inf")
        self._failures = 0
        self._generation: object = self._told.get("observedGeneration")
        self._flushing = 0
        self._gone = False
        self._next: dict[str, Any] | None = None
        self._due = float("inf")
        self._wakes_at = float("-inf")
        self._changed = asyncio.Event()
        self._settled = asyncio.Event()
        self._settled.set()

    @property
    def gone(self) -> bool:
        """Whether the resource is not there any more; nothing is written then."""
        return self._gone

    @property
    def document(self) -> Document:
        """The last submitted document, or the resource's own status before the first."""
        return self._document

    def submit(self, document: Document) -> None:
        """Have `document` written in time; it must not be changed afterwards. Returns at once, never raises."""
        if self._gone:
            return
        self._document = document
        self._plan()
        if self._next is None:
            return  # as the server knows it already; a patch that waited is not needed any more
        self._settled.clear()
        if self._due < self._wakes_at:
            self._changed.set()

    async def run(self) -> None:
        """Write until cancelled, or until the resource is gone."""
        while not self._gone:
            self._changed.clear()
            self._plan()
            wait = self._due - self._now()
            self._wakes_at = self._due
            if self._next is None:
                self._settled.set()
                await self._changed.wait()
            elif wait > 0:
                await set_within(self._changed, wait)
            else:
                await self._send(self._document, self._next)
        self._settled.set()

    async def flush(self, *, timeout: float) -> bool:
        """Wait until the last document is written, without the leisure that counts have; at most `timeout` seconds.

        Returns whether it is (also when the resource is gone). `run` has to be running meanwhile.
        """
        self._flushing += 1
        self._changed.set()
        try:
            async with asyncio.timeout(timeout):
                await self._settled.wait()
        except TimeoutError:
            return False
        finally:
            self._flushing -= 1
        return True

    def _plan(self) -> None:
        """Find what is to be sent next and when; None and never while there is nothing to say.

        That is what is new, and once more what the server may or may not know.
        """
        new = merge_patch(self._told, self._document)
        self._next = merged(retouched(self._unsure, self._document), new or {}) if self._unsure else new
        self._due = self._when() if self._next is not None else float("inf")

    def _when(self) -> float:
        how = urgency(self._told, self._document)
        if how is Urgency.GENERATION and self._document.get("observedGeneration") != self._generation:
            return self._not_before
        pause = BETWEEN_SECONDS
        if not self._flushing and not self._unsure:
            pause = {Urgency.COUNTS: COUNTS_SECONDS, Urgency.WORDING: WORDING_SECONDS}.get(how, BETWEEN_SECONDS)
        return max(self._not_before, self._last + pause)

    async def _send(self, document: Document, patch: dict[str, Any]) -> None:
        self._last = self._now()
        self._generation = document.get("observedGeneration")
        # Until the reply is there it is not known; cancelled in between, it never is.
        self._unsure = touching(self._unsure, patch)
        try:
            async with asyncio.timeout(PATCH_TIMEOUT_SECONDS):
                await self._patch(patch)
        except Exception as error:  # whatever a client may raise: the engine must not hear of it
            self._failed(error)
            return
        self._told, self._unsure = document, {}
        self._failures, self._not_before = 0, float("-inf")
        self._wrote("ok")

    def _failed(self, error: Exception) -> None:
        status = getattr(error, "status", None)
        if status == NOT_FOUND:
            self._gone = True
            self._wrote("gone")
            return
        low, high = BACKOFF_SECONDS
        backoff = min(high, low * 2 ** min(self._failures, 16)) * (0.75 + 0.5 * self._jitter())
        self._failures += 1
        self._not_before = self._now() + max(backoff, _retry_after(error))
        self._wrote("failed")
        if self._failures in (1, 10) or self._failures % 100 == 0:
            self._log.warning(
                "the status could not be written; the latest one is tried again",
                reason=f"{type(error).__name__}: {error}"[:500],
                status=status,
                tries=self._failures,
            )


def _retry_after(error: Exception) -> float:
    """Seconds that the server asked for; 0 when it did not."""
    headers = getattr(error, "headers", None) or {}
    try:
        seconds = float(headers.get("Retry-After") or headers.get("retry-after") or 0)
    except (AttributeError, TypeError, ValueError):
        return 0.0
    return min(max(seconds, 0.0), RETRY_AFTER_SECONDS)


def _plain(value: Any) -> Any:
    """JSON in plain dicts and lists, whatever views a client gives."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


def _flips(document: Document) -> dict[str, str]:
    return {str(one.get("type")): str(one.get("status")) for one in _conditions(document)}


def _without_wording(document: Document) -> dict[str, Any]:
    bare = [{key: value for key, value in one.items() if key != "message"} for one in _conditions(document)]
    return {**document, "conditions": bare}


def _conditions(document: Document) -> list[dict[str, Any]]:
    found = document.get("conditions")
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
