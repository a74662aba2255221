"""Outcomes whose retention is over, a few runs at a time.

What is due, and whether it may be dropped just now, is the ledger's to say (`rowmill.ledger.retention`); here is only
what is done one after the other, and told. A run that is in use is come back to; it holds up no other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rowmill.identity import RunIdentity
from rowmill.ledger import Drop, Ledger
from rowmill.telemetry.logging import Logger

BATCH = 20


@dataclass(frozen=True, slots=True)
class Turn:
    """What one turn did. `more`: there may be others that are due, to be had by another turn."""

    dropped: list[RunIdentity]
    more: bool


class Expiry:
    """Goes through the runs of an installation that are due, `batch` a turn. `dropped` counts them."""

    def __init__(
        self, *, installation: str, log: Logger, dropped: Callable[[], None] = lambda: None, batch: int = BATCH
    ) -> None:
        self._installation = installation
        self._log = log
        self._dropped = dropped
        self._batch = batch
        self._after = 0

    async def turn(self, ledger: Ledger) -> Turn:
        """Try to drop the next few. Raises StoreUnavailable; the next turn goes on behind the run that it met it at."""
        due = await ledger.retention.expired(self._installation, after=self._after, limit=self._batch)
        gone = []
        for record in due:
            self._after = record.id
            did = await ledger.retention.drop(record)
            said = self._log.bind(job=str(record.identity), retention_seconds=record.retention_seconds)
            if did is Drop.DROPPED:
                gone.append(record.identity)
                self._dropped()
                said.info("the results of a run were dropped: their retention is over")
            else:
                said.info("the results of a run are dropped later", reason=did.value)
        more = len(due) == self._batch
        if not more:
            self._after = 0
        return Turn(gone, more)
