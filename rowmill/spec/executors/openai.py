"""An OpenAI-compatible model server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints

from rowmill.spec.base import NAME_OF_SCHEMA, Bool, Finding, Json, JsonObject, Listed, NoTraps, Part, unique
from rowmill.spec.executors.base import MARKUP, Executor, Header, QueryText, Url, ValueFrom, repeated_headers
from rowmill.spec.executors.microbatch import Microbatch

MAX_MESSAGES: Final = 1_024
ROLES: Final = ("system", "developer", "user", "assistant", "tool")
BATCH_COLUMNS: Final = ("custom_id", "method", "url", "body")
"""What a row has under the endpoint BatchLines."""

CONTENT: Final[Mapping[str, str]] = {
    "ChatCompletions": "messages",
    "Completions": "prompt",
    "Embeddings": "input",
    "Responses": "input",
}
"""The field that an endpoint's requests are made of."""

_NOT_BESIDE_LINES: Final = ("model", "parameters", "jsonSchema")
_WITH_SCHEMA: Final = ("ChatCompletions", "Responses")


class JsonSchemaOutput(Part):
    """The JSON that the model has to answer."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=NAME_OF_SCHEMA)] = Field(
        default="result", description="What the model is told the schema is called."
    )
    schema_: JsonObject = Field(
        alias="schema",
        description="The JSON schema (draft 2020-12). References lead within it only (#/…).",
        examples=[{"type": "object", "properties": {"label": {"type": "string"}}, "required": ["label"]}],
    )
    strict: Bool = Field(
        default=True,
        description="Let the server hold the model to the schema; servers that cannot ignore it. The answer is checked "
        "here in either case.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        schema = given.get("schema")
        if not isinstance(schema, dict):
            return []
        from rowmill.spec.answer_schema import schema_findings  # a tenth of a second that most manifests do not need

        return [(("schema", *place), text) for place, text in schema_findings(schema)]


class OpenAIExecutor(Executor):
    """One request a row to an OpenAI-compatible server: vLLM, llama.cpp, TGI, OpenAI itself and others."""

    templated: ClassVar[tuple[str, ...]] = ("model", "messages", "prompt", "input", "parameters", "headers")
    queries: ClassVar[tuple[str, ...]] = ("result",)

    base_url: Url = Field(
        description="The server, up to and with /v1. No template.", examples=["http://vllm.models.svc/v1"]
    )
    api_key: ValueFrom | None = Field(
        default=None, description="Where the key is found that is sent as Authorization; none is sent when absent."
    )
    headers: Annotated[tuple[Header, ...], Field(max_length=64), Listed] = Field(
        default=(), description="Further headers, beside those that Rowmill sets."
    )
    endpoint: Literal["ChatCompletions", "Completions", "Embeddings", "Responses", "BatchLines"] = Field(
        default="ChatCompletions",
        description="What is called. BatchLines: each row is a line of OpenAI's Batch API (columns custom_id, method, "
        "url and body) and is sent as it is; spec.key is then [custom_id].",
    )
    model: Annotated[str, StringConstraints(min_length=1, max_length=256), NoTraps] | None = Field(
        default=None, description="The model's name; a template.", examples=["Qwen/Qwen3-8B"]
    )
    messages: Json = Field(
        default=None,
        description="ChatCompletions: the conversation that the model answers, a list of objects with role and "
        "content; templates. Or one template that is such a list.",
        examples=[[{"role": "user", "content": "{{ row.question }}"}]],
    )
    prompt: Json = Field(
        default=None,
        description="Completions: the text that the model goes on from; templates.",
        examples=["{{ row.text }}"],
    )
    input: Json = Field(
        default=None,
        description="Embeddings: the text, or the list of texts, that is embedded. Responses: a text or a list of "
        "items. Templates.",
        examples=["{{ row.title }}"],
    )
    parameters: JsonObject | None = Field(
        default=None,
        description="Further fields of the request; templates.",
        examples=[{"temperature": 0, "max_tokens": 64}],
    )
    json_schema: JsonSchemaOutput | None = Field(
        default=None,
        description="ChatCompletions and Responses: the answer is JSON of this schema, and the row's result is that "
        "JSON. An answer that is not fails the row.",
    )
    batching: Microbatch | None = Field(
        default=None,
        description="Embeddings: put the texts of several rows into one request; one request a row when absent. "
        "Model, parameters and headers are then the same for all rows.",
    )
    accept: (
        Annotated[
            tuple[Literal["Length", "ContentFilter", "Refusal", "ToolCalls"], ...],
            Field(max_length=4),
            AfterValidator(unique),
            Listed,
        ]
        | None
    ) = Field(
        default=None,
        description="Endings of an answer that are results too: cut at the token limit, cut by a content filter, "
        "refused by the model, a call of tools. When absent, none of them; for BatchLines all.",
    )
    result: QueryText | None = Field(
        default=None,
        description="JMESPath into the server's whole answer, @ being all of it. When absent, what the model said: its "
        "text, the JSON of jsonSchema, the vector.",
        examples=["choices[].message.content"],
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        endpoint = given.get("endpoint", "ChatCompletions")
        if not isinstance(endpoint, str) or endpoint not in (*CONTENT, "BatchLines"):
            return []
        findings = [
            *_fields(given, endpoint),
            *_batching(given, endpoint),
            *_messages(given.get("messages")),
            *_parameters(given, endpoint),
        ]
        base_url = given.get("baseUrl")
        if isinstance(base_url, str) and MARKUP.search(base_url):
            findings.append((("baseUrl",), "takes no template; one job has one server"))
        sets_key = given.get("apiKey") is not None
        findings += repeated_headers(given.get("headers"), {"authorization": "apiKey"} if sets_key else {})
        return findings


def _fields(given: Mapping[str, Any], endpoint: str) -> Iterator[Finding]:
    """What an endpoint needs, and what does not go with it."""
    needed = CONTENT.get(endpoint)
    for name in dict.fromkeys(CONTENT.values()):
        if name != needed and given.get(name) is not None:
            owners = " or ".join(e for e, field in CONTENT.items() if field == name)
            yield (name,), f"goes with endpoint {owners} only; leave it out"
    if needed is None:
        for name in _NOT_BESIDE_LINES:
            if given.get(name) is not None:
                yield (name,), "stands in the body of each line with endpoint BatchLines; leave it out"
    else:
        if given.get(needed) in (None, "", []):
            yield (needed,), f"is missing, and endpoint {endpoint} needs it"
        if given.get("model") is None:
            yield ("model",), f"is missing, and endpoint {endpoint} needs it; name the model as the server does"
    if given.get("jsonSchema") is not None and needed is not None and endpoint not in _WITH_SCHEMA:
        yield ("jsonSchema",), "goes with endpoint ChatCompletions or Responses only; leave it out"
    if given.get("accept") and endpoint == "Embeddings":
        yield ("accept",), "goes with endpoints that answer text; leave it out"


def _batching(given: Mapping[str, Any], endpoint: str) -> Iterator[Finding]:
    if given.get("batching") is None:
        return
    if endpoint != "Embeddings":
        yield ("batching",), "goes with endpoint Embeddings only; leave it out"
        return
    if isinstance(given.get("input"), list | tuple):
        yield ("input",), "is a list, and with batching each row has one text; leave one of them out"
    for name in ("model", "parameters", "headers"):
        if _has_markup(given.get(name)):
            yield (
                (name,),
                "holds a template, and with batching rows share a request; write it out, or leave batching out",
            )


def _has_markup(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str) and MARKUP.search(item):
            return True
        if isinstance(item, Mapping):
            pending.extend(item.values())
        elif isinstance(item, list | tuple):
            pending.extend(item)
    return False


def _messages(messages: Any) -> Iterator[Finding]:
    if messages is None or (isinstance(messages, str) and MARKUP.search(messages)):
        return
    if not isinstance(messages, list | tuple):
        yield ("messages",), "must be a list of objects with role and content, or one template that is such a list"
        return
    if len(messages) > MAX_MESSAGES:
        yield ("messages",), f"has {len(messages):,} messages; at most {MAX_MESSAGES:,}"
    for i, message in enumerate(messages[:MAX_MESSAGES]):
        role = message.get("role") if isinstance(message, dict) else None
        if not isinstance(message, dict):
            yield ("messages", i), "must be an object with role and content"
        elif not isinstance(role, str) or not (role in ROLES or MARKUP.search(role)):
            yield ("messages", i, "role"), f"must be one of {', '.join(ROLES)}"
        elif message.get("content") is None and role != "assistant":
            yield ("messages", i, "content"), "is missing; write what is said"
        elif not isinstance(message.get("content"), str | list | tuple | None):
            yield ("messages", i, "content"), "must be a text or a list of parts"


def _parameters(given: Mapping[str, Any], endpoint: str) -> Iterator[Finding]:
    parameters = given.get("parameters")
    if not isinstance(parameters, dict):
        return
    for name in ("model", *dict.fromkeys(CONTENT.values())):
        if name in parameters and (name == "model" or name == CONTENT.get(endpoint)):
            yield ("parameters", name), f"is set by {name}; leave it out here"
    for name, why in (("stream", "answers are taken whole"), ("background", "an answer is waited for")):
        if parameters.get(name) not in (None, False):
            yield ("parameters", name), f"cannot be set: {why}; leave it out"
    if parameters.get("n") not in (None, 1) and given.get("result") is None:
        yield (
            ("parameters", "n"),
            "asks for several answers, and a row has one result; set result, as choices[].message.content",
        )
    if given.get("jsonSchema") is not None:
        text = parameters.get("text")
        if "response_format" in parameters:
            yield ("parameters", "response_format"), "is set by jsonSchema; leave one of them out"
        elif isinstance(text, str) or (isinstance(text, dict) and "format" in text):
            yield ("parameters", "text"), "is set by jsonSchema; leave one of them out"
