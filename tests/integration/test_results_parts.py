"""A run's output in parts is exactly what the ledger holds, whatever happens to its writer.

What concerns the place runs on a folder of this machine and on an object store that speaks S3.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import threading
import tracemalloc
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RangeState, RunRecord, Runs, Superseded
from rowmill.outcome import Outcome, State
from rowmill.status import Phase
from rowmill_operator.results import PartsWriter, Shape, StoreFolder
from rowmill_operator.results.book import ForeignCheckpoint
from rowmill_operator.results.upload import RacedError
from tests.support.parts import (
    ALL,
    EAGER,
    Desk,
    Died,
    Disturbed,
    checkpoint_in,
    content,
    failed,
    folder_at,
    lines_of,
    succeeded,
)
from tests.support.s3 import s3_server

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The keys of an object store that speaks S3."""
    with s3_server() as keys:
        yield keys


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> StoreFolder:
    if request.param == "local":
        return folder_at(str(tmp_path / "out"))
    return folder_at(f"s3://bucket/{uuid.uuid4()}", credentials=request.getfixturevalue("s3"))


@pytest.fixture
def local(tmp_path: Path) -> StoreFolder:
    return folder_at(str(tmp_path / "out"))


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def desk(ledger: Ledger, record: RunRecord, threads: ThreadPoolExecutor) -> Desk:
    return Desk(ledger, record, threads)


async def run_of_35(desk: Desk) -> None:
    """Four parts of ten: failures in the second and in the last, a duplicate in the third."""
    await desk.fail([13, 14, 33])
    await desk.commit([Outcome(25, State.DEDUPLICATED, 0, result='"x"', duplicate_of="ns/other/1#9")])
    await desk.succeed(sorted(set(range(1, 36)) - {13, 14, 33, 25}))
    await desk.end(35)


async def run_of_14(desk: Desk) -> None:
    """Two parts, a failure in the second."""
    await desk.fail([13])
    await desk.succeed(sorted(set(range(1, 15)) - {13}))
    await desk.end(14)


@pytest.mark.parametrize("format", ["JSONL", "CSV", "Parquet"])
@pytest.mark.parametrize("include", [ALL, frozenset({State.SUCCEEDED}), frozenset({State.FAILED})], ids=str)
async def test_the_output_is_what_the_ledger_holds(
    desk: Desk, folder: StoreFolder, format: str, include: frozenset[State]
) -> None:
    await run_of_35(desk)
    shape = Shape(format, include, ("a",))
    summary = await desk.writer(folder, shape=shape).finish()
    await desk.assert_exact(folder, shape)
    names = sorted(name for name in folder.sizes() if name.startswith("part-"))
    if include == ALL:
        suffix = {"JSONL": ".jsonl", "CSV": ".csv", "Parquet": ".parquet"}[format]
        spans = ("000000001-000000010", "000000011-000000020", "000000021-000000030", "000000031-000000035")
        assert names == [f"part-{span}{suffix}" for span in spans]
    elif include == {State.FAILED}:
        assert len(names) == 2, "a part without rows is no object"
    assert (summary.parts, summary.failures, summary.complete) == (len(names), 3, True)
    assert summary.uri == folder.uri


async def test_parts_are_written_while_the_run_goes(desk: Desk, folder: StoreFolder) -> None:
    writer = desk.writer(folder)
    await writer.look()
    assert checkpoint_in(folder)["parts"] == []
    await desk.succeed([*range(1, 20), 31])
    await writer.look()
    assert [part["first"] for part in checkpoint_in(folder)["parts"]] == [1], "row 20 is missing"
    await desk.fail([20])
    await desk.succeed(range(21, 30))
    await writer.look()
    now = checkpoint_in(folder)
    assert [(part["first"], part["rows"], part["failed"]) for part in now["parts"]] == [(1, 10, 0), (11, 10, 1)]
    assert (now["complete"], now["phase"], now["total"]) == (False, "Running", None)
    await desk.succeed([30, *range(32, 36)])
    await desk.end(35)
    await writer.finish()
    await desk.assert_exact(folder)


class Counting(Runs):
    """The ledger's view, which counts what it is asked."""

    def __init__(self, inner: Runs) -> None:
        super().__init__(inner._pool)
        self.asked: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("find", "progress", "last_seq", "range_state", "open_row", "closed_of", "results"):
            self.asked.append(name)
        return super().__getattribute__(name)


async def test_what_is_written_is_not_looked_at_again(desk: Desk, tmp_path: Path) -> None:
    """A look costs what is open, not what there is; a row that is late keeps its part from being read over and over."""
    runs = Counting(desk.ledger.runs)
    desk.ledger.runs = runs
    writer = desk.writer(folder_at(str(tmp_path)))
    await desk.succeed(sorted({*range(1, 61)} - {5}))
    for _ in range(3):
        await writer.look()
    assert len(checkpoint_in(folder_at(str(tmp_path)))["parts"]) == 5
    runs.asked.clear()
    await writer.look()
    assert runs.asked == ["find", "progress"], "nothing happened"
    await desk.succeed([61])
    runs.asked.clear()
    await writer.look()
    assert runs.asked == ["find", "progress", "last_seq", "closed_of"], "row 5 is still missing"
    await desk.succeed([5])
    await writer.look()
    assert len(checkpoint_in(folder_at(str(tmp_path)))["parts"]) == 6


async def test_a_look_is_bounded(desk: Desk, tmp_path: Path) -> None:
    runs = Counting(desk.ledger.runs)
    desk.ledger.runs = runs
    folder = folder_at(str(tmp_path))
    writer = desk.writer(folder, part_rows=1)
    await desk.succeed(range(1, 30))
    await writer.look()
    assert runs.asked.count("open_row") == EAGER.scans
    for _ in range(3):
        await writer.look()
    assert len(checkpoint_in(folder)["parts"]) == 29


async def test_a_finished_output_is_only_looked_at(desk: Desk, folder: StoreFolder) -> None:
    await run_of_35(desk)
    first = await desk.writer(folder).finish()
    await desk.take_over()  # as re-applying does
    disturbed = Disturbed(folder)
    runs = Counting(desk.ledger.runs)
    desk.ledger.runs = runs
    assert await desk.writer(disturbed).finish() == first
    assert set(disturbed.calls) == {"read _rowmill.json"}
    assert set(runs.asked) == {"find", "progress"}


async def test_a_finished_output_stays_complete_while_its_writer_runs(desk: Desk, local: StoreFolder) -> None:
    """As when a finished run is applied again: the writer begins before the engine has found the run finished."""
    await run_of_35(desk)
    await desk.writer(local).finish()
    await desk.take_over()
    saved = checkpoint_in(local)
    writer = desk.writer(local)
    await writer.look()
    assert (await writer.finish()).complete
    assert checkpoint_in(local) == saved


async def test_a_retry_writes_what_held_failures(desk: Desk, folder: StoreFolder) -> None:
    await run_of_35(desk)
    await desk.writer(folder).finish()
    await desk.new_epoch(generation=1)
    disturbed = Disturbed(folder)
    writer = desk.writer(disturbed)
    await writer.look()
    assert checkpoint_in(folder)["complete"] is False
    await desk.succeed([13, 14])
    await writer.look()
    assert [call for call in disturbed.calls if "create" in call] == ["create part-000000011-000000020.jsonl"]
    await desk.fail([33])
    await desk.end(35)
    await writer.finish()
    assert [call for call in disturbed.calls if "create" in call][1:] == [
        "create part-000000031-000000035.jsonl",
        "create failures.jsonl",
    ]
    await desk.assert_exact(folder)
    await desk.new_epoch(generation=2)
    await desk.succeed([33])
    await desk.end(35)
    await desk.writer(folder).finish()
    await desk.assert_exact(folder)
    assert "failures.jsonl" not in folder.sizes()


async def test_a_raised_limit_replaces_the_last_part(desk: Desk, folder: StoreFolder) -> None:
    await run_of_35(desk)
    await desk.writer(folder).finish()
    await desk.raise_limit(None)
    writer = desk.writer(folder)
    await writer.look()
    assert "part-000000031-000000035.jsonl" in folder.sizes(), "it stays until the new one stands"
    await desk.succeed(range(36, 40))
    await writer.look()
    await desk.succeed(range(40, 53))
    await writer.look()
    assert "part-000000031-000000035.jsonl" not in folder.sizes()
    await desk.end(52)
    await writer.finish()
    await desk.assert_exact(folder)
    assert "part-000000051-000000052.jsonl" in folder.sizes()


async def test_a_failed_run_has_what_there_is(desk: Desk, local: StoreFolder) -> None:
    await desk.succeed([*range(1, 11), 15, 31])
    await desk.fail([16])
    writer = desk.writer(local)
    await writer.look()
    await desk.ledger.runs.save_phase(desk.record, Phase.FAILED, "took too long", None)
    summary = await writer.finish()
    await desk.assert_exact(local, complete=False)
    assert (summary.complete, summary.reason, summary.failures) == (False, "took too long", 1)
    disturbed = Disturbed(local)
    await desk.writer(disturbed).finish()
    assert set(disturbed.calls) == {"read _rowmill.json"}
    await desk.succeed([17])  # a worker that was still draining
    await desk.writer(local).finish()
    await desk.assert_exact(local, complete=False)
    await desk.new_epoch(generation=1)
    await desk.succeed({*range(1, 36)} - {*range(1, 11), 15, 17, 31})
    await desk.end(35)
    await desk.writer(local).finish()
    await desk.assert_exact(local)


async def test_a_run_without_rows(desk: Desk, local: StoreFolder) -> None:
    await desk.end(0)
    summary = await desk.writer(local).finish()
    assert (summary.complete, summary.parts, summary.rows) == (True, 0, 0)
    await desk.assert_exact(local)


# Kills.


def killed_at(nth: int) -> Callable[[str, str], None]:
    """Die at the nth point, of which each call has two: before and after it."""
    left = [nth]

    def at(point: str, name: str) -> None:
        if left[0] == 0:
            raise Died
        left[0] -= 1

    return at


async def kill_everywhere(desk: Desk, tmp_path: Path, prepared: Path | None, work: Callable[[PartsWriter], Any]) -> int:
    """Kill `work` at each of its calls, each time from the same folder; then finish, and compare with the ledger."""
    for nth in range(1000):
        place = tmp_path / f"kill{nth}"
        if prepared is not None:
            shutil.copytree(prepared, place)
        folder = folder_at(str(place))
        disturbed = Disturbed(folder, killed_at(nth))
        try:
            await work(desk.writer(disturbed))
        except Died:
            died = True
        else:
            died = False
        if died and (place / "1" / "_rowmill.json").exists() and checkpoint_in(folder)["complete"]:
            if prepared is not None and same(place, prepared):
                pass  # not begun
            else:
                await desk.assert_exact(folder)
        await desk.writer(folder).finish()
        await desk.assert_exact(folder)
        shutil.rmtree(place)
        if not died:
            return nth
    raise AssertionError("it never came to its end")


def same(one: Path, other: Path) -> bool:
    def files(place: Path) -> dict[str, bytes]:
        return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}

    return files(one) == files(other)


async def test_killed_anywhere_while_finishing(desk: Desk, tmp_path: Path) -> None:
    await run_of_14(desk)
    assert await kill_everywhere(desk, tmp_path, None, lambda writer: writer.finish()) > 30


async def test_killed_anywhere_while_the_run_goes(desk: Desk, tmp_path: Path) -> None:
    await desk.fail([13])
    await desk.succeed({*range(1, 25)} - {13})

    async def looks(writer: PartsWriter) -> None:
        await writer.look()
        await writer.look()

    places = tmp_path / "places"
    for nth in range(1000):
        folder = folder_at(str(places / str(nth)))
        try:
            await looks(desk.writer(Disturbed(folder, killed_at(nth))))
            break
        except Died:
            continue
    assert nth > 10
    await desk.succeed(range(25, 31))
    await desk.end(30)
    for place in places.iterdir():
        await desk.writer(folder_at(str(place))).finish()
        await desk.assert_exact(folder_at(str(place)))


async def test_killed_anywhere_while_a_retry_is_written(desk: Desk, tmp_path: Path) -> None:
    """The limit is raised besides. Whatever the folder says is complete is the old whole or the new one."""
    await run_of_14(desk)
    prepared = tmp_path / "prepared"
    await desk.writer(folder_at(str(prepared))).finish()
    await desk.raise_limit(None)
    await desk.new_epoch(generation=1)
    await desk.succeed([13, 15, *range(17, 22)])
    await desk.fail([16])
    await desk.end(21)
    assert await kill_everywhere(desk, tmp_path, prepared, lambda writer: writer.finish()) > 30


async def test_a_store_that_fails_at_any_call_is_tried_again(desk: Desk, tmp_path: Path) -> None:
    await run_of_14(desk)
    for nth in range(1000):
        folder = folder_at(str(tmp_path / str(nth)))
        left = [nth]

        def away(point: str, name: str, left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] == -1:
                raise PlaceUnavailable("the store is away")

        await desk.writer(Disturbed(folder, away)).finish()
        await desk.assert_exact(folder)
        if left[0] >= 0:
            break
    assert nth > 30


# Others who write, and a ledger that is not what it was.


async def test_a_paused_writer_completes_no_object(desk: Desk, tmp_path: Path) -> None:
    await run_of_35(desk)
    folder = folder_at(str(tmp_path))
    loop = asyncio.get_running_loop()

    def taken_over_meanwhile(point: str, name: str) -> None:
        if point == "after write" and name.startswith("part-000000011"):
            asyncio.run_coroutine_threadsafe(desk.take_over(), loop).result(10)

    disturbed = Disturbed(folder, taken_over_meanwhile)
    with pytest.raises(Superseded):
        await desk.writer(disturbed).finish()
    assert [name for name in folder.sizes() if name.startswith("part-")] == ["part-000000001-000000010.jsonl"]
    await desk.writer(folder).finish()
    await desk.assert_exact(folder)


async def test_a_paused_writer_writes_no_checkpoint(desk: Desk, tmp_path: Path) -> None:
    await run_of_35(desk)
    folder = folder_at(str(tmp_path))
    loop = asyncio.get_running_loop()
    reads = [0]

    def taken_over_meanwhile(point: str, name: str) -> None:
        if point == "after read" and (reads.__setitem__(0, reads[0] + 1) or reads[0] == 2):
            asyncio.run_coroutine_threadsafe(desk.take_over(), loop).result(10)

    with pytest.raises(Superseded):
        await desk.writer(Disturbed(folder, taken_over_meanwhile)).finish()
    assert folder.sizes() == {}


async def test_another_writers_checkpoint_is_read_and_not_overwritten(desk: Desk, tmp_path: Path) -> None:
    folder = folder_at(str(tmp_path))
    ours, other = desk.writer(folder), desk.writer(folder)
    await desk.succeed(range(1, 11))
    await ours.look()
    await desk.succeed(range(11, 21))
    await other.look()
    theirs = checkpoint_in(folder)
    assert len(theirs["parts"]) == 2
    await desk.succeed(range(21, 31))
    with pytest.raises(ForeignCheckpoint):
        await ours.look()
    assert checkpoint_in(folder) == theirs
    await ours.look()
    assert len(checkpoint_in(folder)["parts"]) == 3
    await desk.end(30)
    await asyncio.gather(ours.finish(), other.finish())
    await desk.assert_exact(folder)


async def test_two_writers_get_done_together(desk: Desk, tmp_path: Path) -> None:
    """A checkpoint that another has written is an everyday thing for `run`: read, and gone on from."""
    folder = folder_at(str(tmp_path))
    stop = asyncio.Event()
    running = [asyncio.create_task(desk.writer(folder).run(stop)) for _ in range(2)]
    for first in range(1, 101, 10):
        await desk.succeed(range(first, first + 10))
    async with asyncio.timeout(20):
        while len(checkpoint_in(folder)["parts"] if folder.read("_rowmill.json") else []) < 10:
            await asyncio.sleep(0.01)
    stop.set()
    await asyncio.gather(*running)
    await desk.end(100)
    await desk.writer(folder).finish()
    await desk.assert_exact(folder)


async def test_what_a_paused_writer_put_in_the_place_of_ours_is_noticed(desk: Desk, folder: StoreFolder) -> None:
    await run_of_35(desk)
    writer = desk.writer(folder)
    await writer.finish()
    old = content(folder, "part-000000011-000000020.jsonl")
    await desk.new_epoch(generation=1)
    await desk.succeed([13, 14, 33])
    await writer.look()
    folder.put("part-000000011-000000020.jsonl", old)
    folder.delete("part-000000001-000000010.jsonl")
    await desk.end(35)
    await writer.finish()
    await desk.assert_exact(folder)


async def test_rows_that_a_failover_lost_and_ran_again(desk: Desk, local: StoreFolder) -> None:
    """Their part was written; the new outcomes are in a new epoch, with the same counts."""
    await desk.succeed(range(1, 21))
    writer = desk.writer(local)
    await writer.look()
    assert len(checkpoint_in(local)["parts"]) == 2
    async with desk.ledger.pool.connection() as c:
        await c.execute(f"delete from rowmill.outcomes_{desk.record.id} where seq in (3, 4)")
    await desk.new_epoch()
    await writer.look()
    assert len(lines_of(local, ["part-000000001-000000010.jsonl"])) == 10, "it is not written while rows are missing"
    await desk.commit([succeeded(3, "again"), succeeded(4, "again")])
    await writer.look()
    await desk.end(20)
    await writer.finish()
    await desk.assert_exact(local)
    assert json.loads(lines_of(local, ["part-000000001-000000010.jsonl"])[2])["result"] == "again 3"


async def test_a_ledger_from_a_backup_is_not_taken_for_the_one_that_was(desk: Desk, local: StoreFolder) -> None:
    """It has the run's token, and counts epochs that the local has seen already."""
    await desk.succeed(range(1, 21))
    await desk.new_epoch()
    await desk.end(20)
    await desk.writer(local).finish()
    async with desk.ledger.pool.connection() as c:
        await c.execute(f"truncate rowmill.outcomes_{desk.record.id}; truncate rowmill.counters")
        await c.execute("update rowmill.runs set epoch = 1, phase = 'Running', total = null, counts = null")
    desk.record = await desk.ledger.runs.take_over(desk.record.id)
    writer = desk.writer(local)
    await writer.look()
    await desk.new_epoch()
    await desk.commit(succeeded(seq, "again") for seq in range(1, 21))
    await desk.end(20)
    await writer.finish()
    await desk.assert_exact(local)
    assert "again 7" in content(local, "part-000000001-000000010.jsonl").decode()


async def test_a_late_outcome_after_the_end_is_written(desk: Desk, local: StoreFolder) -> None:
    """A worker that was paused over a retry brings a paid result for a row that has failed meanwhile."""
    await desk.succeed([1, 2])
    await desk.new_epoch(generation=1)
    await desk.fail([3])
    await desk.end(3)
    await desk.writer(local).finish()
    await desk.ledger.work(desk.record, worker="paused").commit([succeeded(3)], generation=0)
    await desk.writer(local).finish()
    await desk.assert_exact(local)
    assert checkpoint_in(local)["failures"] == {"rows": 0, "files": []}


async def test_a_folder_of_another_job(desk: Desk, folder: StoreFolder, ledger: Ledger) -> None:
    await run_of_35(desk)
    await desk.writer(folder).finish()
    before = folder.sizes()
    record = await ledger.runs.ensure(RunIdentity("test", "default", "other", "1"), frozen={}, shards=1, row_limit=None)
    other = Desk(ledger, await ledger.runs.take_over(record.id), desk.threads)
    await other.new_epoch()
    await other.succeed([1])
    await other.end(1)
    with pytest.raises(InvalidInput, match=r"spec\.output\.uri: holds the results of default/job/1 .*another folder"):
        await other.writer(folder).finish()
    assert folder.sizes() == before


async def test_another_format_writes_all_parts_anew(desk: Desk, local: StoreFolder) -> None:
    await run_of_35(desk)
    await desk.writer(local).finish()
    for shape in (Shape("Parquet", ALL, ()), Shape("Parquet", frozenset({State.FAILED}), ("a",))):
        await desk.writer(local, shape=shape).finish()
        await desk.assert_exact(local, shape)


async def test_a_checkpoint_that_cannot_be_read(desk: Desk, local: StoreFolder) -> None:
    await run_of_35(desk)
    local.put("_rowmill.json", b'{"version": 1, "parts"')
    await desk.writer(local).finish()
    await desk.assert_exact(local)


async def test_a_ledger_that_changes_while_it_is_read(desk: Desk, tmp_path: Path) -> None:
    await run_of_35(desk)
    loop = asyncio.get_running_loop()
    folder = folder_at(str(tmp_path))
    late = desk.ledger.work(desk.record, worker="late")

    class Changing(Runs):
        async def range_state(self, record: RunRecord, first: int, last: int) -> RangeState:
            state = await super().range_state(record, first, last)
            if first == 31:
                await late.commit([succeeded(36)], generation=0)
            return state

    await desk.new_epoch(generation=1)
    await desk.raise_limit(None)
    await desk.ledger.runs.save_phase(desk.record, Phase.FAILED, "late", None)
    desk.ledger.runs = Changing(desk.ledger.pool)
    await desk.writer(folder).finish()
    await desk.assert_exact(folder, complete=False)
    assert loop.is_running()


# Bounds and manners.


async def test_a_part_is_cut_at_a_number_of_bytes(desk: Desk, folder: StoreFolder, monkeypatch: Any) -> None:
    monkeypatch.setattr("rowmill.ledger.runs.PAGE_BYTES", 1000)
    await desk.commit(succeeded(seq, "x" * 400) for seq in range(1, 21))
    await desk.end(20)
    summary = await desk.writer(folder, part_bytes=2000).finish()
    await desk.assert_exact(folder)
    assert summary.parts > 4
    assert checkpoint_in(folder)["parts"][0]["files"][:2] == [
        "part-000000001-000000010.jsonl",
        "part-000000001-000000010_0002.jsonl",
    ]


async def test_failures_are_cut_into_files(desk: Desk, local: StoreFolder, monkeypatch: Any) -> None:
    monkeypatch.setattr("rowmill.ledger.runs.PAGE_BYTES", 1000)
    await desk.fail(range(1, 31))
    await desk.end(30)
    await desk.writer(local, failures_rows=10).finish()
    await desk.assert_exact(local)
    assert "failures_0002.jsonl" in local.sizes()


async def test_memory_is_bounded_by_bytes(desk: Desk, tmp_path: Path) -> None:
    """Sixty large results among small ones, 48 MB in all: never are many of them in memory."""
    rng = random.Random(1)
    for start in range(1, 61, 10):
        await desk.commit(
            Outcome(seq, State.SUCCEEDED, 1, result=json.dumps(rng.randbytes(400_000).hex()))
            for seq in range(start, start + 10)
        )
    await desk.succeed(range(61, 1001))
    await desk.end(1000)
    folder = folder_at(str(tmp_path))
    writer = desk.writer(folder, part_rows=1000, shape=Shape("JSONL", ALL, ()))
    tracemalloc.start()
    try:
        await writer.finish()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(folder.sizes().values()) > 48_000_000
    assert peak < 40 * 1024 * 1024, f"{peak:,} bytes"


async def test_a_store_that_denies_is_told_and_recovers(desk: Desk, tmp_path: Path) -> None:
    folder = folder_at(str(tmp_path))
    denied = threading.Event()
    denied.set()

    def deny(point: str, name: str) -> None:
        if denied.is_set():
            raise InvalidInput.one("s3://b/", "spec.output.secretName", "S3 denies access to the bucket b")

    writer = desk.writer(Disturbed(folder, deny))
    await desk.succeed(range(1, 11))
    stop = asyncio.Event()
    running = asyncio.create_task(writer.run(stop))
    async with asyncio.timeout(20):
        while writer.problem is None:
            await asyncio.sleep(0.01)
        assert "denies access" in writer.problem
        denied.clear()
        while writer.problem is not None or not writer.summary.parts:
            await asyncio.sleep(0.01)
    stop.set()
    await running
    await desk.end(10)
    denied.set()
    with pytest.raises(InvalidInput, match="denies access"):
        await writer.finish()
    denied.clear()
    await writer.finish()
    assert writer.problem is None
    await desk.assert_exact(folder)


async def test_patience_ends(desk: Desk, tmp_path: Path) -> None:
    def away(point: str, name: str) -> None:
        raise PlaceUnavailable("the store is away")

    await run_of_35(desk)
    clock = iter(range(0, 100_000, 20))
    writer = desk.writer(Disturbed(folder_at(str(tmp_path)), away), now=lambda: float(next(clock)))
    with pytest.raises(PlaceUnavailable, match="is away"):
        await writer.finish()
    assert writer.problem == "the store is away"


async def test_stopped_in_the_middle_of_an_upload(desk: Desk, tmp_path: Path) -> None:
    """It waits for the call that is under way; nothing of the object becomes visible."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(point: str, name: str) -> None:
        if point == "before write":
            reached.set()
            assert go_on.wait(20)

    folder = folder_at(str(tmp_path))
    await desk.succeed(range(1, 11))
    stop = asyncio.Event()
    writer = desk.writer(Disturbed(folder, hold))
    running = asyncio.create_task(writer.run(stop))
    assert await asyncio.to_thread(reached.wait, 20)
    stop.set()
    done, _ = await asyncio.wait([running], timeout=0.2)
    assert not done
    go_on.set()
    await running
    assert list(folder.sizes()) == ["_rowmill.json"]
    await desk.end(10)
    await desk.writer(folder).finish()
    await desk.assert_exact(folder)


async def test_a_run_that_goes_on_is_not_finished(desk: Desk, tmp_path: Path) -> None:
    await desk.succeed([1])
    with pytest.raises(Superseded, match="goes on"):
        await desk.writer(folder_at(str(tmp_path))).finish()


async def test_writing_again_gives_the_same_bytes(desk: Desk, tmp_path: Path) -> None:
    await run_of_35(desk)
    shape = Shape("Parquet", ALL, ("a",))
    one, other = folder_at(str(tmp_path / "a")), folder_at(str(tmp_path / "b"))
    for folder in (one, other):
        await desk.writer(folder, shape=shape).finish()
    for name in one.sizes():
        if name != "_rowmill.json":
            assert content(one, name) == content(other, name)


def test_a_raced_part_is_an_error_of_its_own() -> None:
    assert not issubclass(RacedError, PlaceUnavailable | InvalidInput)
    assert failed(1).state is State.FAILED
