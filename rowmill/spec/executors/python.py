"""A Python function of the worker's image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field, StringConstraints

from rowmill.spec.base import (
    PYTHON_FUNCTION,
    Finding,
    Int,
    JsonObject,
)
from rowmill.spec.executors.base import Executor
from rowmill.spec.executors.microbatch import Microbatch


class PythonExecutor(Executor):
    """A Python function of the worker's image, run in processes of its own."""

    templated: ClassVar[tuple[str, ...]] = ("arguments",)

    function: Annotated[str, StringConstraints(min_length=3, max_length=256, pattern=PYTHON_FUNCTION)] = Field(
        description="The function, as package.module:function; it may be async.", examples=["pricing.rules:quote"]
    )
    arguments: JsonObject = Field(
        default_factory=dict,
        description="Its keyword arguments; templates. A parameter named row, where it has one, is the whole row, and "
        "one named context tells of the attempt. A batch function is given a list of these objects, or of the rows "
        "when this is empty.",
        examples=[{"price": "{{ row.price | float }}"}],
    )
    batching: Microbatch | None = Field(
        default=None,
        description="For a function that takes a list of rows: when a batch goes to it. May change within a run, as "
        "may processes and startTimeoutSeconds.",
    )
    processes: Annotated[Int, Field(ge=1, le=256)] | None = Field(
        default=None,
        description="Processes that run the function, in each worker. A process runs one call at a time, of an async "
        "function any number. When absent 1 for async and batch functions, and else one for every slot.",
    )
    start_timeout_seconds: Annotated[Int, Field(ge=1, le=7_200)] = Field(
        default=300, description="How long importing the function's module may take."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        arguments = given.get("arguments")
        if isinstance(arguments, dict) and "context" in arguments:
            return [(("arguments", "context"), "is given by Rowmill to a function that has it; take another name")]
        return []
