"""Table A: an Excel sheet through a workflow service. Numbers agree with the server's own, errors say what they are.

The service of the sheet speaks as much of Dify's workflow API as a blocking call needs, and knows a row by its `user`.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openpyxl
import pytest

from rowmill.outcome import State
from rowmill.status import Phase
from rowmill_cli.report import success_rate
from tests.support.endpoint import Behaviour, Endpoint, Plan, spawn
from tests.support.inprocess import KeepLast, lab, manifest
from tests.support.rig import Rig


def sheet(path: Path, rows: int) -> None:
    """A workbook with a question in each row."""
    book = openpyxl.Workbook(write_only=True)
    table = book.create_sheet("questions")
    table.append(["id", "question"])
    for n in range(1, rows + 1):
        table.append([n, f"What is {n} times two?"])
    book.save(path)


ENDED = {
    "task_id": "t-1",
    "workflow_run_id": "r-1",
    "data": {"status": "succeeded", "outputs": {"label": "billing"}, "error": None, "total_tokens": 3},
}


def workflow(url: str) -> dict[str, Any]:
    return {
        "dify": {
            "baseUrl": f"{url}v1",
            "apiKey": {"env": "DIFY_KEY_OF_THE_TEST"},
            "app": "Workflow",
            "responseMode": "Blocking",
            "inputs": {"question": "{{ row.question }}"},
            "user": "{{ row.id }}",
            "result": "data.outputs.label",
        }
    }


@pytest.mark.timeout(240)
@pytest.mark.parametrize("rows", [5, 50_000])
@pytest.mark.slow
async def test_a_sheet_agrees_with_the_servers_own_count(
    tmp_path: Path, redis_url: str, postgres_dsn: str, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setenv("DIFY_KEY_OF_THE_TEST", "app-1234")
    plan = {"default": {"kind": "ok", "body": ENDED}, "row_field": "user"}
    async with (
        spawn(plan=plan, log=tmp_path / "calls.jsonl") as endpoint,
        Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig,
    ):
        source = tmp_path / "questions.xlsx"
        await asyncio.to_thread(sheet, source, rows)
        rig.job(source={"uri": str(source)}, executor=workflow(endpoint.url), concurrency={"perWorker": 64})
        await rig.start_engine()
        await rig.start_worker()
        status = await rig.complete()
        stats = await endpoint.stats()
        assert (stats["calls"], stats["rows"], stats["answered"]) == (rows, rows, {"200": rows})
        assert (status["total"], status["succeeded"], status["failed"]) == (rows, rows, 0)
        ends = await rig.outcomes()
        assert [end.seq for end in ends] == list(range(1, rows + 1))
        assert {end.result for end in ends} == {'"billing"'}


PLAYED: dict[str, tuple[list[Any], State, str | None, int]] = {
    # row: (what it meets, how it ends, its class, its attempts)
    "1": ([], State.SUCCEEDED, None, 1),
    "2": ([429], State.SUCCEEDED, None, 2),
    "3": ([500, 503], State.SUCCEEDED, None, 3),
    "4": ([503, 503, 503], State.FAILED, "HTTP503", 3),
    "5": (["reset"], State.SUCCEEDED, None, 2),
    "6": (["reset", "reset", "reset"], State.FAILED, "ConnectionReset", 3),
    "7": (["half", "half", "half"], State.FAILED, "IncompleteAnswer", 3),
    "8": (["hang", "hang", "hang"], State.FAILED, "Timeout", 3),
    "9": ([400], State.FAILED, "HTTP400", 1),
    "10": ([401], State.FAILED, "HTTP401", 1),
    "11": ([404], State.FAILED, "HTTP404", 1),
    "12": (["hang", "half", 200], State.SUCCEEDED, None, 3),
}


async def test_every_row_ends_as_its_class_says(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    plan = Plan(
        default=Behaviour("echo"), rows={row: [Behaviour.of(b) for b in met] for row, (met, *_) in PLAYED.items()}
    )
    async with (
        Endpoint(plan=plan) as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        job = manifest(
            endpoint.url,
            rows=len(PLAYED),
            timeoutSeconds=1,
            concurrency={"perWorker": 12},
            retry={"maxAttempts": 3, "initialSeconds": 1, "maxSeconds": 1},
        )
        sink = KeepLast()
        driving = asyncio.create_task(stores.drive(job, sink=sink))
        async with stores.worker(job):
            status = await asyncio.wait_for(driving, 60)
        ends = {str(end.seq): end for end in await stores.outcomes(job)}
        stats = endpoint.stats()
    assert status.phase is Phase.COMPLETE
    found = {row: (end.state, end.error_class, end.attempts) for row, end in ends.items()}
    assert found == {row: (state, error_class, attempts) for row, (_, state, error_class, attempts) in PLAYED.items()}
    for end in ends.values():
        if end.state is State.FAILED:
            assert end.error_message, "a failed row says why"
            assert endpoint.url.rstrip("/") in end.error_message, "and where"
    assert stats["calls"] == sum(end.attempts for end in ends.values())
    failed = sum(1 for _, state, *_ in PLAYED.values() if state is State.FAILED)
    assert (status.succeeded, status.failed) == (len(PLAYED) - failed, failed)
    assert success_rate(status) == f"{10_000 * status.succeeded // len(PLAYED) / 100:.2f}%"


async def test_retry_after_is_honoured(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    """The endpoint asks for two seconds, the manifest for at most one: the endpoint is heeded."""
    asked = Behaviour("ok", status=429, headers={"Retry-After": "2"}, body={"error": "slow down"})
    async with (
        Endpoint(plan=Plan(default=Behaviour("echo"), rows={"1": [asked]}), log=tmp_path / "calls") as endpoint,
        lab(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn) as stores,
    ):
        job = manifest(endpoint.url, rows=1, retry={"maxAttempts": 2, "initialSeconds": 1, "maxSeconds": 1})
        driving = asyncio.create_task(stores.drive(job))
        async with stores.worker(job):
            await asyncio.wait_for(driving, 60)
    lines = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    starts = [line["t_start"] for line in lines if "t_start" in line]
    assert len(starts) == 2
    assert starts[1] - starts[0] >= 2.0
