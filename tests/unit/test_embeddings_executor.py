"""Rows embedded by a model in a process of its own, from the template to the vector."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from rowmill.errors import InvalidInput
from rowmill.spec.executors import EmbeddingsExecutor as Spec
from rowmill.telemetry.batches import BatchMetrics
from rowmill_worker.children.embedder import serve_model
from rowmill_worker.executors.embeddings import LOADER, EmbeddingsExecutor
from rowmill_worker.executors.protocol import Attempt, RowError
from tests.unit.test_embedding_models import DOUBLE, MODELS, settings_of, vectors

ROOT = Path(__file__).parents[2]


def executor_of(model: str = "double-1000", *, loader: str = DOUBLE, **fields: Any) -> EmbeddingsExecutor:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    metrics, given = fields.pop("metrics", None), fields.pop("environ", {})
    environ = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    manifest = {"text": "{{ row.text }}", "batching": {"maxWaitMilliseconds": 20}, **fields}
    return EmbeddingsExecutor(
        spec=Spec.model_validate({"model": model, **manifest}),
        job={},
        environ={**environ, "PYTHONPATH": path, **given},
        where="job.yaml",
        loader=loader,
        metrics=metrics,
    )


@asynccontextmanager
async def opened(**fields: Any) -> AsyncIterator[EmbeddingsExecutor]:
    executor = executor_of(**fields)
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()


async def run(executor: EmbeddingsExecutor, *texts: Any, timeout: float = 90.0) -> list[Any]:
    calls = (executor.execute(Attempt(n, {"text": text}, None, 1, "k", "r", timeout)) for n, text in enumerate(texts))
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize(("loader", "model"), [param.values[0] for param in MODELS])
@pytest.mark.parametrize("rows", [1, 5, 40])
async def test_every_row_gets_the_vector_of_its_own_text(loader: str, model: str, rows: int) -> None:
    """Whatever batch it went with: when full, when old enough, or because it waited long enough."""
    texts = [f"row {n} " * (n % 7 + 1) for n in range(rows)]
    # What one row by itself waits for is seen on simulated time; here the batches are real.
    batching = {"maxSize": 16, "minSize": 4, "maxWaitMilliseconds": 10, "hardTimeoutMilliseconds": 30}
    registry = CollectorRegistry()
    async with opened(
        loader=loader, model=model, batching=batching, device="CPU", metrics=BatchMetrics(registry)
    ) as executor:
        found = [msgspec.json.decode(vector) for vector in await run(executor, *texts)]
    expected = vectors(serve_model(settings_of(loader, model)), texts)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-5)
    assert registry.get_sample_value("rowmill_worker_batch_rows_sum") == rows
    assert registry.get_sample_value("rowmill_worker_batch_rows_bucket", {"le": "16.0"}) == -(-rows // 16)


async def test_rows_become_vectors_and_one_bad_row_fails_alone() -> None:
    registry = CollectorRegistry()
    texts = [f"text {n}" for n in range(64)]
    async with opened(metrics=BatchMetrics(registry)) as executor:
        good = await run(executor, *texts)
        # As the ledger takes it: JSON already.
        assert all(len(msgspec.json.decode(msgspec.json.encode(vector))) == 8 for vector in good)
        assert len({bytes(vector) for vector in good}) == 64
        assert registry.get_sample_value("rowmill_worker_batch_rows_bucket", {"le": "32.0"}) == 0
        for bad, error_class, retryable in [
            ("exit", "ProcessCrashed", True),
            ("gpu lost", "ProcessCrashed", True),
            ("boom", "ModelError", True),
            ("too big", "OutOfMemory", True),
            ("nan", "InvalidVector", False),
        ]:
            results = await run(executor, *texts[:10], bad, *texts[11:16])
            error = results[10]
            assert (error.error_class, error.retryable, error.spent) == (error_class, retryable, True), error
            assert results[:10] + results[11:] == good[:10] + good[11:16]
        late = await run(executor, "hang", timeout=0.5)
        assert late[0].error_class == "Timeout"
        assert await run(executor, "text 0") == good[:1]
        (unfit,) = await asyncio.gather(
            executor.execute(Attempt(1, {}, None, 1, "k", "r", 9.0)), return_exceptions=True
        )
        assert isinstance(unfit, RowError)
        assert (unfit.error_class, unfit.spent) == ("TemplateError", False)


@pytest.mark.parametrize(("given", "seen"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
async def test_threads_of_the_model_wait_asleep_unless_the_pod_says_otherwise(given: dict[str, str], seen: str) -> None:
    async with opened(environ=given) as executor, executor._pool.seat() as child:
        assert child.details["threads_wait"] == seen


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"model": "/models/absent"},
            "model: /models/absent cannot be loaded (OSError: no such folder); give a folder",
        ),
        ({"device": "CUDA"}, "device: is CUDA, and the worker sees no GPU"),
        ({"text": "{{ row. }}"}, "text: the template does not compile"),
    ],
)
async def test_what_cannot_be_run_is_told_before_the_first_row(fields: dict[str, Any], line: str) -> None:
    executor = executor_of(**fields)
    with pytest.raises(InvalidInput) as caught:
        await executor.open()
    await executor.close()
    assert caught.value.lines()[0].startswith(f"job.yaml: spec.executor.embeddings.{line}")


async def test_an_image_without_the_library_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it is installed: a module that cannot be imported stands before it."""
    (tmp_path / "sentence_transformers.py").write_text("raise ImportError('not here', name='sentence_transformers')")
    for name in ("numpy", "torch"):
        (tmp_path / f"{name}.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    executor = executor_of(loader=LOADER)
    with pytest.raises(InvalidInput) as caught:
        await executor.open()
    await executor.close()
    assert "job.yaml: spec.executor.embeddings: the worker has no sentence_transformers; build an image of" in str(
        caught.value
    )
