"""A Dify workflow or app."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from rowmill.spec.base import (
    JsonObject,
)
from rowmill.spec.executors.base import RESULT_PART, Executor, QueryText, Template, Url, ValueFrom


class DifyExecutor(Executor):
    """A run of a Dify workflow or app."""

    templated: ClassVar[tuple[str, ...]] = ("inputs", "query", "user")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    base_url: Url = Field(description="The server, up to and with /v1.", examples=["http://dify.ai.svc/v1"])
    api_key: ValueFrom = Field(description="Where the app's key is found.")
    app: Literal["Workflow", "Chat", "Completion"] = Field(
        default="Workflow", description="What kind of app the key is of."
    )
    inputs: JsonObject = Field(default_factory=dict, description="The app's inputs; templates.")
    query: Template | None = Field(default=None, description="What a Chat app is asked; a template.")
    user: Template = Field(
        default="{{ job.namespace }}/{{ job.name }}", description="The user that Dify counts the run to."
    )
    result: QueryText = Field(default="data.outputs", description=RESULT_PART)
