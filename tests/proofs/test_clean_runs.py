"""Clean runs: nothing is killed, and nothing is called twice."""

from __future__ import annotations

from pathlib import Path

from tests.support.endpoint import spawn
from tests.support.rig import Rig


async def test_small(tmp_path: Path, redis_url: str, postgres_dsn: str) -> None:
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.table(2000)
            rig.job(concurrency={"perWorker": 64})
            await rig.start_engine()
            await rig.start_worker()
            status = await rig.complete()
            print(status)
            assert status["succeeded"] == 2000
            print(await endpoint.stats())
            await rig.stop_workers()
