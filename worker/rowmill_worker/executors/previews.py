"""How rows of executors that call nobody are shown in place of being run (Simulate)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from rowmill.spec.executors import EmbeddingsExecutor as EmbeddingsSpec
from rowmill.spec.executors import PythonExecutor as PythonSpec
from rowmill_worker.executors.embeddings import TextTemplate
from rowmill_worker.executors.protocol import Attempt
from rowmill_worker.executors.python import ArgumentsTemplate
from rowmill_worker.executors.simulate import MAX_BODY_CHARS


class PythonPreview:
    """The function and its arguments. The function is not imported: where this runs it need not be installed."""

    def __init__(self, *, spec: PythonSpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._template: ArgumentsTemplate | None = None

    def open(self) -> None:
        self._template = ArgumentsTemplate(spec=self._spec, job=self._job, where=self._where)

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._template is not None, "opened"
        return {"function": self._spec.function, "arguments": _bounded(self._template.render(attempt))}


class EmbeddingsPreview:
    """The model and the text. No model is loaded."""

    def __init__(self, *, spec: EmbeddingsSpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._template: TextTemplate | None = None

    def open(self) -> None:
        self._template = TextTemplate(spec=self._spec, job=self._job, where=self._where)

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._template is not None, "opened"
        return {"model": self._spec.model, "text": _bounded(self._template.render(attempt))}


def _bounded(value: Any) -> Any:
    try:
        size = len(msgspec.json.encode(value))
    except UnicodeEncodeError:
        return value  # told where the result is recorded
    return value if size <= MAX_BODY_CHARS else f"[{size:,} bytes]"
