"""For functions that Rowmill runs (`spec.executor.python`): decorators, what a function may be told, how it may fail.

    from rowmill.functions import Context, PermanentError, RetryError, batch_function, row_function

    @row_function
    def quote(*, price: float, context: Context) -> dict[str, float]:
        if price < 0:
            raise PermanentError("the price is negative")
        return {"quote": price * 1.2}

    @batch_function
    async def score(rows: list[dict[str, Any]]) -> list[Any]:
        return [await one(row) if row["text"] else PermanentError("no text") for row in rows]

A row function is called with the keyword arguments of `spec.executor.python.arguments`; where it has parameters named
`row` and `context` it is also given the whole row and a `Context`. A batch function (`batching` in the manifest) is
called with a list, and a parameter named `contexts` is given a list of as many; it returns as many results, in the same
order, where an exception stands for a row that failed. Either may be async. A result is any JSON value; dataclasses,
dates and times, decimals and the values of numpy are written as JSON.

This module imports nothing but the standard library.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

_CLASS: Final = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")
_MARK: Final = "__rowmill_kind__"


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of one attempt at one row.

    `attempt` counts from 1, `seq` is the row's number, `key` its declared key or None. `idempotency_key` is the same
    for every attempt at a row: give it to whatever must not be done twice. `request_id` is in Rowmill's own log lines.
    """

    namespace: str
    job: str
    run_id: str
    seq: int
    key: Any
    attempt: int
    idempotency_key: str
    request_id: str


class _RowFailure(Exception):
    def __init__(self, message: str, *, error_class: str) -> None:
        if not _CLASS.fullmatch(error_class):
            raise ValueError(f"error_class {error_class!r} is no name in CamelCase of at most 64 letters and digits")
        super().__init__(message)
        self.error_class = error_class


class PermanentError(_RowFailure):
    """The row cannot succeed: it ends Failed, and is not tried again. `error_class` is CamelCase."""

    def __init__(self, message: str, *, error_class: str = "PermanentError") -> None:
        super().__init__(message, error_class=error_class)


class RetryError(_RowFailure):
    """The row may succeed later, not before `after` seconds (at least 0, at most an hour) where that is known.

    Raised by a batch function it is told to every row of the batch, and nothing is run again to find a row at fault.
    """

    def __init__(self, message: str, *, after: float | None = None, error_class: str = "RetryError") -> None:
        super().__init__(message, error_class=error_class)
        if after is not None and not 0 <= after <= 3600:
            raise ValueError("after is a number of seconds from 0 to 3600")
        self.after = after


def row_function(function: F) -> F:
    """Mark a function of one row. Raises TypeError where Rowmill could not call it."""
    _require_function(function, "row_function")
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.POSITIONAL_ONLY:
            raise TypeError(f"row_function: parameter {name} is positional-only, and arguments are given by name")
    return _marked(function, "row")


def batch_function(function: F) -> F:
    """Mark a function of a list of rows. Raises TypeError where Rowmill could not call it."""
    _require_function(function, "batch_function")
    parameters = inspect.signature(function).parameters
    first = next(iter(parameters.values()), None)
    if first is None or first.kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        raise TypeError("batch_function: the function's first parameter must take a list of rows")
    for name, parameter in list(parameters.items())[1:]:
        if name != "contexts" and parameter.default is parameter.empty and parameter.kind not in _MANY:
            raise TypeError(f"batch_function: nothing is given for parameter {name}; give it a default")
    return _marked(function, "batch")


_MANY: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def kind_of(function: Any) -> Literal["row", "batch"] | None:
    """What a function was marked as; None where it was not."""
    kind = getattr(function, _MARK, None)
    return kind if kind in ("row", "batch") else None


def _require_function(function: Any, decorator: str) -> None:
    if not callable(function) or inspect.isclass(function):
        raise TypeError(f"{decorator} takes a function, not {type(function).__name__}")


def _marked(function: F, kind: str) -> F:
    setattr(function, _MARK, kind)
    return function


__all__ = ["Context", "PermanentError", "RetryError", "batch_function", "kind_of", "row_function"]
