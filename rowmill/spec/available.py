"""What this build runs. Everything else that a manifest may ask for is refused by name, never ignored.

A later build adds a name here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rowmill.errors import InvalidInput, Problem
from rowmill.spec.job import BatchJob, Spec
from rowmill.spec.source import uri_scheme

EXECUTORS: Final = frozenset({"http"})
SOURCES: Final = frozenset({"uri", "rows"})
SOURCE_SCHEMES: Final = frozenset({"", "file", "http", "https"})
OUTPUT_SCHEMES: Final = frozenset({"", "file"})
FEATURES: Final = frozenset[str]()
"""Of `limits`, `concurrency.adaptive`."""


def not_available(job: BatchJob) -> list[Problem]:
    """What the job asks for and this build does not do."""
    return list(_missing(job.spec))


def check_available(job: BatchJob, *, where: str = "") -> None:
    """Raises InvalidInput where the job asks for what this build does not do; `where` names the manifest."""
    problems = not_available(job)
    if problems:
        raise InvalidInput(where or f"{job.metadata.namespace}/{job.metadata.name}", problems)


def _missing(spec: Spec) -> Iterator[Problem]:
    if (kind := spec.executor.kind) not in EXECUTORS:
        yield _refusal(f"spec.executor.{kind}", f"executor {kind}", _alternatives(EXECUTORS))
    if (kind := spec.source.kind) not in SOURCES:
        yield _refusal(f"spec.source.{kind}", f"source {kind}", _alternatives(SOURCES))
    if spec.source.uri is not None and (scheme := uri_scheme(spec.source.uri)) not in SOURCE_SCHEMES:
        yield _refusal("spec.source.uri", f"source scheme {scheme}://", "take a path, http:// or https://")
    if spec.output.uri is not None and (scheme := uri_scheme(spec.output.uri)) not in OUTPUT_SCHEMES:
        yield _refusal("spec.output.uri", f"output to {scheme}://", "take the path of a file")
    if spec.limits is not None and "limits" not in FEATURES:
        yield _refusal("spec.limits", "limits over a group", "leave it out and set spec.concurrency.perWorker")
    if spec.concurrency.adaptive is not None and "concurrency.adaptive" not in FEATURES:
        yield _refusal("spec.concurrency.adaptive", "adaptive concurrency", "leave it out and set perWorker")


def _refusal(path: str, what: str, instead: str) -> Problem:
    return Problem(path, f"{what} is not available in this build; {instead}")


def _alternatives(names: frozenset[str]) -> str:
    return f"take {' or '.join(sorted(names))}"
