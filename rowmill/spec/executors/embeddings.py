"""An embedding model in the worker, and when a batch goes to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from rowmill.spec.base import (
    Bool,
    Finding,
    Int,
    NoTraps,
    Part,
    not_above,
)
from rowmill.spec.executors.base import Executor, Template


class Microbatch(Part):
    """When a batch goes to the model."""

    max_size: Annotated[Int, Field(ge=1, le=4096)] = Field(
        default=64, description="Rows of a batch at most; then it goes at once."
    )
    min_size: Annotated[Int, Field(ge=1, le=4096)] = Field(
        default=1, description="Rows from which a batch goes once its oldest has waited maxWaitMilliseconds."
    )
    max_wait_milliseconds: Annotated[Int, Field(ge=0, le=60_000)] = Field(
        default=50, description="How long a batch of minSize waits for more; 0 is at once."
    )
    hard_timeout_milliseconds: Annotated[Int, Field(ge=0, le=600_000)] = Field(
        default=1_000, description="After maxWaitMilliseconds and this a batch goes however small it is."
    )
    queue_size: Annotated[Int, Field(ge=1, le=65_536)] | None = Field(
        default=None, description="Rows that may wait; 10 times maxSize when absent."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return not_above(given, "minSize", 1, "maxSize", 64)


class EmbeddingsExecutor(Executor):
    """An embedding model on the worker's own GPU, fed in batches."""

    templated: ClassVar[tuple[str, ...]] = ("text",)

    model: Annotated[str, StringConstraints(min_length=1, max_length=512), NoTraps] = Field(
        description="The model's name or folder."
    )
    text: Template = Field(description="What is embedded; a template.", examples=["{{ row.title }} {{ row.abstract }}"])
    normalize: Bool = Field(default=True, description="Scale every vector to length 1.")
    batch: Microbatch = Field(default=Microbatch(), description="When a batch goes to the model.")
