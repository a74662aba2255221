"""What the engine drives and tells, without knowing whether it is Kubernetes or processes on this machine."""

from __future__ import annotations

from typing import Protocol

from rowmill.status import RunStatus


class Fleet(Protocol):
    """The workers of one run."""

    def wants(self, desired: int) -> int:
        """How many workers there are to be where the engine would have `desired`: as many, unless their number is
        somebody else's to say. 0 stays 0."""
        ...

    async def scale(self, desired: int) -> None:
        """Have `desired` workers, soon. Idempotent; called every tick, so that dead ones are replaced."""
        ...

    async def ready(self) -> int:
        """How many workers run and are ready now."""
        ...

    async def failure(self) -> str | None:
        """Why workers cannot be had or end at once (a person's sentence), or None."""
        ...


class StatusSink(Protocol):
    """Where a run's status goes: a resource's status, a progress bar."""

    async def report(self, status: RunStatus) -> None: ...
