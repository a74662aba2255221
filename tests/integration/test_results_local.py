"""`rowmill run` with an object store as the place of its results, and a run on real parts beside its writer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rowmill.outcome import State
from rowmill_operator.results import PartsWriter, Shape
from tests.integration.test_local_run import Desk, desk, quick
from tests.support.endpoint import Behaviour, Endpoint, Plan
from tests.support.inprocess import lab, manifest
from tests.support.parts import ALL, EAGER, checkpoint_in, folder_at, rows_of
from tests.support.s3 import s3_server

__all__ = ["desk", "quick"]


@pytest.mark.filterwarnings("ignore:datetime.datetime.utcnow:DeprecationWarning")
async def test_results_in_an_object_store(quick: Desk) -> None:
    """Credentials are this machine's own; the same command again writes and calls nothing."""
    with s3_server() as keys:
        quick.environ |= {**keys, "AWS_DEFAULT_REGION": keys["AWS_REGION"]}
        quick.write(30, output={"uri": "s3://bucket/triage/", "format": "Parquet", "columns": ["text"]})
        said = await quick.run()
        assert said.code == 0, said
        assert "Results: s3://bucket/triage/1/" in said.out
        folder = folder_at("s3://bucket/triage", credentials=keys)
        before = folder.sizes()
        assert set(before) == {"part-000000001-000000030.parquet", "_rowmill.json"}
        rows = rows_of(folder, ["part-000000001-000000030.parquet"])
        assert [(row["seq"], row["state"], row["text"]) for row in rows] == [
            (seq, "Succeeded", f"text {seq}") for seq in range(1, 31)
        ]
        saved = checkpoint_in(folder)
        again = await quick.run()
        assert (again.code, checkpoint_in(folder), len(quick.calls())) == (0, saved, 30)


async def test_a_store_that_cannot_be_had(quick: Desk) -> None:
    quick.write(3, output={"uri": "az://bucket/x/"})
    said = await quick.run()
    assert (said.code, len(quick.calls())) == (2, 0)
    assert "AZURE_STORAGE_ACCOUNT" in said.err


async def test_beside_a_real_run_whose_writer_is_ended_over_and_over(
    redis_url: str, postgres_dsn: str, tmp_path: Path
) -> None:
    """Engine, worker and writer on one loop; the writer is cancelled after every part that it has written."""
    folder = folder_at(str(tmp_path / "out"))
    shape = Shape("JSONL", ALL, ())
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo"))) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        from concurrent.futures import ThreadPoolExecutor

        job = manifest(endpoint.url, rows=900, concurrency={"perWorker": 16})
        threads = ThreadPoolExecutor(2)

        def writer() -> PartsWriter:
            return PartsWriter(
                identity=stores.identity(job),
                runs=stores.ledger.runs,
                folder=folder,
                shape=shape,
                log=stores.log,
                threads=threads,
                part_rows=50,
                pace=EAGER,
            )

        async def restless() -> int:
            lives = 0
            while True:
                one, stop = writer(), asyncio.Event()
                running = asyncio.create_task(one.run(stop))
                try:
                    before = None
                    while before is None or one.summary.parts <= before:
                        await asyncio.sleep(0.005)
                        before = one.summary.parts if before is None else before
                        if ended.is_set():
                            return lives
                    lives += 1
                finally:
                    running.cancel()
                    await asyncio.wait([running])

        ended = asyncio.Event()
        driving = asyncio.create_task(stores.drive(job))
        writing = asyncio.create_task(restless())
        async with stores.worker(job):
            status = await driving
        ended.set()
        assert await writing > 1
        summary = await writer().finish()
        threads.shutdown()
        assert (status.succeeded, summary.rows, summary.parts, summary.complete) == (900, 900, 18, True)
        found = rows_of(folder, [name for part in checkpoint_in(folder)["parts"] for name in part["files"]])
        known = [(outcome.seq, outcome.state.label) for outcome in await stores.outcomes(job)]
        assert [(row["seq"], row["state"]) for row in found] == known
        assert {state for _, state in known} == {State.SUCCEEDED.label}
