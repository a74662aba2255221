"""A ComfyUI workflow."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field, StringConstraints

from rowmill.spec.base import (
    JsonObject,
    Listed,
    NoTraps,
    unique,
)
from rowmill.spec.executors.base import RESULT, Executor, QueryText, Url


class ComfyUIExecutor(Executor):
    """A prompt of a ComfyUI server."""

    templated: ClassVar[tuple[str, ...]] = ("workflow",)
    queries: ClassVar[tuple[str, ...]] = ("result",)

    url: Url = Field(description="The server.", examples=["http://comfyui.images.svc:8188"])
    workflow: JsonObject = Field(description="The workflow in API format; templates may stand in its inputs.")
    output_nodes: Annotated[
        tuple[Annotated[str, StringConstraints(min_length=1, max_length=64), NoTraps], ...],
        Field(max_length=64),
        AfterValidator(unique),
        Listed,
    ] = Field(default=(), description="Nodes whose outputs are the result; all when empty.")
    result: QueryText | None = Field(default=None, description=RESULT)
