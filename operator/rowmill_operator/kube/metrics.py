"""What the operator tells Prometheus: its own work (`rowmill_operator_…`) and each job (`rowmill_job_…`).

A job's numbers are made when they are read, from what its status says: they cost nothing while nobody reads them, and
end with the job. Labels are a job's namespace and name, never a row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from rowmill.status import RunStatus

LAG_SECONDS = 0.05
"""Between two probes of the event loop."""
STANDSTILL_SECONDS = 60.0
"""A loop that was away for longer was not held up: the machine slept."""

_LAGS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 5.0)
_RECONCILE = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class JobNumbers(NamedTuple):
    """What is told of one job."""

    namespace: str
    name: str
    phase: str
    run: RunStatus


class OperatorMetrics:
    """The operator's own counters in `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._api = Counter(
            "rowmill_operator_api_calls_total",
            "Calls to the Kubernetes API besides watching; code 0: no answer.",
            ["verb", "resource", "code"],
            registry=registry,
        )
        self._status = Counter(
            "rowmill_operator_status_writes_total", "Patches of a status.", ["result"], registry=registry
        )
        self._events = Counter("rowmill_operator_events_total", "Kubernetes Events.", ["result"], registry=registry)
        self._lag = Histogram(
            "rowmill_operator_loop_lag_seconds",
            "How late the event loop came back to a timer.",
            buckets=_LAGS,
            registry=registry,
        )
        self._reconcile = Histogram(
            "rowmill_operator_reconcile_seconds",
            "From the sight of a manifest to its engine at work.",
            buckets=_RECONCILE,
            registry=registry,
        )
        self._dropped = Counter(
            "rowmill_operator_runs_dropped_total",
            "Runs whose outcomes were dropped because their retention was over.",
            registry=registry,
        )
        self._notified = Counter(
            "rowmill_operator_notifications_total",
            "Tries to tell a webhook of a job: delivered, retried (it is tried again), failed (it is given up).",
            ["result"],
            registry=registry,
        )
        self.leader = Gauge("rowmill_operator_leader", "1 while this operator leads.", registry=registry)

    def called(self, verb: str, resource: str, code: int) -> None:
        """A call to the API server ended with this HTTP status, 0 without one."""
        self._api.labels(verb, resource, str(code)).inc()

    def status_written(self, result: str) -> None:
        self._status.labels(result).inc()

    def event_written(self, result: str) -> None:
        self._events.labels(result).inc()

    def run_dropped(self) -> None:
        """The outcomes of a run were dropped."""
        self._dropped.inc()

    def notified(self, result: str) -> None:
        """A try to tell a webhook ended so."""
        self._notified.labels(result).inc()

    def reconciled(self, seconds: float) -> None:
        self._reconcile.observe(seconds)

    async def probe_loop(self, now: Callable[[], float]) -> None:
        """Measure the event loop's lag until cancelled."""
        while True:
            due = now() + LAG_SECONDS
            await asyncio.sleep(LAG_SECONDS)
            for lag in lags(now() - due):
                self._lag.observe(lag)


def lags(late: float) -> Iterator[float]:
    """What probes from outside would have seen, one every `LAG_SECONDS`, of a loop that came back `late` seconds late.

    A loop that probes itself is held up with its probe: a standstill of a second would count as one probe among many,
    though twenty came to a closed door.
    """
    left = min(max(0.0, late), STANDSTILL_SECONDS)
    yield left
    while (left := left - LAG_SECONDS) > 0:
        yield left


class JobsCollector(Collector):
    """Gauges of every job that the operator knows."""

    def __init__(self, jobs: Callable[[], Iterable[JobNumbers]]) -> None:
        self._jobs = jobs

    def describe(self) -> Iterable[Metric]:
        return []  # asked when it is registered, before there are jobs

    def collect(self) -> Iterator[Metric]:
        labels = ["namespace", "name"]
        rows = GaugeMetricFamily("rowmill_job_rows", "Rows by state.", labels=[*labels, "state"])
        total = GaugeMetricFamily(
            "rowmill_job_total_rows", "Rows of the source, once they were counted.", labels=labels
        )
        recorded = GaugeMetricFamily("rowmill_job_recorded_rows", "Rows with an outcome in the ledger.", labels=labels)
        rate = GaugeMetricFamily("rowmill_job_rows_per_minute", "Rows that end, a minute.", labels=labels)
        workers = GaugeMetricFamily("rowmill_job_workers", "Workers.", labels=[*labels, "state"])
        phases = GaugeMetricFamily(
            "rowmill_job_phase", "1 for the phase that the job is in.", labels=[*labels, "phase"]
        )
        for job in self._jobs():
            names, run = [job.namespace, job.name], job.run
            for state in ("queued", "running", "succeeded", "failed", "deduplicated", "retried"):
                rows.add_metric([*names, state], getattr(run, state))
            if run.total is not None:
                total.add_metric(names, run.total)
            recorded.add_metric(names, run.done)
            rate.add_metric(names, run.rows_per_minute)
            workers.add_metric([*names, "desired"], run.workers_desired)
            workers.add_metric([*names, "ready"], run.workers_ready)
            phases.add_metric([*names, job.phase], 1)
        yield from (rows, total, recorded, rate, workers, phases)
