"""A run's webhook, told by the command that ran it.

The end is recorded in the ledger before it is told, so that a notification which nobody took is told by the next
command with this state, under the same id. A command waits a few seconds for it, and never fails by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, Notices
from rowmill.spec.job import BatchJob
from rowmill.spec.source import KeyReference
from rowmill.status import RunStatus
from rowmill.storage import AddressPolicy
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger
from rowmill_cli.interrupts import Interrupts
from rowmill_operator.kube.status import Output, status_document
from rowmill_operator.notify import Courier, Poster, Said
from rowmill_worker.executors.secrets import SecretReader

WAIT_SECONDS: Final = 5.0
"""How long a command waits for a webhook after its run."""


async def tell_webhook(
    job: BatchJob,
    identity: RunIdentity,
    status: RunStatus,
    *,
    results: str | None,
    ledger: Ledger,
    environ: Mapping[str, str],
    interrupts: Interrupts,
    say: Callable[[str], object],
    log: Logger,
    wait: float = WAIT_SECONDS,
) -> None:
    """Tell the end of a run, and what earlier commands could not tell. `results` is an address others can read.

    An interrupt ends the waiting. Nothing is raised for a webhook that cannot be told: `say` tells a person.
    """
    if job.spec.notify is None:
        return
    last: dict[int, Said] = {}

    async def notices() -> Notices:
        return ledger.notices

    async def secret(reference: KeyReference, path: str) -> str:
        reader = SecretReader(environ=environ, where=f"{identity.namespace}/{identity.name}")
        return reader.from_secret(reference.name, reference.key, path=path)

    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as ends:
        threads = ThreadPoolExecutor(1, thread_name_prefix="names")
        ends.callback(threads.shutdown, wait=False, cancel_futures=True)
        courier = Courier(
            notices=notices,
            installation=identity.installation,
            namespace=identity.namespace,
            name=identity.name,
            poster=Poster(
                policy=AddressPolicy.everything(),
                threads=threads,
                slots=asyncio.Semaphore(1),
                wall=time.time,
                timeout=wait,
            ),
            said=lambda said: last.update({said.notice.id: said}),
            log=log,
        )
        courier.follow(job.spec.notify, secret)
        courier.saw(
            status_document(
                status,
                run_id=identity.run_id,
                observed_generation=1,
                now=time.time(),
                output=Output(results) if results is not None else None,
                started_at=status.started_at,
                ended_at=status.ended_at,
            )
        )
        telling = asyncio.create_task(courier.run())
        waiting = asyncio.create_task(courier.ended(within=wait))
        try:
            with interrupts.told(lambda count: _void(loop.call_soon_threadsafe(waiting.cancel))):
                await asyncio.wait([waiting])
        finally:
            await end_tasks([waiting, telling])
    for said in last.values():
        _tell(said, say, log)
    if not courier.all_ended and not last:
        say("the webhook was not told: there was no time for it; the next command with this state tells it")


def _tell(said: Said, say: Callable[[str], object], log: Logger) -> None:
    fields = {"run": str(said.notice.identity), "notification": said.notice.uid, "webhook": said.place}
    if said.ended == "delivered":
        log.info("the webhook was told", **fields)
        return
    log.warning("the webhook was not told", reason=said.problem, **fields)
    again = "It is not told again" if said.ended == "failed" else "The next command with this state tells it"
    say(f"{said.place} was not told of {said.notice.event}: {said.problem}. {again}")


def _void(value: object) -> None:
    """Drop a value, where a callback must return nothing."""
