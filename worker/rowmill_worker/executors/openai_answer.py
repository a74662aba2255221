"""What an OpenAI-compatible server answered: what it was charged for, how it ended, what the model said. Pure.

An answer of status 200 is not yet a result. How it ended stands inside it, and each ending has a class of its own:

    stop            the model had finished                                         a result
    Length          cut at the token limit                                         OutputTruncated
    ContentFilter   cut by a filter                                                ContentFiltered
    Refusal         the model declined, in words                                   Refused
    ToolCalls       the model asks for tools, which nobody here runs               ToolCalls
    (aborted)       the server gave up (engine restarted, out of resources)        AnswerAborted, retried

The manifest may accept the middle four. Only the last is retried: the others were paid for, and
would end alike the next time.
An ending that is not known here counts as finished: servers invent names for it (eos_token, stop_sequence).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from rowmill_worker.executors.classify import shorten
from rowmill_worker.executors.openai_request import PATH
from rowmill_worker.executors.protocol import RowError, Usage

LENGTH: Final = "Length"
CONTENT_FILTER: Final = "ContentFilter"
REFUSAL: Final = "Refusal"
TOOL_CALLS: Final = "ToolCalls"
ABORTED: Final = "Aborted"
ENDINGS: Final = frozenset({LENGTH, CONTENT_FILTER, REFUSAL, TOOL_CALLS})

_ENDINGS: Final[Mapping[str, str]] = {
    "length": LENGTH,
    "max_tokens": LENGTH,
    "max_output_tokens": LENGTH,
    "model_length": LENGTH,
    "content_filter": CONTENT_FILTER,
    "tool_calls": TOOL_CALLS,
    "function_call": TOOL_CALLS,
    "abort": ABORTED,
    "aborted": ABORTED,
    "cancelled": ABORTED,
    "error": ABORTED,
    "insufficient_system_resource": ABORTED,
}
_PAID: Final = "the call was made and may have been charged"
_MAX_TOKENS: Final = 2**53
_EXCERPT: Final = 160


def read_usage(answer: Any, usage: Usage) -> None:
    """Take over the tokens that an answer was charged for, where it tells them in a way that can be understood."""
    told = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(told, dict):
        return
    given = _count(told, "prompt_tokens", "input_tokens")
    made = _count(told, "completion_tokens", "output_tokens")
    total = _count(told, "total_tokens")
    if given is None and made is None:
        given = total
    elif made is None:
        made = max(0, (total or 0) - (given or 0))
    elif given is None:
        given = max(0, (total or 0) - made)
    usage.input_tokens, usage.output_tokens = given or 0, made or 0


def judge(endpoint: str, answer: Any, *, accept: Collection[str], origin: str) -> None:
    """Raise RowError where an answer is none, or ended in a way that `accept` (names of `ENDINGS`) does not hold."""
    if not isinstance(answer, dict):
        raise _invalid(origin, "is no JSON object")
    for ending, told in _endings(endpoint, answer, origin):
        if ending == ABORTED:
            raise RowError(
                "AnswerAborted",
                f"{origin} gave up this answer before its end{told and f' ({shorten(told, 120)})'}; {_PAID}",
                retryable=True,
            )
        if ending not in accept:
            raise _ended(ending, told, origin)


def said(endpoint: str, answer: Mapping[str, Any], *, many: bool, origin: str) -> Any:
    """What a row's result is where the manifest does not say: the model's text, its vector, its tool calls.

    A refusal that was accepted is `{"refusal": text}`. `answer` has passed `judge`. Raises RowError, InvalidAnswer.
    """
    if endpoint == "Embeddings":
        vectors = [part["embedding"] for part in vectors_of(answer, origin=origin)]
        return vectors if many else vectors[0]
    if endpoint == "Completions":
        texts = [choice.get("text") for choice in _ordered(answer, "choices", origin)]
        if not all(isinstance(text, str) for text in texts):
            raise _invalid(origin, "has no text under choices[].text")
        return texts if many else texts[0]
    if endpoint == "ChatCompletions":
        return _message_said(_ordered(answer, "choices", origin)[0].get("message"), origin)
    if endpoint == "Responses":
        return _response_said(answer, origin)
    return answer


def vectors_of(answer: Any, *, origin: str, expected: int | None = None) -> list[Mapping[str, Any]]:
    """The items of an answer to Embeddings, in the order of the texts. Raises RowError, InvalidAnswer."""
    parts = _ordered(answer, "data", origin)
    if not all(isinstance(part.get("embedding"), list | str) for part in parts):
        raise _invalid(origin, "has no vector under data[].embedding")
    if expected is not None and len(parts) != expected:
        raise _invalid(origin, f"has {len(parts)} vectors for {expected} texts")
    return parts


def parsed(text: Any, misfit: Callable[[Any], str | None], *, redact: Callable[[str], str]) -> Any:
    """The JSON that a model's text is, of the manifest's schema. Raises RowError: InvalidJSON or SchemaMismatch."""
    if not isinstance(text, str):
        return text  # tool calls or a refusal that the manifest accepts
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError) as exc:
        began = shorten(redact(text[:1000]), _EXCERPT)
        raise RowError(
            "InvalidJSON",
            f"the model's answer is not JSON ({shorten(str(exc), 100)}), as {PATH}.jsonSchema asks for; {_PAID}; see "
            f"that the server holds the model to a schema; it began: {began}",
            retryable=False,
        ) from None
    if (where := misfit(value)) is not None:
        raise RowError(
            "SchemaMismatch",
            f"the model's answer does not fit {PATH}.jsonSchema.schema ({redact(where)}); {_PAID}; see that the server "
            "holds the model to a schema",
            retryable=False,
        )
    return value


def _endings(endpoint: str, answer: Mapping[str, Any], origin: str) -> Iterator[tuple[str, str]]:
    """Each way but the good one in which an answer ended, with the server's own words for it."""
    if endpoint == "Responses":
        yield from _response_endings(answer, origin)
    elif endpoint in ("ChatCompletions", "Completions"):
        for choice in _ordered(answer, "choices", origin):
            reason = choice.get("finish_reason")
            ending = _ENDINGS.get(reason.lower()) if isinstance(reason, str) else None
            message = choice.get("message")
            if isinstance(message, dict):
                if isinstance(refusal := message.get("refusal"), str) and refusal:
                    yield REFUSAL, refusal
                    continue
                if ending is None and not message.get("content") and message.get("tool_calls"):
                    ending = TOOL_CALLS  # a tool that was asked for by name ends in stop
            if ending is not None:
                yield ending, str(reason)


def _response_endings(answer: Mapping[str, Any], origin: str) -> Iterator[tuple[str, str]]:
    status = answer.get("status", "completed")
    if status == "failed":
        error = answer.get("error")
        error = error if isinstance(error, Mapping) else {}
        code = str(error.get("code") or "")
        raise RowError(
            "ResponseFailed",
            f"{origin} began to answer and failed ({code or 'no code'}); {_PAID}; it said: "
            f"{shorten(str(error.get('message') or 'nothing'))}",
            retryable=code in ("server_error", "rate_limit_exceeded", "vector_store_timeout"),
        )
    if status in ("queued", "in_progress"):
        raise _invalid(origin, f"is one that is still {status}: it cannot be waited for; leave background out")
    if status == "cancelled":
        yield ABORTED, status
    if status == "incomplete":
        details = answer.get("incomplete_details")
        reason = str(details.get("reason") if isinstance(details, Mapping) else "incomplete")
        yield _ENDINGS.get(reason.lower(), LENGTH), reason
    for part in _parts(answer):
        if part.get("type") == "refusal":
            yield REFUSAL, str(part.get("refusal"))
    if _tool_items(answer) and not any(part.get("type") == "output_text" for part in _parts(answer)):
        yield TOOL_CALLS, "function_call"


def _message_said(message: Any, origin: str) -> Any:
    if not isinstance(message, dict):
        raise _invalid(origin, "has no message under choices[0]")
    content = message.get("content")
    if isinstance(content, list):
        content = "".join(
            part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)
        )
    if message.get("refusal"):
        return {"refusal": message["refusal"]}
    if isinstance(content, str) and (content or not message.get("tool_calls")):
        return content
    calls = message.get("tool_calls") or message.get("function_call")
    if calls:
        return calls
    if content is None and message.get("audio") is None:
        return None
    raise _invalid(origin, f"has no text under choices[0].message.content; take what it has by {PATH}.result")


def _response_said(answer: Mapping[str, Any], origin: str) -> Any:
    texts = [part.get("text") for part in _parts(answer) if part.get("type") == "output_text"]
    if texts:
        return "".join(text for text in texts if isinstance(text, str))
    for part in _parts(answer):
        if part.get("type") == "refusal":
            return {"refusal": part.get("refusal")}
    if calls := _tool_items(answer):
        return calls
    if answer.get("status") == "incomplete":
        return None
    raise _invalid(origin, f"has no output_text under output[].content; take what it has by {PATH}.result")


def _parts(answer: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    output = answer.get("output")
    for item in output if isinstance(output, list) else ():
        content = item.get("content") if isinstance(item, Mapping) and item.get("type") == "message" else None
        yield from (part for part in content or () if isinstance(part, Mapping))


def _tool_items(answer: Mapping[str, Any]) -> list[Any]:
    output = answer.get("output")
    items = output if isinstance(output, list) else []
    return [i for i in items if isinstance(i, Mapping) and i.get("type") in ("function_call", "custom_tool_call")]


def _ordered(answer: Mapping[str, Any], name: str, origin: str) -> list[Mapping[str, Any]]:
    """The parts of an answer in the order of what was asked; there is one at least."""
    parts = answer.get(name)
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        raise _invalid(origin, f"has nothing under {name}")
    if len(parts) == 1:
        return parts
    indices = [part.get("index") for part in parts]
    if all(isinstance(index, int) for index in indices):
        return sorted(parts, key=lambda part: part["index"])
    return parts


def _ended(ending: str, told: str, origin: str) -> RowError:
    error_class, what = {
        LENGTH: (
            "OutputTruncated",
            f"{origin} cut the answer at the token limit; {_PAID}; raise the tokens in {PATH}.parameters, or take what "
            "there is",
        ),
        CONTENT_FILTER: (
            "ContentFiltered",
            f"{origin} cut the answer by its content filter; {_PAID}; change the row, or take what there is",
        ),
        REFUSAL: (
            "Refused",
            f"the model refused ({shorten(told, _EXCERPT)}); {_PAID}; change the row, or take the refusal",
        ),
        TOOL_CALLS: (
            "ToolCalls",
            f"the model asks for tools, which Rowmill does not run; {_PAID}; leave tools out, or take the calls",
        ),
    }[ending]
    return RowError(error_class, f"{what} by {PATH}.accept: [{ending}]", retryable=False)


def _invalid(origin: str, what: str) -> RowError:
    return RowError(
        "InvalidAnswer",
        f"the answer of {origin} {what}; {_PAID}; check {PATH}.baseUrl and {PATH}.endpoint",
        retryable=False,
    )


def _count(told: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS:
            return int(value)
    return None
