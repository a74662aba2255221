"""A run's output in parts is exactly what the ledger holds: while it runs, finished, retried, raised, cut to size.

What concerns the place runs on a folder of this machine and on an object store that speaks S3.
"""

from __future__ import annotations

import asyncio
import io
import json
import random
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.ledger import Runs, Superseded
from rowmill.outcome import Outcome, State
from rowmill.status import Phase
from rowmill_operator.results import Shape, StoreFolder
from rowmill_operator.results.upload import RacedError
from tests.support.parts import (
    ALL,
    EAGER,
    Desk,
    Disturbed,
    checkpoint_in,
    content,
    failed,
    folder_at,
    rows_of,
    run_of_35,
    succeeded,
)

pytestmark = pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")


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
    async with asyncio.timeout(60):
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
            assert go_on.wait(60)

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


async def test_vectors_are_lists_in_every_part_and_take_the_place_of_text(desk: Desk, tmp_path: Path) -> None:
    await desk.commit(Outcome(seq, State.SUCCEEDED, 1, result=f"[{seq}, 0.5]") for seq in range(1, 15))
    await desk.fail(range(15, 31))  # the rest of the second part, and all of the third
    await desk.commit([Outcome(31, State.SUCCEEDED, 1, result='["odd"]')])
    await desk.end(31)
    folder, text = folder_at(str(tmp_path)), Shape("Parquet", ALL, ())
    await desk.writer(folder, shape=text).finish()
    before = {name: content(folder, name) for name in folder.sizes() if name.startswith("part-")}
    assert rows_of(folder, before)[0]["result"] == "[1, 0.5]"
    vectors = Shape("Parquet", ALL, (), "Float32")
    await desk.writer(folder, shape=vectors).finish()
    await desk.assert_exact(folder, vectors)
    files = [name for part in checkpoint_in(folder)["parts"] for name in part["files"]]
    assert len({pq.read_schema(io.BytesIO(content(folder, name))) for name in files}) == 1
    rows = rows_of(folder, files)
    assert [row["result"] for row in rows] == [*([float(seq), 0.5] for seq in range(1, 15)), *[None] * 17]
    assert [row["result_json"] for row in rows] == [*[None] * 30, '["odd"]']


def test_a_raced_part_is_an_error_of_its_own() -> None:
    assert not issubclass(RacedError, PlaceUnavailable | InvalidInput)
    assert failed(1).state is State.FAILED
