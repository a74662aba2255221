"""Executors of OpenAI-compatible servers, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any

from rowmill.spec.executors import OpenAIExecutor as OpenAISpec
from rowmill_worker.executors.openai import OpenAIExecutor
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.secrets import SecretReader
from tests.support.http_rows import JOB
from tests.support.openai_server import MODEL

USER = [{"role": "user", "content": "{{ row.text }}"}]
KEY = "sk-very-secret-1234"
ENVIRON = {"KEY": KEY}


def openai_spec(url: str, **fields: Any) -> OpenAISpec:
    """`spec.executor.openai`, written as in a manifest; a chat about `row.text` where nothing else is said."""
    endpoint = fields.get("endpoint", "ChatCompletions")
    if endpoint != "BatchLines":
        fields.setdefault("model", MODEL)
    if endpoint == "ChatCompletions":
        fields.setdefault("messages", USER)
    elif endpoint != "BatchLines":
        fields.setdefault("prompt" if endpoint == "Completions" else "input", "{{ row.text }}")
    return OpenAISpec.model_validate({"baseUrl": url, **fields})


@contextlib.asynccontextmanager
async def openai_executor(
    url: str, *, environ: Mapping[str, str] = ENVIRON, options: Mapping[str, Any] | None = None, **fields: Any
) -> AsyncIterator[OpenAIExecutor]:
    """An open executor for a manifest's `fields`; `options` go to its constructor."""
    executor = OpenAIExecutor(
        spec=openai_spec(url, **fields),
        job=JOB,
        secrets=SecretReader(environ=environ, where="job.yaml"),
        where="job.yaml",
        **(options or {}),
    )
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()


async def failure(executor: OpenAIExecutor, row: Attempt) -> RowError:
    """How a row fails."""
    try:
        result = await executor.execute(row)
    except RowError as error:
        return error
    raise AssertionError(f"it succeeded: {result}")
