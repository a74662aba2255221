"""The engine's hands on the window, held up or struck exactly where a test wants it.

`at(stage, number)` is awaited before every call that changes the window (`open`, `append`, `close`), with how many of
that stage there have been, from 1. Appends are made one at a time, so that what happens there falls between two.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

from rowmill.row import Entry
from rowmill.window import FeedWindow, Window, WindowLost
from rowmill.window.connect import RedisClient

At = Callable[[str, int], Awaitable[None]]


async def undisturbed(stage: str, number: int) -> None:
    """Nothing happens."""


def dies_at(stage: str, number: int) -> At:
    """SIGKILL to this very process before the `number`th call of `stage`."""

    async def at(reached: str, nth: int) -> None:
        if (reached, nth) == (stage, number):
            os.kill(os.getpid(), signal.SIGKILL)

    return at


class DisturbedFeed(FeedWindow):
    """Asks `at` before each change; `seen` counts them, `refused` gets what was said to appends that were refused."""

    def __init__(
        self, client: RedisClient, *, token: str, shards: int, at: At, seen: Counter[str], refused: list[str]
    ) -> None:
        super().__init__(client, token=token, shards=shards)
        self._at = at
        self._seen = seen
        self._refused = refused
        self._one_at_a_time = asyncio.Lock()

    async def _reach(self, stage: str) -> None:
        self._seen[stage] += 1
        await self._at(stage, self._seen[stage])

    async def open(self, epoch: int) -> None:
        await self._reach("open")
        await super().open(epoch)

    async def append(self, epoch: int, shard: int, *, after: int, entries: Sequence[Entry]) -> int:
        async with self._one_at_a_time:
            await self._reach("append")
            try:
                return await super().append(epoch, shard, after=after, entries=entries)
            except WindowLost as error:
                self._refused.append(str(error))
                raise

    async def close(self, epoch: int) -> None:
        await self._reach("close")
        await super().close(epoch)


class DisturbedWindow(Window):
    """A window whose feeding asks `at`; counts go on from one epoch to the next."""

    def __init__(self, client: RedisClient, at: At = undisturbed) -> None:
        super().__init__(client)
        self._at = at
        self._seen: Counter[str] = Counter()
        self.refused: list[str] = []

    @classmethod
    async def disturbed(cls, url: str, *, at: At) -> DisturbedWindow:
        """Open and check, as `Window.connect` does."""
        return cls((await Window.connect(url))._client, at)

    def feed(self, *, token: str, shards: int) -> FeedWindow:
        return DisturbedFeed(
            self._client, token=token, shards=shards, at=self._at, seen=self._seen, refused=self.refused
        )
