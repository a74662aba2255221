"""The checkpoint of an output as its writer keeps it: read once, changed in memory, written now and then.

Two fences keep a writer that was paused from overwriting what is newer: the run's term in the ledger is asked for right
before, and a checkpoint that somebody else wrote since ours is read and never overwritten.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor as ThreadPool
from dataclasses import replace

from rowmill.errors import InvalidInput, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import RunRecord, Runs, Superseded
from rowmill.status import Phase
from rowmill.telemetry.logging import Logger
from rowmill_operator.results.checkpoint import Checkpoint, NotReadable, Part, Shape, Stored, ledger_name
from rowmill_operator.results.layout import CHECKPOINT
from rowmill_operator.results.ports import Folder
from rowmill_operator.results.upload import in_thread


class ForeignCheckpoint(RowmillError):
    """Another writer has written the checkpoint since ours: it is read before anything else."""


class Book:
    """The checkpoint in `folder`. `state` is None until `open`, and again after ForeignCheckpoint."""

    def __init__(
        self,
        *,
        identity: RunIdentity,
        runs: Runs,
        folder: Folder,
        shape: Shape,
        part_rows: int,
        threads: ThreadPool,
        log: Logger,
        now: Callable[[], float],
        nonce: Callable[[], str],
    ) -> None:
        self._identity = identity
        self._runs = runs
        self._folder = folder
        self._shape = shape
        self._part_rows = part_rows
        self._threads = threads
        self._log = log
        self._now = now
        self._nonce = nonce
        self._mine: set[str] = set()
        self._changed = False
        self._saved_at = float("-inf")
        self._stale: set[str] = set()
        self.state: Checkpoint | None = None

    async def open(self, record: RunRecord) -> Checkpoint:
        """What is known of this run's output. Raises InvalidInput where the folder is another run's."""
        if self.state is not None and self.state.ledger == ledger_name(record):
            self._disbelieve_the_future(self.state, record)
            return self.state
        stored = await self._stored()
        if stored is not None and stored.identity != self._identity:
            other = stored.identity
            raise InvalidInput.one(
                self._folder.uri,
                "spec.output.uri",
                f"holds the results of {other} of the installation {other.installation}; name another folder, "
                f"or delete {CHECKPOINT} there if these results are not needed any more",
            )
        state = Checkpoint(self._identity, ledger_name(record), self._shape, self._part_rows)
        if stored is not None and stored.ledger == state.ledger and stored.shape == self._shape.digest:
            with contextlib.suppress(NotReadable):
                state = stored.checkpoint(self._shape)
        self._disbelieve_the_future(state, record)
        self._mine = {stored.saved if stored is not None else ""}
        self._changed = False
        self._stale.clear()
        self.state = state
        return state

    @staticmethod
    def _disbelieve_the_future(state: Checkpoint, record: RunRecord) -> None:
        """A ledger that went back in time will count other epochs by the numbers that the entries have."""
        for index, part in state.parts.items():
            if part.epoch > record.epoch:
                state.parts[index] = replace(part, epoch=0)

    async def begin(self, record: RunRecord) -> None:
        """Say that the output is not complete, before any of it changes; nothing where it says so already."""
        state = self._opened
        if state.phase != Phase.RUNNING.value or not state.saved:
            state.complete, state.phase, state.reason = False, Phase.RUNNING.value, ""
            await self.save(record)

    def keep(self, index: int, part: Part | None) -> None:
        """A part as it is now; None where it has no row. Objects that it does not have any more are deleted later."""
        parts = self._opened.parts
        before = parts.pop(index, None)
        if part is not None:
            parts[index] = part
        if before != part:
            self._changed = True
            old = before.objects(self._shape.format) if before else {}
            new = part.objects(self._shape.format) if part else {}
            self._stale = (self._stale | old.keys()) - new.keys()

    def doubt_all(self) -> None:
        """Have every part compared with the ledger before it is believed again."""
        parts = self._opened.parts
        for index, part in parts.items():
            parts[index] = replace(part, epoch=0)

    async def save_if_due(self, record: RunRecord, seconds: float) -> None:
        """Save what has changed, unless the last time is less than `seconds` ago."""
        if self._changed and self._now() - self._saved_at >= seconds:
            await self.save(record)

    async def save(self, record: RunRecord, *, unnamed: set[str] | None = None) -> None:
        """Write the checkpoint, then delete what it does not name any more, and `unnamed`.

        Raises Superseded and ForeignCheckpoint, and what ledger and folder raise.
        """
        state = self._opened
        if not await self.is_ours():
            self.state = None
            raise ForeignCheckpoint(f"another writer has written {CHECKPOINT} since")
        state.saved = self._nonce()
        state.generation, state.epoch, state.total = record.generation, record.epoch, record.total
        self._mine.add(state.saved)  # from here on it may be there, whatever the answer says
        data = await in_thread(self._threads, state.as_json)
        await self.fence(record)
        await in_thread(self._threads, self._folder.put, CHECKPOINT, data)
        self._mine = {state.saved}
        self._saved_at = self._now()
        self._changed = False
        self._stale |= unnamed or set()
        while self._stale:
            name = next(iter(self._stale))
            await in_thread(self._threads, self._folder.delete, name)
            self._stale.discard(name)

    async def is_ours(self) -> bool:
        """Whether the checkpoint in the folder is the one that was read or written here last."""
        stored = await self._stored()
        return (stored.saved if stored is not None else "") in self._mine

    async def fence(self, record: RunRecord) -> None:
        """Raises Superseded when another engine has taken the run over since `record` was read."""
        now = await self._runs.find(self._identity)
        if now is None or now.id != record.id or now.term != record.term:
            raise Superseded(f"another engine has taken the run {self._identity} over")

    @property
    def _opened(self) -> Checkpoint:
        assert self.state is not None
        return self.state

    async def _stored(self) -> Stored | None:
        def read() -> Stored | None:
            # Of a run of 10^9 rows it takes too long to be parsed on the loop.
            data = self._folder.read(CHECKPOINT)
            return Stored.parse(data) if data is not None else None

        try:
            return await in_thread(self._threads, read)
        except NotReadable as error:
            self._log.warning("the checkpoint cannot be read; everything is written anew", reason=str(error))
            return None
