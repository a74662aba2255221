"""What a run needs next: pure decisions over a record and a look at the window."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rowmill.identity import RunIdentity
from rowmill.ledger import RunRecord
from rowmill.status import Phase
from rowmill.window import ShardLook
from rowmill_operator.engine.lifecycle import (
    FailureRule,
    ended,
    limit_changes,
    limit_lowered,
    limit_raised,
    over_deadline,
    reopens,
    window_trusted,
)

RECORD = RunRecord(
    id=1,
    identity=RunIdentity("test", "default", "job", "1"),
    token="t",
    frozen={},
    shards=2,
    fingerprint="f",
    row_limit=None,
    total=100,
    generation=1,
    epoch=3,
    term=1,
    phase=Phase.COMPLETE,
    message="",
    feed_position=None,
    counts=None,
    started_at=None,
    finished_at=None,
)


def record(**changes: Any) -> RunRecord:
    return replace(RECORD, **changes)


def look(epoch: int = 3, last: int = 10) -> ShardLook:
    return ShardLook(epoch=epoch, last_seq=last, entries=0, pending=0, scheduled=0, bytes=0)


@pytest.mark.parametrize(
    ("succeeded", "failed", "at_end", "fails"),
    [
        (0, 0, True, False),
        (0, 99, False, False),  # too few to tell
        (0, 99, True, True),  # at the end it is exact
        (95, 5, False, False),  # exactly what is allowed
        (94, 6, False, True),
        (950, 50, True, False),
        (949, 51, True, True),
        (0, 1, True, True),
    ],
)
def test_failure_policy(succeeded: int, failed: int, at_end: bool, fails: bool) -> None:
    why = FailureRule(5, 100).verdict(succeeded=succeeded, failed=failed, at_end=at_end)
    assert (why is not None) == fails


def test_a_failure_policy_says_why_and_what_to_do() -> None:
    why = FailureRule(2.5, 1).verdict(succeeded=2000, failed=1000, at_end=False)
    assert why is not None
    assert "1,000 of 3,000 rows failed (33.3 %)" in why
    assert "maxFailedPercent allows 2.5 %" in why
    assert "spec.retryGeneration" in why


def test_none_may_fail_and_all_may_fail() -> None:
    assert FailureRule(0, 1).verdict(succeeded=10**6, failed=1, at_end=False)
    assert FailureRule(100, 1).verdict(succeeded=0, failed=5, at_end=True) is None


def test_deadline() -> None:
    assert over_deadline(started_at=None, wall_now=1e9, deadline=1) is None, "it has not begun"
    assert over_deadline(started_at=100, wall_now=1e9, deadline=None) is None
    assert over_deadline(started_at=100, wall_now=160, deadline=60) is None
    why = over_deadline(started_at=100, wall_now=160.1, deadline=60)
    assert why is not None
    assert "activeDeadlineSeconds (60 s)" in why
    assert over_deadline(started_at=100, wall_now=50, deadline=60) is None, "a clock that was set back"


@pytest.mark.parametrize(
    ("known", "asked", "raised", "lowered"),
    [
        (None, None, False, False),
        (None, 100, False, True),
        (100, None, True, False),
        (100, 100, False, False),
        (100, 101, True, False),
        (100, 99, False, True),
    ],
)
def test_limit(known: int | None, asked: int | None, raised: bool, lowered: bool) -> None:
    of = record(row_limit=known)
    assert (limit_raised(of, asked), limit_lowered(of, asked)) == (raised, lowered)
    assert limit_changes(of, asked) == raised


def test_before_anything_was_fed_the_limit_may_be_lowered() -> None:
    new = record(row_limit=100, epoch=0)
    assert not limit_lowered(new, 5)
    assert limit_changes(new, 5), "the ledger must learn it, or the next engine takes it for lowered"
    assert limit_changes(record(row_limit=None, epoch=0), 5)
    assert not limit_changes(new, 100)


@pytest.mark.parametrize(
    ("generation", "limit", "opens"),
    [(0, 100, False), (1, 100, False), (2, 100, True), (1, 200, True), (1, None, True), (0, 200, True)],
)
def test_what_opens_a_run_that_has_ended(generation: int, limit: int | None, opens: bool) -> None:
    assert reopens(record(row_limit=100), retry_generation=generation, row_limit=limit) == opens


def test_ended() -> None:
    assert [phase for phase in Phase if ended(phase)] == [Phase.COMPLETE, Phase.FAILED]


@pytest.mark.parametrize(
    ("looks", "trusted"),
    [
        ([look(), look(last=11)], True),
        ([look(last=12), look(last=11)], True),  # an append whose reply we did not see
        ([look(), look(last=10)], False),  # rolled back by one row
        ([look(), look(last=-1)], False),  # a stream is gone
        ([look(), look(epoch=2, last=11)], False),  # gone back to the epoch before
        ([look(), look(epoch=4, last=11)], False),  # another engine went on
        ([look(), look(epoch=0, last=-1)], False),  # wiped
        ([look()], False),
        ([], False),
    ],
)
def test_trust(looks: list[ShardLook], trusted: bool) -> None:
    assert window_trusted(looks, epoch=3, last_seqs=[10, 11]) == trusted


def test_a_wiped_window_is_not_trusted_even_where_nothing_was_fed() -> None:
    assert not window_trusted([look(epoch=0, last=-1)], epoch=1, last_seqs=[0])
