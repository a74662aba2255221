"""Metrics of a worker's batches: `rowmill_worker_batch…`. The error rate is that of `batches_total` by `result`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class BatchMetrics:
    """What a worker that gathers rows tells. Counts are of this process's life."""

    def __init__(self, registry: CollectorRegistry) -> None:
        batches = Counter(
            "rowmill_worker_batches_total", "Batches that were run, by result.", ["result"], registry=registry
        )
        self._succeeded, self._failed = batches.labels("Success"), batches.labels("Failure")
        self._rows_failed = Counter(
            "rowmill_worker_batch_rows_failed_total", "Rows that failed in a batch.", registry=registry
        )
        self._rows = Histogram("rowmill_worker_batch_rows", "Rows in a batch.", buckets=_SIZES, registry=registry)
        self._seconds = Histogram(
            "rowmill_worker_batch_duration_seconds", "One batch's run.", buckets=_SECONDS, registry=registry
        )
        self._queue = Gauge("rowmill_worker_batch_queue_rows", "Rows that wait for a batch to go.", registry=registry)

    def ran(self, rows: int, seconds: float, *, rows_failed: int, succeeded: bool) -> None:
        """A batch of `rows` ran; not `succeeded` where it failed, or ran out of time, as a whole."""
        self._rows.observe(rows)
        self._seconds.observe(seconds)
        (self._succeeded if succeeded else self._failed).inc()
        if rows_failed:
            self._rows_failed.inc(rows_failed)

    def watch(self, waiting: Callable[[], float]) -> None:
        """Ask this for the length of the queue when metrics are read."""
        self._queue.set_function(waiting)
