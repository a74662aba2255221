"""What of a run's limits holds in its group: looked up every few seconds while rows run, and told with the status.

Workers obey the lowest numbers of a group whoever set them; here a person is told that they do, on the job that is
held up and on the one that holds it up. A look changes nothing. A Redis that is away is no trouble of this look's: what
was seen last is told on.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.limits import GroupLimits, LimitsTold
from rowmill.spec import Spec
from rowmill.window import LimitsLook, Window

LOOK_SECONDS: Final = 3.0
"""Between two looks, at least."""

LookUp = Callable[[], Awaitable[LimitsTold | None]]
"""What is told of the limits now; never raises what Redis does."""


async def no_limits() -> None:
    """Of a run without limits."""


def limits_watch(spec: Spec, identity: RunIdentity, *, window: Window, now: Callable[[], float]) -> LookUp:
    """How the engine of this run looks; a simulated run takes no permits and has no limits."""
    if spec.limits is None or spec.mode == "Simulate":
        return no_limits
    group = spec.limits.group
    return LimitsWatch(
        books=window.limits_look(installation=identity.installation, namespace=identity.namespace, group=group),
        group=group,
        namespace=identity.namespace,
        job=identity.name,
        own=GroupLimits(
            spec.limits.requests_per_minute or 0, spec.limits.tokens_per_minute or 0, spec.limits.max_in_flight or 0
        ),
        now=now,
        every=LOOK_SECONDS,
    ).look


class LimitsWatch:
    """Looks for one run. `now` is monotonic; `job` and the jobs that are named lie in `namespace`, as groups do."""

    def __init__(
        self,
        *,
        books: LimitsLook,
        group: str,
        namespace: str,
        job: str,
        own: GroupLimits,
        now: Callable[[], float],
        every: float,
    ) -> None:
        self._books = books
        self._namespace = namespace
        self._job = job
        self._now = now
        self._every = every
        self._next = float("-inf")
        self._told = LimitsTold(group, own, own)

    async def look(self) -> LimitsTold:
        """What holds, as seen within the last seconds; before the first look the manifest's own numbers."""
        if self._now() >= self._next:
            try:
                found = await self._books.standing(self._job, self._told.own)
            except StoreUnavailable:
                pass  # whoever needs Redis to go on says so
            else:
                self._told = LimitsTold(
                    self._told.group,
                    self._told.own,
                    found.held,
                    tuple(f"{self._namespace}/{name}" for name in found.lowered_by),
                    tuple(f"{self._namespace}/{name}" for name in found.lowers),
                )
            self._next = self._now() + self._every
        return self._told
