"""Outcomes are dropped when their retention is over, never sooner and never under anybody; the run stays known."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from rowmill.errors import ResultsDropped
from rowmill.identity import RunIdentity
from rowmill.ledger import Drop, Kept, Ledger, RangeCounts, RunRecord, Superseded
from rowmill.ledger import retention as ledger_retention
from rowmill.outcome import Outcome, State
from rowmill.results.reader import main as read_results
from rowmill.status import ErrorCount, Phase
from rowmill_operator.engine.closing import close_run
from rowmill_operator.engine.retention import Expiry
from rowmill_operator.results import Shape
from tests.support.engine_here import NotedLog
from tests.support.inprocess import INSTALLATION, KeepLast, lab, manifest
from tests.support.parts import ALL, Desk, Disturbed, folder_at

DAY = 86_400


async def sql(ledger: Ledger, text: str, *values: object) -> list[asyncpg.Record]:
    async with ledger.pool.connection() as connection:
        return list(await connection.fetch(text, *values))


async def pass_by(ledger: Ledger, seconds: float, *, run: int | None = None) -> None:
    """Let so much time have passed since the end of a run, or of all."""
    await sql(
        ledger,
        "update rowmill.runs set finished_at = finished_at - $1 * interval '1 second' where $2::int is null or id = $2",
        seconds,
        run,
    )


async def over(
    ledger: Ledger,
    name: str,
    *,
    phase: Phase = Phase.COMPLETE,
    seconds: int | None = DAY,
    pending: bool = False,
    installation: str = "test",
) -> RunRecord:
    """A run of two workers with three outcomes, one of them a failure, that has ended."""
    runs = ledger.runs
    identity = RunIdentity(installation, "default", name, "1")
    record = await runs.take_over((await runs.ensure(identity, frozen={"a": 1}, shards=2, row_limit=None)).id)
    if seconds is not None:
        record = await runs.keep_results(record, seconds=seconds, output_pending=pending)
    record = await runs.begin_epoch(record, generation=0, epoch=1)
    await ledger.work(record, worker="w1").commit([Outcome(1, State.SUCCEEDED, 1, result='"a"')], generation=0)
    await ledger.work(record, worker="w2").commit(
        [Outcome(2, State.SUCCEEDED, 3, result='"b"'), Outcome(3, State.FAILED, 2, error_class="HTTP503")], generation=0
    )
    await runs.save_total(record, 3)
    await runs.save_phase(record, phase, "too many failed" if phase is Phase.FAILED else "")
    found = await ledger.find_run(identity)
    assert found is not None
    return found


async def again(ledger: Ledger, record: RunRecord) -> RunRecord:
    found = await ledger.find_run(record.identity)
    assert found is not None
    return found


async def tables(ledger: Ledger) -> set[str]:
    rows = await sql(ledger, "select tablename from pg_tables where schemaname = 'rowmill'")
    return {row[0] for row in rows if row[0].startswith("outcomes_")}


async def due(ledger: Ledger, installation: str = "test") -> list[str]:
    return [one.identity.name for one in await ledger.retention.expired(installation)]


async def read(ledger: Ledger, record: RunRecord) -> list[Outcome]:
    return [outcome async for page in ledger.results(record) for outcome in page]


async def test_only_what_is_over_and_due_is_dropped_and_the_run_stays_as_it_ended(ledger: Ledger) -> None:
    complete, failed = await over(ledger, "complete"), await over(ledger, "failed", phase=Phase.FAILED)
    longer = await over(ledger, "longer", seconds=2 * DAY)
    unknown = await over(ledger, "unknown", seconds=None)
    unwritten = await over(ledger, "unwritten", pending=True)
    suspended = await over(ledger, "suspended", phase=Phase.SUSPENDED)
    others = await over(ledger, "others", installation="another")
    assert await due(ledger) == []
    await pass_by(ledger, DAY - 60)
    assert await due(ledger) == []
    await pass_by(ledger, 61)
    await sql(ledger, "update rowmill.runs set finished_at = now() - interval '9 days' where id = $1", suspended.id)
    assert await due(ledger) == ["complete", "failed"]

    before = await ledger.runs.progress(complete)
    counted, log = [], NotedLog()
    turn = await Expiry(installation="test", log=log, dropped=lambda: counted.append(1)).turn(ledger)
    assert turn.dropped == [complete.identity, failed.identity]
    assert len(counted) == 2
    assert [event for event, _ in log.lines] == ["the results of a run were dropped: their retention is over"] * 2
    kept = {f"outcomes_{one.id}" for one in (longer, unknown, unwritten, suspended, others)}
    assert await tables(ledger) == kept

    now = await again(ledger, complete)
    assert (now.phase, now.total, now.frozen, now.finished_at) == (Phase.COMPLETE, 3, {"a": 1}, now.finished_at)
    assert now.dropped_at is not None
    assert await ledger.runs.progress(now) == before
    assert (before.succeeded, before.failed, before.retried) == (2, 1, 3)
    assert await ledger.runs.error_counts(now) == [ErrorCount("HTTP503", 1, 3)]
    folded = await sql(ledger, "select count(*) from rowmill.counters where run = $1", complete.id)
    assert folded[0][0] == 1, "what each worker counted is of no use any more"
    assert (await again(ledger, failed)).message == "too many failed"
    assert await due(ledger) == []
    with pytest.raises(ResultsDropped, match=r"the results of this run were dropped on \d{4}-.* change spec.runId"):
        await read(ledger, complete)


async def test_the_last_end_counts(ledger: Ledger) -> None:
    """A retry generation opens the run again: it has no end until its own, and that one counts."""
    record = await over(ledger, "job")
    await pass_by(ledger, 2 * DAY)
    stale = (await ledger.retention.expired("test"))[0]
    reopened = await ledger.runs.begin_epoch(await ledger.runs.take_over(record.id), generation=1, epoch=2)
    assert await ledger.retention.drop(stale) is Drop.NOT_DUE
    assert await due(ledger) == []
    await ledger.runs.save_phase(reopened, Phase.COMPLETE)
    assert await due(ledger) == []
    assert await ledger.retention.drop(await again(ledger, record)) is Drop.NOT_DUE
    assert len(await read(ledger, record)) == 3
    await pass_by(ledger, DAY)
    assert await ledger.retention.drop(await again(ledger, record)) is Drop.DROPPED


async def test_nothing_is_dropped_under_an_engine_a_reader_or_a_statement(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_retention, "LOCK_SECONDS", 0.05)
    record = await over(ledger, "job")
    await pass_by(ledger, DAY)
    record = await again(ledger, record)
    other = await Ledger.connect(ledger.dsn)
    try:
        await other.leadership.take(record.id)
        assert await ledger.retention.drop(record) is Drop.DRIVEN
        await other.leadership.release(record.id)

        async with contextlib.aclosing(other.results(record)) as pages:
            assert len(await anext(pages)) == 3
            assert await ledger.retention.drop(record) is Drop.READ

        async with other.pool.connection() as c, c.transaction():
            await c.fetch(f"select 1 from rowmill.outcomes_{record.id}")
            assert await ledger.retention.drop(record) is Drop.BUSY
        async with other.pool.connection() as c, c.transaction():
            await c.fetch("select 1 from rowmill.runs where id = $1 for share", record.id)
            assert await ledger.retention.drop(record) is Drop.BUSY
        assert len(await read(ledger, record)) == 3

        log = NotedLog()
        await other.leadership.take(record.id)
        assert (await Expiry(installation="test", log=log).turn(ledger)).dropped == []
        assert log.reasons("the results of a run are dropped later") == ["an engine drives the run"]
        await other.leadership.release(record.id)
        # A reader that left in the middle holds nothing up; whatever it left of its session may take a moment to go.
        async with asyncio.timeout(60):
            while (did := await ledger.retention.drop(record)) is Drop.READ:
                await asyncio.sleep(0.02)
        assert did is Drop.DROPPED
    finally:
        await other.close()


async def test_two_that_drop_at_once_drop_once(ledger: Ledger) -> None:
    others = [await Ledger.connect(ledger.dsn) for _ in range(3)]
    try:
        for n in range(5):
            await over(ledger, f"job{n}")
        await pass_by(ledger, DAY)
        turns = await asyncio.gather(
            *(Expiry(installation="test", log=NotedLog()).turn(one) for one in (ledger, *others))
        )
        dropped = [run.name for turn in turns for run in turn.dropped]
        assert sorted(dropped) == [f"job{n}" for n in range(5)]
        assert await tables(ledger) == set()
    finally:
        for other in others:
            await other.close()


async def test_one_that_is_in_use_holds_up_no_other(ledger: Ledger) -> None:
    for name in ("a", "b", "c"):
        await over(ledger, name)
    await pass_by(ledger, DAY)
    first = (await ledger.retention.expired("test"))[0]
    await ledger.leadership.take(first.id)
    expiry = Expiry(installation="test", log=NotedLog(), batch=1)
    turns = [await expiry.turn(ledger) for _ in range(4)]
    assert [[run.name for run in turn.dropped] for turn in turns] == [[], ["b"], ["c"], []]
    assert [turn.more for turn in turns] == [True, True, True, False]
    await ledger.leadership.release(first.id)
    assert [run.name for run in (await expiry.turn(ledger)).dropped] == ["a"], "it is come back to"


async def test_an_engine_that_was_paused_before_opens_nothing(ledger: Ledger) -> None:
    record = await over(ledger, "job")
    await pass_by(ledger, DAY)
    assert await ledger.retention.drop(await again(ledger, record)) is Drop.DROPPED
    for write in (
        ledger.runs.begin_epoch(record, generation=1, epoch=2),
        ledger.runs.raise_limit(record, None),
        ledger.runs.keep_results(record, seconds=9, output_pending=True),
    ):
        with pytest.raises(Superseded):
            await write
    # And a release that knows nothing of it, which takes the run over as ever.
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger.runs.begin_epoch(await ledger.runs.take_over(record.id), generation=1, epoch=2)
    assert (await ledger.runs.ensure(record.identity, frozen={}, shards=2, row_limit=None)).dropped_at is not None
    assert await tables(ledger) == set(), "no empty table that looks as if every row were open"


async def test_a_table_that_somebody_dropped_by_hand(ledger: Ledger) -> None:
    record = await over(ledger, "job")
    await pass_by(ledger, DAY)
    await sql(ledger, f"drop table rowmill.outcomes_{record.id}")
    assert await ledger.retention.drop(await again(ledger, record)) is Drop.DROPPED
    assert (await again(ledger, record)).errors == ()


async def test_runs_of_before_are_kept_until_their_manifest_is_seen(postgres_dsn: str, monkeypatch: Any) -> None:
    """The release before made the ledger; then this one comes, twice at once."""
    migrations = importlib.import_module("rowmill.ledger.migrate")
    old = await Ledger.connect(postgres_dsn)
    news = [await Ledger.connect(postgres_dsn) for _ in range(3)]
    try:
        every = migrations._migrations()
        monkeypatch.setattr(migrations, "_migrations", lambda: every[:1])
        await old.migrate()
        identity = RunIdentity("test", "default", "old", "1")
        async with old.pool.connection() as c:
            await c.execute(
                "insert into rowmill.runs (installation, namespace, name, run_id, token, frozen, shards, phase,"
                " finished_at) values ($1, $2, $3, $4, 't', '{}', 2, 'Complete', now() - interval '9 years')",
                *identity,
            )
            await c.execute("create table rowmill.outcomes_1 (like rowmill.outcomes including all)")
        found = await old.find_run(identity)
        assert found is not None
        assert found.retention_seconds is None, "a reader of this release reads a ledger of the one before"
        monkeypatch.setattr(migrations, "_migrations", lambda: every)
        applied = await asyncio.gather(*(ledger.migrate() for ledger in news))
        assert sum(applied) == len(every) - 1
        ledger = news[0]
        assert await due(ledger) == []
        stranger = Kept(identity._replace(name="stranger"), 5)
        assert await ledger.retention.note("test", [stranger]) == {}
        assert await due(ledger) == []
        assert await ledger.retention.note("test", [stranger, Kept(identity, DAY)]) == {}
        assert await due(ledger) == ["old"]
        assert await ledger.retention.note("test", [Kept(identity, 20 * 366 * DAY)]) == {}
        assert await due(ledger) == ["old"], "what is known is the engine's to change"
        assert await ledger.retention.note("test", [Kept(identity, 20 * 366 * DAY)], replace=True) == {}
        assert await due(ledger) == [], "`rowmill run` has the manifest at hand"
        assert await ledger.retention.note("test", [Kept(identity, DAY)], replace=True) == {}
        assert await ledger.retention.drop(await again(ledger, found)) is Drop.DROPPED
        (at,) = (await ledger.retention.note("test", [Kept(identity, DAY)])).values()
        assert at == (await again(ledger, found)).dropped_at
    finally:
        for one in (old, *news):
            await one.close()


async def test_a_results_reader_says_so(ledger: Ledger) -> None:
    record = await over(ledger, "job")
    await pass_by(ledger, DAY)
    await ledger.retention.drop(await again(ledger, record))
    out, err = io.BytesIO(), io.StringIO()
    environ = {"ROWMILL_POSTGRES_DSN": ledger.dsn, "ROWMILL_INSTALLATION": "test"}
    arguments = ["--namespace", "default", "--name", "job", "--run-id", "1"]
    assert await asyncio.to_thread(read_results, arguments, environ=environ, out=out, err=err) == 1
    assert out.getvalue() == b""
    assert "the results of this run were dropped on" in err.getvalue()
    assert err.getvalue().count("\n") == 1


async def test_applied_again_it_is_complete_and_calls_nothing_and_more_of_it_is_refused(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as one:
        errors = [{"class": "HTTP400", "percent": 50, "retryable": False}]
        options = {"mode": "Simulate", "simulate": {"errors": errors}, "resultsRetentionSeconds": DAY}
        table = tmp_path / "table.csv"
        table.write_text("id\n" + "".join(f"{n}\n" for n in range(1, 9)))

        def job(**spec: Any) -> Any:
            source = {"uri": str(table), "limit": spec.pop("limit", 6)}
            return manifest("http://nowhere.example/", **{"source": source, **options, **spec})

        driving = asyncio.create_task(one.drive(job()))
        async with one.worker(job()):
            first = await asyncio.wait_for(driving, 60)
        assert first.phase is Phase.COMPLETE
        record = await one.record(job())
        assert (record.retention_seconds, record.output_pending) == (DAY, False)
        await one.drive(job(resultsRetentionSeconds=5))
        assert (await one.record(job())).retention_seconds == 5, "an edit counts"
        await pass_by(one.ledger, 6)
        assert (await Expiry(installation=INSTALLATION, log=NotedLog()).turn(one.ledger)).dropped == [record.identity]
        table.unlink()  # nobody reads it again

        sink = KeepLast()
        status = await one.drive(job(), sink=sink)
        counts = ("total", "succeeded", "failed", "retried", "errors", "started_at")
        assert [getattr(status, name) for name in counts] == [getattr(first, name) for name in counts]
        assert status.phase is Phase.COMPLETE
        assert status.failed
        assert "the results were dropped on" in status.message
        assert status.dropped_at is not None
        for more, field in (({"retryGeneration": 1}, "spec.retryGeneration"), ({"limit": 8}, "spec.source.limit")):
            with pytest.raises(
                ResultsDropped, match=rf"{field}: the results of this run were dropped on .*spec\.runId"
            ):
                await one.drive(job(**more))
        assert (await one.record(job())).phase is Phase.COMPLETE
        assert await tables(one.ledger) == set()
        # Its resource deleted: nothing is there to be closed.
        await close_run(await one.record(job()), ledger=one.ledger, window=one.window, why="test")


async def test_nobody_writes_the_results_of_a_deleted_job(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as one:
        record = await over(one.ledger, "job", pending=True)
        await pass_by(one.ledger, DAY)
        assert await due(one.ledger) == []
        await close_run(record, ledger=one.ledger, window=one.window, why="deleted")
        assert await due(one.ledger) == ["job"]
        taken = await one.ledger.runs.take_over(record.id)
        taken = await one.ledger.runs.keep_results(taken, seconds=DAY, output_pending=True)
        await one.ledger.runs.output_written(replace(taken, term=taken.term - 1))
        assert await due(one.ledger) == [], "an older writer has no say about what is to be written now"
        await one.ledger.runs.output_written(taken)
        assert await due(one.ledger) == ["job"]


async def test_results_are_kept_until_they_are_written_and_written_ones_are_left_alone(
    ledger: Ledger, tmp_path: Path
) -> None:
    record = await over(ledger, "job", pending=True)
    await ledger.runs.save_phase(record, Phase.COMPLETE, "", RangeCounts(3, 2, 1, 0, 3))
    await pass_by(ledger, 2 * DAY)
    folder = Disturbed(folder_at(str(tmp_path / "out")))
    with ThreadPoolExecutor(1) as threads:
        desk = Desk(ledger, record, threads)
        assert await due(ledger) == [], "it was never written"
        written = await desk.writer(folder).finish()
        assert (written.parts, written.rows, written.failures, written.complete) == (1, 3, 1, True)
        assert await due(ledger) == ["job"]
        assert await ledger.retention.drop(await again(ledger, record)) is Drop.DROPPED

        for shape in (Shape("JSONL", ALL, ()), Shape("CSV", ALL, ("other",))):
            folder.calls.clear()
            found = await desk.writer(folder, shape=shape).finish()
            assert set(folder.calls) == {"read _rowmill.json"}, "nothing is written, nor taken away"
            assert (found == written) is (shape.format == "JSONL")
        for name in folder.inner.sizes():
            folder.inner.delete(name)
        folder.calls.clear()
        lost = await desk.writer(folder).finish()
        assert (lost.parts, lost.complete) == (0, False)
        assert set(folder.calls) == {"read _rowmill.json"}
