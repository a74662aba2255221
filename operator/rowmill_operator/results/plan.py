"""Which parts of a run are to be looked at, and where: kept for one epoch of the run and one total.

Settled parts are not in it, so that a look costs what is open, however much is written already.
"""

from __future__ import annotations

from collections import deque

from rowmill.ledger import RangeCounts, RunRecord
from rowmill_operator.results.checkpoint import Checkpoint, Trust, trust
from rowmill_operator.results.layout import Span, parts_up_to, span_of


class Plan:
    """Which parts are to be looked at in one epoch of a run, while its total stays what it is."""

    def __init__(self, record: RunRecord, state: Checkpoint) -> None:
        self.record = record
        self.state = state
        self._known = 0
        self.open: list[int] = []
        self.doubtful: deque[int] = deque()
        self.witness: dict[int, int] = {}
        """A row of an open part that had no outcome when it was looked up."""
        self.counts: RangeCounts | None = None
        self.more = False

    def fits(self, record: RunRecord, state: Checkpoint) -> bool:
        """Whether it goes on for this record and checkpoint."""
        mine = self.record
        return state is self.state and (mine.id, mine.generation, mine.epoch, mine.total) == (
            record.id,
            record.generation,
            record.epoch,
            record.total,
        )

    def span(self, index: int) -> Span:
        return span_of(index, part_rows=self.state.part_rows, total=self.record.total)

    def extend(self, last: int) -> None:
        """Take the parts of rows up to `last` in."""
        count = parts_up_to(last, part_rows=self.state.part_rows)
        for index in range(self._known, count):
            found = trust(
                self.state.parts.get(index),
                self.span(index),
                generation=self.record.generation,
                epoch=self.record.epoch,
            )
            if found is Trust.OPEN:
                self.open.append(index)
            elif found is Trust.DOUBTFUL:
                self.doubtful.append(index)
        self._known = max(self._known, count)

    def reopen(self, index: int) -> None:
        if index not in self.open:
            self.open.append(index)
            self.open.sort()
