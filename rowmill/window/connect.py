"""The connection to Redis: opened, checked, and asked in one way.

redis-py's own retries are off: it would repeat a command whose reply was lost. Everything here may be repeated or
is recovered by its caller (ids are deterministic, scripts check before they write), and the caller waits in its
own loop while Redis is away: `StoreUnavailable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha1
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

import hiredis
import redis.asyncio as redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
    TryAgainError,
)

from rowmill.errors import StoreUnavailable, StoreUnsafe

CALL_TIMEOUT = 10.0
"""Seconds until a command is given up; longer than any BLOCK."""

MIN_VERSION = (6, 2)


def place(url: str) -> str:
    """Where a URL points, without its password: fit for a message."""
    parts = urlsplit(url)
    return f"Redis at {parts.hostname or parts.path or 'localhost'}:{parts.port or 6379}"


_TRANSIENT_CLASSES = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
_TRANSIENT_REPLY = re.compile(
    # At the beginning, or after the place in a script where Redis 6 met it.
    r"(?:^|: -)(?:OOM|READONLY|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|LOADING|MISCONF|NOREPLICAS|UNBLOCKED|BUSY) "
    r"|used memory > 'maxmemory'"
)


@contextmanager
def passing_failures(where: str) -> Iterator[None]:
    """Turn failures that may pass into `StoreUnavailable`."""
    try:
        yield
    except AuthenticationError as error:
        raise StoreUnsafe(
            f"{where}: {error}. Check user and password in ROWMILL_REDIS_URL (redis://user:password@host:port/0)."
        ) from error
    except NoPermissionError as error:
        raise StoreUnsafe(
            f"{where}: {error}. Grant the user of ROWMILL_REDIS_URL the keys rowmill:* and all data commands."
        ) from error
    except (ConnectionError, TimeoutError, BusyLoadingError, OSError) as error:
        raise StoreUnavailable(f"{where}: {str(error) or type(error).__name__}") from error
    except ResponseError as error:
        if _is_transient(error):
            raise StoreUnavailable(f"{where}: {error}") from error
        raise


def _is_transient(error: ResponseError) -> bool:
    return isinstance(error, _TRANSIENT_CLASSES) or _TRANSIENT_REPLY.search(str(error)) is not None


Command = tuple[Any, ...]
"""A command's name and arguments, as redis-py takes them."""


class Script:
    """A Lua script that ships as a file; sent once to a server, then called by its digest."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = files("rowmill.window").joinpath("scripts", f"{name}.lua").read_bytes()
        self.sha = sha1(self.text, usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Command:
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


class _PackedInC:
    """Packs commands in C: the client's own packing is the largest part of appending a block of rows."""

    def pack_command(self, *args: Any) -> list[bytes]:
        name = args[0]
        if isinstance(name, str) and " " in name:
            args = (*name.split(), *args[1:])
        return [hiredis.pack_command(args)]


class RedisClient:
    """A thin client over redis-py: one place for errors, scripts and raw replies."""

    def __init__(self, url: str, *, connections: int = 16) -> None:
        try:
            self.where = place(url)
            pool: Any = redis.BlockingConnectionPool.from_url(
                url,
                protocol=2,
                decode_responses=False,
                max_connections=connections,
                timeout=CALL_TIMEOUT,  # waiting for a free connection
                socket_timeout=CALL_TIMEOUT,
                socket_connect_timeout=CALL_TIMEOUT,
                socket_keepalive=True,
                health_check_interval=0,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            # What could not be read may be a part of the password.
            raise StoreUnsafe(
                "ROWMILL_REDIS_URL is not the address of a Redis. Write it as redis://user:password@host:port/0 "
                "(rediss:// for TLS), special characters in user and password as %XX."
            ) from error
        # TCP, TLS or a Unix socket, as the URL says, but packed in C.
        pool.connection_class = type("PackedConnection", (_PackedInC, pool.connection_class), {})
        client: Any = redis.Redis.from_pool(pool)
        # Raw replies: parsing them into dictionaries costs more than all the rest of reading.
        for command in ("XREADGROUP", "XINFO CONSUMERS", "XINFO STREAM"):
            client.set_response_callback(command, _raw)
        self._redis = client

    async def call(self, *command: Any) -> Any:
        with passing_failures(self.where):
            return await self._redis.execute_command(*command)

    async def run(self, script: Script, keys: Sequence[str], args: Sequence[str | bytes | int]) -> Any:
        """One script call; the server is taught the script when it does not know it."""
        command = script.command(keys, args)
        with passing_failures(self.where):
            try:
                return await self._redis.execute_command(*command)
            except NoScriptError:
                await self._redis.execute_command("SCRIPT LOAD", script.text)
                return await self._redis.execute_command(*command)

    async def many(self, commands: Sequence[Command], *, scripts: Sequence[Script] = ()) -> list[Any]:
        """Several commands in one round trip, not a transaction. A command's own error is returned in its place.

        `scripts` are those that the commands call: a server that does not know them is taught, and asked again.
        """
        replies = await self._pipeline(commands)
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if unknown:
            for script in scripts:
                await self.call("SCRIPT LOAD", script.text)
            for i, reply in zip(unknown, await self._pipeline([commands[i] for i in unknown]), strict=True):
                replies[i] = reply
        return replies

    async def _pipeline(self, commands: Sequence[Command]) -> list[Any]:
        with passing_failures(self.where):
            async with self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                replies: list[Any] = await pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                    raise reply
                if isinstance(reply, ResponseError) and (isinstance(reply, NoPermissionError) or _is_transient(reply)):
                    raise reply
        return replies

    async def check(self) -> None:
        """Refuse a server on which rows would vanish. Raises StoreUnsafe with what to change."""
        info = await self.call("INFO", "server")
        version = tuple(int(part) for part in str(info.get("redis_version", "0")).split(".")[:2])
        if version < MIN_VERSION:
            wanted = ".".join(map(str, MIN_VERSION))
            raise StoreUnsafe(
                f"{self.where}: version {info.get('redis_version')} is too old; Rowmill needs Redis {wanted} or newer."
            )
        memory = await self.call("INFO", "memory")
        policy = memory.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise StoreUnsafe(
                f"{self.where}: maxmemory-policy is {policy}: under pressure it would drop rows on their way. "
                "Set it to noeviction (CONFIG SET maxmemory-policy noeviction), or use a Redis of Rowmill's own."
            )
        replication = await self.call("INFO", "replication")
        if replication.get("role") == "slave":
            raise StoreUnsafe(
                f"{self.where}: this is a replica that takes no writes. Point ROWMILL_REDIS_URL at the primary."
            )

    async def close(self) -> None:
        with passing_failures(self.where):
            await self._redis.aclose()


def _raw(reply: Any, **_: Any) -> Any:
    return reply


def unknown_group(reply: object) -> bool:
    """Redis says that the stream or its group is not there: wiped, rolled back, or another epoch is on."""
    # From within a script the server wraps the error in a text of its own.
    return isinstance(reply, ResponseError) and "NOGROUP" in str(reply)
