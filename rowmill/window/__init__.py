"""Redis: the rows that are now on their way, a bounded slice of the job. If it is lost, it is fed again."""

from __future__ import annotations

from collections.abc import Callable

from rowmill.errors import StoreUnavailable
from rowmill.limits import GroupLimits
from rowmill.window.connect import RedisClient
from rowmill.window.feed import FeedWindow, ShardLook, WindowLost
from rowmill.window.limits import Granted, LimitsLook, LimitsWindow, Permit, Standing, group_key
from rowmill.window.work import Delivery, EpochOver, Later, Orphans, WorkWindow

__all__ = [
    "Delivery",
    "EpochOver",
    "FeedWindow",
    "Granted",
    "GroupLimits",
    "Later",
    "LimitsLook",
    "LimitsWindow",
    "Orphans",
    "Permit",
    "ShardLook",
    "Standing",
    "Window",
    "WindowLost",
    "WorkWindow",
]


class Window:
    """A checked way into one Redis."""

    def __init__(self, client: RedisClient) -> None:
        self._client = client
        self.where = client.where

    @classmethod
    async def connect(cls, url: str, *, connections: int = 16) -> Window:
        """Open and check. `connections` bounds those at once; a reader that waits for rows holds one.

        Raises StoreUnavailable when Redis is away, StoreUnsafe when rows would vanish in it.
        """
        client = RedisClient(url, connections=connections)
        try:
            await client.check()
        except StoreUnavailable as error:
            await client.close()
            raise StoreUnavailable(f"{error}. See that it runs, and that ROWMILL_REDIS_URL names it") from error
        except BaseException:
            await client.close()
            raise
        return cls(client)

    def feed(self, *, token: str, shards: int) -> FeedWindow:
        return FeedWindow(self._client, token=token, shards=shards)

    def work(self, *, token: str, shards: int, epoch: int, consumer: str) -> WorkWindow:
        return WorkWindow(self._client, token=token, shards=shards, epoch=epoch, consumer=consumer)

    def limits(
        self,
        *,
        installation: str,
        namespace: str,
        group: str,
        worker: str,
        job: str,
        limits: GroupLimits,
        priority: int,
        timeout: float,
        clock: Callable[[], float] | None = None,
    ) -> LimitsWindow:
        """The books of a limits group; see `LimitsWindow`."""
        return LimitsWindow(
            self._client,
            key=group_key(installation, namespace, group),
            worker=worker,
            job=job,
            limits=limits,
            priority=priority,
            timeout=timeout,
            clock=clock,
        )

    def limits_look(
        self, *, installation: str, namespace: str, group: str, clock: Callable[[], float] | None = None
    ) -> LimitsLook:
        """The books of a limits group, for whoever only looks; see `LimitsLook`."""
        return LimitsLook(self._client, key=group_key(installation, namespace, group), clock=clock)

    async def close(self) -> None:
        await self._client.close()
