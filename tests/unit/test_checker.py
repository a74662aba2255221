"""The history checker finds what it is there for: each test corrupts one record of a clean run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from redis.asyncio import Redis

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from rowmill.outcome import Outcome, State
from rowmill_cli.export import export
from tests.support.checker import check_history, echoed_row, read_source
from tests.support.endpoint import Call
from tests.support.history import DEDUPLICATED, FAILED, SUCCEEDED, History, Recorded, Run, compare

NAME = "default/job/1"
RUN = Run(NAME, 0, 4, {"rows": 4, "succeeded": 3, "failed": 1, "deduplicated": 0})


def call(n: int, row: str | None, start: float, end: float | None, answered: str | None = "200", seq: int = 0) -> Call:
    seq = seq or int((row or "r0")[1:])
    return Call(n, row, f"{NAME}#{seq}", f"{NAME}#{seq}.0.1", start, end, answered)


def success(seq: int, *, at: float = 10.0, **changes: Any) -> Recorded:
    return Recorded(seq, 0, SUCCEEDED, 1, f"k{seq}", {"row": f"r{seq}"}, None, None, at)._replace(**changes)


def failure(seq: int, *, generation: int = 0, attempts: int = 1) -> Recorded:
    return Recorded(seq, generation, FAILED, attempts, f"k{seq}", None, "HTTP503", "unavailable", 10.0)


def line(r: Recorded) -> dict[str, Any]:
    error = None if r.error_class is None else {"class": r.error_class, "message": r.error_message}
    state = {SUCCEEDED: "Succeeded", FAILED: "Failed", DEDUPLICATED: "Deduplicated"}[r.state]
    return {
        "seq": r.seq,
        "key": r.key,
        "state": state,
        "attempts": r.attempts,
        "result": r.result,
        "error": error,
    }


@dataclass
class Records:
    """A clean run of four rows: three succeed, one of them at its second attempt, one fails for good."""

    run: Run = RUN
    source: list[str] = field(default_factory=lambda: ["r1", "r2", "r3", "r4"])
    recorded: list[Recorded] = field(
        default_factory=lambda: [success(1), success(2, attempts=2), success(3), failure(4)]
    )
    calls: list[Call] = field(
        default_factory=lambda: [
            call(1, "r1", 1.0, 1.1),
            call(2, "r2", 1.0, 1.1, "503"),
            call(3, "r2", 2.0, 2.1),
            call(4, "r3", 2.0, 2.1),
            call(5, "r4", 3.0, 3.1, "503"),
        ]
    )
    exported: list[dict[str, Any]] = field(default_factory=list)
    redis_keys: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.exported = [line(r) for r in self.recorded]

    def compare(self) -> History:
        return compare(
            run=self.run,
            source=self.source,
            recorded=self.recorded,
            calls=self.calls,
            exported=self.exported,
            redis_keys=self.redis_keys,
            echoed=echoed_row,
        )


def test_a_clean_run_is_clean() -> None:
    history = Records().compare()
    history.assert_clean()
    assert (history.rows, history.calls, history.calls_per_row) == (4, 5, {1: 1, 2: 2, 3: 1, 4: 1})


def retried_failure(r: Records) -> None:
    r.run = Run(NAME, 1, 4, None)  # row 4's failure is of the generation before


Corruption = Callable[[Records], object]


@pytest.mark.parametrize(
    ("corrupt", "found"),
    [
        (lambda r: r.recorded.pop(2), "1 rows lost: 3"),
        (retried_failure, "1 rows lost: 4"),
        (lambda r: r.recorded.append(success(2)), "1 rows with two outcomes: row 2: twice in generation 0"),
        (
            lambda r: r.recorded.append(failure(1, generation=1)),
            "1 rows with two outcomes: row 1: Succeeded, then Failed",
        ),
        (lambda r: r.recorded.append(success(5)), "1 outcomes of rows that do not exist: 5"),
        (lambda r: r.recorded.append(success(0)), "1 outcomes of rows that do not exist: 0"),
        (
            lambda r: r.recorded.__setitem__(0, success(1, result={"row": "r2"})),
            '1 results that belong to another row: row 1 (r1) has {"row": "r2"}',
        ),
        (
            lambda r: r.recorded.__setitem__(0, success(1, result=None)),
            "1 results that belong to another row: row 1 (r1) has null",
        ),
        (lambda r: r.calls.pop(0), "1 successes that no call explains: 1"),
        (lambda r: r.calls.__setitem__(0, call(1, "r1", 1.0, 1.1, "503")), "1 successes that no call explains: 1"),
        (lambda r: r.calls.append(call(6, "r7", 1.0, 1.1)), "1 calls of no row of the source: call 6: row r7"),
        (lambda r: r.calls.append(call(6, None, 1.0, 1.1, seq=9)), "1 calls of no row of the source: call 6: row None"),
        # A body of one row under the key of another.
        (lambda r: r.calls.append(call(6, "r1", 1.0, 1.1, seq=2)), "1 calls of no row of the source: call 6: row r1"),
        (lambda r: r.exported.pop(1), "1 differences between export and ledger: row 2 is not exported"),
        (lambda r: r.exported.reverse(), "differences between export and ledger: line of row 3 comes after row 4"),
        (lambda r: r.exported.append(line(success(5))), "row 5 is exported, the ledger has none"),
        (lambda r: r.exported.insert(0, r.exported[0]), "line of row 1 comes after row 1"),
        (lambda r: r.exported[0].update(state="Failed"), 'row 1: state is "Failed", in the ledger "Succeeded"'),
        (lambda r: r.exported[0].update(attempts=2), "row 1: attempts is 2, in the ledger 1"),
        (lambda r: r.exported[0].update(key=1), 'row 1: key is 1, in the ledger "k1"'),
        (lambda r: r.exported[0].update(result=1), 'row 1: result is 1, in the ledger {"row": "r1"}'),
        (lambda r: r.exported[3].update(error=None), "row 4: error is null, in the ledger"),
        (lambda r: setattr(r, "run", Run(NAME, 0, 3, None)), "the run has 3 rows, the source 4"),
        (
            lambda r: setattr(r, "run", Run(NAME, 0, 4, {"succeeded": 4, "failed": 0, "deduplicated": 0})),
            "the run counts 4 Succeeded, its outcomes are 3, the run counts 0 Failed, its outcomes are 1",
        ),
        (lambda r: r.redis_keys.append("rowmill:{t:0}:rows:1"), "1 keys left in Redis: rowmill:{t:0}:rows:1"),
        (lambda r: r.calls.append(call(6, "r3", 3.0, 3.1)), "1 duplicate calls (0 allowed): row 3: 1 more of 2"),
        (lambda r: r.calls.append(call(6, None, 3.0, 3.1, seq=3)), "1 duplicate calls (0 allowed): row 3: 1 more of 2"),
        (lambda r: r.calls.append(call(6, "r3", 11.0, 11.1)), "1 calls after a recorded success, by row: 3"),
        (lambda r: r.calls.append(call(6, "r3", 2.05, 2.2)), "1 calls of one row at once, by row: 3"),
        (lambda r: r.calls.append(call(6, "r3", 1.0, None, None)), "1 calls of one row at once, by row: 3"),
    ],
)
def test_each_corruption_is_found(corrupt: Corruption, found: str) -> None:
    records = Records()
    corrupt(records)
    with pytest.raises(AssertionError) as failed:
        records.compare().assert_clean()
    assert found in str(failed.value)


def test_what_was_killed_explains_so_many_calls_and_no_more() -> None:
    records = Records()
    records.calls += [call(6, "r3", 1.0, 1.1), call(7, "r1", 2.0, 2.1)]
    history = records.compare()
    assert history.duplicates == {3: 1, 1: 1}
    history.assert_clean(allowed_duplicates=2)
    with pytest.raises(AssertionError, match=r"2 duplicate calls \(1 allowed\)"):
        history.assert_clean(allowed_duplicates=1)


def test_overlaps_may_be_refused_where_duplicates_are_allowed() -> None:
    records = Records()
    records.calls.append(call(6, "r3", 2.05, 2.2))
    records.compare().assert_clean(allowed_duplicates=1)
    with pytest.raises(AssertionError, match="1 calls of one row at once"):
        records.compare().assert_clean(allowed_duplicates=1, allowed_overlaps=0)


def test_attempts_that_never_arrived_hide_no_duplicate_of_another_row() -> None:
    records = Records()
    records.recorded[0] = success(1, attempts=3)  # two of them met a refused connection
    records.exported[0] = line(records.recorded[0])
    records.calls.append(call(6, "r3", 3.0, 3.1))
    assert records.compare().duplicates == {3: 1}


def test_a_call_whose_caller_went_away_may_have_ended_before_the_endpoint_noticed() -> None:
    records = Records()
    records.recorded[2] = success(3, attempts=2)
    records.exported[2] = line(records.recorded[2])
    records.calls.append(call(6, "r3", 1.0, 2.3, "client gone"))
    records.compare().assert_clean()
    records.calls[-1] = call(6, "r3", 1.0, 2.7, "client gone")
    assert records.compare().overlaps == [3]


def test_an_earlier_long_call_is_remembered_past_a_short_one() -> None:
    records = Records()
    records.calls += [call(6, "r1", 0.5, 9.0), call(7, "r1", 5.0, 5.1)]
    assert records.compare().overlaps == [1, 1]


def test_a_retried_row_counts_the_attempts_of_every_generation() -> None:
    records = Records()
    records.run = Run(NAME, 1, 4, None)
    records.recorded.append(success(4, generation=1))
    records.exported[3] = line(records.recorded[-1])
    records.calls.append(call(6, "r4", 4.0, 4.1))
    records.compare().assert_clean()


def test_calls_of_another_run_at_the_same_endpoint_do_not_count() -> None:
    records = Records()
    records.calls.append(replace(records.calls[0], request_id="default/other/1#1.0.1", key="default/other/1#1"))
    history = records.compare()
    history.assert_clean()
    assert history.calls == 5


def test_a_declared_key_is_shared_by_rows() -> None:
    records = Records()
    records.calls = [replace(c, key="key-ab") for c in records.calls]
    records.recorded[2] = success(3, state=DEDUPLICATED, attempts=0, result={"row": "r1"})
    records.exported[2] = line(records.recorded[2])
    records.run = Run(NAME, 0, 4, {"succeeded": 2, "failed": 1, "deduplicated": 1})
    del records.calls[3]
    records.compare().assert_clean()


def test_rows_that_cannot_be_told_apart_are_refused() -> None:
    records = Records()
    records.source[1] = "r1"
    with pytest.raises(ValueError, match="names two rows alike"):
        records.compare()


def test_only_the_first_offenders_are_told() -> None:
    records = Records()
    records.source = [f"r{n}" for n in range(1, 31)]
    records.run = Run(NAME, 0, None, None)
    with pytest.raises(AssertionError, match=r"26 rows lost: 5, 6, 7, 8, 9, … \(21 more\)"):
        records.compare().assert_clean()


def test_every_format_of_a_source_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ufefftext,id\n"a\nb",1\n"x ""y"" z",2\n', encoding="utf-8")
    (tmp_path / "t.jsonl").write_text('{"id": 1}\n\n{"id": 2, "text": "a"}\n')
    book = openpyxl.Workbook()
    assert book.active is not None
    for row in (["text", "id"], ["a", 1], ["b", 2]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")
    pq.write_table(pa.table({"text": ["a", "b"], "id": [1, 2]}), tmp_path / "t.parquet")
    for suffix in ("csv", "jsonl", "xlsx", "parquet"):
        assert read_source(tmp_path / f"t.{suffix}", "id") == ["1", "2"]


async def test_a_run_in_the_real_stores_is_read_and_compared(tmp_path: Path, postgres_dsn: str, redis_url: str) -> None:
    identity = RunIdentity("test", "default", "job", "1")
    source, log, results = tmp_path / "t.csv", tmp_path / "calls.jsonl", tmp_path / "results.jsonl"
    source.write_text("id\nr1\nr2\nr3\n")
    ledger = await Ledger.connect(postgres_dsn)
    redis = Redis.from_url(redis_url)

    async def check(**options: Any) -> History:
        return await check_history(
            source=source,
            endpoint_log=log,
            postgres_dsn=postgres_dsn,
            identity=identity,
            export=results,
            redis_url=redis_url,
            **options,
        )

    try:
        await ledger.migrate()
        log.write_text("")
        results.write_text("")
        with pytest.raises(LookupError, match="knows no run test/default/job/1"):
            await check()
        record = await ledger.runs.ensure(identity, frozen={}, shards=1, row_limit=None)
        record = await ledger.runs.take_over(record.id)
        record = await ledger.runs.begin_epoch(record, generation=0, epoch=1)
        outcomes = [
            Outcome(1, State.SUCCEEDED, 1, result='{"row": "r1"}', key='"a"'),
            Outcome(2, State.FAILED, 1, error_class="HTTP400", error_message="no"),
        ]
        await ledger.runs.commit_bad_rows(record, outcomes)
        await export(ledger.runs.results(record), results)
        lines = [
            {"n": n, "row": f"r{n}", "key": f"{NAME}#{n}", "request_id": f"{NAME}#{n}.0.1", "t_start": 1.0}
            for n in (1, 2)
        ]
        ends = [{"n": n, "row": f"r{n}", "t_end": 2.0, "answered": status} for n, status in ((1, "200"), (2, "400"))]
        log.write_text("".join(json.dumps(one) + "\n" for one in lines + ends))
        await redis.set(f"rowmill:{{{record.token}}}:alive:w1", "1", ex=30)

        history = await check()
        assert history.problems() == ["1 rows lost: 3"]
        (await check(limit=2)).assert_clean()

        await redis.set(f"rowmill:{{{record.token}:0}}:epoch", "1")
        assert (await check(limit=2)).leftovers == [f"rowmill:{{{record.token}:0}}:epoch"]
    finally:
        await redis.aclose()
        await ledger.close()
