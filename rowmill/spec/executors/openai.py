"""An OpenAI-compatible model server."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from rowmill.spec.base import (
    Json,
    JsonObject,
    Listed,
    NoTraps,
    Part,
)
from rowmill.spec.executors.base import RESULT_PART, Executor, QueryText, Url, ValueFrom


class Message(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="Who speaks.")
    content: Json = Field(description="What is said: a text or a list of parts; templates.")


class OpenAIExecutor(Executor):
    """A chat completion of an OpenAI-compatible server."""

    templated: ClassVar[tuple[str, ...]] = ("messages", "parameters")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    base_url: Url = Field(description="The server, up to and with /v1.", examples=["http://vllm.models.svc/v1"])
    api_key: ValueFrom | None = Field(default=None, description="Where the key is found; none is sent when absent.")
    model: Annotated[str, StringConstraints(min_length=1, max_length=256), NoTraps] = Field(
        description="The model's name."
    )
    messages: Annotated[tuple[Message, ...], Field(min_length=1, max_length=64), Listed] = Field(
        description="The conversation that the model answers."
    )
    parameters: JsonObject | None = Field(
        default=None,
        description="Further fields of the request, as they are.",
        examples=[{"temperature": 0, "max_tokens": 64}],
    )
    result: QueryText = Field(default="choices[0].message.content", description=RESULT_PART)
