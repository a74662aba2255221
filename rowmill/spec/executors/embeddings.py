"""An embedding model in the worker."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from rowmill.spec.base import (
    Bool,
    Finding,
    Int,
    NoTraps,
)
from rowmill.spec.executors.base import Executor, Template
from rowmill.spec.executors.microbatch import Microbatch


class EmbeddingsExecutor(Executor):
    """An embedding model on the worker's own CPU or GPU, fed in batches. A row's result is its vector."""

    templated: ClassVar[tuple[str, ...]] = ("text",)

    model: Annotated[str, StringConstraints(min_length=1, max_length=512), NoTraps] = Field(
        description="The sentence-transformers model: a folder of the worker's image, or its name on a hub.",
        examples=["/models/all-minilm-l6-v2"],
    )
    revision: Annotated[str, StringConstraints(min_length=1, max_length=256), NoTraps] | None = Field(
        default=None, description="Branch, tag or commit of a model that is named; the hub's newest when absent."
    )
    text: Template = Field(description="What is embedded; a template.", examples=["{{ row.title }} {{ row.abstract }}"])
    device: Literal["Auto", "CPU", "CUDA"] = Field(
        default="Auto", description="Where the model runs. Auto is a GPU where the worker has one, else the CPU."
    )
    dtype: Literal["Auto", "Float32", "Float16", "BFloat16"] = Field(
        default="Auto", description="Numbers that the model computes in. Auto is Float32 on a CPU and Float16 on a GPU."
    )
    max_length: Annotated[Int, Field(ge=1, le=131_072)] | None = Field(
        default=None, description="Tokens of a text at most; what the model says when absent, and never more than that."
    )
    on_too_long: Literal["Truncate", "Fail"] = Field(
        default="Truncate",
        description="What becomes of a text of more tokens: Truncate embeds its beginning, Fail ends the row with "
        "class TextTooLong.",
    )
    normalize: Bool = Field(default=True, description="Scale every vector to length 1.")
    start_timeout_seconds: Annotated[Int, Field(ge=1, le=7_200)] = Field(
        default=600, description="How long loading the model may take; may change within a run."
    )
    batching: Microbatch = Field(
        default=Microbatch(), description="When a batch goes to the model; may change within a run."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        if given.get("device") == "CPU" and given.get("dtype") == "Float16":
            return [(("dtype",), "is Float16, which a CPU computes slowly or not at all; take Float32 or BFloat16")]
        return []
