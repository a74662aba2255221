"""What the ledger knows of a run, and the engine's writes to it.

Every write of an engine carries its *term*, the number it got when it took the run over, and where it concerns
feeding the epoch too. A leader that was paused and wakes up works on for a moment before it notices that another
took over; its writes then find no row and raise `Superseded`.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg

from rowmill.errors import RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger.connect import OneConnection, Pool
from rowmill.ledger.insert import insert_outcomes
from rowmill.ledger.queries import int_array, statement
from rowmill.outcome import Outcome, State
from rowmill.row import Position
from rowmill.spend import Budget, Pause
from rowmill.status import ErrorCount, Phase

BLOCK_ROWS = 2000
PAGE_BYTES = 8 * 1024 * 1024
"""Results are read in pages of at most so many rows, and of so many bytes and one row."""


class Superseded(RowmillError):
    """Another engine has taken this run over; this one must stop."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A run as the ledger has it. `epoch` 0 means that nothing was ever fed."""

    id: int
    identity: RunIdentity
    token: str
    frozen: Mapping[str, Any]
    shards: int
    fingerprint: str | None
    row_limit: int | None
    total: int | None
    generation: int
    epoch: int
    term: int
    phase: Phase
    message: str
    feed_position: Mapping[str, Any] | None
    counts: RangeCounts | None
    started_at: float | None
    finished_at: float | None
    retention_seconds: int | None = None
    """How long outcomes are kept after `finished_at`; None, for good, where no manifest has said so."""
    output_pending: bool = False
    """Somebody has yet to write the results elsewhere: until then they are kept whatever the time."""
    dropped_at: float | None = None
    """Since then the run has no outcomes, and stays as it ended; see `rowmill.ledger.retention`."""
    errors: tuple[ErrorCount, ...] = ()
    """Of a dropped run: what `error_counts` said before."""
    budget: Budget | None = None
    """What its workers may use; None where nothing bounds them."""
    pause: Pause | None = None
    """Why it stands still though nobody suspended it."""
    source_rows: int | None = None
    """Rows of the whole source, where `row_limit` lets fewer in; None where nobody has counted."""


@dataclass(frozen=True, slots=True)
class RangeCounts:
    """Effective outcomes of a range of rows: a success for good, else the failure of this generation."""

    rows: int = 0
    succeeded: int = 0
    failed: int = 0
    deduplicated: int = 0
    retried: int = 0

    def __add__(self, other: RangeCounts) -> RangeCounts:
        return RangeCounts(
            self.rows + other.rows,
            self.succeeded + other.succeeded,
            self.failed + other.failed,
            self.deduplicated + other.deduplicated,
            self.retried + other.retried,
        )

    def as_json(self) -> str:
        return json.dumps({name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True)
class RangeState:
    """Effective outcomes of a range of rows as they are now, whichever generation they are of.

    `closed` of them are the last word of the generation asked for. `print` changes with any outcome that comes, goes or
    is recorded anew: what was read after it, and finds it unchanged later, is still what the ledger holds.
    """

    closed: int
    succeeded: int
    failed: int
    deduplicated: int
    print: str

    @property
    def rows(self) -> int:
        return self.succeeded + self.failed + self.deduplicated


@dataclass(frozen=True, slots=True)
class FeedPosition:
    """How far an epoch was fed, with the last id of every shard's stream at that moment. Advisory."""

    position: Position
    last_seqs: list[int] = field(default_factory=list)

    def as_json(self) -> str:
        return json.dumps({"seq": self.position.seq, "hint": dict(self.position.hint), "last_seqs": self.last_seqs})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeedPosition:
        return cls(Position(value["seq"], value["hint"]), list(value["last_seqs"]))


class Runs:
    """The engine's and the command line's view of the ledger."""

    def __init__(self, pool: Pool | OneConnection) -> None:
        self._pool = pool

    @asynccontextmanager
    async def in_one_session(self) -> AsyncIterator[Runs]:
        """The same calls, all in one session for the length of the block: it breaks when the server is lost."""
        async with self._pool.connection() as c:
            yield Runs(OneConnection(c))

    async def find(self, identity: RunIdentity) -> RunRecord | None:
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("find_run"), *identity)
        return record_of(row) if row else None

    async def of_job(self, installation: str, namespace: str, name: str) -> list[RunRecord]:
        """Every run of this job, the newest first."""
        async with self._pool.connection() as c:
            return [record_of(row) for row in await c.fetch(statement("runs_of_job"), installation, namespace, name)]

    async def ensure(
        self, identity: RunIdentity, *, frozen: Mapping[str, Any], shards: int, row_limit: int | None
    ) -> RunRecord:
        """The run of this identity, made if it is new, with its own table of outcomes (none where it was dropped)."""
        async with self._pool.connection() as c, c.transaction():
            row = await c.fetchrow(
                statement("insert_run"),
                *identity,
                secrets.token_hex(6),
                json.dumps(frozen),
                shards,
                row_limit,
            )
            if row is None:
                row = await c.fetchrow(statement("hold_run"), *identity)
            assert row is not None
            if row["dropped_at"] is None:
                await c.execute(statement("create_outcomes", run=row["id"]))
            return record_of(row)

    async def take_over(self, run: int) -> RunRecord:
        """Begin a new term. Whoever wrote with an older one is superseded from now on."""
        return record_of(await self._one("take_over", run))

    async def restate(self, record: RunRecord, *, frozen: Mapping[str, Any], shards: int) -> RunRecord:
        """Freeze another manifest than the one that the run was made with; only while nothing was ever fed."""
        return record_of(await self._one("restate", record.id, record.term, json.dumps(frozen), shards))

    async def begin_epoch(self, record: RunRecord, *, generation: int, epoch: int) -> RunRecord:
        return record_of(await self._one("begin_epoch", record.id, record.term, generation, epoch))

    async def save_feed_position(self, record: RunRecord, position: FeedPosition) -> None:
        await self._one("save_feed_position", record.id, record.term, record.epoch, position.as_json())

    async def save_fingerprint(self, record: RunRecord, fingerprint: str) -> None:
        await self._one("save_fingerprint", record.id, record.term, fingerprint)

    async def save_total(self, record: RunRecord, total: int) -> None:
        await self._one("save_total", record.id, record.term, record.epoch, total)

    async def save_source_rows(self, record: RunRecord, rows: int) -> None:
        await self._one("save_source_rows", record.id, record.term, record.epoch, rows)

    async def raise_limit(self, record: RunRecord, row_limit: int | None) -> RunRecord:
        return record_of(await self._one("raise_limit", record.id, record.term, row_limit))

    async def save_phase(
        self, record: RunRecord, phase: Phase, message: str = "", counts: RangeCounts | None = None
    ) -> None:
        await self._one(
            "save_phase", record.id, record.term, phase.value, message, counts.as_json() if counts else None
        )

    async def keep_results(self, record: RunRecord, *, seconds: int, output_pending: bool) -> RunRecord:
        """Keep outcomes for so many seconds after the end and, with `output_pending`, until `output_written`."""
        return record_of(await self._one("keep_results", record.id, record.term, seconds, output_pending))

    async def output_written(self, record: RunRecord) -> None:
        """Nobody needs the outcomes to write them elsewhere any more; nothing where another engine has the run now."""
        if record.output_pending:
            async with self._pool.connection() as c:
                await c.execute(statement("output_written"), record.id, record.term)

    async def _one(self, name: str, *args: object) -> asyncpg.Record:
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement(name), *args)
        if row is None:
            raise Superseded(f"another engine has taken run {args[0]} over; this one stops")
        return row

    async def commit_bad_rows(self, record: RunRecord, outcomes: list[Outcome]) -> None:
        """Outcomes of rows that were bad before any call. Fenced by term and epoch, in one transaction."""
        async with self._pool.connection() as c, c.transaction():
            if not await c.fetchval(statement("term_holds"), record.id, record.term, record.epoch):
                raise Superseded(f"another engine has taken run {record.id} over; this one stops")
            await insert_outcomes(c, record.id, record.generation, "engine", outcomes, may_be_known=True)

    async def closed_in_range(self, record: RunRecord, first: int, last: int) -> set[int]:
        """Rows of `first`..`last` that this generation need not run."""
        async with self._pool.connection() as c:
            rows = await c.fetch(statement("closed_in_range", run=record.id), record.generation, first, last)
        return {r[0] for r in rows}

    async def count_range(self, record: RunRecord, first: int, last: int) -> RangeCounts:
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("count_range", run=record.id), record.generation, first, last)
        return RangeCounts(*row)

    async def progress(self, record: RunRecord) -> RangeCounts:
        """Cheap counts from the workers' counters; exact ones come from `count_range`."""
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("progress"), record.id, record.generation)
        return RangeCounts(row["succeeded"] + row["failed"] + row["deduplicated"], *row)

    async def error_counts(self, record: RunRecord) -> list[ErrorCount]:
        """The most frequent classes of failures; of a dropped run what they were."""
        if record.dropped_at is not None:
            return list(record.errors)
        async with self._pool.connection() as c:
            rows = await c.fetch(statement("error_counts", run=record.id), record.generation)
        return [ErrorCount(r["error_class"], r["n"], r["example"]) for r in rows]

    async def results(
        self, record: RunRecord, *, first: int = 1, last: int | None = None, failed_only: bool = False
    ) -> AsyncGenerator[list[Outcome], None]:
        """The effective outcome of every row of `first`..`last` (None: the end) that has one, in pages ordered by seq.

        Memory is bounded whatever single rows hold: a page is cut before it is read.
        """
        if last is None:
            last = await self.last_seq(record)
        ends_of = statement("page_ends", run=record.id)
        query = statement("failures_page" if failed_only else "results_page", run=record.id)
        for after in range(first - 1, last, BLOCK_ROWS):
            async with self._pool.connection() as c:
                ends = await c.fetch(ends_of, after, min(after + BLOCK_ROWS, last), PAGE_BYTES, failed_only)
            start = after
            for end in sorted({r["seq"] for r in ends}):
                async with self._pool.connection() as c:
                    rows = await c.fetch(query, start, end)
                start = end
                if rows:
                    yield [_outcome(r) for r in rows]

    async def last_seq(self, record: RunRecord) -> int:
        """The highest row number that has an outcome; 0 where none has."""
        async with self._pool.connection() as c:
            return int(await c.fetchval(statement("last_seq", run=record.id)))

    async def range_state(self, record: RunRecord, first: int, last: int) -> RangeState:
        """What the ledger holds of rows `first`..`last`; `closed` counts for the generation of `record`."""
        async with self._pool.connection() as c:
            row = await c.fetchrow(statement("range_state", run=record.id), record.generation, first, last)
        return RangeState(*row)

    async def open_row(self, record: RunRecord, first: int, last: int) -> int | None:
        """A row of `first`..`last` that this generation has yet to run, or None. Looks rows up one by one till then."""
        async with self._pool.connection() as c:
            seq: int | None = await c.fetchval(statement("open_row", run=record.id), record.generation, first, last)
        return seq

    async def closed_of(self, record: RunRecord, seqs: list[int]) -> set[int]:
        """Those of `seqs` that this generation need not run."""
        async with self._pool.connection() as c:
            rows = await c.fetch(statement("look_up_rows", run=record.id), record.generation, int_array(seqs))
        return {r[0] for r in rows}

    async def expire_claims(self) -> None:
        """Drop declared keys whose time is over, a bounded number to a statement."""
        async with self._pool.connection() as c:
            while await c.fetchval(statement("expire_claims")):
                pass


def _outcome(r: asyncpg.Record) -> Outcome:
    return Outcome(
        seq=r["seq"],
        state=State(r["state"]),
        attempts=r["attempts"],
        result=r["result"],
        error_class=r["error_class"],
        error_message=r["error_message"],
        key=r["key"],
        columns=r["columns"],
        duplicate_of=r["duplicate_of"],
        input_tokens=r["input_tokens"],
        output_tokens=r["output_tokens"],
    )


def record_of(r: asyncpg.Record) -> RunRecord:
    """A row of `runs`. Of one that no release of this kind has migrated yet, the newest columns are missing."""
    dropped_at, errors = r.get("dropped_at"), r.get("errors")
    budget, pause = r.get("budget"), r.get("pause")
    return RunRecord(
        id=r["id"],
        identity=RunIdentity(r["installation"], r["namespace"], r["name"], r["run_id"]),
        token=r["token"],
        frozen=json.loads(r["frozen"]),
        shards=r["shards"],
        fingerprint=r["fingerprint"],
        row_limit=r["row_limit"],
        total=r["total"],
        generation=r["generation"],
        epoch=r["epoch"],
        term=r["term"],
        phase=Phase(r["phase"]),
        message=r["message"],
        feed_position=json.loads(r["feed_position"]) if r["feed_position"] else None,
        counts=RangeCounts(**json.loads(r["counts"])) if r["counts"] else None,
        started_at=r["started_at"].timestamp() if r["started_at"] else None,
        finished_at=r["finished_at"].timestamp() if r["finished_at"] else None,
        retention_seconds=r.get("retention_seconds"),
        output_pending=bool(r.get("output_pending")),
        dropped_at=dropped_at.timestamp() if dropped_at else None,
        errors=tuple(ErrorCount(*one) for one in json.loads(errors)) if errors else (),
        budget=Budget.from_json(json.loads(budget)) if budget else None,
        pause=Pause.from_json(json.loads(pause)) if pause else None,
        source_rows=r.get("source_rows"),
    )
