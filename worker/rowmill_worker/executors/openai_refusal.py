"""What an OpenAI-compatible server means by an answer that is no success. Pure.

One protocol, many dialects. The error stands under `error` as an object (OpenAI, vLLM, llama.cpp, LiteLLM), as a text
with its `error_type` beside it (TGI), at the top level (older vLLM, SGLang, whose `object` is "error"), or as `detail`
(whatever is built on FastAPI). Its `code` may be a word, the status as a number, or null. So the words `code` and
`type` are asked first, and the message only where they do not say; each pattern is a message that some server has.

Told apart from what the status says, since what a person must do is another thing:

    ContextLengthExceeded   the row is larger than the model's context          never retried
    ContentFiltered         a filter refused the row's content                  never retried
    ModelNotFound           the server does not have the model                  never retried
    QuotaExceeded           the account's credit is used up (429, too)          never retried
    RequestTooLarge         one request above the whole limit a minute          never retried

Everything else is `HTTP<status>`. A server that says `x-should-retry` is taken at its word there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from rowmill_worker.backoff import MAX_RETRY_AFTER
from rowmill_worker.executors.advice import TOO_MANY, Advice
from rowmill_worker.executors.answer import Answer
from rowmill_worker.executors.classify import from_status, is_transient, shorten
from rowmill_worker.executors.openai_request import PATH
from rowmill_worker.executors.protocol import RowError

ADVICE: Final = Advice(
    url=f"{PATH}.baseUrl",
    result=f"{PATH}.result",
    hints={
        400: f"the server refuses the request; check {PATH}.parameters",
        401: f"check the key in {PATH}.apiKey",
        403: f"check that the key in {PATH}.apiKey may use this model",
        404: f"check {PATH}.baseUrl (with most servers it ends in /v1) and that the server has this endpoint",
        405: f"check {PATH}.baseUrl",
        413: "the request is too large for the server",
        422: f"the server refuses the request; check {PATH}.parameters",
        429: TOO_MANY,
    },
)

_CONTEXT_WORDS: Final = frozenset({"context_length_exceeded", "exceed_context_size_error"})
_CONTEXT: Final = re.compile(
    r"context (length|window|size)|max_model_len|must have less than \d+ tokens|inputs?` tokens \+|"
    r"prompt is too long|input is too long",
    re.IGNORECASE,
)
_FILTER_WORDS: Final = frozenset(
    {"content_filter", "content_policy_violation", "responsibleaipolicyviolation", "moderation_blocked"}
)
_FLAGGED: Final = re.compile(r"content management policy|usage polic|flagged|safety system", re.IGNORECASE)
_QUOTA_WORDS: Final = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_MODEL_WORDS: Final = frozenset({"model_not_found", "deploymentnotfound"})
_NO_MODEL: Final = re.compile(
    r"\bmodel\b.{0,200}?(does not exist|not found|not supported)|(unknown|no such|invalid) model|pinned to '",
    re.IGNORECASE | re.DOTALL,
)
_TOO_LARGE: Final = re.compile(r"request too large", re.IGNORECASE)
_OF_THE_REQUEST: Final = frozenset({400, 404, 413, 422, 500})
_SERVERS_FAULT: Final = frozenset(
    {"generation", "incomplete_generation", "overloaded", "overloaded_error", "server_error", "internal_server_error"}
)
_DURATION: Final = re.compile(
    r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9}(?:\.\d{1,9})?)ms)?"
)
_SCALE: Final = (86_400.0, 3_600.0, 60.0, 1.0, 0.001)


class Fault(NamedTuple):
    """What a server says is wrong: its words for it (lower case), the message, and a status where it names one."""

    words: frozenset[str]
    message: str
    param: str = ""
    code: int | None = None


def fault_in(body: bytes | Any) -> Fault | None:
    """The error that an answer tells, in whichever dialect; None where there is none to be found."""
    if isinstance(body, bytes):
        try:
            body = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
    if isinstance(body, list) and len(body) == 1:
        body = body[0]  # Gemini's OpenAI endpoint
    if not isinstance(body, Mapping):
        return None
    error = body.get("error")
    if isinstance(error, Mapping):
        return _fault(error)
    if isinstance(error, str) and error:
        return _fault({"message": error, "type": body.get("error_type"), "code": body.get("code")})
    if body.get("object") == "error" or (isinstance(body.get("message"), str) and not error):
        return _fault(body)
    detail = body.get("detail")
    if isinstance(detail, Mapping):
        return _fault(detail)
    if isinstance(detail, str | list) and detail:
        text = detail if isinstance(detail, str) else msgspec.json.encode(detail).decode()
        return Fault(frozenset(), text)
    return None


def refused(answer: Answer, text: str, retry_after: float | None, *, fault: Fault | None = None) -> RowError:
    """The failure that an answer is. `text` is the beginning of its body, and the message of `fault` is used as it is:
    both without secrets. `retry_after` is what Retry-After says, in seconds.
    """
    fault = fault or Fault(frozenset(), "")
    special = told_apart(fault, answer.status)
    if special is not None:
        error_class, advice = special
        said = shorten(fault.message or text)
        message = f"{answer.origin} answered {answer.status}; {advice}" + (f"; it said: {said}" if said else "")
        return RowError(error_class, message, retryable=False)
    wait = wait_asked(answer.headers, fault, answer.status, retry_after)
    plain = from_status(
        answer.status,
        answer.reason,
        origin=answer.origin,
        excerpt=fault.message or text,
        retry_after=wait,
        advice=ADVICE,
    )
    return RowError(
        plain.error_class,
        plain.message,
        retryable=_retryable(answer, fault, asked_back=retry_after is not None),
        retry_after=wait,
    )


def told_apart(fault: Fault, status: int) -> tuple[str, str] | None:
    """The class of a fault that its status does not tell, and what to do about it."""
    words, message = fault.words, fault.message
    of_request = status in _OF_THE_REQUEST
    if words & _CONTEXT_WORDS or (of_request and _CONTEXT.search(message)):
        return (
            "ContextLengthExceeded",
            "the row is larger than the model's context; shorten it in the manifest, lower the tokens asked for in "
            f"{PATH}.parameters, or take a model with a larger one",
        )
    if words & _FILTER_WORDS or ("invalid_prompt" in words and _FLAGGED.search(message)):
        return "ContentFiltered", "the server's content filter refuses this row; change the row or the filter"
    if words & _QUOTA_WORDS or status == 402:
        return (
            "QuotaExceeded",
            "the account has no credit left; add some, then raise spec.retryGeneration to run the failed rows again",
        )
    if words & _MODEL_WORDS or (
        of_request and status != 500 and (_NO_MODEL.search(message) or _names_model(fault, status))
    ):
        return (
            "ModelNotFound",
            f"the server does not have the model; check {PATH}.model (of a batch line: body.model) and {PATH}.baseUrl",
        )
    if status == 429 and _TOO_LARGE.search(message):
        return (
            "RequestTooLarge",
            "this one request is above the account's limit; make the row smaller or raise the limit",
        )
    return None


def wait_asked(headers: Mapping[str, str], fault: Fault, status: int, retry_after: float | None) -> float | None:
    """Seconds that the server asks to wait, at most `MAX_RETRY_AFTER`: by retry-after-ms, Retry-After, or, of a rate
    limit, by when what is used up is filled again (x-ratelimit-reset-requests, -tokens)."""
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        return min(milliseconds / 1000, MAX_RETRY_AFTER)
    if retry_after is not None or status != 429:
        return retry_after
    resets: dict[str, float] = {}
    for what in ("requests", "tokens"):
        if (seconds := duration(headers.get(f"x-ratelimit-reset-{what}"))) is not None:
            resets[what] = seconds
    if not resets:
        return None
    named = [what for what in resets if what in fault.words]
    used_up = [what for what in resets if _number(headers.get(f"x-ratelimit-remaining-{what}")) == 0]
    # Where neither is told to be used up, whichever is filled again first may be what was lacking.
    chosen = [resets[what] for what in named or used_up] or [min(resets.values())]
    return min(max(chosen), MAX_RETRY_AFTER)


def duration(text: str | None) -> float | None:
    """Seconds of a duration such as 20ms, 1s, 6m0s, 1h2m3.5s, or of a plain number of seconds."""
    if text is None:
        return None
    text = text.strip()
    if (plain := _number(text)) is not None:
        return plain
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        return None
    return sum(float(part) * scale for part, scale in zip(found.groups(), _SCALE, strict=True) if part)


def _retryable(answer: Answer, fault: Fault, *, asked_back: bool) -> bool:
    told = answer.headers.get("x-should-retry", "").strip().lower()
    if told in ("true", "false"):
        return told == "true"
    if answer.status == 424 and fault.words & _SERVERS_FAULT:
        return True  # TGI: the model failed while it generated
    return is_transient(answer.status, asked_back=asked_back)


def _fault(error: Mapping[str, Any]) -> Fault:
    inner = error.get("innererror")
    words = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, Mapping) else None]
    code = error.get("code")
    number = code if isinstance(code, int) and not isinstance(code, bool) else None
    if isinstance(code, str) and re.fullmatch(r"[1-5][0-9][0-9]", code):
        number = int(code)
    message = error.get("message") or error.get("detail")
    return Fault(
        frozenset(word.lower() for word in words if isinstance(word, str)),
        message if isinstance(message, str) else "",
        error["param"] if isinstance(error.get("param"), str) else "",
        number,
    )


def _names_model(fault: Fault, status: int) -> bool:
    return status == 404 and fault.param == "model"


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None
