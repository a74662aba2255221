"""An event loop whose clock jumps to the next timer: minutes of waiting pass in milliseconds, always the same way."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Jump(selectors.SelectSelector):
    """Instead of waiting for `timeout`, it has passed."""

    loop: SimulatedLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits, and nothing is left that would wake one of them")
            self.loop.seconds += timeout
        return ready


class SimulatedLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 1000 and moves only when everybody waits."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        jump = _Jump()
        jump.loop = self
        super().__init__(jump)

    def time(self) -> float:
        return self.seconds


def simulate(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run `main()` to its end on a loop of simulated time; what it left running is ended."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main())


async def pass_time(seconds: float) -> None:
    """Let simulated time pass, and everybody due in it run."""
    loop = asyncio.get_running_loop()
    passed: asyncio.Future[None] = loop.create_future()
    loop.call_later(seconds, passed.set_result, None)
    await passed
