"""What workers are given of a manifest: only what they read, as text that they can read. Pure.

A field that workers do not read must not be here: its change would replace every worker. A field that they do read must
be, or they would work by its default.
"""

from __future__ import annotations

import json
from typing import Any, Final

from rowmill.errors import InvalidInput
from rowmill.spec import API_VERSION, KIND, BatchJob
from rowmill.spec.yaml_text import MAX_BYTES, MAX_NODES

WORKER_FIELDS: Final = frozenset(
    {
        *("run_id", "mode", "simulate", "key", "executor", "output", "timeout_seconds", "concurrency", "limits"),
        *("pricing", "budget", "retry", "dedupe", "workers", "shards"),
    }
)
"""Fields of the spec of which workers read at least a part; see `manifest_for_workers`."""

OPERATOR_FIELDS: Final = frozenset(
    {
        *("source", "retry_generation", "failure_policy", "suspend", "completion_target_seconds"),
        *("active_deadline_seconds", "ttl_seconds_after_finished", "results_retention_seconds", "notify"),
    }
)
"""Fields that only the engine reads. Every field of the spec is in one of the two, and a new one must be put there."""

_SOME_BUDGET: Final = {"requests": 1}
"""What stands for a budget, whatever it is; its number is read by nobody."""

MAX_NAME: Final = 1_000
"""Characters of a field's name: YAML reads no longer one without a mark of its own."""


def manifest_text(job: BatchJob) -> str:
    """`manifest_for_workers` as JSON, which is YAML too. Raises InvalidInput where workers could not read it."""
    manifest = manifest_for_workers(job)
    text = json.dumps(manifest, ensure_ascii=False, indent=1, sort_keys=True) + "\n"
    wrong = _unreadable(manifest, text)
    if wrong is not None:
        where = f"{job.metadata.namespace}/{job.metadata.name}"
        raise InvalidInput.one(where, f"spec.executor.{job.spec.executor.kind}", wrong)
    return text


def manifest_for_workers(job: BatchJob) -> dict[str, Any]:
    """What workers read of a manifest, itself a valid manifest; its source is an empty table.

    Fields that equal their default are left out: workers of the image that a run is pinned to need not know fields that
    a later operator adds. Of `workers` only the greatest number is kept, as each worker's share of the locks of
    Postgres follows from it: workers are replaced when it changes. Of `budget` only that there is one: how much it
    leaves is asked of the ledger, and raising it replaces nobody.
    """
    spec = job.spec.model_dump(mode="json", by_alias=True, exclude_defaults=True, include=set(WORKER_FIELDS))
    if job.spec.mode != "Simulate":
        spec.pop("simulate", None)
    for name, kept in (("workers", "maxReplicas"), ("output", "columns")):
        part = spec.pop(name, {})
        if kept in part:
            spec[name] = {kept: part[kept]}
    if job.spec.budget is not None:
        spec["budget"] = dict(_SOME_BUDGET)
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": job.metadata.name, "namespace": job.metadata.namespace},
        "spec": {**spec, "source": {"rows": []}},
    }


def _unreadable(manifest: dict[str, Any], text: str) -> str | None:
    """What the API server has taken and a worker's reader of manifests would not."""
    if len(text.encode()) > MAX_BYTES:
        return f"makes the manifest larger than the {MAX_BYTES:,} bytes that workers can be given; make it smaller"
    nodes = 0
    pending: list[Any] = [manifest]
    while pending:
        item = pending.pop()
        nodes += 1
        if isinstance(item, dict):
            nodes += len(item)
            pending += item.values()
            if any(len(name) > MAX_NAME for name in item):
                return f"holds a field whose name is longer than {MAX_NAME:,} characters; shorten it"
        elif isinstance(item, list):
            pending += item
    if nodes > MAX_NODES:
        return f"makes the manifest hold more than the {MAX_NODES:,} values that workers can read; make it smaller"
    return None
