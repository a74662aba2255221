"""The manifest as this machine runs it: what the options change, who the run is, where its results go.

Decisions only; nothing here reads or writes a file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.spec.job import BatchJob
from rowmill.spec.naming import identity_of
from rowmill.spec.source import OBJECT_STORES, uri_scheme

INSTALLATION: Final = "local"
_SUFFIXES: Final = {"JSONL": ".jsonl", "CSV": ".csv", "Parquet": ".parquet"}


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line changes in a manifest; None leaves it as it is."""

    workers: int | None = None
    limit: int | None = None
    dry_run: bool = False


def effective(job: BatchJob, *, options: Options, retry_generation: int = 0) -> BatchJob:
    """The job with the options applied and its retry generation raised to `retry_generation`, all else as it was given:
    what a run froze must look the same the next time.

    Raises InvalidInput where an option and the manifest do not go together.
    """
    document = _given(job)
    spec = document["spec"]
    if options.dry_run:
        spec["mode"] = "Simulate"
    if options.limit is not None:
        spec["source"]["limit"] = options.limit
    if options.workers is not None:
        spec.setdefault("workers", {}).update(minReplicas=options.workers, maxReplicas=options.workers)
    if retry_generation > job.spec.retry_generation:
        spec["retryGeneration"] = retry_generation
    try:
        return BatchJob.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise InvalidInput.one("options", path, f"with the options given, {first['msg']}") from error


def identity_here(job: BatchJob) -> RunIdentity:
    """Who the run is on this machine."""
    return identity_of(job, installation=INSTALLATION)


def is_simulated(job: BatchJob) -> bool:
    """Whether an effective job sends no call."""
    return job.spec.mode == "Simulate"


def simulated_cost(job: BatchJob, succeeded: int) -> Decimal | None:
    """What so many rows would have cost, where the job is simulated and says what a row costs."""
    simulate = job.spec.simulate
    return simulate.cost(succeeded) if is_simulated(job) and simulate and simulate.cost_per_row else None


def results_path(job: BatchJob, *, option: Path | None, base: Path, state: Path) -> Path | str:
    """Where the results go: `--output`, else `spec.output.uri`, else `results.<format>` in the state folder. A text is
    the address of an object store, below which each run gets a folder; all else are files of this machine.

    A place that ends with a slash, or is a folder, gets `results.<format>` inside. A simulated run keeps to the state
    folder (`results.simulated.<format>`) unless the option says where: it never takes the place of real results.
    Raises InvalidInput where the results would have to go elsewhere.
    """
    output = job.spec.output
    name = "results" + _SUFFIXES.get(output.effective_format or "JSONL", ".jsonl")
    if option is not None:
        return option / name if option.is_dir() else option
    if is_simulated(job):
        return state / name.replace("results", "results.simulated")
    if output.uri is None:
        return state / name
    scheme = uri_scheme(output.uri)
    if scheme in OBJECT_STORES:
        return output.uri
    if scheme not in ("", "file"):
        raise InvalidInput.one(
            "output",
            "spec.output.uri",
            f"{scheme}:// is not available in this build; give a path of this machine, or use --output PATH",
        )
    path = base / (unquote(urlsplit(output.uri).path) if scheme else output.uri)
    return path / name if output.uri.endswith("/") or path.is_dir() else path


def to_text(job: BatchJob) -> str:
    """The job as a manifest file (JSON, which is YAML), with what was given and nothing else."""
    return json.dumps(_given(job), ensure_ascii=False) + "\n"


def _given(job: BatchJob) -> dict[str, Any]:
    # What was not set stays unset: defaults are applied again by whoever reads it, nulls in rows and bodies remain.
    document: dict[str, Any] = job.model_dump(mode="json", by_alias=True, exclude_unset=True)
    document.pop("status", None)
    return document
