"""`rowmill run` as a person meets it: a manifest, a table, a service, real servers, and whatever gets killed."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import json
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from tests.support.endpoint import Behaviour, Endpoint, Plan, read_log

ROWMILL = str(Path(sys.executable).with_name("rowmill"))
SECONDS = 60.0


@dataclass(frozen=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str


@dataclass
class Desk:
    """A folder with a table and a manifest, and the service that it names."""

    folder: Path
    endpoint: Endpoint
    calls_log: Path
    environ: dict[str, str]

    @property
    def state(self) -> Path:
        return self.folder / "state"

    @property
    def manifest(self) -> Path:
        return self.folder / "job.yaml"

    def write(self, rows: int, **spec: Any) -> None:
        with (self.folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "text"])
            writer.writerows((f"T-{seq}", f"text {seq}") for seq in range(1, rows + 1))
        http = {"url": self.endpoint.url, "body": {"row": "{{ row.id }}", "text": "{{ row.text }}"}}
        document = {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage", "namespace": "support"},
            "spec": {
                "source": {"uri": "table.csv"},
                "key": ["id"],
                "executor": {"http": http},
                "retry": {"maxAttempts": 2, "initialSeconds": 0, "maxSeconds": 1},
                "concurrency": {"perWorker": 4},
                "workers": {"minReplicas": 1, "maxReplicas": 1},
                **spec,
            },
        }
        self.manifest.write_text(yaml.safe_dump(document))

    async def start(self, *arguments: str | Path, **more: Any) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            ROWMILL,
            *(str(argument) for argument in arguments),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=self.folder,
            env=self.environ,
            **more,
        )

    async def rowmill(self, *arguments: str | Path) -> Said:
        return await heard(await self.start(*arguments))

    async def run(self, *arguments: str | Path) -> Said:
        return await self.rowmill("run", self.manifest, "--state", self.state, *arguments)

    async def start_run(self) -> asyncio.subprocess.Process:
        return await self.start("run", self.manifest, "--state", self.state)

    def results(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.state / "results.jsonl").read_text().splitlines()]

    def calls(self) -> Counter[str | None]:
        """How often each row was called."""
        return Counter(call.row for call in read_log(self.calls_log))

    def processes(self) -> list[psutil.Process]:
        """Whatever runs for this folder: commands, workers, servers."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = str(self.folder) in " ".join(process.cmdline())
                if mine and process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


async def heard(process: asyncio.subprocess.Process) -> Said:
    out, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode is not None
    said = Said(process.returncode, out.decode(), err.decode())
    assert "Traceback" not in said.out + said.err
    return said


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    """Its commands start servers of their own."""
    log = tmp_path / "calls.jsonl"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ROWMILL_")}
    async with Endpoint(plan=Plan(default=Behaviour("echo")), log=log) as endpoint:
        desk = Desk(tmp_path, endpoint, log, environ)
        yield desk
        for process in desk.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()


@pytest.fixture
def quick(desk: Desk, redis_url: str, postgres_dsn: str) -> Desk:
    """Its commands use the suite's servers, which saves starting some for each."""
    desk.environ |= {"ROWMILL_REDIS_URL": redis_url, "ROWMILL_POSTGRES_DSN": postgres_dsn}
    return desk


async def test_a_table_goes_through_and_is_never_paid_for_twice(desk: Desk) -> None:
    desk.write(60, output={"columns": ["text"]})
    said = await desk.run()
    assert said.code == 0, said
    assert "Complete: support/triage, run 1" in said.out
    assert f"Results: {desk.state / 'results.jsonl'}" in said.out
    assert "60/60 (100%)" in said.err
    results = desk.results()
    assert [line["seq"] for line in results] == list(range(1, 61))
    assert results[41] == {
        "seq": 42,
        "key": "T-42",
        "state": "Succeeded",
        "attempts": 1,
        "result": {"row": "T-42", "text": "text 42"},
        "error": None,
        "columns": {"text": "text 42"},
    }
    assert set(desk.calls().values()) == {1}
    assert desk.processes() == [], "something is left running"

    again = await desk.run()
    assert again.code == 0
    assert sum(desk.calls().values()) == 60
    printed = await desk.rowmill("results", "--state", desk.state)
    assert [json.loads(line) for line in printed.out.splitlines()] == results
    assert desk.processes() == []


async def test_the_state_is_beside_the_manifest_by_default(quick: Desk) -> None:
    quick.write(2)
    said = await quick.rowmill("run", quick.manifest)
    folder = quick.folder / ".rowmill" / "support-triage"
    assert said.code == 0
    assert f"state: {folder}" in said.err
    assert (folder / "results.jsonl").exists()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
async def test_results_in_another_format(quick: Desk, name: str) -> None:
    quick.write(5, output={"columns": ["text"]})
    said = await quick.run("--output", name, "--limit", "3", "--quiet")
    assert said.code == 0, said
    assert said.err == ""
    path = quick.folder / name
    if name.endswith(".csv"):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    else:
        rows = pq.read_table(path).to_pylist()
    assert [int(row["seq"]) for row in rows] == [1, 2, 3]
    assert [row["text"] for row in rows] == ["text 1", "text 2", "text 3"]


@pytest.mark.slow
async def test_failed_rows_are_shown_and_retried_alone(quick: Desk) -> None:
    quick.write(20, failurePolicy={"maxFailedPercent": 5, "minProcessedRows": 20})
    quick.endpoint.play(Plan(rows={f"T-{seq}": [Behaviour("ok", status=400)] for seq in (3, 7)}))
    said = await quick.run()
    assert said.code == 1, said
    assert said.out.startswith("Failed: support/triage, run 1\n2 of 20 rows failed")
    assert re.search(r"HTTP400 +2 rows +such as row [37]", said.out)
    assert f"rowmill retry --state {quick.state}" in said.out

    failed = await quick.rowmill("results", "--state", quick.state, "--failed")
    assert [json.loads(line)["seq"] for line in failed.out.splitlines()] == [3, 7]

    before = quick.calls()
    retried = await quick.rowmill("retry", "--state", quick.state)
    assert retried.code == 0, retried
    assert quick.calls() - before == Counter({"T-3": 1, "T-7": 1})
    assert {line["state"] for line in quick.results()} == {"Succeeded"}
    # The manifest still says generation 0: the retry is not undone by running it again.
    assert (await quick.run()).code == 0
    assert sum(quick.calls().values()) == 22


async def test_a_dry_run_calls_nobody_and_never_counts_as_the_run(quick: Desk) -> None:
    quick.write(10)
    said = await quick.run("--dry-run")
    assert said.code == 0, said
    assert "(simulated: no call was sent)" in said.out
    assert quick.endpoint.stats()["calls"] == 0
    said = await quick.run()
    assert said.code == 0, said
    assert sum(quick.calls().values()) == 10


async def interrupt(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    """Interrupt a run, and wait until its workers have been told."""
    process.send_signal(number)
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"rows in flight may finish" not in await process.stderr.readline():
            pass


async def test_an_interrupted_run_drains_and_goes_on(quick: Desk) -> None:
    quick.write(12)
    quick.endpoint.hold()
    process = await quick.start_run()
    await quick.endpoint.wait(in_flight=4)
    await interrupt(process, signal.SIGINT)
    quick.endpoint.release()
    said = await heard(process)
    assert said.code == 130
    assert said.out.startswith("Interrupted: support/triage")
    assert f"rowmill run {quick.manifest} --state {quick.state}" in said.out
    assert quick.processes() == [], "something is left running"

    so_far = await quick.rowmill("results", "--state", quick.state)
    # Those in flight at least; more where the endpoint let go before the workers had heard.
    assert 4 <= len(so_far.out.splitlines()) <= 12
    told = re.search(r"succeeded +(\d+)", said.out)
    assert told is not None
    assert int(told[1]) == len(so_far.out.splitlines()), "the report leaves out what ended while the workers drained"
    assert (await quick.run()).code == 0
    assert len(quick.results()) == 12
    assert set(quick.calls().values()) == {1}, "a row was paid for twice"


async def test_a_second_interrupt_waits_for_nobody(desk: Desk) -> None:
    desk.write(6)
    desk.endpoint.hold()
    process = await desk.start_run()
    await desk.endpoint.wait(in_flight=4)
    await interrupt(process, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    said = await heard(process)
    assert said.code == 130
    assert desk.processes() == []
    desk.endpoint.release()
    assert (await desk.run()).code == 0
    assert sum(desk.calls().values()) <= 6 + 4


async def until_recorded(desk: Desk, count: int) -> None:
    """Wait until the ledger of a run that goes on holds so many outcomes."""
    data = desk.state / "servers" / "postgres" / "data"
    port = (data / "postmaster.pid").read_text().splitlines()[3]
    password = (data / "rowmill.password").read_text()
    ledger = await Ledger.connect(f"postgresql://rowmill:{password}@127.0.0.1:{port}/postgres")
    try:
        async with asyncio.timeout(60):
            recorded = -1
            while recorded < count:
                record = await ledger.find_run(RunIdentity("local", "support", "triage", "1"))
                assert record is not None
                recorded = sum([len(page) async for page in ledger.results(record)])
                await asyncio.sleep(0.02)
    finally:
        await ledger.close()


@pytest.mark.parametrize("everything", [False, True], ids=["the command", "everything"])
async def test_a_killed_run_goes_on(desk: Desk, everything: bool) -> None:
    desk.write(30)
    desk.endpoint.play(Plan(choose=lambda row, nth: Behaviour("echo", held=row in ("T-20", "T-21") and nth == 1)))
    process = await desk.start_run()
    await desk.endpoint.wait(calls=30)
    await until_recorded(desk, 28)
    victims = desk.processes() if everything else [psutil.Process(process.pid)]
    assert len(victims) >= (4 if everything else 1)
    for victim in victims:
        with contextlib.suppress(psutil.Error):
            victim.kill()
    await process.communicate()
    desk.endpoint.release()
    said = await desk.run()
    assert said.code == 0, said
    assert [line["seq"] for line in desk.results()] == list(range(1, 31))
    assert {line["state"] for line in desk.results()} == {"Succeeded"}
    twice = {row for row, count in desk.calls().items() if count > 1}
    assert twice <= {"T-20", "T-21"}, "a finished row was paid for again"
    assert desk.processes() == []


async def test_a_state_in_use_is_refused(quick: Desk) -> None:
    quick.write(4)
    quick.endpoint.hold()
    process = await quick.start_run()
    await quick.endpoint.wait(in_flight=1)
    for command in (("run", quick.manifest), ("results",)):
        said = await quick.rowmill(*command, "--state", quick.state)
        assert said.code == 2
        assert f"in use by process {process.pid}" in said.err
        assert len(said.err.splitlines()) == 1
    quick.endpoint.release()
    assert (await heard(process)).code == 0


async def test_a_worker_that_dies_is_replaced(quick: Desk) -> None:
    quick.write(8)
    quick.endpoint.hold()
    process = await quick.start_run()
    await quick.endpoint.wait(in_flight=4)
    (worker,) = [p for p in quick.processes() if "worker" in p.cmdline()]
    assert "rowmill worker" in " ".join(worker.cmdline())
    worker.kill()
    await quick.endpoint.wait(calls=5, timeout=90)
    quick.endpoint.release()
    said = await heard(process)
    assert said.code == 0, said
    assert {line["state"] for line in quick.results()} == {"Succeeded"}


async def test_servers_that_end_are_started_again(desk: Desk) -> None:
    desk.write(12)
    desk.endpoint.hold()
    process = await desk.start_run()
    await desk.endpoint.wait(in_flight=4)
    servers = [p for p in desk.processes() if "redis-server" in p.cmdline()[0] or p.name() == "postgres"]
    assert len(servers) == 2
    for server in servers:
        server.kill()
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"Postgres had ended; it was started again" not in await process.stderr.readline():
            pass
    desk.endpoint.release()
    said = await heard(process)
    assert said.code == 0, said
    assert {line["state"] for line in desk.results()} == {"Succeeded"}
    assert desk.processes() == []


async def test_what_workers_cannot_use_ends_the_run_with_their_reason(quick: Desk) -> None:
    quick.write(3)
    document = yaml.safe_load(quick.manifest.read_text())
    document["spec"]["executor"]["http"]["headers"] = [{"name": "Authorization", "valueFrom": {"env": "NO_SUCH_TOKEN"}}]
    quick.manifest.write_text(yaml.safe_dump(document))
    said = await quick.run()
    assert said.code == 2, said
    assert "NO_SUCH_TOKEN" in said.err
    assert quick.endpoint.stats()["calls"] == 0
    assert quick.processes() == []


async def test_a_secret_file_counts_from_the_manifest(quick: Desk) -> None:
    quick.write(1)
    (quick.folder / "token").write_text("s3cr3t-value")
    document = yaml.safe_load(quick.manifest.read_text())
    document["spec"]["executor"]["http"]["headers"] = [{"name": "X-Token", "valueFrom": {"file": "token"}}]
    quick.manifest.write_text(yaml.safe_dump(document))
    said = await quick.run()
    assert said.code == 0, said
    kept = [path for path in quick.state.rglob("*") if path.is_file() and b"s3cr3t-value" in path.read_bytes()]
    assert kept == []


async def test_a_reader_that_has_had_enough_is_no_error(quick: Desk) -> None:
    quick.write(5)
    assert (await quick.run("--quiet")).code == 0
    reading, writing = os.pipe()
    os.close(reading)
    process = await asyncio.create_subprocess_exec(
        ROWMILL,
        "results",
        "--state",
        str(quick.state),
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
        env=quick.environ,
    )
    os.close(writing)
    _, err = await asyncio.wait_for(process.communicate(), SECONDS)
    assert (process.returncode, err) == (0, b"")


async def test_results_are_dropped_when_their_retention_is_over(quick: Desk, postgres_dsn: str) -> None:
    quick.write(4, resultsRetentionSeconds=3600)
    quick.endpoint.play(Plan(rows={"T-2": [Behaviour("ok", status=400)]}))
    assert (await quick.run("--quiet")).code == 0
    calls, written = quick.calls(), (quick.state / "results.jsonl").read_text()
    ledger = await Ledger.connect(postgres_dsn)
    try:
        async with ledger.pool.connection() as c:
            await c.execute("update rowmill.runs set finished_at = finished_at - interval '3601 seconds'")
    finally:
        await ledger.close()
    retry = await quick.rowmill("retry", "--state", quick.state)
    assert "spec.resultsRetentionSeconds have passed" in retry.err
    for refused in (retry, await quick.rowmill("results", "--state", quick.state)):
        assert refused.code == 2
        assert "the results of this run were dropped on" in refused.err
        assert "change spec.runId to run again" in refused.err
    said = await quick.run("--quiet")
    assert said.code == 0, "a retry that was refused is not asked for again"
    assert "Complete: support/triage, run 1" in said.out
    assert "The results were dropped on" in said.out
    assert "rowmill retry" not in said.out
    assert (quick.state / "results.jsonl").read_text() == written, "what was written stays"
    assert quick.calls() == calls
