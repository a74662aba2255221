"""A wrong key costs ten calls and no row; a row that may not be read costs itself alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill_worker.backoff import RetryPolicy
from rowmill_worker.denials import QUIET_SECONDS, STORM, UNPROVEN_SECONDS, Denials, Says, says
from rowmill_worker.executors.classify import from_status
from rowmill_worker.executors.dify_answers import error_of
from rowmill_worker.executors.openai_refusal import Fault, told_apart
from rowmill_worker.executors.protocol import Attempt, RowError
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_worker_dispatcher import Bench, row
from tests.unit.test_worker_permits import Part

STEPS = st.lists(
    st.one_of(
        st.sampled_from(["deny", "deny", "deny", "let in", "withdraw"]),
        st.tuples(st.sampled_from([0.5, 3.0, 6.0]), st.integers(0, 2), st.integers(0, 1)),
    ),
    max_size=60,
)


@given(cautious=st.booleans(), steps=STEPS)
def test_a_row_in_doubt_leaves_once_and_only_ten_in_a_row_are_a_storm(cautious: bool, steps: list[Any]) -> None:
    """Held against a model that keeps the whole history and looks at its end."""
    denials = Denials[int](cautious=cautious)
    held: list[int] = []
    streak, storm, now, last, proven = 0, False, 0.0, 0.0, not cautious
    for number, step in enumerate(steps):
        if step == "deny":
            back = denials.deny(number, now)
            streak, last, proven = streak + 1, now, False
            storm = storm or streak >= STORM
            assert back == ([*held, number] if storm else [])
            held = [] if storm else [*held, number]
        elif step == "let in":
            assert denials.let_in() == held
            held = []
            if not storm:
                streak, proven = 0, True
        elif step == "withdraw":
            assert denials.withdraw() == held
            streak -= 0 if storm else len(held)
            held = []
        else:
            seconds, under_way, waiting = step
            now += seconds
            quiet = not under_way and not waiting and now - last >= QUIET_SECONDS
            failed = denials.tick(now, under_way=under_way, waiting=waiting)
            assert failed == (held if quiet and not storm else [])
            held = held[len(failed) :]
            if denials.calm and not proven:  # when exactly is another test's
                assert under_way
                assert not streak
                proven = True
        assert (denials.held, denials.storm, denials.calm) == (len(held), storm, proven)
        assert denials.held < STORM
        assert denials.admits(0) is not storm, "it never comes to a rest but in a storm"


@given(slots=st.integers(1, 100), order=st.lists(st.booleans(), max_size=300))
def test_who_refuses_from_the_first_call_on_gets_ten_calls(slots: int, order: list[bool]) -> None:
    """`order` tells whether the next thing is a start, where one may be, or an answer."""
    denials = Denials[int](cautious=True)
    calls = answered = 0
    back: list[int] = []
    for start in [*order, *[True] * 20, *[False] * 20, *[True] * 20, *[False] * 20]:
        under_way = calls - answered
        if start and under_way < slots and denials.admits(under_way):
            calls += 1
        elif under_way:
            answered += 1
            back += denials.deny(answered, 0.0)
    assert calls == STORM if slots > 1 or denials.storm else calls < STORM
    assert not denials.storm or back == list(range(1, STORM + 1))
    assert denials.calm is False


def test_calls_that_take_long_are_waited_for_two_seconds() -> None:
    denials = Denials[int](cautious=True)
    assert [denials.admits(others) for others in (0, 9, 10)] == [True, True, False]
    denials.tick(0.0, under_way=10, waiting=5)
    denials.tick(UNPROVEN_SECONDS - 0.1, under_way=10, waiting=5)
    assert not denials.admits(10)
    denials.tick(UNPROVEN_SECONDS, under_way=10, waiting=5)
    assert denials.admits(1000)
    denials.deny(1, 3.0)
    denials.tick(100.0, under_way=9, waiting=5)
    assert [denials.admits(others) for others in (8, 9)] == [True, False], "in doubt, however long it takes"


def test_who_is_let_in_after_a_storm_does_not_end_it() -> None:
    """It was sent before; whether rows may be sent again is for somebody else to say."""
    denials = Denials[int](cautious=True)
    assert [denials.deny(number, 0.0) for number in range(STORM)][-1] == list(range(STORM))
    assert denials.let_in() == []
    assert not denials.admits(0)
    assert denials.deny(99, 1.0) == [99]


def test_what_each_failure_says_of_the_credentials() -> None:
    for status, said in {401: Says.REFUSED, 402: Says.REFUSED, 403: Says.REFUSED, 407: Says.REFUSED}.items():
        assert says(from_status(status, None, origin="http://h")) is said
    assert says(from_status(403, None, origin="http://h", retry_after=9.0)) is Says.NOTHING, "it says that it passes"
    for status in (429, 500, 503):
        assert says(from_status(status, None, origin="http://h")) is Says.NOTHING
    for status in (400, 404, 413, 422):
        assert says(from_status(status, None, origin="http://h")) is Says.LET_IN
    assert says(RowError("TemplateError", "no column", retryable=False, spent=False)) is Says.NOTHING
    assert says(RowError("CertificateError", "not trusted", retryable=False)) is Says.NOTHING
    for words in ("insufficient_quota", "billing_not_active"):
        told = told_apart(Fault(frozenset({words}), ""), 429)
        assert told is not None
        assert says(RowError(*told, retryable=False)) is Says.REFUSED
    for code in ("provider_quota_exceeded", "provider_not_initialize"):
        error = error_of(code, "", origin="http://h")
        assert error is not None
        assert says(error) is Says.REFUSED


class Endpoint:
    """Answers what `answer` says of a row, an error or a value, after `seconds` of simulated time."""

    active_sessions = 0

    def __init__(self, answer: Callable[[Attempt], Any], *, seconds: float = 0.1) -> None:
        self.answer = answer
        self.seconds = seconds
        self.sent: list[int] = []
        self.now = 0
        self.most = 0

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, attempt: Attempt) -> Any:
        self.sent.append(attempt.seq)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.now -= 1
        answer = self.answer(attempt)
        if isinstance(answer, RowError):
            raise answer
        return answer


def refusal(status: int = 401) -> RowError:
    return from_status(status, None, origin="http://h")


class Doubting(Bench):
    """A dispatcher on simulated time, watched, with so many rows offered."""

    def __init__(
        self, answer: Callable[[Attempt], Any], *, slots: int, rows: int, seconds: float = 0.1, part: Part | None = None
    ) -> None:
        super().__init__(slots=slots, timeout=600.0)
        self.endpoint = Endpoint(answer, seconds=seconds)
        self.dispatcher._executor = self.endpoint
        self.dispatcher._now = asyncio.get_running_loop().time
        self.dispatcher._permits = part
        self.watching = asyncio.create_task(self.dispatcher.watch())
        self.dispatcher.offer([row(seq) for seq in range(1, rows + 1)])

    def ended(self, error_class: str | None) -> list[int]:
        outcomes = [one.outcome for one in self.committed if one.outcome is not None]
        return sorted(outcome.seq for outcome in outcomes if outcome.error_class == error_class)

    def went_back(self) -> list[tuple[int, int]]:
        return sorted((one.seq, one.attempts) for one in self.put_back)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_a_storm_costs_ten_calls_and_no_row(slots: int) -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=slots, rows=100)
        await pass_time(30.0)
        assert bench.endpoint.sent == list(range(1, 11))
        assert bench.committed == []
        assert bench.went_back() == [(seq, 0) for seq in range(1, 11)], "and no attempt is spent"
        assert all(one.outcome is None and one.delay == 1.0 for one in bench.put_back)
        assert [error_class for error_class, _ in bench.storms] == ["HTTP401"]
        denied = bench.dispatcher.denied
        assert denied is not None
        assert "refused 10 calls in a row" in denied
        assert "HTTP401" in denied
        assert "answered" not in denied, "what the endpoint said may quote a row, and this is for the status"
        assert (bench.dispatcher.waiting, bench.gate.processing) == (90, 0)

        bench.endpoint.answer = lambda attempt: attempt.seq  # somebody mends the key
        bench.dispatcher.offer([row(101)])
        await pass_time(30.0)
        assert len(bench.endpoint.sent) == 10, "that is for a worker that begins anew"
        assert len(bench.storms) == 1

    simulate(main)


def test_a_key_that_is_withdrawn_fails_none_of_the_rows_under_way() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: attempt.seq, slots=64, rows=500)
        await pass_time(0.25)
        under_way = len(bench.dispatcher.running)
        bench.endpoint.answer = lambda attempt: refusal(403)
        await pass_time(30.0)
        assert under_way == 64
        assert (len(bench.ended(None)), bench.ended("HTTP403")) == (len(bench.endpoint.sent) - 64, [])
        assert bench.went_back() == [(seq, 0) for seq in sorted(bench.endpoint.sent[-64:])]
        assert len(bench.storms) == 1

    simulate(main)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_rows_that_are_forbidden_by_themselves_fail_alone(slots: int) -> None:
    """Also those at the very end, and with failures between that say nothing."""

    async def main() -> None:
        def answer(attempt: Attempt) -> Any:
            match attempt.seq % 7:
                case 0 | 3:
                    return refusal(403)
                case 1 if attempt.number == 1:
                    return from_status(503, None, origin="http://h")
                case 2:
                    return from_status(404, None, origin="http://h")
            return attempt.seq

        bench = Doubting(answer, slots=slots, rows=210)
        bench.dispatcher._rules = _with_retries(bench.dispatcher._rules)
        await pass_time(60.0)
        assert bench.ended("HTTP403") == [seq for seq in range(1, 211) if seq % 7 in (0, 3)]
        assert bench.ended("HTTP404") == [seq for seq in range(1, 211) if seq % 7 == 2]
        assert all(one.attempts == 1 for one in bench.committed)
        assert bench.went_back() == [(seq, 1) for seq in range(1, 211, 7)], "those of 503"
        assert bench.storms == []
        assert bench.dispatcher.denied is None

    simulate(main)


def _with_retries(rules: Any) -> Any:
    return type(rules)(
        rules.timeout,
        rules.acquire_timeout,
        RetryPolicy(max_attempts=3, initial=0.0, maximum=0.0),
        rules.idempotency_key,
        rules.request_id,
    )


def test_an_endpoint_that_answers_with_the_rows_own_failures_takes_the_key() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(403 if attempt.seq % 2 else 404), slots=1, rows=60)
        await pass_time(60.0)
        assert bench.ended("HTTP403") == list(range(1, 61, 2))
        assert bench.ended("HTTP404") == list(range(2, 61, 2))
        assert bench.storms == []

    simulate(main)


def test_a_job_of_three_rows_fails_three_rows() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=64, rows=3)
        await pass_time(QUIET_SECONDS - 0.5)
        assert bench.committed == [], "others may come"
        assert bench.gate.processing == 0, "meanwhile the slots are free"
        await pass_time(1.0)
        assert bench.ended("HTTP401") == [1, 2, 3]
        assert all(one.attempts == 1 for one in bench.committed)
        bench.dispatcher.offer([row(seq) for seq in range(4, 21)])
        await pass_time(60.0)
        assert len(bench.endpoint.sent) == 10, "their refusals go on counting"
        assert len(bench.storms) == 1
        assert bench.went_back() == [(seq, 0) for seq in range(4, 11)]

    simulate(main)


def test_a_drain_puts_back_what_is_in_doubt_and_what_is_refused_meanwhile() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=2, rows=3, seconds=1.0)
        await pass_time(1.5)
        assert bench.endpoint.sent == [1, 2, 3]
        await asyncio.wait_for(bench.dispatcher.drain(grace=60.0), 30.0)
        assert bench.went_back() == [(1, 0), (2, 0), (3, 0)]
        assert bench.committed == []

    simulate(main)


def test_a_worker_that_breaks_off_puts_back_what_is_in_doubt() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=2, rows=2)
        await pass_time(1.0)
        await bench.dispatcher.abandon()
        assert bench.went_back() == [(1, 0), (2, 0)]

    simulate(main)


def test_rows_in_doubt_whose_claim_is_gone_are_not_decided_on() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=2, rows=3)
        await pass_time(1.0)
        bench.locks.is_open = False  # the keeper notices, and takes back what waits
        assert [(one.seq, one.attempts, one.outcome) for one in bench.dispatcher.withdraw()] == [
            (1, 0, None),
            (2, 0, None),
            (3, 0, None),
        ]
        bench.locks.is_open = True
        await pass_time(60.0)
        assert bench.committed == []

        bench.dispatcher.offer([row(4)])
        await pass_time(1.0)
        bench.locks.number = 2  # lost and open again before anybody noticed
        bench.endpoint.answer = lambda attempt: attempt.seq
        bench.dispatcher.offer([row(5, session=2)])
        await pass_time(1.0)
        assert bench.ended(None) == [5]
        assert bench.ended("HTTP401") == []
        assert bench.went_back() == [(4, 0)]

    simulate(main)


def test_rows_that_wait_for_a_permit_are_not_sent_into_a_storm() -> None:
    async def main() -> None:
        part = Part("a permit")
        bench = Doubting(lambda attempt: attempt.seq if attempt.seq == 1 else refusal(), slots=64, rows=1, part=part)
        await pass_time(1.0)
        bench.dispatcher.offer([row(seq) for seq in range(2, 42)])
        await pass_time(0.05)
        part.seconds = 10.0  # those beyond the first forty wait for theirs
        bench.dispatcher.offer([row(seq) for seq in range(42, 102)])
        await pass_time(30.0)
        assert len(bench.storms) == 1
        assert len(bench.endpoint.sent) <= 1 + 40
        assert part.given == len(part.settled), "every pass was settled"
        assert [seq for seq, ended in part.settled if ended is None], "those that came too late are unused"
        assert len(bench.endpoint.sent) + bench.dispatcher.waiting == 101
        assert bench.gate.processing == 0

    simulate(main)


def test_an_endpoint_that_takes_long_gets_the_rest_after_two_seconds() -> None:
    async def main() -> None:
        bench = Doubting(lambda attempt: attempt.seq, slots=64, rows=64, seconds=60.0)
        await pass_time(UNPROVEN_SECONDS - 0.5)
        assert len(bench.endpoint.sent) == 10
        await pass_time(1.0)
        assert len(bench.endpoint.sent) == 64

    simulate(main)


def test_a_row_that_runs_alone_is_never_held() -> None:
    """A death of this worker would convict it, while it is not even running."""

    async def main() -> None:
        bench = Doubting(lambda attempt: refusal(), slots=2, rows=0)
        alone = row(1, deaths=2)
        bench.dispatcher.offer([alone])
        await pass_time(1.0)
        assert bench.ended("HTTP401") == [1]

    simulate(main)
