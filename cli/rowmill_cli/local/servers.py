"""The Redis and the Postgres of one state folder: started for a command, ended with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from rowmill.errors import StoreUnavailable
from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_cli.local.redis_server import RedisServer

REDIS_URL_VARIABLE = "ROWMILL_REDIS_URL"
POSTGRES_DSN_VARIABLE = "ROWMILL_POSTGRES_DSN"


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the stores are. Both hold passwords: never print, log or pass them as arguments."""

    redis_url: str = field(repr=False)
    postgres_dsn: str = field(repr=False)


class LocalServers:
    """Servers in `folder`, unless `ROWMILL_REDIS_URL` or `ROWMILL_POSTGRES_DSN` in `environ` name servers of one's own:
    those are used as they are, and neither started nor stopped.

    Use as a context manager, by the holder of the state folder's lock: entering ends what a killed command left
    behind, starts both and waits until they answer; leaving ends both, also when something went wrong in between.
    Raises StoreUnavailable where one cannot be started. `needs_redis=False` leaves Redis out (its URL is then empty);
    `durable_init=False` is for folders that are thrown away.
    """

    def __init__(
        self, folder: Path, *, environ: Mapping[str, str], needs_redis: bool = True, durable_init: bool = True
    ) -> None:
        self._redis_url = environ.get(REDIS_URL_VARIABLE, "")
        self._postgres_dsn = environ.get(POSTGRES_DSN_VARIABLE, "")
        self._needs_redis = needs_redis
        self.redis = RedisServer(folder / "redis")
        self.postgres = PostgresServer(folder / "postgres", durable_init=durable_init)

    def __enter__(self) -> Endpoints:
        # Both, whatever this command needs: the one that was killed may have needed more.
        self.redis.end_left_behind()
        self.postgres.end_left_behind()
        try:
            redis_url, postgres_dsn = self._redis_url, self._postgres_dsn
            if not redis_url and self._needs_redis:
                self.redis.start()
                redis_url = self.redis.url
            if not postgres_dsn:
                self.postgres.start()
                postgres_dsn = self.postgres.dsn
        except BaseException:
            self.stop()
            raise
        return Endpoints(redis_url, postgres_dsn)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def revive(self) -> list[str]:
        """Start again, where it was, what we had started and what has ended meanwhile; the names of what was.

        Blocks until it answers. Raises StoreUnavailable where it cannot be started where everybody looks for it.
        """
        revived = []
        for name, server in (("Redis", self.redis), ("Postgres", self.postgres)):
            if server.port and server.pid is None:
                port = server.port
                server.start()
                if server.port != port:
                    server.stop()
                    raise StoreUnavailable(f"the local {name} ended, and another program has taken its port {port}")
                revived.append(name)
        return revived

    def stop(self) -> None:
        """End both. Idempotent."""
        try:
            self.redis.stop()
        finally:
            self.postgres.stop()
