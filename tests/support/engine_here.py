"""An engine inside a test's own process, stopped or disturbed exactly where the test wants it.

    async with EngineHere(rig, at=wipe_before_the_third_append) as engine:
        status = await engine.ended()

`at` is asked before each change of the window (see `tests/support/disturbed.py`). `told(status)` is awaited with every
status, and holds up the engine's tick.
`unaware` makes it believe that it leads after its session was lost, as a process that was paused does for a moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from rowmill.ledger import Leadership, Ledger
from rowmill.spec import load_manifest_file
from rowmill.status import RunStatus
from rowmill_operator.engine.engine import Engine
from rowmill_operator.engine.feeder import WindowBounds
from rowmill_operator.engine.run_source import SourcePlaces
from tests.support.disturbed import At, DisturbedWindow, undisturbed
from tests.support.engine_process import NoFleet
from tests.support.rig import Rig


async def untold(status: RunStatus) -> None:
    """Nobody listens."""


async def outcomes_reach(rig: Rig, count: int, *, within: float = 120.0) -> None:
    """Wait until the ledger has outcomes of so many rows, whoever is alive to tell of it."""
    try:
        async with asyncio.timeout(within):
            while (await rig.sql("select count(distinct seq) as n from {outcomes}"))[0]["n"] < count:
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise AssertionError(f"fewer than {count} outcomes within {within} s\n{rig.tail()}") from None


class NotedLog:
    """A log that is kept: (event, fields) of each line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def bind(self, **fields: Any) -> NotedLog:
        return self

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    info = warning = error = exception = debug

    def reasons(self, event: str) -> list[str]:
        """The reasons that were given with this event."""
        return [fields["reason"] for noted, fields in self.lines if noted == event]


class _Unaware(Leadership):
    """Does not notice that its session is gone."""

    def holds(self, run: int) -> bool:
        return run in self._runs

    async def declare(self, name: str) -> int:
        return 0


class EngineHere:
    """One engine of a rig's run. Leaving the block stops it and raises nothing that it raised; ask `ended` for that."""

    def __init__(
        self,
        rig: Rig,
        *,
        at: At = undisturbed,
        told: Callable[[RunStatus], Awaitable[None]] = untold,
        window_rows: int = 20_000,
        unaware: bool = False,
        wall: Callable[[], float] = time.time,
        resumed_at: float | None = None,
    ) -> None:
        self._rig = rig
        self._at = at
        self._told = told
        self._bounds = WindowBounds(rows=window_rows)
        self._unaware = unaware
        self._wall = wall
        self._resumed_at = resumed_at
        self.log = NotedLog()
        self._stop = asyncio.Event()
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[RunStatus] | None = None
        self._reported = asyncio.Condition()
        self.statuses: list[RunStatus] = []
        self.refused: list[str] = []
        self.fleet = NoFleet()

    async def report(self, status: RunStatus) -> None:
        """What the engine's sink does."""
        async with self._reported:
            self.statuses.append(status)
            self._reported.notify_all()
        await self._told(status)

    async def __aenter__(self) -> EngineHere:
        job = load_manifest_file(self._rig.job_file)
        ledger = await Ledger.connect(self._rig.postgres_dsn, application_name="rowmill engine here")
        if self._unaware:
            ledger.leadership = _Unaware(ledger.dsn, application_name=ledger.application_name)
        self._stack.push_async_callback(ledger.close)
        await ledger.migrate()
        window = await DisturbedWindow.disturbed(self._rig.redis_url, at=self._at)
        self._stack.push_async_callback(window.close)
        self.refused = window.refused
        engine = Engine(
            job=job,
            identity=self._rig.identity,
            ledger=ledger,
            window=window,
            fleet=self.fleet,
            sink=self,
            places=SourcePlaces(base=self._rig.folder, cache=self._rig.folder),
            log=self.log,
            bounds=self._bounds,
            wall=self._wall,
            resumed_at=self._resumed_at,
        )
        self._task = asyncio.create_task(engine.run(stop=self._stop), name="engine here")
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await self._stack.aclose()

    def stop(self) -> None:
        """As SIGTERM does."""
        self._stop.set()

    async def ended(self, *, within: float = 120.0) -> RunStatus:
        """Wait for its end; the last status, or what it raised."""
        assert self._task is not None
        try:
            return await asyncio.wait_for(asyncio.shield(self._task), within)
        except TimeoutError:
            last = self.statuses[-1:]
            raise AssertionError(f"the engine did not end within {within} s: {last}\n{self._rig.tail()}") from None

    async def until(self, reached: Callable[[RunStatus], bool], *, within: float = 120.0) -> RunStatus:
        """Wait for a status that satisfies `reached`, from now on or the last one told."""
        assert self._task is not None
        async with asyncio.timeout(within), self._reported:
            while not (self.statuses and reached(self.statuses[-1])):
                assert not self._task.done(), f"the engine ended: {self._task}\n{self._rig.tail()}"
                await self._reported.wait()
            return self.statuses[-1]
