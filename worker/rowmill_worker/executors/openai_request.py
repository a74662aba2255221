"""From a row to the request of an OpenAI-compatible server. Nothing is sent here.

A row is either made into a request by the manifest (model, messages, prompt or input, parameters), or is one already: a
line of OpenAI's Batch API, which is sent as it stands. Whatever does not fit ends the row unsent and unpaid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from yarl import URL

from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill.spec.executors import OpenAIExecutor as OpenAISpec
from rowmill.spec.executors.openai import BATCH_COLUMNS, CONTENT
from rowmill_worker.executors.classify import shorten
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.request import CONTENT_TYPE, Request, RequestTemplate, encode_body
from rowmill_worker.executors.secrets import SecretReader

PATH: Final = "spec.executor.openai"

ROUTES: Final[Mapping[str, str]] = {
    "ChatCompletions": "/chat/completions",
    "Completions": "/completions",
    "Embeddings": "/embeddings",
    "Responses": "/responses",
    "Moderations": "/moderations",
}
"""Where an endpoint lies below the base URL."""

UNBOUNDED_OUTPUT: Final = 4_096
"""Tokens of output that are reckoned with where a request sets no limit."""

_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_SPEAKING: Final = frozenset({"ChatCompletions", "Completions", "Responses"})
_LINE_URLS: Final = {f"/v1{route}": endpoint for endpoint, route in ROUTES.items()}
_MAX_ID_CHARS: Final = 512


class Call(NamedTuple):
    """A request that is ready, and the endpoint (a name of `ROUTES`) whose answer is to be expected.

    `many` tells that several texts were sent in one request, so that the answer's parts are a list however many.
    """

    request: Request
    endpoint: str
    many: bool


def call_template(
    spec: OpenAISpec, *, job: Mapping[str, Any], secrets: SecretReader | None, where: str
) -> Callable[[Attempt], Call]:
    """What renders an attempt's call; it raises RowError, unspent, where a row does not fit.

    `secrets` is None where none is to be read (Simulate). Raises InvalidInput.
    """
    lines = spec.endpoint == "BatchLines"
    plain = HttpSpec.model_construct(
        url=str(address(spec.base_url, "" if lines else ROUTES[spec.endpoint])),
        method="POST",
        headers=spec.headers,
        body=None if lines else _unshaped(spec),
    )
    template = RequestTemplate(
        spec=plain,
        job=job,
        secrets=secrets,
        where=where,
        path=PATH,
        bearer=spec.api_key,
        url_path=f"{PATH}.baseUrl",
        body_path=PATH,
        shape=None if lines else lambda body: _shaped(spec, body),
    )
    if lines:
        urls = {url: address(spec.base_url, ROUTES[endpoint]) for url, endpoint in _LINE_URLS.items()}
        return lambda attempt: _line(template.render(attempt), attempt.row, urls)
    field = CONTENT[spec.endpoint]
    may_be_many = spec.endpoint in ("Completions", "Embeddings") and spec.batching is None

    def render(attempt: Attempt) -> Call:
        request = template.render(attempt)
        return Call(request, spec.endpoint, may_be_many and holds_many(request.body or b"", field))

    return render


def address(base_url: str, route: str) -> URL:
    """`route` below the base URL, whose query (a version, say) is kept."""
    base = URL(base_url)
    return base.with_path(base.path.rstrip("/") + route, keep_query=True)


def holds_many(body: bytes, field: str) -> bool:
    """Whether `field` of a JSON object is a list of texts or of lists of tokens; a list of tokens is one text."""
    try:
        raw = msgspec.json.decode(body, type=dict[str, msgspec.Raw]).get(field)
    except msgspec.DecodeError:
        return False
    begin = b"" if raw is None else bytes(memoryview(raw)[:64]).replace(b" ", b"")
    return begin[:2] in (b'["', b"[[")


def most_tokens(call: Call) -> tuple[int, int]:
    """Tokens that a call may use at most, in and out: a token of input is a byte at least, and of output there are as
    many as the request allows, `UNBOUNDED_OUTPUT` where it does not say."""
    body = call.request.body or b""
    if call.endpoint not in _SPEAKING:
        return len(body), 0
    try:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError:
        return len(body), UNBOUNDED_OUTPUT
    limits = [n for name in _OUTPUT_LIMITS if (n := _whole(fields.get(name))) is not None]
    choices = max(1, _whole(fields.get("n")) or 1, _whole(fields.get("best_of")) or 1)
    return len(body), (min(limits) if limits else UNBOUNDED_OUTPUT) * choices


def _whole(raw: msgspec.Raw | None) -> int | None:
    try:
        value = None if raw is None else msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _unshaped(spec: OpenAISpec) -> dict[str, Any]:
    """The parts of the body by their names in the manifest, so that messages find them there."""
    field = CONTENT[spec.endpoint]
    body = {"model": spec.model, field: getattr(spec, field)}
    if spec.parameters:
        body["parameters"] = spec.parameters
    return body


def _shaped(spec: OpenAISpec, rendered: Mapping[str, Any]) -> dict[str, Any]:
    """The body as the server wants it. Raises RowError where this row's texts do not make one."""
    field = CONTENT[spec.endpoint]
    model, content = rendered["model"], rendered[field]
    if not isinstance(model, str) or not model:
        raise _unfit("model", "it renders to no text; check the columns that it uses")
    if field == "messages":
        _check_messages(content)
    elif spec.batching is not None and not isinstance(content, str):
        raise _unfit(field, "it renders to no text, and with batching each row has one")
    elif content is None or content == []:
        raise _unfit(field, "it renders to nothing; check the columns that it uses")
    elif not isinstance(content, str | list | tuple):
        raise _unfit(field, "it renders to neither a text nor a list")
    body: dict[str, Any] = {"model": model, field: content, **(rendered.get("parameters") or {})}
    if spec.endpoint == "Responses":
        body.setdefault("stream", False)  # some servers stream this endpoint unless they are told not to
    if spec.json_schema is not None:
        _ask_for_schema(spec, body)
    return body


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list | tuple) or not messages:
        raise _unfit("messages", "it renders to no list of messages; check the column that it uses")
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise _unfit(f"messages[{i}]", "it renders to no object with a role")


def _ask_for_schema(spec: OpenAISpec, body: dict[str, Any]) -> None:
    wanted = spec.json_schema
    assert wanted is not None
    named = {"name": wanted.name, "schema": wanted.schema_, "strict": wanted.strict}
    if spec.endpoint == "Responses":
        body["text"] = {**(body.get("text") or {}), "format": {"type": "json_schema", **named}}
    else:
        body["response_format"] = {"type": "json_schema", "json_schema": named}


def _line(request: Request, row: Mapping[str, Any], urls: Mapping[str, URL]) -> Call:
    """A row that is a line of the Batch API, as a call of its own."""
    custom_id, method, url, body = (row.get(column) for column in BATCH_COLUMNS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _MAX_ID_CHARS:
        raise _bad_line(f"custom_id must be a text of 1 to {_MAX_ID_CHARS} characters")
    if method != "POST":
        raise _bad_line("method must be POST")
    if not isinstance(url, str) or url not in urls:
        shown = f" and is {shorten(url, 80)}" if isinstance(url, str) else ""
        raise _bad_line(f"url must be one of {', '.join(urls)}{shown}")
    if isinstance(body, str):
        # A table has texts only.
        try:
            body = msgspec.json.decode(body)
        except (msgspec.DecodeError, RecursionError):
            raise _bad_line("body is a text that is not JSON") from None
    if not isinstance(body, Mapping):
        raise _bad_line("body must be an object: the request")
    if body.get("stream"):
        raise _bad_line("body.stream is set, and answers are taken whole; leave it out")
    data, content_type = encode_body(body, "body")
    request.headers.setdefault(CONTENT_TYPE, content_type)
    endpoint = _LINE_URLS[url]
    field = CONTENT.get(endpoint)
    many = field is not None and holds_many(data, field)
    return Call(request._replace(url=urls[url], body=data), endpoint, many)


def _unfit(field: str, message: str) -> RowError:
    return RowError("TemplateError", f"{PATH}.{field}: {message}", retryable=False, spent=False)


def _bad_line(message: str) -> RowError:
    return RowError(
        "InvalidBatchLine",
        f"this row is no line of the Batch API: {message}; see {PATH}.endpoint",
        retryable=False,
        spent=False,
    )
