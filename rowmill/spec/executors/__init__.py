"""What a row is sent to: one module an executor.

`templated` names the fields in which templates may stand, `queries` those that are JMESPath; everything that looks
for templates (validation, the columns they need) goes by these two and knows no executor by name.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import ConfigDict, Field

from rowmill.spec.base import OneOf, one_of_schema
from rowmill.spec.executors.base import Executor, Header, ValueFrom
from rowmill.spec.executors.comfyui import ComfyUIExecutor, ComfyUIStore
from rowmill.spec.executors.dify import DifyExecutor
from rowmill.spec.executors.embeddings import EmbeddingsExecutor
from rowmill.spec.executors.http import HttpExecutor
from rowmill.spec.executors.microbatch import Microbatch
from rowmill.spec.executors.openai import JsonSchemaOutput, OpenAIExecutor
from rowmill.spec.executors.python import PythonExecutor


class ExecutorChoice(OneOf):
    """What a row is sent to: exactly one. Frozen for a run, but for how rows are gathered and processes run."""

    model_config = ConfigDict(
        json_schema_extra=one_of_schema("http", "openai", "dify", "comfyui", "embeddings", "python")
    )
    alternatives: ClassVar[tuple[str, ...]] = ("http", "openai", "dify", "comfyui", "embeddings", "python")

    http: HttpExecutor | None = Field(default=None, description="An HTTP service.")
    openai: OpenAIExecutor | None = Field(default=None, description="An OpenAI-compatible model server.")
    dify: DifyExecutor | None = Field(default=None, description="A Dify workflow or app.")
    comfyui: ComfyUIExecutor | None = Field(default=None, description="A ComfyUI workflow.")
    embeddings: EmbeddingsExecutor | None = Field(default=None, description="An embedding model in the worker.")
    python: PythonExecutor | None = Field(default=None, description="A Python function.")

    @property
    def chosen(self) -> Executor:
        """The one that is set."""
        found = getattr(self, self.kind)
        assert isinstance(found, Executor)
        return found


__all__ = [
    "ComfyUIExecutor",
    "ComfyUIStore",
    "DifyExecutor",
    "EmbeddingsExecutor",
    "Executor",
    "ExecutorChoice",
    "Header",
    "HttpExecutor",
    "JsonSchemaOutput",
    "Microbatch",
    "OpenAIExecutor",
    "PythonExecutor",
    "ValueFrom",
]
