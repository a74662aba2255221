"""Which executor a manifest asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rowmill.errors import InvalidInput
from rowmill.spec.job import Simulate, Spec
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.executors.simulate import HttpPreview, SimulateExecutor


def build_executor(
    spec: Spec,
    *,
    job: Mapping[str, Any],
    run: str,
    secrets: SecretReader,
    where: str = "",
) -> Executor:
    """The executor of `spec`, not yet open; in mode Simulate one that sends nothing.

    `job` is what templates find under that name; `run` names the run, for what a simulation draws; `secrets` resolves
    what the manifest refers to, and knows afterwards what no log line may hold; `where` names the manifest in messages.
    Raises InvalidInput for a kind that this build does not have.
    """
    http = spec.executor.http
    if http is None:
        kind = spec.executor.kind
        raise InvalidInput.one(
            where, f"spec.executor.{kind}", f"executor {kind} is not available in this build; take http"
        )
    if spec.mode == "Simulate":
        return SimulateExecutor(
            simulate=spec.simulate or Simulate(), run=run, preview=HttpPreview(spec=http, job=job, where=where)
        )
    return HttpExecutor(spec=http, job=job, secrets=secrets, where=where)
