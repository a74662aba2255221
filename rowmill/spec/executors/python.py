"""A Python function of the worker's image."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from rowmill.spec.base import (
    PYTHON_FUNCTION,
    JsonObject,
)
from rowmill.spec.executors.base import Executor


class PythonExecutor(Executor):
    """A Python function of the worker's image."""

    templated: ClassVar[tuple[str, ...]] = ("arguments",)

    function: Annotated[str, StringConstraints(min_length=3, max_length=256, pattern=PYTHON_FUNCTION)] = Field(
        description="The function, as package.module:function; it may be async.", examples=["pricing.rules:quote"]
    )
    arguments: JsonObject = Field(default_factory=dict, description="Its keyword arguments; templates.")
