"""Whether a row may be sent now: asked once it has a slot, before anything else happens to it.

States of a row here: has a slot → waits for a pass → passed → its call ended (`over`) or was never sent (`unused`). A
row that gets no pass has lost nothing: no attempt is spent, and nothing was taken that somebody would have to return.

There may be several to ask. They are asked in turn; as soon as one refuses, the passes of those before it go back
unused, so that nobody is charged for a row that another one stopped.

Invariant: of every pass exactly one of `over` and `unused` is called, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.grants import Grant, Grants
from rowmill_worker.held import HeldRow

_PAUSES = frozenset({"HTTP429", "HTTP503", "RateLimited"})
"""Failures whose Retry-After is meant for everybody."""
CUT_OFF: Final = "Cancelled"
"""The error class of a call that was cut off as its worker stops. It is told to passes alone and is never a row's: the
row is put back."""


class Pass(Protocol):
    """A row may be sent now. Exactly one of these is called, once; neither raises."""

    def over(self, attempt: Attempt, error: RowError | None) -> None:
        """The call ended; `error` is None when it was answered, and `attempt.usage` what it used, where that is known.

        Called also for a call that was cancelled, and never for one that was not sent.
        """
        ...

    def unused(self) -> None:
        """Nothing was sent."""
        ...


class Permits(Protocol):
    """Whoever has a say in whether a row is sent."""

    @property
    def waits_for(self) -> str:
        """What a row waits for, for a message: "a permit of its limits group"."""
        ...

    async def take(self, row: HeldRow, *, within: float) -> Pass | None:
        """Wait for a pass, at most `within` seconds. None: not in time, or refused; then nothing was taken, also when
        this is cancelled."""
        ...

    def refuse_waiting(self) -> None:
        """Every row that waits now gets None: its worker stops, or its claims are gone."""
        ...


class GroupPermits:
    """The permits of a limits group. `tokens` tells what the call of a row may cost at most.

    A permit goes stale within a second: among several permits the group is asked last.
    """

    waits_for = "a permit of its limits group"

    def __init__(self, grants: Grants, *, tokens: Callable[[HeldRow], int]) -> None:
        self._grants = grants
        self._tokens = tokens

    async def take(self, row: HeldRow, *, within: float) -> Pass | None:
        grant = await self._grants.take(self._tokens(row), within=within)
        return None if grant is None else _GroupPass(self._grants, grant)

    def refuse_waiting(self) -> None:
        self._grants.refuse_waiting()


class _GroupPass:
    __slots__ = ("_grant", "_grants")

    def __init__(self, grants: Grants, grant: Grant) -> None:
        self._grants = grants
        self._grant = grant

    def over(self, attempt: Attempt, error: RowError | None) -> None:
        """Tell what it used, and whether the endpoint wants to be left alone."""
        usage = attempt.usage
        used = usage.input_tokens + usage.output_tokens if usage is not None and usage.requests else None
        pause = error.retry_after if error is not None and error.error_class in _PAUSES else None
        self._grants.end(self._grant, used=used, pause=pause or 0.0)

    def unused(self) -> None:
        self._grants.give_back(self._grant)


class AllOf:
    """Several permits, all of which a row needs, asked in the order given. `now` is in seconds."""

    def __init__(self, *parts: Permits, now: Callable[[], float]) -> None:
        self._parts = parts
        self._now = now
        self._refusals = 0

    @property
    def waits_for(self) -> str:
        return " and ".join(part.waits_for for part in self._parts)

    async def take(self, row: HeldRow, *, within: float) -> Pass | None:
        until = self._now() + within
        refusals = self._refusals
        passes: list[Pass] = []
        complete = False
        try:
            for part in self._parts:
                one = await part.take(row, within=max(until - self._now(), 0.0))
                if one is not None:
                    passes.append(one)
                if one is None or self._refusals != refusals:  # it may have been between two parts, waiting for neither
                    return None
            complete = True
            return _AllPasses(passes)
        finally:
            if not complete:
                for one in passes:
                    one.unused()

    def refuse_waiting(self) -> None:
        self._refusals += 1
        for part in self._parts:
            part.refuse_waiting()


class _AllPasses:
    __slots__ = ("_passes",)

    def __init__(self, passes: list[Pass]) -> None:
        self._passes = passes

    def over(self, attempt: Attempt, error: RowError | None) -> None:
        for one in self._passes:
            one.over(attempt, error)

    def unused(self) -> None:
        for one in self._passes:
            one.unused()
