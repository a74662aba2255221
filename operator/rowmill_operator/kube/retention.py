"""`spec.resultsRetentionSeconds`, by the operator that leads: results are dropped, jobs are told, nothing is held up.

    a turn: the next few runs that are due are dropped → jobs at rest are compared with the ledger

A job at rest has no engine to say how long its run is kept, or to notice that it was dropped. So each is looked up once
after this operator has begun, and again when a run of its name was dropped: the ledger learns what its manifest says
where it does not know, and the job is told what has happened to its results.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from rowmill.errors import RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Kept, Ledger
from rowmill.telemetry.logging import Logger
from rowmill_operator.engine.retention import Expiry
from rowmill_operator.kube.controller import JobController
from rowmill_operator.kube.hub import Hub
from rowmill_operator.kube.stores import Stores

LOOK_SECONDS = 60.0
BETWEEN_SECONDS = 1.0
"""Between turns while there is more to drop."""
JOBS_AT_ONCE = 200


async def keep_retention(
    hub: Hub, *, stores: Stores, installation: str, log: Logger, dropped: Callable[[], None]
) -> None:
    """Look every minute, until cancelled. `dropped` counts runs.

    Not at once: a manifest that was edited while no operator was there is seen before anything is dropped by the word
    of the one before.
    """
    expiry = Expiry(installation=installation, log=log, dropped=dropped)
    known: set[str] = set()
    more = False
    while True:
        await asyncio.sleep(BETWEEN_SECONDS if more else LOOK_SECONDS)
        more = False
        try:
            ledger, _ = await stores.get()
            turn = await expiry.turn(ledger)
            more = turn.more
            names = {(run.namespace, run.name) for run in turn.dropped}
            known = {one.uid for one in hub.controllers if one.uid in known and (one.namespace, one.name) not in names}
            await _compare(hub.controllers, known, ledger=ledger, installation=installation)
        except RowmillError as error:
            log.warning("results whose retention is over cannot be dropped now; tried again", reason=str(error))
        except Exception:
            log.exception("results whose retention is over cannot be dropped; tried again")


async def _compare(jobs: Sequence[JobController], known: set[str], *, ledger: Ledger, installation: str) -> None:
    """Look up the jobs at rest that are not in `known`, and add them to it."""
    resting: list[tuple[JobController, Kept]] = []
    for job in jobs:
        if job.uid not in known and (kept := job.kept()) is not None:
            resting.append((job, kept))
            await asyncio.sleep(0)  # a manifest was parsed: others first
    for start in range(0, len(resting), JOBS_AT_ONCE):
        block = resting[start : start + JOBS_AT_ONCE]
        gone: dict[RunIdentity, float] = await ledger.retention.note(installation, [kept for _, kept in block])
        for job, kept in block:
            if (at := gone.get(kept.identity)) is not None:
                job.results_dropped(kept.identity, at)
        known.update(job.uid for job, _ in block)
