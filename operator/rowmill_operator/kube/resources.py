"""What a worker asks of its node: `workers.resources` and `workers.gpu`, over modest requests of ours. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rowmill.errors import InvalidInput, Problem
from rowmill.spec import BatchJob

DEFAULT_REQUESTS: Final[Mapping[str, str]] = {"cpu": "100m", "memory": "128Mi"}
"""A worker waits for its endpoint most of the time. Memory is what it takes with a few rows at once."""

_QUANTITY: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")
_PATH: Final = "spec.workers.resources"


def worker_resources(job: BatchJob) -> dict[str, Any]:
    """The `resources` of the worker's container. Raises InvalidInput with every field that cannot be used.

    A default counts only for a resource of which neither request nor limit is given: a limit alone is its own request.
    GPUs are extended resources, which Kubernetes wants as limit and as request alike.
    """
    given = job.spec.workers.resources
    problems = list(_problems(given))
    gpu = job.spec.workers.gpu
    if gpu is not None and "/" not in gpu.resource:
        problems.append(
            Problem("spec.workers.gpu.resource", f"{gpu.resource} is no extended resource; write it as nvidia.com/gpu")
        )
    if gpu is not None and not problems:
        for part in ("limits", "requests"):
            if str(given.get(part, {}).get(gpu.resource, gpu.count)) != str(gpu.count):
                problems.append(
                    Problem(
                        f"{_PATH}.{part}.{gpu.resource}", "is set by spec.workers.gpu.count as well; leave it out here"
                    )
                )
    if problems:
        raise InvalidInput(f"{job.metadata.namespace}/{job.metadata.name}", problems)
    limits = dict(given.get("limits", {}))
    requests = {k: v for k, v in DEFAULT_REQUESTS.items() if k not in limits} | dict(given.get("requests", {}))
    if gpu is not None:
        limits[gpu.resource] = requests[gpu.resource] = str(gpu.count)
    made: dict[str, Any] = {"requests": requests, "limits": limits}
    if "claims" in given:
        made["claims"] = given["claims"]
    return {name: value for name, value in made.items() if value}


def _problems(given: Mapping[str, Any]) -> Iterator[Problem]:
    for part, amounts in given.items():
        if part == "claims":
            continue
        if part not in ("limits", "requests"):
            yield Problem(f"{_PATH}.{part}", "is not a field of a container's resources; it holds requests and limits")
        elif not isinstance(amounts, Mapping):
            yield Problem(f"{_PATH}.{part}", "must be an object: resource to amount, such as memory: 256Mi")
        else:
            for name, amount in amounts.items():
                text = "" if isinstance(amount, bool) else str(amount)
                if not isinstance(amount, str | int | float) or not _QUANTITY.fullmatch(text) or text.startswith("-"):
                    yield Problem(
                        f"{_PATH}.{part}.{name}", "must be an amount, such as 250m or 2 of cpu, 512Mi of memory"
                    )
