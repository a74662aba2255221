"""What Ctrl-C, SIGTERM and SIGHUP do to a command, in each part of its life.

Until somebody listens they raise KeyboardInterrupt, as Ctrl-C always did, so that every `with` block cleans up. While
somebody listens (the event loop runs) they are told how often it happened, and nothing is raised. While cleaning up
they are noted and nothing else: that part is short and must end.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Use as a context manager, in the main thread; the handlers that were there come back at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._listener: Callable[[int], None] | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        for number in _SIGNALS:
            # Ignored on purpose (nohup, a shell's background job): stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def told(self, listener: Callable[[int], None]) -> Iterator[None]:
        """Call `listener` with the count instead of raising. It runs between two bytecodes: keep it tiny."""
        previous, self._listener = self._listener, listener
        try:
            yield
        finally:
            self._listener = previous

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Only count."""
        return self.told(lambda count: None)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._listener is None:
            raise KeyboardInterrupt
        self._listener(self.count)
