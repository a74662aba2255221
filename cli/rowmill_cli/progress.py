"""How far a run is, for whoever watches: a bar on a terminal, a line every few seconds in a log, or nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn
from rich.text import Text

from rowmill.limits import say_limits
from rowmill.status import RunStatus

PLAIN_SECONDS = 5.0
"""Seconds between two lines where there is no terminal; a change of phase is told at once."""


class ProgressSink(Protocol):
    """A `StatusSink` with a beginning and an end."""

    last: RunStatus

    async def report(self, status: RunStatus) -> None: ...

    def __enter__(self) -> ProgressSink: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def progress_for(console: Console, *, title: str, quiet: bool) -> ProgressSink:
    """The sink that fits where `console` writes."""
    if quiet:
        return QuietProgress()
    if console.is_terminal:
        return BarProgress(console, title=title)
    return PlainProgress(console.print, title=title)


class QuietProgress:
    """Says nothing; keeps the last status."""

    def __init__(self) -> None:
        self.last = RunStatus()

    async def report(self, status: RunStatus) -> None:
        self.last = status

    def __enter__(self) -> QuietProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class PlainProgress(QuietProgress):
    """One line at a time through `write`: when the phase changes, else every `every` seconds if anything changed."""

    def __init__(
        self,
        write: Callable[[str], object],
        *,
        title: str,
        every: float = PLAIN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self._write = write
        self._title = title
        self._every = every
        self._clock = clock
        self._told: RunStatus | None = None
        self._told_at = 0.0

    async def report(self, status: RunStatus) -> None:
        await super().report(status)
        now = self._clock()
        news = self._told is None or status.phase != self._told.phase
        if news or (status != self._told and now - self._told_at >= self._every):
            self._write(f"{self._title}  {describe(status)}")
            self._told, self._told_at = status, now


class BarProgress(QuietProgress):
    """A bar with the counts below it, redrawn in place; it goes away at the end."""

    def __init__(self, console: Console, *, title: str) -> None:
        super().__init__()
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TaskProgressColumn(),
            console=console,
        )
        self._task = self._bar.add_task(title, total=None)
        self._counts = Text("starting …")
        self._live: AbstractContextManager[object] = Live(
            Group(self._bar, self._counts), console=console, refresh_per_second=8, transient=True
        )

    async def report(self, status: RunStatus) -> None:
        await super().report(status)
        self._bar.update(self._task, total=status.total, completed=status.done)
        self._counts.plain = describe(status, counts_done=False)

    def __enter__(self) -> BarProgress:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)


def describe(status: RunStatus, *, counts_done: bool = True) -> str:
    """A status in one line: `Running  1,200/3,000 (40%)  succeeded 1,198 …`."""
    parts = [str(status.phase)]
    if counts_done:
        parts.append(_share(status.done, status.total))
    parts.append(f"succeeded {status.succeeded:,}")
    parts.append(f"failed {status.failed:,}")
    if status.deduplicated:
        parts.append(f"deduplicated {status.deduplicated:,}")
    if status.retried:
        parts.append(f"retried {status.retried:,}")
    if status.rows_per_minute:
        parts.append(f"{status.rows_per_minute:,.0f} rows/min")
    if status.seconds_left is not None:
        parts.append(f"{duration(status.seconds_left)} left")
    parts.append(f"workers {status.workers_ready}/{status.workers_desired}")
    if status.limits is not None and status.limits.differ:
        parts.append(say_limits(status.limits))
    if status.message:
        parts.append(status.message)
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person says them: `0.8 s`, `42 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02} min"


def _share(done: int, total: int | None) -> str:
    if total is None:
        return f"{done:,}/?"
    # Rounded down: 100% is said of a finished run alone.
    return f"{done:,}/{total:,} ({100 if total == 0 else 100 * done // total}%)"
