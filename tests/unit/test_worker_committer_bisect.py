"""Groups of outcomes: one that is refused is halved until the guilty rows stand alone; none is lost, none too large."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.errors import StoreUnavailable
from rowmill.identity import RunIdentity
from rowmill.ledger import KeyEnd, Ledger, Work
from rowmill.outcome import Outcome, State
from rowmill.spend import Spend
from rowmill_worker import committer as module
from rowmill_worker.committer import GROUP_BYTES, GROUP_MAX, Committer
from rowmill_worker.held import HeldRow


class PickyWork:
    """Takes no group with a value that it dislikes, and none at all while it is away."""

    def __init__(self, dislikes: set[str], *, away: int = 0, forbids_all: bool = False) -> None:
        self.dislikes = dislikes
        self.away = away
        self.forbids_all = forbids_all
        self.taken: list[tuple[int, Outcome]] = []
        self.keys: list[KeyEnd] = []
        self.groups: list[int] = []
        self.calls = 0

    async def commit(
        self,
        outcomes: list[Outcome],
        *,
        generation: int,
        keys: Sequence[KeyEnd] = (),
        keep_seconds: float = 0,
        spent: Spend,
    ) -> int:
        self.calls += 1
        await asyncio.sleep(0)
        if self.away:
            self.away -= 1
            raise StoreUnavailable("away")
        if self.forbids_all or any(outcome.result in self.dislikes for outcome in outcomes):
            raise asyncpg.UntranslatableCharacterError("no")
        self.taken += [(generation, outcome) for outcome in outcomes]
        self.keys += keys
        self.groups.append(len(outcomes))
        return len(outcomes)


class Run:
    """A committer at work."""

    def __init__(self, work: Any) -> None:
        self.committed: list[HeldRow] = []
        self.refused: list[int] = []
        self.committer = Committer(
            work=cast(Work, work),
            keep_keys_seconds=1.0,
            spent=Spend,
            committed=self.committed.extend,
            refused=lambda row, reason: self.refused.append(row.seq),
            measured=lambda rows, seconds: None,
            rng=random.Random(0),
        )

    async def all(self, rows: Sequence[HeldRow]) -> None:
        """Give it all rows at once and let it end."""
        running = asyncio.create_task(self.committer.run())
        for row in rows:
            self.committer.add(row)
        self.committer.close()
        async with asyncio.timeout(60):
            await running


def row(seq: int, result: str = '"fine"', *, generation: int = 0) -> HeldRow:
    held = HeldRow(seq, 0, b"{}", 1, -1, generation, 1)
    held.outcome = Outcome(seq, State.SUCCEEDED, 1, result=result, key='"k"', columns="{}")
    held.digest = b"%d" % seq
    return held


@settings(deadline=None, max_examples=60)
@given(bad=st.sets(st.integers(0, 63)), total=st.integers(1, 64), generations=st.integers(1, 3))
def test_exactly_the_refused_rows_fail_and_every_row_is_recorded_once(
    bad: set[int], total: int, generations: int
) -> None:
    work = PickyWork({"bad"})
    run = Run(work)
    rows = [row(n, "bad" if n in bad else '"fine"', generation=n % generations) for n in range(total)]
    asyncio.run(run.all(rows))
    guilty = {n for n in bad if n < total}
    assert sorted(outcome.seq for _, outcome in work.taken) == list(range(total))
    assert all(generation == outcome.seq % generations for generation, outcome in work.taken)
    assert {o.seq for _, o in work.taken if o.error_class == "ResultRefused"} == guilty
    assert {o.seq for _, o in work.taken if o.state is State.SUCCEEDED} == set(range(total)) - guilty
    assert sorted(run.refused) == sorted(guilty)
    assert sorted(row.seq for row in run.committed) == list(range(total)), "each is released once"
    assert sorted(key.seq for key in work.keys) == list(range(total))
    assert {key.seq for key in work.keys if key.outcome.state is State.FAILED} == guilty, "duplicates are told so"
    assert len(run.committer) == run.committer.bytes == 0


async def test_one_bad_row_costs_few_statements() -> None:
    work = PickyWork({"bad"})
    await Run(work).all([row(n, "bad" if n == 137 else '"fine"') for n in range(256)])
    assert work.calls <= 2 * 8 + 2


async def test_a_ledger_that_is_away_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", (0.001, 0.002))
    work = PickyWork({"bad"}, away=5)
    run = Run(work)
    await run.all([row(n, "bad" if n == 3 else '"fine"') for n in range(8)])
    assert len(run.committed) == 8
    assert run.refused == [3], "being away is nobody's fault"
    assert run.committer.away is None


async def test_a_ledger_that_refuses_even_the_plain_outcome_stops_the_worker() -> None:
    """No row could be blamed: going on would convict every one of them."""
    run = Run(PickyWork(set(), forbids_all=True))
    with pytest.raises(asyncpg.UntranslatableCharacterError):
        await run.all([row(1), row(2)])
    assert run.committed == []


async def test_groups_are_bounded_in_rows() -> None:
    work = PickyWork(set())
    await Run(work).all([row(n) for n in range(2 * GROUP_MAX + 10)])
    assert work.groups == [GROUP_MAX, GROUP_MAX, 10]


async def test_groups_are_bounded_in_bytes() -> None:
    """A server refuses a statement of a gigabyte however often it is tried."""
    work = PickyWork(set())
    run = Run(work)
    large = "x" * (GROUP_BYTES // 4)
    rows = [row(n, large) for n in range(10)] + [row(10, large * 5), row(11)]
    running = asyncio.create_task(run.committer.run())
    for each in rows:
        run.committer.add(each)
    assert run.committer.bytes == 15 * len(large) + len('"fine"')
    run.committer.close()
    await running
    assert work.groups == [4, 4, 2, 1, 1]
    assert [o.seq for _, o in work.taken] == list(range(12))
    assert run.committer.bytes == 0


@asynccontextmanager
async def real_ledger(dsn: str) -> AsyncIterator[tuple[Ledger, Any]]:
    ledger = await Ledger.connect(dsn)
    try:
        await ledger.migrate()
        record = await ledger.runs.ensure(RunIdentity("t", "d", "j", "1"), frozen={}, shards=1, row_limit=None)
        yield ledger, await ledger.runs.take_over(record.id)
    finally:
        await ledger.close()


async def test_postgres_refuses_values_and_only_their_rows_fail(postgres_dsn: str) -> None:
    """What slips past the checks before: the real server's refusals are those that the committer knows."""
    bad = {3: '{"broken', 17: '"\ud800"', 18: '"nul \x00"', 40: "[1,"}
    async with real_ledger(postgres_dsn) as (ledger, record):
        run = Run(ledger.work(record, worker="w"))
        await run.all([row(n, bad.get(n, '"fine"')) for n in range(1, 65)])
        ended = {outcome.seq: outcome async for page in ledger.results(record) for outcome in page}
        progress = await ledger.runs.progress(record)
    assert sorted(ended) == list(range(1, 65))
    assert {seq for seq, outcome in ended.items() if outcome.error_class == "ResultRefused"} == set(bad)
    assert all(ended[seq].result is None for seq in bad)
    assert (progress.succeeded, progress.failed) == (60, 4)
    assert sorted(run.refused) == sorted(bad)
