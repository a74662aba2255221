"""Take a run out of the window though it is not over: its resource was deleted, or another run took its place.

The ledger keeps what was done; the same run goes on from it when its manifest is applied again. First the lead is
taken and a new term begun, so that whoever drove the run before writes nothing any more; then the window's keys go.
Scripts of workers that still run find no open epoch and change nothing.
"""

from __future__ import annotations

import contextlib

from rowmill.errors import StoreUnavailable
from rowmill.ledger import Ledger, RunRecord
from rowmill.status import Phase
from rowmill.window import Window
from rowmill_operator.engine.lifecycle import ended


async def close_run(record: RunRecord, *, ledger: Ledger, window: Window, why: str) -> None:
    """Close a run's window; a run that has ended stays as it is, any other becomes Suspended with `why`. Nobody writes
    its results elsewhere any more, so that from now on they are kept for their retention and not longer.

    May be repeated. Raises StateInUse (another engine drives it), StoreUnavailable, Superseded.
    """
    if record.dropped_at is not None or (record.epoch == 0 and record.phase is Phase.PENDING):
        return
    await ledger.leadership.take(record.id)
    try:
        record = await ledger.runs.take_over(record.id)
        await window.feed(token=record.token, shards=record.shards).close(record.epoch)
        await ledger.runs.output_written(record)
        if not ended(record.phase):
            await ledger.runs.save_phase(record, Phase.SUSPENDED, why)
    finally:
        with contextlib.suppress(StoreUnavailable):
            await ledger.leadership.release(record.id)
