"""One run on this machine, from a held state folder to exported results.

Order of the ends, whatever happens: engine, workers (they drain), stores' clients, servers, lock. Interrupts in that
time: the first asks the engine to stop and lets rows in flight finish; the second kills workers, so that rows in
flight run again later; what is recorded is never touched. Kill everything, and the next command with the same state
folder goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rowmill.errors import RowmillError, StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Kept, Ledger, RunRecord
from rowmill.outcome import State as Outcome
from rowmill.results import vectors_of
from rowmill.spec.job import BatchJob
from rowmill.status import Phase, RunStatus
from rowmill.storage import AddressPolicy
from rowmill.tasks import end_tasks
from rowmill.telemetry.logging import Logger, configure_logging
from rowmill.window import Window
from rowmill_cli.errors import InternalError
from rowmill_cli.export import export
from rowmill_cli.interrupts import Interrupts
from rowmill_cli.local.files import open_log
from rowmill_cli.local.fleet import ProcessFleet, end_left_behind
from rowmill_cli.local.servers import Endpoints, LocalServers
from rowmill_cli.local.state import State
from rowmill_cli.local.webhook import tell_webhook
from rowmill_cli.progress import ProgressSink
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.retention import Expiry
from rowmill_operator.engine.run_source import SourcePlaces
from rowmill_operator.results import PartsWriter, Shape, StoreFolder, open_folder
from rowmill_operator.results.upload import in_thread

APPLICATION_NAME = "rowmill-cli"
_WATCH_SECONDS = 1.0
DRAIN_MARGIN_SECONDS = 10.0
"""What a worker may take to drain, over the time that its slowest row may take."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a run ended: `results` were written where it is not None, and not now where they were dropped long ago."""

    status: RunStatus
    interrupted: bool
    results: Path | str | None


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs `job` with local workers. `base` is the folder from which the manifest's relative paths count, `results`
    where outcomes go (a file, or an address of an object store), `columns` and `include` what of them; `say` tells a
    person something between progress and report.
    """

    state: State
    job: BatchJob
    identity: RunIdentity
    base: Path
    results: Path | str
    columns: tuple[str, ...]
    include: tuple[Outcome, ...]
    timeout_seconds: float
    environ: Mapping[str, str]
    sink: ProgressSink
    interrupts: Interrupts
    say: Callable[[str], object]
    log: Logger

    def run(self) -> Ended:
        """Run it to its end, or until interrupted. Raises RowmillError where a person can mend it."""
        with servers_of(self.state, self.environ, self.interrupts, self.say) as (servers, endpoints):
            return asyncio.run(self._run(servers, endpoints))

    async def _run(self, servers: LocalServers, endpoints: Endpoints) -> Ended:
        loop = asyncio.get_running_loop()
        stop, hurry = asyncio.Event(), asyncio.Event()

        def interrupted(count: int) -> None:
            loop.call_soon_threadsafe((stop if count == 1 else hurry).set)

        with self.interrupts.told(interrupted):
            async with contextlib.AsyncExitStack() as ends:
                ledger = await Ledger.connect(endpoints.postgres_dsn, application_name=APPLICATION_NAME)
                ends.push_async_callback(ledger.close)
                await ledger.migrate()
                await self._drop_expired(ledger)
                window = await Window.connect(endpoints.redis_url)
                ends.push_async_callback(window.close)
                keeping = asyncio.create_task(self._keep_alive(servers))
                ends.callback(keeping.cancel)
                parts = await self._parts(ledger)
                if parts is not None:
                    writing = asyncio.create_task(parts.run(stop))
                    ends.push_async_callback(end_tasks, [writing])
                status = await self._drive(ledger, window, endpoints, stop, hurry)
                if status.phase not in (Phase.COMPLETE, Phase.FAILED):  # told to stop, or its budget is used up
                    return Ended(await self._as_recorded(ledger, status), interrupted=stop.is_set(), results=None)
                if parts is not None:
                    await end_tasks([writing])
                if status.dropped_at is not None:
                    return Ended(status, interrupted=False, results=None)
                done = await self._export(ledger, parts)
                place = self.results if parts is None else parts.summary.uri
                if done:
                    await self._tell(ledger, status, place)
                return Ended(status, interrupted=not done, results=place if done else None)

    async def _drop_expired(self, ledger: Ledger) -> None:
        """Drop what runs of this ledger have left for longer than their manifests say; this one's is at hand."""
        installation = self.identity.installation
        expiry = Expiry(installation=installation, log=self.log)
        try:
            mine = Kept(self.identity, self.job.spec.results_retention_seconds)
            await ledger.retention.note(installation, [mine], replace=True)
            more = True
            while more:
                turn = await expiry.turn(ledger)
                more = turn.more
                for run in turn.dropped:
                    self.say(
                        f"the results of {run} were dropped: spec.resultsRetentionSeconds have passed since its end"
                    )
        except StoreUnavailable as error:
            self.log.warning("results whose retention is over cannot be dropped now; tried again", reason=str(error))

    async def _tell(self, ledger: Ledger, status: RunStatus, place: Path | str) -> None:
        """Tell the webhook, whose trouble is never the run's."""
        await tell_webhook(
            self.job,
            self.identity,
            status,
            results=place if isinstance(place, str) else None,
            ledger=ledger,
            environ=self.environ,
            interrupts=self.interrupts,
            say=self.say,
            log=self.log,
        )

    async def _parts(self, ledger: Ledger) -> PartsWriter | None:
        """What writes to an object store, with the credentials of this environment; None where a file is written."""
        if isinstance(self.results, Path):
            return None
        threads = ThreadPoolExecutor(2, thread_name_prefix="results")
        folder = await in_thread(threads, self._folder)
        return PartsWriter(
            identity=self.identity,
            runs=ledger.runs,
            folder=folder,
            shape=Shape(
                self.job.spec.output.effective_format,
                frozenset(self.include),
                self.columns,
                vectors_of(self.job.spec),
            ),
            log=self.log,
            threads=threads,
        )

    def _folder(self) -> StoreFolder:
        return open_folder(
            str(self.results),
            self.identity.run_id,
            credentials=None,
            ambient=True,
            policy=AddressPolicy.everything(),
        )

    async def _as_recorded(self, ledger: Ledger, status: RunStatus) -> RunStatus:
        """The engine's last status with what the workers recorded since, while they drained."""
        with contextlib.suppress(StoreUnavailable):
            record = await ledger.find_run(self.identity)
            if record is not None:
                counts = await ledger.runs.progress(record)
                return replace(
                    status,
                    succeeded=counts.succeeded,
                    failed=counts.failed,
                    deduplicated=counts.deduplicated,
                    retried=counts.retried,
                    errors=await ledger.runs.error_counts(record),
                    spend=(await ledger.spending.of(record)).spent,
                )
        return status

    async def _drive(
        self, ledger: Ledger, window: Window, endpoints: Endpoints, stop: asyncio.Event, hurry: asyncio.Event
    ) -> RunStatus:
        fleet = ProcessFleet(
            job_file=self.state.job_file,
            base=self.base,
            installation=self.identity.installation,
            endpoints=endpoints,
            logs=self.state.logs,
            records_file=self.state.workers_file,
            environ=self.environ,
            grace_seconds=self.timeout_seconds + DRAIN_MARGIN_SECONDS,
        )
        engine = Engine(
            job=self.job,
            identity=self.identity,
            ledger=ledger,
            window=window,
            fleet=fleet,
            sink=self.sink,
            places=SourcePlaces(base=self.base, cache=self.state.cache),
            log=self.log,
            output_pending=True,
            resumed_at=time.time(),
        )
        watchers = [
            asyncio.create_task(self._on_stop(stop, fleet)),
            asyncio.create_task(self._on_hurry(hurry)),
        ]
        driving = asyncio.create_task(engine.run(stop=stop))
        watchers += [
            asyncio.create_task(_cancel_on(hurry, driving)),
            asyncio.create_task(_cancel_on(fleet.refused, driving)),
        ]
        try:
            with self.sink:
                try:
                    status = await driving
                except asyncio.CancelledError:
                    if not hurry.is_set() and not fleet.refused.is_set():
                        raise
                    status = self.sink.last
                finally:
                    await fleet.close(hurry=hurry)
        finally:
            for watcher in watchers:
                watcher.cancel()
        if fleet.refused.is_set() and not stop.is_set():
            raise RowmillError(await fleet.failure() or "workers refuse the job")
        return status

    async def _export(self, ledger: Ledger, parts: PartsWriter | None) -> bool:
        """Write the results; False where an interrupt came first."""
        record = await ledger.find_run(self.identity)
        if record is None:
            raise RowmillError(f"the ledger does not know the run {self.identity}: was its database emptied meanwhile?")
        if parts is not None:
            work: asyncio.Task[object] = asyncio.create_task(parts.finish())
        else:
            work = asyncio.create_task(self._write_file(ledger, record))
        loop = asyncio.get_running_loop()
        with self.interrupts.told(lambda count: void(loop.call_soon_threadsafe(work.cancel))):
            try:
                await work
            except asyncio.CancelledError:
                return False
        return True

    async def _write_file(self, ledger: Ledger, record: RunRecord) -> None:
        async with contextlib.aclosing(ledger.results(record)) as pages:
            await export(
                pages,
                Path(self.results),
                columns=self.columns,
                include=self.include,
                vectors=vectors_of(self.job.spec),
            )
        await ledger.runs.output_written(record)

    async def _keep_alive(self, servers: LocalServers) -> None:
        """Start a server of ours again that has ended (out of memory, say); engine and workers wait for it."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                # Here and not in a thread: a program ends with the thread that started it.
                for name in servers.revive():
                    self.say(f"the local {name} had ended; it was started again")
                    self.log.warning("a local server had ended; it was started again", server=name)
            except RowmillError as error:
                self.log.error("a local server had ended and cannot be started", reason=str(error))

    async def _on_stop(self, stop: asyncio.Event, fleet: ProcessFleet) -> None:
        await stop.wait()
        fleet.stop()
        self.say("stopping: rows in flight may finish; Ctrl-C again cuts them off")

    async def _on_hurry(self, hurry: asyncio.Event) -> None:
        await hurry.wait()
        self.say("cutting off the rows in flight: they run again when the run goes on")


@contextlib.contextmanager
def servers_of(
    state: State,
    environ: Mapping[str, str],
    interrupts: Interrupts,
    say: Callable[[str], object],
    *,
    needs_redis: bool = True,
) -> Iterator[tuple[LocalServers, Endpoints]]:
    """The stores of a held state folder, after what a killed command left behind in it has been ended."""
    if state.workers_file.exists():
        with contextlib.suppress(FileNotFoundError):
            left = end_left_behind(state.workers_file)
            if left:
                say(f"ended {left} worker(s) that an interrupted command had left behind")
    servers = LocalServers(state.servers, environ=environ, needs_redis=needs_redis)
    with contextlib.ExitStack() as ends:
        ends.callback(lambda: _stop_shielded(servers, interrupts))
        yield servers, servers.__enter__()


@contextlib.contextmanager
def kept_log(state: State) -> Iterator[Logger]:
    """Send this process's log to the state folder, and with it the traceback of whatever nobody foresaw."""
    path = state.logs / "rowmill.log"
    with open_log(path) as raw, open(raw.fileno(), "w", encoding="utf-8", closefd=False, buffering=1) as stream:
        log, _ = configure_logging(stream=stream, json=True)
        try:
            yield log
        except (RowmillError, KeyboardInterrupt, BrokenPipeError):
            raise
        except Exception as error:
            stream.write(traceback.format_exc())
            raise InternalError(path) from error


def _stop_shielded(servers: LocalServers, interrupts: Interrupts) -> None:
    with interrupts.noted():
        servers.stop()


async def _cancel_on(event: asyncio.Event, task: asyncio.Task[Any]) -> None:
    await event.wait()
    task.cancel()


def void(value: object) -> None:
    """Drop a value, where a callback must return nothing."""
