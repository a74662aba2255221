"""Table C: an order that was submitted is not paid for twice, whoever dies, and however often it stands in the table.

The old workflow had neither a check nor a lock, and a crash forgot what was in ComfyUI's queue.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rowmill.outcome import State
from tests.support.comfyui_server import ComfyUIServer, Plan, workflow
from tests.support.rig import Rig

ROWS = 12
ORDERS = 4
NO_ENDPOINT: Any = SimpleNamespace(url="http://127.0.0.1:9/", log=None)


def spec_of(url: str, made: Path, **more: Any) -> dict[str, Any]:
    # The seed is the row's number: what the rows of an order ask for is not the same to the last byte.
    comfyui = {"url": url, "workflow": workflow("order {{ row.order }}"), "store": {"uri": str(made)}}
    rows = [{"id": n, "order": f"A-{n % ORDERS}"} for n in range(1, ROWS + 1)]
    return {"source": {"rows": rows}, "executor": {"comfyui": comfyui}, "timeoutSeconds": 120, **more}


async def killed_run(rig: Rig, server: ComfyUIServer, spec: dict[str, Any], *, prompts: int) -> None:
    """A run whose first worker dies when the server has so many prompts, none of which has ended."""
    rig.job(**spec)
    await rig.start_engine()
    first = await rig.start_worker()
    await server.until(lambda: len(server.asked) == prompts and bool(server.running))
    first.kill()
    await first.ended()
    await rig.start_worker()
    server.release()
    await rig.complete()


async def test_a_worker_killed_after_submitting_costs_no_second_prompt(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with (
        server as url,
        Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=NO_ENDPOINT) as rig,
    ):
        spec = spec_of(url, tmp_path / "made", concurrency={"perWorker": 8})
        await killed_run(rig, server, spec, prompts=8)
        ends = await rig.outcomes()
    assert [end.state for end in ends] == [State.SUCCEEDED] * ROWS
    keys = Counter(asked["extra_data"]["rowmill"]["key"] for asked in server.asked)
    assert keys == {f"default/job/1#{n}": 1 for n in range(1, ROWS + 1)}
    files = [json.loads(end.result or "")["files"][0]["uri"] for end in ends]
    assert sorted(files) == sorted(str(path) for path in (tmp_path / "made" / "job" / "1").glob("*.png"))
    assert len(set(files)) == ROWS


async def test_an_order_of_many_rows_is_one_prompt_even_when_its_worker_dies(
    tmp_path: Path, redis_url: str, postgres_dsn: str
) -> None:
    server = ComfyUIServer(plan=lambda _: Plan(hold=True))
    async with (
        server as url,
        Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=NO_ENDPOINT) as rig,
    ):
        spec = spec_of(url, tmp_path / "made", key=["order"], dedupe={"scope": "Run"}, concurrency={"perWorker": 8})
        await killed_run(rig, server, spec, prompts=ORDERS)
        ends = await rig.outcomes()
    assert len(server.asked) == ORDERS
    assert Counter(end.state for end in ends) == {State.SUCCEEDED: ORDERS, State.DEDUPLICATED: ROWS - ORDERS}
    by_order: dict[Any, set[Any]] = {}
    for end in ends:
        by_order.setdefault(end.key, set()).add(end.result)
    assert {len(results) for results in by_order.values()} == {1}
    assert len(by_order) == ORDERS
