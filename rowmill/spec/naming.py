"""Which run a manifest names."""

from __future__ import annotations

from typing import Final

from rowmill.identity import RunIdentity
from rowmill.spec.job import BatchJob

SIMULATED: Final = "~simulate"
"""Ends the run id of a simulated run: what it records is never taken for the real run's outcomes."""


def identity_of(job: BatchJob, *, installation: str) -> RunIdentity:
    """The run that this manifest names in an installation."""
    suffix = SIMULATED if job.spec.mode == "Simulate" else ""
    return RunIdentity(installation, job.metadata.namespace, job.metadata.name, job.spec.run_id + suffix)
