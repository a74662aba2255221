"""A key that is wrong must not cost a job all its rows: refusals in a row are held in doubt, and ten are a storm.

What counts is a final refusal that speaks of the credentials or the account and not of the row (`REFUSALS`). One of
them may still be about its row alone (a row that this key may not read), and only what comes next can tell.

States:

- unproven: nobody has been let in yet. At most ten rows are sent, until the first is let in, or until calls have been
  under way for `UNPROVEN_SECONDS` and none was refused (an endpoint that takes long to answer, but not to refuse).
- calm: somebody was let in, and nothing was refused since. Any number may be sent.
- doubt: up to nine were refused in a row. Their rows are held, and no more is sent than could still be refused before
  there are ten. Whoever is let in ends it: those rows fail, as they would have. Where nothing is left to be sent, it
  ends `QUIET_SECONDS` after the last refusal: a job of three rows with a wrong key is three failed rows. Their refusals
  go on counting.
- storm: ten in a row. Nothing was wrong with the rows: they go back, and so does each that is refused from here on.
  This worker sends nothing any more: whoever tries again is a worker that begins anew, with credentials read anew.

Failures that an endpoint did not answer, or that may pass by themselves (a timeout, 429, 503), change nothing: a proxy
may tell them before it looks at a key.

Invariant: a row that is held leaves once, to fail or to go back; fewer than ten are held; and an endpoint that refuses
from the first call on gets ten calls, however many slots there are.

Pure: nothing here sleeps or reads a clock. Times are seconds of any clock.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final, Generic, TypeVar

from rowmill_worker.executors.protocol import RowError

Row = TypeVar("Row")

STORM: Final = 10
"""Refusals in a row."""
UNPROVEN_SECONDS: Final = 2.0
QUIET_SECONDS: Final = 5.0

REFUSALS: Final = frozenset({"HTTP401", "HTTP402", "HTTP403", "HTTP407", "ProviderNotConfigured", "QuotaExceeded"})
"""Classes of a refusal that may be meant for every row: the credentials are not taken, or the account is exhausted."""
_NOBODY_ANSWERED: Final = frozenset({"CertificateError", "InvalidRedirect", "TooManyRedirects"})
"""Final failures, of calls that came to no answer of the endpoint itself."""


class Says(Enum):
    """What the end of an attempt says of the credentials."""

    LET_IN = auto()
    REFUSED = auto()
    NOTHING = auto()


def says(error: RowError) -> Says:
    """What a failure says; of a success it is `LET_IN`."""
    if error.retryable or not error.spent or error.error_class in _NOBODY_ANSWERED:
        return Says.NOTHING
    return Says.REFUSED if error.error_class in REFUSALS else Says.LET_IN


class Denials(Generic[Row]):
    """One worker's doubt. Whoever is told of rows to fail or to put back does so at once.

    `cautious`: begins unproven; else calm, for an executor that shows no key to anybody.
    """

    __slots__ = ("_held", "_last", "_since", "calm", "refused", "storm")

    def __init__(self, *, cautious: bool) -> None:
        self._held: list[Row] = []
        self._last = 0.0
        self._since: float | None = None
        self.calm = not cautious
        """Any number of rows may be sent, and nothing is held: whoever was let in need not be told of."""
        self.refused = 0
        """Refusals in a row."""
        self.storm = False

    @property
    def held(self) -> int:
        """Rows in doubt."""
        return len(self._held)

    def admits(self, others: int) -> bool:
        """Whether a row may be sent beside `others` that are under way."""
        return self.calm or self.refused + others < STORM

    def deny(self, row: Row, now: float) -> list[Row]:
        """A row was refused. It is held, and nothing is returned; or there is a storm, and these rows go back."""
        self.calm = False
        self._last = now
        self.refused += 1
        self._held.append(row)
        if self.refused < STORM:
            return []
        self.storm = True
        return self._release()

    def let_in(self) -> list[Row]:
        """Somebody was let in. These rows fail."""
        if self.storm:
            return []
        self.calm = True
        self.refused = 0
        return self._release()

    def tick(self, now: float, *, under_way: int, waiting: int) -> list[Row]:
        """Time passed, while so many rows are under way and so many wait to be. These rows fail."""
        if self.calm or self.storm:
            return []
        if self.refused:
            over = not under_way and not waiting and now - self._last >= QUIET_SECONDS
            return self._release() if over else []
        if not under_way:
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= UNPROVEN_SECONDS:
            self.calm = True
        return []

    def withdraw(self) -> list[Row]:
        """Nobody can decide on the rows that are held any more: they go back, and whatever becomes of them is told by
        their next call."""
        if not self.storm:
            self.refused -= len(self._held)
        return self._release()

    def _release(self) -> list[Row]:
        rows, self._held = self._held, []
        return rows
