"""The rows whose calls were refused, until it is known whether the rows were at fault or the credentials.

Between `denials.py`, which decides, and the two ways that a row has from here: its failure to the committer, or back
into the window as if it had not been sent. The refused call of a row that goes back is no attempt: what the row may
still have (`spec.retry.maxAttempts`) is not used up by a key that was wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rowmill_worker.denials import STORM, Denials
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.held import HeldRow

BACK_SECONDS = 1.0


class Doubt:
    """One worker's. `is_ours` tells whether the claim on a row still stands; `storm` is told class and message of the
    last refusal, once a storm."""

    def __init__(
        self,
        *,
        denials: Denials[HeldRow],
        is_ours: Callable[[HeldRow], bool],
        commit: Callable[[HeldRow], None],
        put_back: Callable[[Sequence[HeldRow]], None],
        handed_back: Callable[[Sequence[HeldRow], str], None],
        storm: Callable[[str, str], None],
    ) -> None:
        self._denials = denials
        self._is_ours = is_ours
        self._commit = commit
        self._put_back = put_back
        self._handed_back = handed_back
        self._storm = storm
        self.denied: str | None = None
        """Why nothing is sent, as a sentence; None while it is."""

    def refused(self, row: HeldRow, error: RowError, now: float) -> None:
        """A row whose outcome would be this failure."""
        was_storm = self._denials.storm
        back = self._denials.deny(row, now)
        if back:
            self.put_back(back, BACK_SECONDS)
        if self._denials.storm and not was_storm:
            self._handed_back(back, "the endpoint refuses every call, whichever row it is for")
            # Not its words: they may quote a row, and this goes into the resource's status.
            self.denied = (
                f"the endpoint refused {STORM} calls in a row, the last one with {error.error_class}; the worker's log "
                "quotes it"
            )
            self._storm(error.error_class, error.message)

    def let_in(self) -> None:
        """A call was not refused."""
        self._fail(self._denials.let_in())

    def tick(self, now: float, *, under_way: int, waiting: int) -> None:
        """Time passed."""
        self._fail(self._denials.tick(now, under_way=under_way, waiting=waiting))

    def _fail(self, rows: list[HeldRow]) -> None:
        for row in rows:
            if self._is_ours(row):
                self._commit(row)
            else:
                self.put_back([row], 0.0)

    def withdraw(self) -> list[HeldRow]:
        """Every row in doubt, as it was before it was sent; whoever asks puts them back."""
        return _unsent(self._denials.withdraw())

    def put_back(self, rows: list[HeldRow], delay: float) -> None:
        """Rows that were refused, as they were before they were sent, again after `delay` seconds."""
        for row in _unsent(rows):
            row.delay = delay
        self._put_back(rows)


def _unsent(rows: list[HeldRow]) -> list[HeldRow]:
    for row in rows:
        row.outcome = None
        row.attempts -= 1
    return rows
