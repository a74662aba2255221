"""When rows are gathered into a batch, and when the batch goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import Field

from rowmill.spec.base import Finding, Int, Part, not_above

DEFAULT_MAX_SIZE: Final = 64
QUEUE_FACTOR: Final = 10
"""Rows that may wait, over `maxSize`, where `queueSize` is absent."""


class Microbatch(Part):
    """When a batch goes to the model or function."""

    max_size: Annotated[Int, Field(ge=1, le=4096)] = Field(
        default=DEFAULT_MAX_SIZE, description="Rows of a batch at most; then it goes at once."
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
        default=None,
        description="Rows that may wait; 10 times maxSize when absent. A row that finds no room is handed back.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings = not_above(given, "minSize", 1, "maxSize", DEFAULT_MAX_SIZE)
        queue, most = given.get("queueSize"), given.get("maxSize", DEFAULT_MAX_SIZE)
        if isinstance(queue, int) and isinstance(most, int) and queue < most:
            findings.append(
                (("queueSize",), f"is {queue}, below maxSize, which is {most}: no batch could fill; make it larger")
            )
        return findings

    @property
    def effective_queue_size(self) -> int:
        """Rows that may wait."""
        return self.queue_size if self.queue_size is not None else QUEUE_FACTOR * self.max_size
