"""A run's output in parts is exactly what the ledger holds, whatever happens to its writer: killed at any call, paused,
overtaken by another, with a store or a ledger that is not what it was.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger, RangeState, RunRecord, Runs, Superseded
from rowmill.outcome import State
from rowmill.status import Phase
from rowmill_operator.results import PartsWriter, Shape, StoreFolder
from rowmill_operator.results.book import ForeignCheckpoint
from tests.support.parts import (
    ALL,
    Desk,
    Died,
    Disturbed,
    checkpoint_in,
    content,
    folder_at,
    lines_of,
    run_of_14,
    run_of_35,
    succeeded,
)

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


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
    async with asyncio.timeout(60):
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
