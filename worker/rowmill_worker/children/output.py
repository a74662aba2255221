"""What a child prints, as lines of the worker's log: bounded in length and in number, and read to the end whatever
comes, for a child whose output nobody reads would stop in the middle of a row."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from rowmill.telemetry.logging import Logger

MAX_LINE_BYTES: Final = 2_000
BURST_LINES: Final = 100
LINES_A_SECOND: Final = 10.0


class Output(asyncio.Protocol):
    """Reads the pipe of one child's standard output and error. `clock` counts seconds and never goes back."""

    def __init__(self, *, log: Logger, pid: Callable[[], int], clock: Callable[[], float]) -> None:
        self._log, self._pid, self._clock = log, pid, clock
        self._rest = b""
        self._allowed, self._as_of = float(BURST_LINES), clock()
        self._left_out = 0

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._tell(line)
        if len(self._rest) > MAX_LINE_BYTES:
            # The line is cut here, and what follows of it is left out with the next line's end.
            self._rest = self._rest[: MAX_LINE_BYTES + 1]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._rest:
            self._tell(self._rest)
            self._rest = b""
        if self._left_out:
            self._log.warning("output", process=self._pid(), lines_left_out=self._left_out)

    def _tell(self, line: bytes) -> None:
        text = line[:MAX_LINE_BYTES].decode("utf-8", "replace").rstrip()
        if not text:
            return
        now = self._clock()
        self._allowed = min(BURST_LINES, self._allowed + (now - self._as_of) * LINES_A_SECOND)
        self._as_of = now
        if self._allowed < 1:
            self._left_out += 1
            return
        self._allowed -= 1
        if len(line) > MAX_LINE_BYTES:
            text += "…"
        if self._left_out:
            self._log.info("output", process=self._pid(), text=text, lines_left_out=self._left_out)
            self._left_out = 0
        else:
            self._log.info("output", process=self._pid(), text=text)
