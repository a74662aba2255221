"""A run's output under test: outcomes committed at will, a folder that fails or dies at a call, what readers see."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pyarrow.parquet as pq
import structlog

from rowmill.ledger import Ledger, RunRecord
from rowmill.outcome import Outcome, State
from rowmill.results import json_line
from rowmill.status import Phase
from rowmill.storage import AddressPolicy
from rowmill_operator.results import Pace, PartsWriter, Shape, StoreFolder, open_folder

EAGER = Pace(look_seconds=0.01, checkpoint_seconds=0.0, retry_seconds=(0.01, 0.02), patience_seconds=30.0)
ALL = frozenset(State)


class Died(BaseException):
    """The process ended here: nothing that comes after has any effect."""


class Disturbed:
    """A folder whose calls are counted; `at` is asked before and after each one and may raise."""

    def __init__(self, inner: StoreFolder, at: Callable[[str, str], None] = lambda call, name: None) -> None:
        self.inner = inner
        self.at = at
        self.dead = False
        self.calls: list[str] = []

    @property
    def uri(self) -> str:
        return self.inner.uri

    def call(self, what: str, name: str, work: Callable[[], Any]) -> Any:
        if self.dead:
            raise Died
        self.calls.append(f"{what} {name}".strip())
        done: Any = None
        try:
            self.at(f"before {what}", name)
            done = work()
            self.at(f"after {what}", name)
        except BaseException as error:
            self.dead = isinstance(error, Died)
            if what == "create" and done is not None:
                done.abandon()  # nobody was given it
            raise
        return done

    def read(self, name: str) -> bytes | None:
        return self.call("read", name, lambda: self.inner.read(name))

    def put(self, name: str, data: bytes) -> None:
        self.call("put", name, lambda: self.inner.put(name, data))

    def create(self, name: str) -> DisturbedObject:
        return DisturbedObject(self, name, self.call("create", name, lambda: self.inner.create(name)))

    def sizes(self) -> Mapping[str, int]:
        return self.call("sizes", "", self.inner.sizes)

    def delete(self, name: str) -> None:
        self.call("delete", name, lambda: self.inner.delete(name))


class DisturbedObject:
    def __init__(self, folder: Disturbed, name: str, inner: Any) -> None:
        self.folder, self.name, self.inner = folder, name, inner

    def write(self, data: bytes) -> None:
        self.folder.call("write", self.name, lambda: self.inner.write(data))

    def close(self) -> None:
        self.folder.call("close", self.name, self.inner.close)

    def abandon(self) -> None:
        self.inner.abandon()


class Desk:
    """One run in a ledger without engine and workers: a test commits what they would, and says how the run ended."""

    def __init__(self, ledger: Ledger, record: RunRecord, threads: ThreadPoolExecutor) -> None:
        self.ledger = ledger
        self.record = record
        self.threads = threads
        self.log: Any = structlog.wrap_logger(structlog.PrintLogger(), processors=[_drop])

    def writer(self, folder: Any, **options: Any) -> PartsWriter:
        shape = options.pop("shape", Shape("JSONL", ALL, ()))
        return PartsWriter(
            identity=self.record.identity,
            runs=self.ledger.runs,
            folder=folder,
            shape=shape,
            log=self.log,
            threads=self.threads,
            **{"part_rows": 10, "pace": EAGER, **options},
        )

    async def commit(self, outcomes: Iterable[Outcome]) -> None:
        work = self.ledger.work(self.record, worker="w")
        await work.commit(list(outcomes), generation=self.record.generation)

    async def succeed(self, seqs: Iterable[int]) -> None:
        await self.commit(succeeded(seq) for seq in seqs)

    async def fail(self, seqs: Iterable[int]) -> None:
        await self.commit(failed(seq) for seq in seqs)

    async def take_over(self) -> None:
        self.record = await self.ledger.runs.take_over(self.record.id)

    async def new_epoch(self, *, generation: int | None = None) -> None:
        generation = self.record.generation if generation is None else generation
        self.record = await self.ledger.runs.begin_epoch(
            self.record, generation=generation, epoch=self.record.epoch + 1
        )

    async def raise_limit(self, limit: int | None) -> None:
        self.record = await self.ledger.runs.raise_limit(self.record, limit)
        await self.new_epoch()

    async def end(self, total: int, phase: Phase = Phase.COMPLETE, message: str = "") -> None:
        runs = self.ledger.runs
        await runs.save_total(self.record, total)
        self.record = replace(self.record, total=total)
        counts = await runs.count_range(self.record, 1, total)
        await runs.save_phase(self.record, phase, message, counts)

    async def outcomes(self) -> list[Outcome]:
        return [outcome async for page in self.ledger.results(self.record) for outcome in page]

    async def assert_exact(self, folder: StoreFolder, shape: Shape | None = None, *, complete: bool = True) -> None:
        """The folder holds exactly what the ledger does, and the checkpoint says so."""
        shape = shape or Shape("JSONL", ALL, ())
        known = await self.outcomes()
        wanted = [outcome for outcome in known if outcome.state in shape.include]
        checkpoint = checkpoint_in(folder)
        assert checkpoint["complete"] is complete
        assert checkpoint["rows"] == len(wanted)
        files = [name for part in checkpoint["parts"] for name in part["files"]]
        lost = [json_line(outcome) for outcome in known if outcome.state is State.FAILED]
        assert set(folder.sizes()) == {"_rowmill.json", *files, *checkpoint["failures"]["files"]}
        assert checkpoint["failures"]["rows"] == len(lost)
        assert lines_of(folder, checkpoint["failures"]["files"]) == lost
        if shape.format == "JSONL":
            assert lines_of(folder, files) == [json_line(outcome) for outcome in wanted]
        assert [(row["seq"], row["state"]) for row in rows_of(folder, files)] == [
            (outcome.seq, outcome.state.label) for outcome in wanted
        ]
        assert sum(part["rows"] for part in checkpoint["parts"]) == len(wanted)
        for state in State:
            counted = sum(part[state.label.lower()] for part in checkpoint["parts"])
            assert counted == sum(outcome.state is state for outcome in known), state


def succeeded(seq: int, text: str = "fine") -> Outcome:
    return Outcome(seq, State.SUCCEEDED, 1, result=json.dumps(f"{text} {seq}"), key=str(seq), columns='{"a": 1}')


def failed(seq: int) -> Outcome:
    return Outcome(seq, State.FAILED, 3, key=str(seq), error_class="HTTP503", error_message=f"row {seq} is out")


def folder_at(uri: str, run_id: str = "1", credentials: Mapping[str, str] | None = None) -> StoreFolder:
    return open_folder(uri, run_id, credentials=credentials, ambient=False, policy=AddressPolicy.everything())


def checkpoint_in(folder: StoreFolder) -> dict[str, Any]:
    data = folder.read("_rowmill.json")
    assert data is not None
    document: dict[str, Any] = json.loads(data)
    return document


def content(folder: StoreFolder, name: str) -> bytes:
    data = folder.read(name)
    assert data is not None, f"{name} is not there"
    return data


def lines_of(folder: StoreFolder, files: Iterable[str]) -> list[str]:
    return [line for name in files for line in content(folder, name).decode().splitlines()]


def rows_of(folder: StoreFolder, files: Iterable[str]) -> list[dict[str, Any]]:
    """What a reader sees, whatever the format."""
    rows: list[dict[str, Any]] = []
    for name in files:
        data = content(folder, name)
        if name.endswith(".parquet"):
            rows += pq.read_table(io.BytesIO(data)).to_pylist()
        elif name.endswith(".csv"):
            found = csv.DictReader(io.StringIO(data.decode(), newline=""))
            rows += [{**row, "seq": int(row["seq"])} for row in found]
        else:
            rows += [json.loads(line) for line in data.decode().splitlines()]
    return rows


def _drop(logger: object, method: str, event: Any) -> Any:
    raise structlog.DropEvent


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
