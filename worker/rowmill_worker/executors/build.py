"""Which executor a manifest asks for: one entry a kind, beside how a row is shown where nothing is sent (Simulate)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from rowmill.errors import InvalidInput
from rowmill.spec import slot_bounds
from rowmill.spec.job import Simulate, Spec
from rowmill.telemetry.batches import BatchMetrics
from rowmill.telemetry.logging import Logger
from rowmill_worker.executors.comfyui import ComfyUIExecutor, ComfyUIPreview
from rowmill_worker.executors.dify import DifyExecutor, DifyPreview
from rowmill_worker.executors.embeddings import EmbeddingsExecutor
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.openai import OpenAIExecutor, OpenAIPreview
from rowmill_worker.executors.previews import EmbeddingsPreview, PythonPreview
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.python import PythonExecutor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.executors.simulate import HttpPreview, Preview, SimulateExecutor


class Place(NamedTuple):
    """What an executor is told besides its own part of the manifest.

    `job` is what templates find under that name; `secrets` resolves what the manifest refers to; `where` names the
    manifest in messages; `run` is the run's token for people (namespace/name/runId). `environ` is the worker's
    environment, `log` and `metrics` are for what an executor has to tell of itself.
    """

    job: Mapping[str, Any]
    secrets: SecretReader
    where: str
    run: str
    environ: Mapping[str, str]
    log: Logger | None
    metrics: BatchMetrics | None


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


def _comfyui(spec: Spec, place: Place) -> Executor:
    assert spec.executor.comfyui is not None
    return ComfyUIExecutor(spec=spec.executor.comfyui, job=place.job, secrets=place.secrets, where=place.where)


def _comfyui_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.comfyui is not None
    return ComfyUIPreview(spec=spec.executor.comfyui, job=place.job, where=place.where)


def _dify(spec: Spec, place: Place) -> Executor:
    assert spec.executor.dify is not None
    return DifyExecutor(spec=spec.executor.dify, job=place.job, secrets=place.secrets, where=place.where)


def _dify_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.dify is not None
    return DifyPreview(spec=spec.executor.dify, job=place.job, where=place.where)


def _openai(spec: Spec, place: Place) -> Executor:
    assert spec.executor.openai is not None
    return OpenAIExecutor(
        spec=spec.executor.openai, job=place.job, secrets=place.secrets, where=place.where, metrics=place.metrics
    )


def _openai_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.openai is not None
    return OpenAIPreview(spec=spec.executor.openai, job=place.job, where=place.where)


def _embeddings(spec: Spec, place: Place) -> Executor:
    assert spec.executor.embeddings is not None
    return EmbeddingsExecutor(
        spec=spec.executor.embeddings,
        job=place.job,
        environ=place.environ,
        where=place.where,
        log=place.log,
        metrics=place.metrics,
    )


def _embeddings_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.embeddings is not None
    return EmbeddingsPreview(spec=spec.executor.embeddings, job=place.job, where=place.where)


def _python(spec: Spec, place: Place) -> Executor:
    assert spec.executor.python is not None
    return PythonExecutor(
        spec=spec.executor.python,
        job=place.job,
        slots=slot_bounds(spec, place.environ)[1],
        environ=place.environ,
        where=place.where,
        log=place.log,
        metrics=place.metrics,
    )


def _python_preview(spec: Spec, place: Place) -> Preview:
    assert spec.executor.python is not None
    return PythonPreview(spec=spec.executor.python, job=place.job, where=place.where)


KINDS: Final[Mapping[str, Kind]] = {
    "comfyui": Kind(_comfyui, _comfyui_preview),
    "dify": Kind(_dify, _dify_preview),
    "embeddings": Kind(_embeddings, _embeddings_preview),
    "http": Kind(_http, _http_preview),
    "openai": Kind(_openai, _openai_preview),
    "python": Kind(_python, _python_preview),
}


def build_executor(
    spec: Spec,
    *,
    job: Mapping[str, Any],
    run: str,
    secrets: SecretReader,
    where: str = "",
    environ: Mapping[str, str] | None = None,
    log: Logger | None = None,
    metrics: BatchMetrics | None = None,
) -> Executor:
    """The executor of `spec`, not yet open; in mode Simulate one that sends nothing.

    `job` is what templates find under that name; `run` names the run, for what a simulation draws; `secrets` resolves
    what the manifest refers to, and knows afterwards what no log line may hold; `where` names the manifest in messages.
    `environ` is handed on to processes that an executor starts; `log` and `metrics` are where it tells of itself.
    Raises InvalidInput for a kind that this build does not have.
    """
    kind = KINDS.get(spec.executor.kind)
    if kind is None:
        raise InvalidInput.one(
            where,
            f"spec.executor.{spec.executor.kind}",
            f"executor {spec.executor.kind} is not available in this build; take {' or '.join(sorted(KINDS))}",
        )
    place = Place(job=job, secrets=secrets, where=where, run=run, environ=environ or {}, log=log, metrics=metrics)
    if spec.mode == "Simulate":
        return SimulateExecutor(simulate=spec.simulate or Simulate(), run=run, preview=kind.preview(spec, place))
    return kind.executor(spec, place)
