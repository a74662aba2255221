"""Structured logs: JSON lines to a collector, key=value to a person; job and row on every line that concerns a row.

Three rules hold for each line, whoever wrote it. A secret's value never gets out: known values are taken out of every
field, and fields whose name says "secret" lose theirs. Lines stay few: rows are logged when they fail, the first of a
class each minute, then a sample with the count of what was left out (`FailureSampler`). And a line is one line.
"""

from __future__ import annotations

import io
import json as json_module
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, TextIO, cast

import msgspec
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MAX_FIELD_CHARS: Final = 2000
"""Characters of one field of a line; what is longer is cut."""

_SENSITIVE: Final = re.compile(r"authorization|password|passwd|secret|token|api[_-]?key|cookie|dsn", re.IGNORECASE)
# Tokens are also what model servers count: these are numbers, and wanted.
_HARMLESS: Final = frozenset({"tokens", "input_tokens", "output_tokens", "total_tokens", "max_tokens"})
_MASK: Final = "[redacted]"
_USERINFO: Final = re.compile(r"(?<=://)[^/@\s]+@")


class Logger(Protocol):
    """What the parts need of a logger. `bind` adds fields to every later line of the returned one."""

    def bind(self, **fields: Any) -> Logger: ...
    def debug(self, event: str, **fields: Any) -> None: ...
    def info(self, event: str, **fields: Any) -> None: ...
    def warning(self, event: str, **fields: Any) -> None: ...
    def error(self, event: str, **fields: Any) -> None: ...
    def exception(self, event: str, **fields: Any) -> None: ...


class RedactSecrets:
    """Takes secrets out of a line: values by `redact`, fields by their name, credentials in URLs by their place.

    `redact` knows the values of this process (an executor's, say); `add` tells of more as they are read.
    """

    def __init__(self, redact: Callable[[str], str] | None = None) -> None:
        self._redactors: list[Callable[[str], str]] = [redact] if redact else []

    def add(self, redact: Callable[[str], str]) -> None:
        """Let one more function take its values out of every later line."""
        self._redactors.append(redact)

    def __call__(self, logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        for name, value in event.items():
            if name not in _HARMLESS and _SENSITIVE.search(name) and value is not None:
                event[name] = _MASK
            else:
                event[name] = self._clean(value)
        return event

    def _clean(self, value: Any) -> Any:
        if isinstance(value, str):
            value = _USERINFO.sub(f"{_MASK}@", value)
            for redact in self._redactors:
                value = redact(value)
            return value if len(value) <= MAX_FIELD_CHARS else value[: MAX_FIELD_CHARS - 1] + "…"
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, dict):
            return {str(k): _MASK if _SENSITIVE.search(str(k)) else self._clean(v) for k, v in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._clean(item) for item in value]
        return self._clean(str(value))


def configure_logging(
    *,
    level: str = "info",
    stream: TextIO | None = None,
    json: bool | None = None,
    redact: Callable[[str], str] | None = None,
    **context: Any,
) -> tuple[Logger, RedactSecrets]:
    """Send every log line of this process, also those of libraries, to `stream` (stderr); called once, by `main`.

    `level` is debug, info, warning or error; `json` is lines of JSON, or key=value for people (the default on a
    terminal). `context` (job, worker) stands on every line of the returned logger. Raises ValueError on another level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level {level!r}; one of debug, info, warning, error")
    target = stream if stream is not None else sys.stderr
    as_json = not target.isatty() if json is None else json
    out = cast(TextIO, _LineStream(target))
    redactor = RedactSecrets(redact)
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redactor,
    ]
    render: Processor = _render_json if as_json else _render_line
    # Lines of libraries take the same way; they are told only when they warn.
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    structlog.configure(
        processors=[*shared, render],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(file=out),
        cache_logger_on_first_use=False,
    )
    logger: Logger = structlog.get_logger().bind(**context)
    return logger, redactor


class _LineStream(io.TextIOBase):
    """A stream that never fails its writer: a log that cannot be written must not fail a row."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except (OSError, ValueError):
            return 0

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return


def _render_json(logger: WrappedLogger, method: str, event: EventDict) -> str:
    line = {"timestamp": event.pop("timestamp", None), "level": event.pop("level", method), **event}
    try:
        return msgspec.json.encode(line).decode()
    except UnicodeEncodeError:  # a lone surrogate; ASCII escapes can tell of it
        return json_module.dumps(line)


def _render_line(logger: WrappedLogger, method: str, event: EventDict) -> str:
    time = str(event.pop("timestamp", ""))[11:19]
    level = event.pop("level", method)
    exception = event.pop("exception", None)
    text = event.pop("event", "")
    fields = " ".join(f"{name}={_quoted(value)}" for name, value in event.items())
    line = f"{time} {level:<7} {text}  {fields}".rstrip()
    return f"{line}\n{exception}" if exception else line


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text and not re.search(r"[\s\"=]", text) else repr(text)


@dataclass(slots=True)
class _Window:
    began: float
    seen: int = 0
    left_out: int = 0


class FailureSampler:
    """Which failed rows are logged: of each class the first `first` in `period` seconds, then every `every`th.

    A million failing rows of one class are thus about a thousand lines with the defaults. At most 100 classes are
    told apart. `clock` counts seconds and never goes back.
    """

    _MAX_CLASSES: Final = 100

    def __init__(self, *, clock: Callable[[], float], first: int = 20, period: float = 60.0, every: int = 1000) -> None:
        self._clock, self._first, self._period, self._every = clock, first, period, every
        self._windows: dict[str, _Window] = {}

    def admit(self, error_class: str) -> int | None:
        """None when this row is not to be logged; else how many of its class were left out since the last that was."""
        if error_class not in self._windows and len(self._windows) >= self._MAX_CLASSES:
            error_class = "Other"
        now = self._clock()
        window = self._windows.setdefault(error_class, _Window(now))
        if now - window.began >= self._period:
            window.began, window.seen = now, 0
        window.seen += 1
        if window.seen > self._first and window.seen % self._every:
            window.left_out += 1
            return None
        left_out, window.left_out = window.left_out, 0
        return left_out

    def left_out(self) -> dict[str, int]:
        """What was left out and not yet told of, by class; telling it starts the count anew (at the end of a run)."""
        rest = {name: window.left_out for name, window in self._windows.items() if window.left_out}
        for window in self._windows.values():
            window.left_out = 0
        return rest


class RowLog:
    """Tells of rows that failed, few enough to read, each with what one grep needs: job, row and request id."""

    def __init__(self, *, logger: Logger, sampler: FailureSampler) -> None:
        self._logger, self._sampler = logger, sampler

    def failed(
        self, *, row: int, request_id: str, attempt: int, error_class: str, message: str, retry_in: float | None
    ) -> None:
        """An attempt failed; `retry_in` seconds until the next, None where it was the last."""
        left_out = self._sampler.admit(error_class if retry_in is None else f"{error_class} retried")
        if left_out is None:
            return
        fields: dict[str, Any] = {
            "row": row,
            "request_id": request_id,
            "attempt": attempt,
            "error_class": error_class,
            "message": message,
        }
        if left_out:
            fields["not_logged"] = left_out
        if retry_in is None:
            self._logger.error("row failed", **fields)
        else:
            self._logger.warning("attempt failed, row is tried again", retry_in_seconds=round(retry_in, 3), **fields)

    def close(self) -> None:
        """Tell of what was left out since the last line of each class."""
        for error_class, count in sorted(self._sampler.left_out().items()):
            self._logger.warning("more failures than were logged", error_class=error_class, not_logged=count)


def null_logger() -> Logger:
    """A logger that writes nothing, for parts used without one."""
    logger: Logger = structlog.wrap_logger(None, processors=[_drop])
    return logger


def _drop(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    raise structlog.DropEvent


__all__ = [
    "FailureSampler",
    "Logger",
    "RedactSecrets",
    "RowLog",
    "configure_logging",
    "null_logger",
]
