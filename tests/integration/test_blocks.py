"""What is done in whole blocks for the sake of speed keeps each row's promise."""

from __future__ import annotations

import pytest

from rowmill.ledger import KeyEnd, Ledger, RunRecord
from rowmill.ledger.queries import int_array
from rowmill.outcome import Outcome, State
from rowmill.row import Entry
from rowmill.window import EpochOver, Window


def succeeded(seq: int, result: str) -> Outcome:
    return Outcome(seq, State.SUCCEEDED, 1, result=result, key=f'"k{seq}"', columns='{"a":null}')


async def recorded(ledger: Ledger, record: RunRecord) -> list[Outcome]:
    return [outcome async for page in ledger.results(record) for outcome in page]


@pytest.mark.parametrize("with_keys", [False, True])
async def test_a_group_that_is_known_in_part(ledger: Ledger, record: RunRecord, with_keys: bool) -> None:
    """The rows that are new are recorded and counted, those that are there stay as they are."""
    a, b = ledger.work(record, worker="a"), ledger.work(record, worker="b")
    first = [succeeded(2, '"first"'), Outcome(4, State.FAILED, 3, error_class="E", error_message="m")]
    assert await a.commit(first, generation=0) == 2
    group = [succeeded(seq, '"second"') for seq in (5, 4, 3, 2, 1)]
    digest = b"0123456789abcdef"
    keys = []
    if with_keys:
        assert (await b.take_keys([digest], [3], ["x#3"], rerun_failed=True))[0] == {digest}
        keys = [KeyEnd(digest, 3, group[2])]
    assert await b.commit(group, generation=0, keys=keys, keep_seconds=60) == 3
    assert await b.commit(group, generation=0, keys=keys, keep_seconds=60) == 0, "as after a reply that was lost"
    assert await recorded(ledger, record) == [succeeded(1, '"second"'), first[0], group[2], first[1], group[0]]
    progress = await ledger.runs.progress(record)
    assert (progress.succeeded, progress.failed, progress.retried) == (4, 1, 2)


async def test_a_success_is_never_recorded_anew(ledger: Ledger, record: RunRecord) -> None:
    """In a later generation neither: the fast way asks as well."""
    work = ledger.work(record, worker="a")
    assert await work.commit([succeeded(1, '"kept"'), Outcome(2, State.FAILED, 1, error_class="E")], generation=0) == 2
    assert await work.commit([succeeded(1, '"late"'), succeeded(2, '"retried"')], generation=1) == 1
    assert [o.result for o in await recorded(ledger, record)] == ['"kept"', '"retried"']


async def test_a_group_of_one_kind_leaves_the_rest_null(ledger: Ledger, record: RunRecord) -> None:
    outcomes = [Outcome(n, State.FAILED, 1, error_class="E", error_message="") for n in (1, 2)]
    await ledger.work(record, worker="a").commit(outcomes, generation=0)
    assert await recorded(ledger, record) == outcomes


def test_arrays_as_text() -> None:
    assert int_array([]) == "{}"
    assert int_array([State.FAILED, 7, -1, 2**31 - 1]) == "{2,7,-1,2147483647}"


async def test_appended_rows_arrive_as_they_were(window: Window) -> None:
    feed = window.feed(token="t", shards=1)
    await feed.open(1)
    texts = [b"", b"\\n", b"\r", b"%-0 'x", "ä☃\u2028".encode(), b"\xff\x00", b"x" * 100_000]
    payloads = [b'{"a":"%s"}' % text for text in texts]
    entries = [Entry(10 * n, payload) for n, payload in enumerate(payloads, 1)]
    assert await feed.append(1, 0, after=0, entries=entries) == len(entries)
    worker = window.work(token="t", shards=1, epoch=1, consumer="a")
    assert [(row.seq, row.payload) for row in await worker.take(100)] == entries


async def test_a_payload_that_is_no_single_line_is_refused(window: Window) -> None:
    """It would shift every row behind it: nothing of the block is appended."""
    feed = window.feed(token="t", shards=1)
    await feed.open(1)
    with pytest.raises(ValueError, match="rows 1 to 2 holds a line break"):
        await feed.append(1, 0, after=0, entries=[Entry(1, b'{"a":\n1}'), Entry(2, b"{}")])
    assert (await feed.look(1))[0].entries == 0


async def test_shards_are_finished_in_one_call(window: Window) -> None:
    feed = window.feed(token="t", shards=3)
    await feed.open(1)
    for shard in range(3):
        entries = [Entry(seq, b"{}") for seq in range(1, 3000) if seq % 3 == shard]
        await feed.append(1, shard, after=0, entries=entries)
    worker = window.work(token="t", shards=3, epoch=1, consumer="a")
    rows = await worker.take(5000)
    kept = {3, 1000, 2999}
    done: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for row in rows:
        if row.seq not in kept:
            done[row.shard].append(row.seq)
    await worker.finish_all(done)
    assert [(look.entries, look.pending) for look in await feed.look(1)] == [(1, 1)] * 3
    await feed.open(2)
    with pytest.raises(EpochOver):
        await worker.finish_all({0: [3]})
