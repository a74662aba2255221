"""After a `kill -9`, with slots free elsewhere, the rows of the dead run again within seconds.

Peers wait from ten seconds to an hour. What bounds it here: a heartbeat expires (2 s), the sweeper looks every half
second, and where the dead worker was the sweeper itself, another is elected within about a second.
"""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.endpoint import spawn
from tests.support.rig import Process, Rig

SLOTS = 8
VICTIMS = 6


@pytest.mark.timeout(600)
@pytest.mark.slow
async def test_orphaned_rows_run_again_in_seconds(
    tmp_path: Path, redis_url: str, postgres_dsn: str, record_property: Callable[[str, object], None]
) -> None:
    """Each victim hangs on what it runs; two idle workers stand by, neither of them the sweeper at first."""
    async with spawn(plan={"default": "hang"}, log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rows = 4 * SLOTS * VICTIMS
            rig.table(rows)
            rig.job(concurrency={"perWorker": SLOTS}, timeoutSeconds=200)
            await rig.start_engine()
            victims: list[Process] = []
            for n in range(VICTIMS):
                victims.append(await rig.start_worker())
                await endpoint.wait(in_flight=SLOTS * (n + 1))
            await endpoint.play({"default": "ok"})  # what hangs goes on hanging
            for _ in range(2):
                await rig.start_worker()
            await rig.until(lambda status: status["succeeded"] == rows - sum(len(v.unfinished()) for v in victims))

            # Two die at a time; the first one, which sweeps, among the last.
            for pair in (victims[1:3], victims[3:5], [victims[5], victims[0]]):
                calls = (await endpoint.stats())["calls"]
                for victim in pair:
                    victim.kill()
                    await victim.ended()
                await endpoint.wait(calls=calls + sum(len(victim.unfinished()) for victim in pair), timeout=60)
            status = await rig.complete()
            await rig.stop_workers()
            assert (status["succeeded"], status["epoch"]) == (rows, 1)

            calls_of = defaultdict(list)
            for call in rig.calls():
                calls_of[call.row].append(call.start)
            seconds: list[float] = []
            for victim in victims:
                orphans = victim.unfinished()
                assert len(victim.was_running(rig.calls())) == SLOTS
                seconds += [max(calls_of[str(row)]) - victim.killed_at for row in orphans]
            assert len(seconds) >= SLOTS * VICTIMS
            assert all(taken > 0 for taken in seconds), "an orphan never ran again"
            told = distribution(seconds)
            print(told)
            record_property("recovery_seconds", told)
            assert statistics.median(seconds) <= 5, told
            assert statistics.quantiles(seconds, n=100, method="inclusive")[98] <= 10, told
            history = await rig.history()
            history.assert_clean(allowed_duplicates=SLOTS * VICTIMS, allowed_overlaps=0)
            assert not history.late_calls


def distribution(seconds: list[float]) -> str:
    """For people: quantiles, and how many rows by half seconds."""
    at = statistics.quantiles(seconds, n=100, method="inclusive")
    lines = [
        f"from the kill to the next call of each of {len(seconds)} orphaned rows: median"
        f" {statistics.median(seconds):.2f} s, p90 {at[89]:.2f} s, p99 {at[98]:.2f} s, longest {max(seconds):.2f} s"
    ]
    halves = Counter(int(taken * 2) for taken in seconds)
    for half in range(max(halves) + 1):
        lines.append(f"  {half / 2:4.1f}-{half / 2 + 0.5:.1f} s {'#' * halves[half]}")
    return "\n".join(lines)
