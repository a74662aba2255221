"""What a part is called and covers, and how far a checkpoint's entry is believed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.identity import RunIdentity
from rowmill.ledger import RangeCounts, RangeState
from rowmill.outcome import State
from rowmill.row import MAX_SEQ
from rowmill_operator.results.checkpoint import (
    Checkpoint,
    NotReadable,
    Part,
    Shape,
    Stored,
    Trust,
    states,
    still_true,
    trust,
)
from rowmill_operator.results.layout import (
    PART_ROWS,
    Span,
    failures_name,
    part_name,
    parts_up_to,
    run_folder,
    span_of,
    written_by_us,
)

SHAPE = Shape("Parquet", frozenset(State), ("a", "b"))
PART = Part(
    first=11,
    last=20,
    rows=10,
    sizes=(100,),
    succeeded=10,
    failed=0,
    deduplicated=0,
    generation=0,
    epoch=1,
    whole=True,
    print="10-1",
)


@given(total=st.integers(1, MAX_SEQ), part_rows=st.integers(1, 100_000_000))
def test_parts_cover_every_row_once(total: int, part_rows: int) -> None:
    count = parts_up_to(total, part_rows=part_rows)
    ends = {0, count // 2, count - 1}
    assert span_of(0, part_rows=part_rows, total=total).first == 1
    assert span_of(count - 1, part_rows=part_rows, total=total).last == total
    for index in ends - {count - 1}:
        here, after = (span_of(i, part_rows=part_rows, total=total) for i in (index, index + 1))
        assert here.last + 1 == after.first
        assert here.rows == part_rows


def test_names_sort_as_rows_do_and_are_known_as_ours() -> None:
    spans = [span_of(i, part_rows=PART_ROWS, total=None) for i in (0, 1, 9, 10, 19_999)]
    names = [part_name(span, "JSONL", number) for span in spans for number in (1, 2, 3)]
    assert names == sorted(names)
    assert names[:2] == ["part-000000001-000050000.jsonl", "part-000000001-000050000_0002.jsonl"]
    assert all(written_by_us(name) for name in [*names, failures_name(1), failures_name(12_345)])
    assert written_by_us(part_name(Span(MAX_SEQ - 1, MAX_SEQ), "Parquet"))
    for foreign in ("part-1.jsonl", "part-000000001-000050000.jsonl.bak", "_rowmill.json", "failures.csv", "x"):
        assert not written_by_us(foreign)


def test_a_run_has_a_folder_of_its_own() -> None:
    assert run_folder("s3://bucket/triage", "7") == run_folder("s3://bucket/triage//", "7") == "s3://bucket/triage/7/"
    assert run_folder("s3://bucket", "1~simulate") == "s3://bucket/1~simulate/"


@pytest.mark.parametrize(
    ("part", "generation", "epoch", "expected"),
    [
        (None, 0, 1, Trust.OPEN),
        (PART, 0, 1, Trust.SETTLED),
        (PART, 1, 2, Trust.DOUBTFUL),
        (replace(PART, whole=False), 0, 1, Trust.OPEN),
        (replace(PART, last=15), 0, 1, Trust.OPEN),
        (replace(PART, failed=1), 0, 1, Trust.SETTLED),
        (replace(PART, failed=1), 0, 2, Trust.DOUBTFUL),
        (replace(PART, failed=1), 1, 2, Trust.OPEN),
    ],
)
def test_how_far_an_entry_is_believed(part: Part | None, generation: int, epoch: int, expected: Trust) -> None:
    assert trust(part, Span(11, 20), generation=generation, epoch=epoch) is expected


def test_a_part_is_true_while_nothing_changed() -> None:
    now = RangeState(10, 10, 0, 0, "10-1")
    assert still_true(PART, now, Span(11, 20))
    assert not still_true(PART, replace(now, print="11-1"), Span(11, 20))
    assert not still_true(PART, now, Span(11, 15))


def test_a_shape_is_what_decides_the_bytes() -> None:
    others = [
        replace(SHAPE, format="CSV"),
        replace(SHAPE, include=states(["Failed"])),
        replace(SHAPE, columns=("b", "a")),
        replace(SHAPE, columns=("\ud800",)),
    ]
    assert len({shape.digest for shape in [SHAPE, *others]}) == 5
    assert SHAPE.rows_of(RangeState(9, 5, 3, 1, "")) == 9
    assert others[1].rows_of(RangeState(9, 5, 3, 1, "")) == 3


def whole() -> Checkpoint:
    return Checkpoint(
        identity=RunIdentity("i", "ns", "job", "1"),
        ledger="abc",
        shape=SHAPE,
        part_rows=10,
        parts={
            0: replace(PART, first=1, last=10, sizes=(3, 4)),
            1: PART,
            2: replace(PART, first=21, last=30, sizes=()),
        },
        saved="x",
        generation=1,
        epoch=2,
        total=30,
        counts=RangeCounts(30, 30, 0, 0, 4),
        phase="Complete",
        complete=True,
        reason="",
        failures=2,
        failure_files=1,
    )


def test_a_checkpoint_is_read_as_it_was_written() -> None:
    found = Stored.parse(whole().as_json())
    assert (found.identity, found.ledger, found.shape, found.saved) == (whole().identity, "abc", SHAPE.digest, "x")
    assert found.checkpoint(SHAPE) == whole()


def test_a_checkpoint_tells_a_reader_what_is_there() -> None:
    document = json.loads(whole().as_json())
    assert document["run"] == {"installation": "i", "namespace": "ns", "name": "job", "runId": "1"}
    assert document["complete"] is True
    assert document["failures"] == {"rows": 2, "files": ["failures.jsonl"]}
    assert document["parts"][0]["files"] == [
        "part-000000001-000000010.parquet",
        "part-000000001-000000010_0002.parquet",
    ]
    assert whole().objects["part-000000001-000000010_0002.parquet"] == 4
    assert json.loads(replace(whole(), parts={}).as_json())["parts"] == []


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{}", b"\xff", b'{"version": 2}', b'{"version": 1, "run": 3}', b"[" * 100_000],
)
def test_what_is_no_checkpoint(data: bytes) -> None:
    with pytest.raises(NotReadable):
        Stored.parse(data)


@pytest.mark.parametrize("field", ["parts", "partRows", "counts", "failures", "complete"])
def test_a_checkpoint_with_something_missing(field: str) -> None:
    document = json.loads(whole().as_json())
    del document[field]
    with pytest.raises(NotReadable):
        Stored.parse(json.dumps(document).encode()).checkpoint(SHAPE)
