"""Ending tasks for sure, and waiting for an event with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any

CANCEL_AGAIN_SECONDS = 0.5


async def end_tasks(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until every one has ended; how they ended is not told.

    A cancel can be lost: in Python 3.11 `asyncio.wait_for` returns the result when it is cancelled in the very moment
    that its result arrives, and clients of both stores use it. Such a task is cancelled again.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        done, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN_SECONDS)
        for task in done:
            if not task.cancelled():
                task.exception()


async def set_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event`, at most `seconds`; whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


async def first_of(event: asyncio.Event, waiting: Coroutine[Any, Any, object]) -> bool:
    """Wait for `event` or for `waiting`, which is cancelled where it has not ended; whether `event` is set."""
    tasks = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(waiting)]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(tasks)
    return event.is_set()
