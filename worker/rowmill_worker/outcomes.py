"""From what an attempt brought home to the row's outcome. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from rowmill.outcome import Outcome, State
from rowmill_worker.executors.protocol import RowError, Usage
from rowmill_worker.held import HeldRow

MAX_RESULT_BYTES = 1_048_576
MAX_MESSAGE_CHARACTERS = 2000

_encode = msgspec.json.Encoder().encode


def succeeded(row: HeldRow, result: Any, usage: Usage | None = None) -> Outcome:
    """The outcome of an answer; `usage` is what its call used.

    Raises RowError when the answer arrived but cannot be recorded as it is.
    """
    try:
        encoded = _encode(result)
    except UnicodeEncodeError:
        raise RowError(
            "InvalidText",
            "the answer arrived, but holds a lone surrogate, which no text file and no database can store",
            retryable=False,
        ) from None
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise RowError("InvalidAnswer", f"the result is no JSON value: {error}", retryable=False) from None
    if len(encoded) > MAX_RESULT_BYTES:
        raise RowError(
            "ResultTooLarge",
            f"the result has {len(encoded):,} bytes, at most {MAX_RESULT_BYTES:,} are kept: narrow `result` down",
            retryable=False,
        )
    text = encoded.decode()
    if "\\u0000" in text and _has_nul(result):
        raise RowError(
            "InvalidText", "the answer arrived, but holds a NUL character, which Postgres cannot store", retryable=False
        )
    inputs, outputs = _tokens(usage)
    return Outcome(
        seq=row.seq,
        state=State.SUCCEEDED,
        attempts=row.attempts,
        result=text,
        key=row.key,
        columns=row.columns,
        input_tokens=inputs,
        output_tokens=outputs,
    )


def failed(row: HeldRow, error_class: str, message: str, usage: Usage | None = None) -> Outcome:
    """The outcome of a row that has had its last attempt; `usage` is what that used."""
    inputs, outputs = _tokens(usage)
    return Outcome(
        seq=row.seq,
        state=State.FAILED,
        attempts=row.attempts,
        error_class=error_class,
        error_message=storable(message),
        key=row.key,
        columns=row.columns,
        input_tokens=inputs,
        output_tokens=outputs,
    )


def _tokens(usage: Usage | None) -> tuple[int | None, int | None]:
    """In and out; None where nobody told."""
    if usage is None or not (usage.input_tokens or usage.output_tokens):
        return None, None
    return usage.input_tokens, usage.output_tokens


def storable(text: str) -> str:
    """Text as Postgres takes it, bounded."""
    text = text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= MAX_MESSAGE_CHARACTERS else text[: MAX_MESSAGE_CHARACTERS - 1] + "…"


def carried_columns(row: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """The source's columns that the results carry, as JSON text; a column that this row lacks is null."""
    if not names:
        return None
    return _encode({name: row.get(name) for name in names}).decode()


def _has_nul(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value
    if isinstance(value, Mapping):
        return any(_has_nul(k) or _has_nul(v) for k, v in value.items())
    if isinstance(value, Sequence):
        return any(_has_nul(v) for v in value)
    return False
