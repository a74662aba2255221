"""Metrics for Prometheus: named once here, with units, updated in blocks so that a row pays next to nothing.

Each class owns its collectors in the registry that it is given, so that a test, or a second worker in one process, has
its own. Labels are bounded: states are three, error classes at most `MAX_CLASSES` (the rest count as `Other`), and no
label ever holds a row.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from rowmill.outcome import State

MAX_CLASSES: Final = 100

_SHORT: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
_GROUPS: Final = (1.0, 3.0, 10.0, 32.0, 100.0, 300.0, 1000.0, 3000.0)
_LAGS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


def exposition(registry: CollectorRegistry) -> bytes:
    """What `/metrics` answers, as `CONTENT_TYPE`."""
    return generate_latest(registry)


class _ByClass:
    """A counter by error class whose labels stay bounded and are looked up once."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._children: dict[str, Counter] = {}

    def inc(self, error_class: str, count: int = 1) -> None:
        child = self._children.get(error_class)
        if child is None:
            if len(self._children) >= MAX_CLASSES:
                error_class = "Other"
            child = self._children[error_class] = self._counter.labels(error_class)
        child.inc(count)


class _Distribution(Collector):
    """A histogram that is told of whole blocks: the library's own takes a lock and several calls for each value."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], registry: CollectorRegistry) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, values: Iterable[float]) -> None:
        bounds, counts = self._bounds, self._counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            self._sum += value

    def describe(self) -> Iterator[HistogramMetricFamily]:
        yield HistogramMetricFamily(self._name, self._text)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        names = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets=buckets, sum_value=self._sum)


class WorkerMetrics:
    """What a worker tells of itself: `rowmill_worker_…`. Counts are of this process's life."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"rowmill_worker_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rowmill_worker_{name}", text, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"rowmill_worker_{name}", text, buckets=buckets, registry=registry)

        rows = counter("rows_total", "Rows that ended here, by how they ended.", ["state"])
        self._rows = {state: rows.labels(state.label) for state in State}
        self._row_failures = _ByClass(
            counter("row_failures_total", "Rows that ended Failed here, by class.", ["error_class"])
        )
        self._attempts = _ByClass(
            counter("attempts_total", "Calls sent, by what came of them (Success or a class).", ["error_class"])
        )
        self._retries = _ByClass(counter("retries_total", "Rows scheduled for another try, by class.", ["error_class"]))
        self._read = counter("rows_read_total", "Rows taken from the streams for the first time.")
        self._redelivered = counter("rows_redelivered_total", "Rows that had been delivered before.")
        self._handed_back = counter("rows_handed_back_total", "Rows given back with no attempt spent.")
        self._orphans = counter("sweeper_orphans_total", "Rows of dead workers that were scheduled again.")
        self._in_flight = gauge("rows_in_flight", "Rows that are being executed.")
        self._slots_max = gauge("slots_max", "Rows that may be executed at once.")
        self._slots_available = gauge("slots_available", "Slots that are free.")
        self._slots_waiting = gauge("slots_waiting", "Rows that wait for a slot.")
        self._permits_waiting = gauge("permits_waiting", "Rows that wait for a permit of their limits group.")
        self._sessions = gauge("sessions_active", "HTTP sessions that are open.")
        self._locks = gauge("locks_held", "Advisory locks that this worker holds.")
        self._row_seconds = _Distribution(
            "rowmill_worker_row_duration_seconds", "From a row's slot to its outcome.", _ROWS, registry
        )
        self._claim_seconds = histogram("claim_duration_seconds", "One block's claim: locks and look-up.", _SHORT)
        self._commit_seconds = histogram("commit_duration_seconds", "One group's commit.", _SHORT)
        self._commit_rows = histogram("commit_group_rows", "Rows in one commit.", _GROUPS)
        self._takeover_seconds = histogram(
            "takeover_delay_seconds", "From the last sign of a dead worker to its rows being scheduled again.", _LAGS
        )

    def ended(self, state: State, count: int = 1) -> None:
        """`count` rows ended with `state`."""
        self._rows[state].inc(count)

    def failed(self, by_class: Mapping[str, int]) -> None:
        """Rows that ended Failed, by class (besides `ended`)."""
        for error_class, count in by_class.items():
            self._row_failures.inc(error_class, count)

    def attempted(self, error_class: str | None, count: int = 1) -> None:
        """`count` calls were sent; None is success."""
        self._attempts.inc(error_class or "Success", count)

    def retried(self, error_class: str, count: int = 1) -> None:
        """`count` rows were scheduled for another try."""
        self._retries.inc(error_class, count)

    def read(self, count: int, *, redelivered: int = 0) -> None:
        """`count` rows came for the first time, `redelivered` others again."""
        if count:
            self._read.inc(count)
        if redelivered:
            self._redelivered.inc(redelivered)

    def handed_back(self, count: int) -> None:
        """`count` rows were given back unexecuted (no slot in time, a drain)."""
        self._handed_back.inc(count)

    def orphans(self, count: int, *, delay: float | None = None) -> None:
        """The sweeper scheduled `count` rows of a dead worker again, `delay` seconds after its last sign of life."""
        self._orphans.inc(count)
        if delay is not None:
            self._takeover_seconds.observe(delay)

    def rows_took(self, seconds: Iterable[float]) -> None:
        """Rows took so long, each from its slot to its outcome."""
        self._row_seconds.observe(seconds)

    def claimed(self, seconds: float) -> None:
        """One block was claimed."""
        self._claim_seconds.observe(seconds)

    def committed(self, rows: int, seconds: float) -> None:
        """One group of `rows` was committed."""
        self._commit_rows.observe(rows)
        self._commit_seconds.observe(seconds)

    def watch(
        self,
        *,
        slots_max: Callable[[], float],
        slots_available: Callable[[], float],
        slots_waiting: Callable[[], float],
        in_flight: Callable[[], float],
        sessions_active: Callable[[], float],
        locks_held: Callable[[], float],
        permits_waiting: Callable[[], float],
    ) -> None:
        """Ask these when metrics are read: a gauge that is asked costs a row nothing, and is never out of date."""
        self._slots_max.set_function(slots_max)
        self._slots_available.set_function(slots_available)
        self._slots_waiting.set_function(slots_waiting)
        self._in_flight.set_function(in_flight)
        self._sessions.set_function(sessions_active)
        self._locks.set_function(locks_held)
        self._permits_waiting.set_function(permits_waiting)


class EngineMetrics:
    """What the engine tells of the runs that it drives: `rowmill_engine_…`, by run (`namespace/name/runId`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str) -> Counter:
            return Counter(f"rowmill_engine_{name}", text, ["run"], registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"rowmill_engine_{name}", text, ["run"], registry=registry)

        self._fed = counter("rows_fed_total", "Rows appended to the streams.")
        self._fed_bytes = counter("fed_bytes_total", "Bytes of payload appended to the streams.")
        self._epochs = counter("epochs_total", "Feed epochs begun.")
        self._gaps = counter("gap_rows_total", "Rows found without outcome after feeding had ended.")
        self._window_rows = gauge("window_rows", "Rows in the window now.")
        self._window_bytes = gauge("window_bytes", "Bytes of payload in the window now.")
        self._backlog = gauge("backlog_rows", "Rows without outcome, as far as the source is known.")
        self._workers = gauge("workers_desired", "Workers that this run should have.")
        self._feed_seconds = Histogram(
            "rowmill_engine_feed_duration_seconds", "One block's append.", ["run"], buckets=_SHORT, registry=registry
        )

    def fed(self, run: str, *, rows: int, size: int, seconds: float) -> None:
        """One block of `rows` with `size` bytes was appended in `seconds`."""
        self._fed.labels(run).inc(rows)
        self._fed_bytes.labels(run).inc(size)
        self._feed_seconds.labels(run).observe(seconds)

    def epoch_began(self, run: str) -> None:
        """A pass of feeding began."""
        self._epochs.labels(run).inc()

    def gap_found(self, run: str, rows: int) -> None:
        """`rows` have no outcome though feeding had ended."""
        self._gaps.labels(run).inc(rows)

    def window(self, run: str, *, rows: int, size: int) -> None:
        """What the window holds now."""
        self._window_rows.labels(run).set(rows)
        self._window_bytes.labels(run).set(size)

    def backlog(self, run: str, rows: int) -> None:
        """How many rows have no outcome yet."""
        self._backlog.labels(run).set(rows)

    def workers_desired(self, run: str, count: int) -> None:
        """How many workers the run should have."""
        self._workers.labels(run).set(count)

    def forget(self, run: str) -> None:
        """Drop a run's series: it is over, and a long-lived engine sees many."""
        for collector in (
            self._fed,
            self._fed_bytes,
            self._epochs,
            self._gaps,
            self._window_rows,
            self._window_bytes,
            self._backlog,
            self._workers,
            self._feed_seconds,
        ):
            with contextlib.suppress(KeyError):  # a run that never fed has no series
                collector.remove(run)
