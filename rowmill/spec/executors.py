"""What a row is sent to: one model an executor.

`templated` names the fields in which templates may stand, `queries` those that are JMESPath; everything that looks
for templates (validation, the columns they need) goes by these two and knows no executor by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints

from rowmill.spec.base import (
    HEADER,
    PYTHON_FUNCTION,
    VARIABLE,
    Bool,
    Finding,
    Int,
    Json,
    JsonObject,
    Listed,
    NoTraps,
    OneOf,
    Part,
    not_above,
    one_of_schema,
    sentence,
    unique,
)
from rowmill.spec.source import KeyReference, check_uri, uri_scheme

_MARKUP: Final = re.compile(r"\{[{%#]")
_SET_BY_ROWMILL: Final = frozenset(
    {"connection", "content-length", "idempotency-key", "transfer-encoding", "x-request-id"}
)
_SECRET_HEADERS: Final = frozenset({"api-key", "authorization", "cookie", "proxy-authorization", "x-api-key"})


def _check_url(url: str) -> str:
    """A URL whose text before the first template must be right on its own."""
    markup = _MARKUP.search(url)
    if markup is None:
        check_uri(url)
    head = url if markup is None else url[: markup.start()]
    if head and uri_scheme(head) not in ("http", "https"):
        raise sentence("is no http URL; write http://host/path or https://host/path")
    if any(c.isspace() for c in head):
        raise sentence("holds white space; take it out, or write %20")
    if "@" in head.split("://", 1)[-1].split("/", 1)[0]:
        raise sentence("holds a user or password; send them by headers with valueFrom")
    return url


Url = Annotated[str, StringConstraints(min_length=1, max_length=8192), NoTraps, AfterValidator(_check_url)]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps]
Template = Annotated[str, StringConstraints(min_length=1, max_length=65_536), NoTraps]

_RESULT: Final = "JMESPath into the answer; the whole answer when absent."
_RESULT_PART: Final = "JMESPath into the answer; @ is the whole answer."


class ValueFrom(OneOf):
    """Where a secret is found: exactly one of `secretKeyRef`, `env`, `file`."""

    model_config = ConfigDict(json_schema_extra=one_of_schema("secretKeyRef", "env", "file"))
    alternatives: ClassVar[tuple[str, ...]] = ("secretKeyRef", "env", "file")

    secret_key_ref: KeyReference | None = Field(
        default=None,
        description="A key of a Secret. Without a cluster it is read from the file NAME/KEY in the folder that the "
        "variable ROWMILL_SECRETS_DIR names.",
    )
    env: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=VARIABLE)] | None = Field(
        default=None, description="An environment variable of the worker."
    )
    file: Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps] | None = Field(
        default=None,
        description="A file that the worker can read; a relative path counts from the folder of the manifest.",
    )


class Header(Part):
    """A header of the request: `name` and exactly one of `value` and `valueFrom`."""

    model_config = ConfigDict(json_schema_extra=one_of_schema("value", "valueFrom"))

    name: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=HEADER)] = Field(
        description="The header's name. Idempotency-Key and X-Request-Id are set by Rowmill."
    )
    value: Annotated[str, StringConstraints(min_length=1, max_length=8192), NoTraps] | None = Field(
        default=None, description="The value; a template. Never a secret.", examples=["{{ row.language }}"]
    )
    value_from: ValueFrom | None = Field(
        default=None, description="Where the value is found: the only way for a secret."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        name = given.get("name")
        lower = name.lower() if isinstance(name, str) else ""
        value, value_from = given.get("value"), given.get("valueFrom")
        findings: list[Finding] = []
        if lower in _SET_BY_ROWMILL:
            findings.append((("name",), f"{name} is set by Rowmill; leave it out"))
        if (value is None) == (value_from is None):
            state = "none is set" if value is None else "both value and valueFrom are set"
            findings.append(((), f"needs exactly one of value, valueFrom; {state}"))
        elif lower in _SECRET_HEADERS and isinstance(value, str) and not _MARKUP.search(value):
            findings.append(
                (("value",), "a secret never stands in a manifest; write valueFrom with secretKeyRef, env or file")
            )
        return findings


class Executor(Part):
    """Base of the executors."""

    templated: ClassVar[tuple[str, ...]] = ()
    queries: ClassVar[tuple[str, ...]] = ()


class HttpExecutor(Executor):
    """One HTTP request a row. Answers of 2xx are results; see `successCodes`."""

    templated: ClassVar[tuple[str, ...]] = ("url", "headers", "query", "body")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    url: Url = Field(
        description="Where the request goes; a template. Put cells into it by the filter quote.",
        examples=["http://triage.support.svc/v1/tickets/{{ row.id | quote }}"],
    )
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"] = Field(
        default="POST", description="The request's method."
    )
    headers: Annotated[tuple[Header, ...], Field(max_length=64), Listed] = Field(
        default=(),
        description="Headers, beside those that Rowmill sets. Content-Type, when absent, is application/json, or "
        "text/plain where the body is one text.",
    )
    query: Annotated[JsonObject, Field(max_length=64)] | None = Field(
        default=None,
        description="Parameters of the URL, name to value; templates. They are encoded; a list repeats the name, "
        "null leaves it out.",
        examples=[{"lang": "{{ row.language }}"}],
    )
    body: Json = Field(
        default=None,
        description="The request's JSON; templates may stand in every text. A leaf that is exactly one expression "
        "keeps the value's own type. No body when absent.",
        examples=[{"text": "{{ row.subject }} {{ row.body }}", "priority": "{{ row.priority }}"}],
    )
    result: QueryText | None = Field(
        default=None, description=_RESULT, examples=["label", "choices[0].message.content"]
    )
    success_codes: (
        Annotated[
            tuple[Annotated[Int, Field(ge=200, le=599)], ...],
            Field(min_length=1, max_length=32),
            AfterValidator(unique),
            Listed,
        ]
        | None
    ) = Field(default=None, description="Statuses that count as success; all from 200 to 299 when absent.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        findings: list[Finding] = []
        if given.get("method") == "GET" and given.get("body") is not None:
            findings.append((("body",), "a GET request has no body; use query, or method POST"))
        query = given.get("query")
        for name, value in query.items() if isinstance(query, dict) else ():
            values = value if isinstance(value, list) else [value]
            if any(isinstance(v, dict | list) for v in values):
                findings.append((("query", name), "must be a text, a number, true, false, or a list of these"))
        headers = given.get("headers")
        seen: dict[str, int] = {}
        for i, header in enumerate(headers if isinstance(headers, list | tuple) else ()):
            name = header.get("name") if isinstance(header, dict) else getattr(header, "name", None)
            if not isinstance(name, str):
                continue
            first = seen.setdefault(name.lower(), i)
            if first != i:
                findings.append((("headers", i, "name"), f"{name} is already set by headers[{first}]; set it once"))
        return findings


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
    result: QueryText = Field(default="choices[0].message.content", description=_RESULT_PART)


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
    result: QueryText = Field(default="data.outputs", description=_RESULT_PART)


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
    result: QueryText | None = Field(default=None, description=_RESULT)


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


class PythonExecutor(Executor):
    """A Python function of the worker's image."""

    templated: ClassVar[tuple[str, ...]] = ("arguments",)

    function: Annotated[str, StringConstraints(min_length=3, max_length=256, pattern=PYTHON_FUNCTION)] = Field(
        description="The function, as package.module:function; it may be async.", examples=["pricing.rules:quote"]
    )
    arguments: JsonObject = Field(default_factory=dict, description="Its keyword arguments; templates.")


class ExecutorChoice(OneOf):
    """What a row is sent to: exactly one. Frozen for a run."""

    model_config = ConfigDict(
        json_schema_extra=one_of_schema("http", "openai", "dify", "comfyui", "embeddings", "python")
    )
    alternatives: ClassVar[tuple[str, ...]] = ("http", "openai", "dify", "comfyui", "embeddings", "python")

    http: HttpExecutor | None = Field(default=None, description="An HTTP service.")
    openai: OpenAIExecutor | None = Field(default=None, description="An OpenAI-compatible model server.")
    dify: DifyExecutor | None = Field(default=None, description="A Dify workflow or app.")
    comfyui: ComfyUIExecutor | None = Field(default=None, description="A ComfyUI workflow.")
    embeddings: EmbeddingsExecutor | None = Field(default=None, description="An embedding model on a GPU.")
    python: PythonExecutor | None = Field(default=None, description="A Python function.")

    @property
    def chosen(self) -> Executor:
        """The one that is set."""
        found = getattr(self, self.kind)
        assert isinstance(found, Executor)
        return found


__all__ = ["Executor", "ExecutorChoice", "Header", "HttpExecutor", "ValueFrom"]
