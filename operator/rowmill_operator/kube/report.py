"""What is told of one job: its status, and an event whenever that becomes another.

The engine reports snapshots; the controller adds what only it knows: a trouble that it met, the generation that was
seen, the image, where the results are. A run whose ledger is complete is not told to be before its results are written
and its workers are told to go: whoever waits for `Complete` may read them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from rowmill.status import Phase, RunStatus
from rowmill.telemetry.logging import Logger
from rowmill_operator.engine.lifecycle import ended, message_of_dropped
from rowmill_operator.kube.conditions import Reason, Trouble, telling
from rowmill_operator.kube.events import EventRecorder, Involved
from rowmill_operator.kube.limits_events import LimitsEvents
from rowmill_operator.kube.status import Output, Workers, status_document
from rowmill_operator.kube.told import Told
from rowmill_operator.kube.writer import StatusWriter

_OF_OUTPUT = (Reason.OUTPUT_UNAVAILABLE, Reason.SECRET_MISSING)
"""What keeps results from being written; said until they are."""


class JobReport:
    """Implements the engine's `StatusSink`. `now` is monotonic, `wall` seconds since the epoch. `said` is given every
    status document."""

    def __init__(
        self,
        *,
        involved: Involved,
        writer: StatusWriter,
        events: EventRecorder,
        now: Callable[[], float],
        wall: Callable[[], float],
        fleet_trouble: Callable[[], Trouble | None],
        log: Logger,
        said: Callable[[Mapping[str, Any]], None] = lambda _: None,
    ) -> None:
        self._involved = involved
        self._writer = writer
        self._events = events
        self._now = now
        self._wall = wall
        self._fleet_trouble = fleet_trouble
        self._log = log
        self._said = said
        self._classes: set[str] = set()
        self._limits = LimitsEvents(involved, events)
        self._trouble: Trouble | None = None
        self._output_trouble: Trouble | None = None
        self._since: dict[str, float] = {}
        self._deleting = False
        self._writing = False
        self.run = RunStatus()
        self.run_id = "1"
        self.generation = 1
        self.workers = Workers()
        self.output: Output | None = None
        self.output_problem: Callable[[], str | None] = _nothing

    def begin(self, *, generation: int) -> None:
        """A generation of the manifest was seen; what was in the way of the one before is forgotten.

        An end or a pause was the one before's: this one has not said yet what it asks for. What is in the way of this
        one stays so while it is tried again: it would come and go with every try, and never be said to last.
        """
        if generation != self.generation:
            self._trouble, self._output_trouble = None, None
            if self.run.phase is not Phase.RUNNING:
                self.run = replace(self.run, phase=Phase.PENDING, message="")
        self.generation = generation
        self._writing, self.output_problem = False, _nothing

    def resume(self, told: Told, *, generation: int, run_id: str) -> None:
        """Go on from what the resource was told by whoever watched it before."""
        self.run, self._trouble = told.run, told.trouble
        self._limits.known(told.run.limits)
        self.generation, self.run_id = generation, run_id

    def concerns(self, run_id: str) -> None:
        """The manifest is of this run; what another did is not told any more."""
        if run_id != self.run_id:
            self.run, self.output, self.workers = RunStatus(), None, Workers()
            self._classes.clear()
        self.run_id = run_id

    async def report(self, status: RunStatus) -> None:
        """The engine's word. The end of a run is kept back until `finished`."""
        self.run = replace(status, phase=Phase.RUNNING) if ended(status.phase) else status
        if not ended(status.phase):
            self._trouble = None
        self._log_errors(status)
        self.tell()

    def _log_errors(self, status: RunStatus) -> None:
        """One line for each class of errors, with a row that ended so, named as worker and endpoint name it."""
        for error in status.errors:
            if error.error_class not in self._classes:
                self._classes.add(error.error_class)
                run = f"{self._involved.namespace}/{self._involved.name}/{self.run_id}"
                row = f"{run}#{error.example_row}.{status.generation}"
                self._log.warning("rows failed", error_class=error.error_class, rows=error.count, row=row)

    def met(self, trouble: Trouble) -> None:
        """Something is in the way that the engine does not know of."""
        self._trouble = trouble
        self.tell()

    def output_trouble(self, trouble: Trouble | None) -> None:
        """Results cannot be written, or (None) they can again; rows go on all the same."""
        self._output_trouble = trouble
        self.tell()

    def writing_results(self) -> None:
        """The run is over; its results are still being written."""
        if self._trouble is None or self._trouble.reason not in _OF_OUTPUT:
            self._trouble = self._output_trouble
        self._output_trouble, self._writing = None, True
        self.tell()

    def finished(self, status: RunStatus) -> None:
        """The run is over, with all that belongs to it."""
        self.run = status
        self._trouble, self._writing = None, False
        self.tell()

    def dropped(self, at: float) -> None:
        """The outcomes of a run that was told to be over are gone since `at`."""
        if self.run.dropped_at is None:
            said = message_of_dropped(self.run.phase, self.run.message, failed=self.run.failed, dropped_at=at)
            self.run = replace(self.run, dropped_at=at, message=said)
            self.tell()

    def deleting(self) -> None:
        """The resource is being deleted."""
        self._deleting = True
        self.tell()

    def tell(self) -> None:
        """Have the status written as it is now, and an event if it says something new."""
        trouble = self._trouble or self._passing_trouble()
        document = status_document(
            self.run,
            run_id=self.run_id,
            observed_generation=self.generation,
            now=self._wall(),
            previous=self._writer.document,
            trouble=self._lasting(trouble),
            reason=Reason.WRITING_RESULTS if self._writing else None,
            message="every row has its outcome; the results are being written" if self._writing else "",
            deleting=self._deleting,
            workers=self.workers,
            output=self.output,
            started_at=self.run.started_at,
            ended_at=self.run.ended_at,
        )
        self._writer.submit(document)
        self._said(document)
        said = telling(document["conditions"])
        if said is not None and not self._writer.gone:
            reason, message, warning = said
            self._events.tell(self._involved, reason=reason, message=message, warning=warning)
            self._limits.saw(self.run)

    def _passing_trouble(self) -> Trouble | None:
        """What is in the way of a run that goes on: of its workers, else of its results."""
        if self.run.phase is not Phase.RUNNING or self._writing:
            return None
        problem = self.output_problem()
        told = Trouble(Reason.OUTPUT_UNAVAILABLE, problem) if problem else None
        return self._fleet_trouble() or told or self._output_trouble

    def _lasting(self, trouble: Trouble | None) -> Trouble | None:
        """The trouble, with how long it has lasted."""
        now = self._now()
        if trouble is None:
            self._since.clear()
            return None
        self._since = {trouble.reason: self._since.get(trouble.reason, now)}
        return replace(trouble, seconds=now - self._since[trouble.reason])


def _nothing() -> None:
    """Nothing is in the way."""
    return
