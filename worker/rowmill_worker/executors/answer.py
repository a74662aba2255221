"""From an answer's bytes to a row's result. Pure.

By now the call has been made and may have been paid for, so whatever is wrong here is not retried: the same request
would be paid again and most likely answered alike. The one exception is an answer that was cut where HTTP itself
cannot tell (no length, ended by closing the connection): its JSON breaks off, and the transport is at fault.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from yarl import URL

from rowmill_worker.executors import classify
from rowmill_worker.executors.advice import HTTP, Advice
from rowmill_worker.executors.protocol import RowError

MAX_RESULT_BYTES: Final = 1_048_576
"""Bytes of a result as JSON that are recorded; more ends the row with class AnswerTooLarge."""

MAX_ANSWER_BYTES: Final = 10_485_760
"""Bytes of an answer (decompressed) that are read at all, before JMESPath takes its part of them."""

_PAID = "the call was made and may have been charged"
_ESCAPED_NUL: Final = b"\\u0000"
# The worker looks at every result when it records it; here only at those that may fail, so that the message can say
# what to do. A JMESPath that repeats its input more often than this is left to the worker.
_MAX_GROWTH: Final = 16
_SUSPICIOUS: Final = (_ESCAPED_NUL, b"\\ud", b"\\uD")
_CHARSET: Final = re.compile(r"charset\s*=\s*\"?([A-Za-z0-9._-]{1,40})", re.IGNORECASE)


class Answer(NamedTuple):
    """What came back: `body` is all of a success, and the beginning of anything else."""

    url: URL
    status: int
    reason: str | None
    headers: Mapping[str, str]
    body: bytes

    @property
    def content_type(self) -> str:
        """As sent; empty where it is not told."""
        return self.headers.get("Content-Type", "")

    @property
    def framed(self) -> bool:
        """Whether HTTP tells where the body ends, so that one that breaks off is known as such."""
        return "Content-Length" in self.headers or "Transfer-Encoding" in self.headers

    @property
    def origin(self) -> str:
        """Whose answer it is, for messages: scheme, host and port."""
        return str(self.url.origin())


def result_of(
    answer: Answer,
    *,
    search: Callable[[Any], Any] | None,
    redact: Callable[[str], str],
    max_result_bytes: int = MAX_RESULT_BYTES,
    advice: Advice = HTTP,
) -> Any:
    """The JSON value that the row's result is: all of the answer, or what `search` (JMESPath) takes from it.

    text/* without `search` is a string, as it stands; anything else must be JSON, and an empty answer is null where
    no `search` expects more. Raises RowError: InvalidAnswer, IncompleteAnswer, InvalidText or AnswerTooLarge.
    """
    value = value_of(answer, wanted=search is not None, redact=redact)
    if search is not None:
        value = search(value)
    body = answer.body
    if (
        isinstance(value, str)
        or len(body) * _MAX_GROWTH > max_result_bytes
        or (b"\\u" in body and any(escape in body for escape in _SUSPICIOUS))
    ):
        require_storable(value, max_result_bytes, advice)
    return value


def too_large(limit: int, *, what: str, advice: Advice = HTTP) -> RowError:
    """The failure of an answer or result of more than `limit` bytes."""
    return RowError(
        "AnswerTooLarge",
        f"{what} is larger than {limit:,} bytes; {_PAID}; "
        f"let the endpoint answer less, or take a part of the answer by {advice.result}",
        retryable=False,
    )


def value_of(answer: Answer, *, wanted: bool, redact: Callable[[str], str]) -> Any:
    """What an answer says, as a JSON value; `wanted`: text/* must be JSON too. Raises RowError as `result_of` does."""
    media_type = answer.content_type.partition(";")[0].strip().lower()
    if media_type.startswith("text/") and media_type != "text/json" and not wanted:
        return _text_of(answer)
    body = answer.body
    if not body and not wanted:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    # The standard reader is slower and takes more: a lone surrogate (judged only where the result holds it), a
    # byte order mark, UTF-16.
    try:
        return json.loads(body, parse_float=_finite, parse_constant=_refuse)
    except (ValueError, RecursionError):
        pass
    if not answer.framed and body[:1] in b'{["':
        raise classify.incomplete_answer(answer.origin)
    found = classify.shorten(redact(body[:2400].decode("utf-8", "replace")))
    raise RowError(
        "InvalidAnswer",
        f"{answer.origin} answered {answer.status} with {media_type or 'no Content-Type'}, which is not JSON; {_PAID}; "
        + (f"it began: {found}" if found else "it was empty"),
        retryable=False,
    )


def _text_of(answer: Answer) -> str:
    found = _CHARSET.search(answer.content_type)
    charset = found.group(1) if found else "utf-8"
    try:
        return answer.body.decode(charset)
    except (LookupError, UnicodeError):
        raise RowError(
            "InvalidText",
            f"{answer.origin} answered text that is not {charset}, as its Content-Type says; {_PAID}",
            retryable=False,
        ) from None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number out of range")
    return number


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")


def require_storable(value: Any, max_result_bytes: int = MAX_RESULT_BYTES, advice: Advice = HTTP) -> None:
    """Raise RowError unless `value` can be recorded: within the bound, without U+0000 or lone surrogates (jsonb has
    neither)."""
    try:
        encoded = msgspec.json.encode(value)
    except UnicodeEncodeError:
        raise _invalid_text("a lone surrogate (half of a character)", advice) from None
    except RecursionError:
        raise RowError("InvalidAnswer", f"the result is nested too deeply; {_PAID}", retryable=False) from None
    if len(encoded) > max_result_bytes:
        raise too_large(max_result_bytes, what="the result", advice=advice)
    # A backslash before u0000 may itself be escaped, hence the look at the value; the bytes spare it to all others.
    if _ESCAPED_NUL in encoded and _holds_nul(value):
        raise _invalid_text("the character U+0000", advice)


def _holds_nul(value: Any) -> bool:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, str):
            if "\0" in item:
                return True
        elif isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return False


def _invalid_text(what: str, advice: Advice) -> RowError:
    return RowError(
        "InvalidText",
        f"the result holds {what}, which Postgres cannot store; {_PAID}; "
        f"let the endpoint leave it out, or take another part of the answer by {advice.result}",
        retryable=False,
    )
