"""How many rows a worker runs at once.

Two numbers must not be mixed up. *Slots* are what one worker runs at once: `perWorker`, else the worker's variable
MAX_CONCURRENT_REQUESTS, else 3; where the executor gathers rows into batches, else as many as fill two batches in each
of its processes, one that runs and one that fills. *In flight* is what an endpoint bears over all workers and jobs
of a limits group: `limits.maxInFlight`, else 5 a worker for HTTP APIs and 10 for ComfyUI. A worker never has more
slots than its group may have in flight; without a group the second number does not count.

An executor that calls nobody (`embeddings`, `python`) has no such default.

With `concurrency.adaptive` the slots are where a worker starts from, within the bounds that are given there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from rowmill.errors import InvalidInput
from rowmill.spec.executors import Microbatch
from rowmill.spec.job import MAX_CONCURRENCY, Spec

VARIABLE: Final = "MAX_CONCURRENT_REQUESTS"
DEFAULT_SLOTS: Final = 3
DEFAULT_IN_FLIGHT: Final = 5
_LOCAL: Final = frozenset({"embeddings", "python"})
_IN_FLIGHT: Final[Mapping[str, int]] = {"comfyui": 10}


def default_in_flight(executor_kind: str) -> int:
    """Calls in flight that each worker adds to a limits group which sets no `maxInFlight`."""
    return _IN_FLIGHT.get(executor_kind, DEFAULT_IN_FLIGHT)


def effective_concurrency(spec: Spec, environ: Mapping[str, str], executor_kind: str | None = None) -> int:
    """Slots of one worker, from 1 to 1,024. Raises InvalidInput where the variable counts and is no such number.

    The manifest wins over the environment. `executor_kind` is the spec's own when absent.
    """
    declared = spec.concurrency.per_worker
    slots = declared if declared is not None else _from_environment(environ, _slots_for_batches(spec))
    if (adaptive := spec.concurrency.adaptive) is not None:
        slots = min(max(slots, adaptive.min), adaptive.max)
    if spec.limits is None:
        return slots
    kind = executor_kind or spec.executor.kind
    if spec.limits.max_in_flight is not None:
        return min(slots, spec.limits.max_in_flight)
    return slots if declared is not None or kind in _LOCAL else min(slots, default_in_flight(kind))


def slot_bounds(spec: Spec, environ: Mapping[str, str], executor_kind: str | None = None) -> tuple[int, int]:
    """The fewest and the most slots that one worker may come to have; both are its slots unless they tune themselves.

    Raises InvalidInput as `effective_concurrency` does.
    """
    slots = effective_concurrency(spec, environ, executor_kind)
    adaptive = spec.concurrency.adaptive
    if adaptive is None:
        return slots, slots
    most = adaptive.max
    if spec.limits is not None and spec.limits.max_in_flight is not None:
        most = min(most, spec.limits.max_in_flight)
    return min(adaptive.min, most), most


def gathers_rows(spec: Spec) -> bool:
    """Whether the executor gathers rows into batches."""
    return getattr(spec.executor.chosen, "batching", None) is not None


def _slots_for_batches(spec: Spec) -> int:
    batching = getattr(spec.executor.chosen, "batching", None)
    if not isinstance(batching, Microbatch):
        return DEFAULT_SLOTS
    processes = getattr(spec.executor.chosen, "processes", None) or 1
    return min(MAX_CONCURRENCY, 2 * batching.max_size * processes)


def _from_environment(environ: Mapping[str, str], default: int) -> int:
    text = environ.get(VARIABLE, "").strip()
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 9 or not 1 <= int(text) <= MAX_CONCURRENCY:
        raise InvalidInput.one(
            VARIABLE, "", f"must be a whole number from 1 to {MAX_CONCURRENCY}; mend or unset this environment variable"
        )
    return int(text)
