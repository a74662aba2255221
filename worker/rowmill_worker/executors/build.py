"""Which executor a manifest asks for: one entry a kind, beside how a row is shown where nothing is sent (Simulate)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rowmill.errors import InvalidInput
from rowmill.spec.job import Simulate, Spec
from rowmill_worker.executors.dify import DifyExecutor, DifyPreview
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.executors.simulate import HttpPreview, Preview, SimulateExecutor


class Place(NamedTuple):
    """What an executor is told besides its own part of the manifest.

    `job` is what templates find under that name; `secrets` resolves what the manifest refers to; `where` names the
    manifest in messages; `run` is the run's token for people (namespace/name/runId).
    """

    job: Mapping[str, Any]
    secrets: SecretReader
    where: str
    run: str


class Kind(NamedTuple):
    """How an executor, and its preview, are made of `spec`."""

    executor: Callable[[Spec, Place], Executor]
    preview: Callable[[Spec, Place], Preview]


def _http(spec: Spec, place: Place) -> Executor:
    assert spec.executor.http is not None
    return HttpExecutor(spec=spec.executor.http, job=place.job, secrets=place.secrets, where=place.where)


def _http_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.http is not None
    return HttpPreview(spec=spec.executor.http, job=place.job, where=place.where)


def _dify(spec: Spec, place: Place) -> Executor:
    assert spec.executor.dify is not None
    return DifyExecutor(spec=spec.executor.dify, job=place.job, secrets=place.secrets, where=place.where)


def _dify_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.dify is not None
    return DifyPreview(spec=spec.executor.dify, job=place.job, where=place.where)


KINDS: Final[Mapping[str, Kind]] = {
    "dify": Kind(_dify, _dify_preview),
    "http": Kind(_http, _http_preview),
}


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
    kind = KINDS.get(spec.executor.kind)
    if kind is None:
        raise InvalidInput.one(
            where,
            f"spec.executor.{spec.executor.kind}",
            f"executor {spec.executor.kind} is not available in this build; take {' or '.join(sorted(KINDS))}",
        )
    place = Place(job=job, secrets=secrets, where=where, run=run)
    if spec.mode == "Simulate":
        return SimulateExecutor(simulate=spec.simulate or Simulate(), run=run, preview=kind.preview(spec, place))
    return kind.executor(spec, place)
