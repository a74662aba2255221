"""The source of one run: opened once, checked against the manifest and the ledger, closed at the run's end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor as ThreadPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rowmill.errors import InvalidInput, PlaceUnavailable, SourceChanged
from rowmill.ledger import RunRecord, Runs
from rowmill.sources import Content, Source, open_source, prune_cache
from rowmill.spec import BatchJob, missing_columns
from rowmill.storage import AddressPolicy


@dataclass(frozen=True, slots=True)
class SourcePlaces:
    """Where sources may be found. `base` is the folder that relative paths are of, `cache` one for downloads, bounded
    by `cache_bytes`.

    `content` fetches the table of `spec.source.configMap`; `credentials` the keys of `spec.source.secretName` (None:
    there is none named). Both are asked anew at each opening; what they raise ends the run as what a source raises
    does. `policy` is what a source may be fetched from (None: everything), `ambient` allows this process's own identity
    at object stores.
    """

    base: Path
    cache: Path
    content: Callable[[], Awaitable[Content]] | None = None
    credentials: Callable[[], Awaitable[Mapping[str, str] | None]] | None = None
    policy: AddressPolicy | None = None
    ambient: bool = True
    cache_bytes: int | None = None


class RunSource:
    """`threads` read; `fetchers` fetch: a slow server must not hold up other runs' feeding."""

    def __init__(self, job: BatchJob, *, places: SourcePlaces, threads: ThreadPool, fetchers: ThreadPool) -> None:
        self._job = job
        self._places = places
        self._threads = threads
        self._fetchers = fetchers
        self._over = threading.Event()
        self._source: Source | None = None

    async def open(self, record: RunRecord, *, runs: Runs, stop: asyncio.Event) -> Source:
        """The source, opened if it is not yet; the one that this run began with, and that the manifest fits.

        Raises InvalidInput, SourceChanged, PlaceUnavailable.
        """
        loop = asyncio.get_running_loop()
        if self._source is None:
            self._source = await self._opened(stop)
            columns = await loop.run_in_executor(self._threads, self._source.columns)
            if columns is not None and (problems := missing_columns(self._job, columns)):
                source = self._job.spec.source
                name = source.uri or ("spec.source.configMap" if source.config_map else "spec.source.rows")
                raise InvalidInput(name, problems)
        fingerprint = await loop.run_in_executor(self._threads, self._source.fingerprint)
        if record.fingerprint not in (None, fingerprint):
            raise SourceChanged(
                f"the source of {record.identity} is not the one that this run began with: its rows can no longer be "
                "told apart by their position. Put the old content back, or change spec.runId to begin a new run"
            )
        await runs.save_fingerprint(record, fingerprint)
        return self._source

    async def _opened(self, stop: asyncio.Event) -> Source:
        """The source as the manifest names it, fetched where it is far away."""
        spec, places = self._job.spec.source, self._places
        content = await places.content() if places.content is not None and spec.config_map is not None else None
        credentials = await places.credentials() if places.credentials is not None else None
        opening = asyncio.get_running_loop().run_in_executor(
            self._fetchers,
            lambda: open_source(
                uri=spec.uri,
                rows=spec.rows,
                format=spec.format,
                limit=spec.limit,
                base=places.base,
                cache=places.cache,
                content=content,
                credentials=credentials,
                ambient=places.ambient,
                policy=places.policy,
                cache_bytes=places.cache_bytes,
                stopped=lambda: stop.is_set() or self._over.is_set(),
            ),
        )
        stopping = asyncio.ensure_future(stop.wait())
        wanted = False
        try:
            either: set[asyncio.Future[Any]] = {opening, stopping}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not opening.done():
                raise PlaceUnavailable("told to stop while the source was being fetched")
            wanted = True
            return opening.result()
        finally:
            stopping.cancel()
            if not wanted:
                # The thread goes on until it looks at what stops it; what it opens then is nobody's.
                opening.add_done_callback(_close_unwanted)

    def close(self) -> None:
        """The run is over: nothing is fetched any more, and the cache is brought under its bound."""
        self._over.set()
        if self._source is not None:
            self._source.close()
            with contextlib.suppress(RuntimeError):  # shared threads may have ended before us
                self._fetchers.submit(prune_cache, self._places.cache, max_bytes=self._places.cache_bytes)


def _close_unwanted(opening: asyncio.Future[Source]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()
