"""Whole runs of a user's function by a real worker: what it breaks costs its own row and no other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from rowmill.outcome import State
from tests.support.endpoint import RemoteEndpoint
from tests.support.rig import Rig

BAD = {7: "exit", 23: "hang", 41: "raise", 60: "memory"}
ROWS = 80
NOBODY = cast(RemoteEndpoint, SimpleNamespace(url="http://127.0.0.1:9/", log=None))
"""A function is called, and no server."""


@pytest.mark.parametrize("batching", [None, {"maxSize": 16, "maxWaitMilliseconds": 20}], ids=["rows", "batches"])
async def test_every_row_but_the_bad_ones_succeeds(
    batching: Any, tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    function = "measure" if batching is None else "measure_all"
    async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=NOBODY) as rig:
        rig.source = tmp_path / "table.jsonl"
        texts = [BAD.get(n, f"row {n}") for n in range(1, ROWS + 1)]
        rig.source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        python: dict[str, Any] = {
            "function": f"tests.support.user_functions:{function}",
            "arguments": {"text": "{{ row.text }}"},
            "processes": 2,
        }
        executor = {"python": python | ({"batching": batching} if batching else {})}
        rig.job(executor=executor, timeoutSeconds=2, retry={"maxAttempts": 2, "initialSeconds": 0, "maxSeconds": 0})
        await rig.start_engine()
        worker = await rig.start_worker()
        status = await rig.complete(within=110)
        await rig.stop_workers()
        assert (status["succeeded"], status["failed"]) == (ROWS - len(BAD), len(BAD)), status
        outcomes = await rig.outcomes()
        failed = {o.seq: (o.error_class, o.attempts) for o in outcomes if o.state is State.FAILED}
        crashed = ("ProcessCrashed", 2)
        assert failed == {7: crashed, 23: ("Timeout", 2), 41: ("FunctionError", 2), 60: crashed}
        done = {o.seq: json.loads(o.result or "null") for o in outcomes if o.state is State.SUCCEEDED}
        assert done == {n: len(text) for n, text in enumerate(texts, start=1) if n not in BAD}
        assert worker.process.returncode == 0, "not one of them was the worker's end"


async def test_a_function_that_is_not_there_ends_the_worker_with_a_word(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=NOBODY) as rig:
        rig.table(1)
        rig.job(executor={"python": {"function": "absent.rules:quote"}})
        await rig.start_engine()
        worker = await rig.start_worker(wait=False)
        assert await worker.ended() == 2
        assert (
            "spec.executor.python.function: there is no module absent where the worker runs" in worker.log.read_text()
        )
