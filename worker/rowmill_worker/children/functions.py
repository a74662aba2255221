"""A user's function in its child process: imported once, called for each row or batch. See `rowmill.functions`.

Settings: `function` (module:name), `arguments` (the names that the manifest gives), `batch` (whether it has
`batching`). An item holds `arguments`, and `row` and `context` where the details say that the function has them.

Whatever the function raises is its row's failure, told by the exception's own text and the place where it was raised.
What a batch function raises is its batch's, except a RetryError, which is every row's.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import importlib
import inspect
import json
import traceback
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import PurePath
from typing import Any, Final

from rowmill.functions import Context, PermanentError, RetryError, kind_of
from rowmill_worker.children.messages import MAX_MESSAGE_CHARS, MAX_RESULT_BYTES, Failure
from rowmill_worker.children.serve import Answer, Unfit

_FIELD: Final = "function"


def serve_function(settings: dict[str, Any]) -> Any:
    """The server of what `settings` names. Raises Unfit."""
    function = _imported(settings["function"])
    batch = bool(settings["batch"])
    _check_kind(function, settings["function"], batch)
    has_row, has_context = _check_signature(function, settings["function"], settings["arguments"], batch)
    kind = _Batches if batch else _Rows
    server = kind(function, has_row, has_context)
    return _Async(server) if _is_async(function) else _Sync(server)


def _imported(path: str) -> Any:
    module_name, _, name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise Unfit(
                _FIELD,
                f"there is no module {error.name} where the worker runs; install it into the worker's image, or put "
                "its folder into PYTHONPATH",
            ) from None
        raise Unfit(_FIELD, f"importing {module_name} fails: {_told(error)}") from None
    function = getattr(module, name, None)
    if function is None:
        raise Unfit(_FIELD, f"module {module_name} has nothing named {name}")
    if not callable(function) or inspect.isclass(function):
        raise Unfit(_FIELD, f"{path} is no function")
    return function


def _check_kind(function: Any, path: str, batch: bool) -> None:
    kind = kind_of(function)
    if batch and kind != "batch":
        raise Unfit(
            "batching", f"{path} takes one row; leave batching out, or mark the function with rowmill's @batch_function"
        )
    if not batch and kind == "batch":
        raise Unfit("batching", f"is missing, and {path} takes a list of rows; write batching: {{}}")


def _check_signature(function: Any, path: str, arguments: Sequence[str], batch: bool) -> tuple[bool, bool]:
    """Whether it is given the row, and the context. Raises Unfit where the arguments do not go with it."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return False, False  # one of a native library: the call will tell
    if batch:
        return not arguments, "contexts" in signature.parameters
    has_row = "row" in signature.parameters and "row" not in arguments
    has_context = "context" in signature.parameters
    given = [*arguments, *(["row"] if has_row else []), *(["context"] if has_context else [])]
    try:
        signature.bind(**dict.fromkeys(given))
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "none"
        raise Unfit("arguments", f"do not go with {path}: {error}; its parameters are: {takes}") from None
    return has_row, has_context


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class _Rows:
    """How a function of one row is called, and what its result comes to."""

    def __init__(self, function: Any, has_row: bool, has_context: bool) -> None:
        self.function, self._has_row, self._has_context = function, has_row, has_context
        self.details = {"row": has_row, "context": has_context}

    def call(self, items: list[Any]) -> Any:
        (item,) = items
        keywords = dict(item["arguments"])
        if self._has_row:
            keywords["row"] = item["row"]
        if self._has_context:
            keywords["context"] = Context(**item["context"])
        return self.function(**keywords)

    def answers(self, result: Any, items: list[Any]) -> Iterator[Answer]:
        yield _answer(result)

    def failed(self, error: BaseException, items: list[Any]) -> Iterator[Answer]:
        yield _failure(error)


class _Batches:
    """How a function of a list is called, and what its results come to."""

    def __init__(self, function: Any, has_row: bool, has_contexts: bool) -> None:
        self.function, self._has_row, self._has_contexts = function, has_row, has_contexts
        self.details = {"row": has_row, "context": has_contexts}

    def call(self, items: list[Any]) -> Any:
        rows = [item["row"] if self._has_row else item["arguments"] for item in items]
        if self._has_contexts:
            return self.function(rows, contexts=[Context(**item["context"]) for item in items])
        return self.function(rows)

    def answers(self, result: Any, items: list[Any]) -> Iterator[Answer]:
        if hasattr(result, "tolist"):
            result = result.tolist()
        if not isinstance(result, list | tuple):
            yield _whole("InvalidResult", f"the function returned {_kind(result)}, not a list of results")
        elif len(result) != len(items):
            yield _whole("InvalidResult", f"the function returned {len(result)} results for {len(items)} rows")
        else:
            for one in result:
                yield _failure(one) if isinstance(one, BaseException) else _answer(one)

    def failed(self, error: BaseException, items: list[Any]) -> Iterator[Answer]:
        failure = _failure(error)
        if isinstance(error, RetryError):
            for _ in items:
                yield _copy(failure)
        else:
            failure.index = -1
            yield failure


def _copy(failure: Failure) -> Failure:
    """One of its own for each row."""
    return Failure(0, 0, failure.error_class, failure.message, failure.retryable, failure.retry_after)


class _Sync:
    """Calls one after the other."""

    def __init__(self, server: _Rows | _Batches) -> None:
        self._server, self.details = server, server.details

    def run(self, items: list[Any]) -> Iterator[Answer]:
        try:
            result = self._server.call(items)
            if inspect.isawaitable(result):
                _close(result)
                yield _whole("InvalidResult", "the function returned an awaitable; write it with async def")
                return
        except (Exception, SystemExit) as error:
            yield from self._server.failed(error, items)
            return
        yield from self._server.answers(result, items)


class _Async:
    """Calls side by side."""

    def __init__(self, server: _Rows | _Batches) -> None:
        self._server, self.details = server, server.details

    async def arun(self, items: list[Any]) -> AsyncIterator[Answer]:
        try:
            result = await self._server.call(items)
        except (Exception, SystemExit) as error:
            for answer in self._server.failed(error, items):
                yield answer
            return
        for answer in self._server.answers(result, items):
            yield answer


def _answer(result: Any) -> Answer:
    """A result as JSON text, or why it is none."""
    try:
        text = json.dumps(result, default=_plain, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
        encoded = text.encode()
    except UnicodeEncodeError:
        return _whole("InvalidText", "the result holds a lone surrogate (half of a character)", index=0)
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        return _whole(
            "InvalidResult", f"the result is no JSON value: {error}; return lists, objects, texts, numbers", 0
        )
    if len(encoded) > MAX_RESULT_BYTES:
        return _whole(
            "ResultTooLarge",
            f"the result has {len(encoded):,} bytes, at most {MAX_RESULT_BYTES:,} are kept; return less",
            index=0,
        )
    return encoded


def _plain(value: Any) -> Any:
    """What a value that JSON does not know is written as."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return str(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")


def _failure(error: BaseException) -> Failure:
    message = _told(error)
    if isinstance(error, PermanentError):
        return Failure(0, 0, error.error_class, message, retryable=False)
    if isinstance(error, RetryError):
        return Failure(0, 0, error.error_class, message, retryable=True, retry_after=error.after)
    return Failure(0, 0, "FunctionError", message, retryable=True)


def _whole(error_class: str, message: str, index: int = -1) -> Failure:
    return Failure(0, index, error_class, message, retryable=False)


def _told(error: BaseException) -> str:
    """An exception for a person: its kind, its text, where it was raised."""
    try:
        text = str(error)
    except Exception:
        text = ""
    name = "" if isinstance(error, PermanentError | RetryError) else type(error).__name__
    told = ": ".join(part for part in (name, text) if part) or type(error).__name__
    told = told.encode("utf-8", "replace").decode()[: MAX_MESSAGE_CHARS - 200]
    frames = traceback.extract_tb(error.__traceback__)
    if not frames:
        return told
    last = frames[-1]
    return f"{told} ({'/'.join(PurePath(last.filename).parts[-2:])}, line {last.lineno}, in {last.name})"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def _close(awaitable: Any) -> None:
    close = getattr(awaitable, "close", None)
    if callable(close):
        close()
