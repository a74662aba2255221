"""The writer's promises, on simulated time: how seldom, how soon, and that the last word is never lost."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.telemetry.logging import Logger
from rowmill_operator.kube.patches import merge_patch, merged, retouched, touching
from rowmill_operator.kube.writer import (
    BETWEEN_SECONDS,
    COUNTS_SECONDS,
    PATCH_TIMEOUT_SECONDS,
    RETRY_AFTER_SECONDS,
    WORDING_SECONDS,
    StatusWriter,
    Urgency,
    urgency,
)
from tests.unit.simulated_time import pass_time, simulate
from tests.unit.test_kube_status import applied

GENERATION = 2


def document(
    *, done: int = 0, phase: str = "Running", generation: int = GENERATION, message: str = "", **more: Any
) -> dict[str, Any]:
    ended = "True" if phase == "Complete" else "False"
    conditions = [{"type": "Complete", "status": ended, "reason": phase, "message": message}]
    rows = {"succeeded": done}
    return {"observedGeneration": generation, "phase": phase, "rows": rows, "conditions": conditions, **more}


class Refused(Exception):
    def __init__(self, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(f"refused with {status}")
        self.status = status
        self.headers = headers


class Lines:
    """A logger that keeps its lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bind(self, **fields: Any) -> Logger:
        return self

    def _keep(self, event: str, **fields: Any) -> None:
        self.lines.append(f"{event} {fields}")

    debug = info = warning = error = exception = _keep


class Server:
    """Holds a status. `plan` says what becomes of the next patches: None or "ok", "lost" (applied, but the reply does
    not come), "hangs", "slow" (the reply takes three seconds), or an exception that is raised instead of applying it.
    """

    def __init__(self, status: dict[str, Any] | None = None, *plan: Any) -> None:
        self.status: dict[str, Any] = dict(status or {})
        self.plan: Iterator[Any] = iter(plan)
        self.calls: list[tuple[float, dict[str, Any]]] = []

    async def patch(self, patch: dict[str, Any]) -> dict[str, Any]:
        assert patch, "an empty patch was sent"
        self.calls.append((asyncio.get_running_loop().time() - 1000.0, patch))
        fate = next(self.plan, None)
        await asyncio.sleep(0)
        if isinstance(fate, Exception):
            raise fate
        if fate != "hangs":
            self.status = applied(self.status, patch)
        if fate in ("lost", "hangs"):
            await asyncio.Event().wait()
        if fate == "slow":
            await pass_time(3.0)
        return {"status": self.status}

    @property
    def times(self) -> list[float]:
        return [round(at, 3) for at, _ in self.calls]


class Bench:
    """A writer that runs against a server."""

    def __init__(self, server: Server, *, current: Mapping[str, Any] | None = None) -> None:
        self.server = server
        self.log = Lines()
        self.ends: list[str] = []
        self.writer = StatusWriter(
            patch=server.patch,
            current=server.status if current is None else current,
            log=self.log,
            now=asyncio.get_running_loop().time,
            wrote=self.ends.append,
            jitter=lambda: 0.5,
        )
        self.task = asyncio.create_task(self.writer.run())

    async def submit(self, made: dict[str, Any], *, then: float = 0.0) -> None:
        self.writer.submit(made)
        await pass_time(then)


def bench(*plan: Any, status: dict[str, Any] | None = None) -> Bench:
    return Bench(Server(status, *plan))


def on_simulated_time(test: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        simulate(test)

    run.__name__ = test.__name__
    run.__doc__ = test.__doc__
    return run


@on_simulated_time
async def test_the_first_word_goes_out_at_once() -> None:
    made = bench()
    await made.submit(document(), then=0.001)
    assert made.server.times == [0.0]
    assert made.server.status == document()
    assert made.ends == ["ok"]


@on_simulated_time
async def test_nothing_is_written_when_nothing_changed() -> None:
    made = bench(status=document(done=5))
    for _ in range(100):
        await made.submit(document(done=5), then=2.0)
    assert made.server.calls == []
    assert await made.writer.flush(timeout=1)
    assert made.server.calls == []


@on_simulated_time
async def test_a_new_operator_writes_nothing_to_an_unchanged_job() -> None:
    """Its status was read from the server, where keys come in any order; a client may give views of it."""
    status = document(done=7)
    known = MappingProxyType({**dict(reversed(list(status.items()))), "rows": MappingProxyType(status["rows"])})
    made = Bench(Server(), current=known)
    await made.submit(document(done=7), then=600.0)
    assert made.server.calls == []
    await made.submit(document(done=7, phase="Complete"), then=600.0)
    assert [sorted(patch) for _, patch in made.server.calls] == [["conditions", "phase"]]
    known = MappingProxyType({**status, "rows": MappingProxyType({**status["rows"], "failed": 1})})
    made = Bench(Server(), current=known)
    await made.submit(document(done=8), then=1.0)
    assert [patch for _, patch in made.server.calls] == [{"rows": {"succeeded": 8, "failed": None}}]


@on_simulated_time
async def test_counts_go_out_every_few_seconds_and_the_latest_wins() -> None:
    made = bench(status=document())
    for tick in range(120):  # one minute, a count every half second
        await made.submit(document(done=tick + 1), then=0.5)
    assert len([at for at in made.server.times if at < 60]) == 60 / COUNTS_SECONDS
    gaps = [b - a for a, b in itertools.pairwise(made.server.times)]
    assert set(gaps) == {COUNTS_SECONDS}
    assert await made.writer.flush(timeout=10)
    assert made.server.status == document(done=120)


@on_simulated_time
async def test_a_patch_holds_only_what_is_new() -> None:
    made = bench(status=document(done=1))
    await made.submit(document(done=2), then=0.001)
    assert [patch for _, patch in made.server.calls] == [{"rows": {"succeeded": 2}}]


@on_simulated_time
async def test_another_phase_goes_out_at_once_after_two_quiet_seconds() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=BETWEEN_SECONDS)
    await made.submit(document(done=2, phase="Complete"), then=0.001)
    assert made.server.times == [0.0, 2.0]


@on_simulated_time
async def test_another_phase_within_two_seconds_waits_for_them() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=0.5)
    await made.submit(document(done=2, phase="Complete"), then=0.5)
    await made.submit(document(done=3, phase="Complete"), then=5.0)
    assert made.server.times == [0.0, 2.0]
    assert made.server.status == document(done=3, phase="Complete")


@on_simulated_time
async def test_a_condition_that_flips_does_not_wait_as_long_as_counts() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=0.5)
    flipped = document(done=1)
    flipped["conditions"] = [{**flipped["conditions"][0], "status": "Unknown"}]
    await made.submit(flipped, then=5.0)
    assert made.server.times == [0.0, 2.0]


@on_simulated_time
async def test_the_first_word_on_a_generation_waits_for_nothing() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=0.1)
    await made.submit(document(done=1, generation=3), then=0.1)
    await made.submit(document(done=1, generation=3, phase="Complete"), then=5.0)
    assert made.server.times == [0.0, 0.1, 2.1]


@on_simulated_time
async def test_other_words_alone_wait_for_long_and_go_along_with_anything() -> None:
    made = bench(status=document(message="refused"))
    await made.submit(document(done=1, message="refused"), then=3.0)
    for n in range(12):  # words that flap
        await made.submit(document(done=1, message=f"timeout {n}"), then=2.0)
    assert made.server.times == [0.0]
    await made.submit(document(done=2, message="reset"), then=0.001)
    assert made.server.times == [0.0, 27.0]
    assert made.server.status == document(done=2, message="reset")
    await made.submit(document(done=2, message="last"), then=60.0)
    assert made.server.times == [0.0, 27.0, 27.0 + WORDING_SECONDS]


@on_simulated_time
async def test_what_went_back_before_it_was_sent_is_not_sent() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=0.5)
    await made.submit(document(done=1, phase="Complete"), then=0.5)
    await made.submit(document(done=1), then=60.0)
    assert made.server.times == [0.0]
    assert await made.writer.flush(timeout=1)


@on_simulated_time
async def test_a_field_that_vanished_is_taken_away() -> None:
    made = bench(status=document(estimatedCompletionTime="2026-01-01T10:00:00Z"))
    await made.submit(document(), then=0.001)
    assert [patch for _, patch in made.server.calls] == [{"estimatedCompletionTime": None}]
    assert made.server.status == document()


@pytest.mark.parametrize(
    "error", [Refused(409), Refused(429), Refused(500), Refused(403), OSError("reset"), Refused(422)]
)
def test_a_failed_write_is_made_again_with_the_latest(error: Exception) -> None:
    async def main() -> None:
        made = bench(error, error, error, status=document())
        for done in range(1, 40):
            await made.submit(document(done=done), then=0.5)
        assert made.server.times[:4] == [0.0, 2.0, 4.0, 8.0]  # never within two seconds, then 1, 2, 4 … backing off
        assert made.ends[:4] == ["failed", "failed", "failed", "ok"]
        assert await made.writer.flush(timeout=10)
        assert made.server.status == document(done=39)
        assert len(made.log.lines) == 1

    simulate(main)


@on_simulated_time
async def test_retry_after_is_honoured_and_bounded() -> None:
    made = bench(Refused(429, {"Retry-After": "20"}), Refused(429, {"Retry-After": "86400"}), status=document())
    await made.submit(document(done=1), then=19.9)
    assert made.server.times == [0.0]
    await pass_time(100)
    assert made.server.times == [0.0, 20.0, 20.0 + RETRY_AFTER_SECONDS]


@pytest.mark.parametrize("headers", [{"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, {"Retry-After": "-5"}, None, 7])
def test_a_strange_retry_after_is_passed_over(headers: Any) -> None:
    async def main() -> None:
        made = bench(Refused(429, headers), status=document())
        await made.submit(document(done=1), then=3.0)
        assert made.server.times == [0.0, 2.0]

    simulate(main)


@on_simulated_time
async def test_a_new_generation_waits_for_a_server_that_asked_for_time() -> None:
    made = bench(Refused(429, {"Retry-After": "20"}), status=document())
    await made.submit(document(done=1), then=1.0)
    await made.submit(document(done=1, generation=3), then=18.9)
    assert made.server.times == [0.0]
    await pass_time(1)
    assert made.server.times == [0.0, 20.0]


@on_simulated_time
async def test_a_server_that_is_away_for_an_hour_costs_little_and_loses_nothing() -> None:
    made = bench(*[OSError("refused")] * 1000, status=document())
    for done in range(720):
        await made.submit(document(done=done), then=5.0)
    assert 100 <= len(made.server.calls) <= 130
    assert len(made.log.lines) <= 4
    made.server.plan = iter(())
    assert await made.writer.flush(timeout=60)
    assert made.server.status == document(done=719)


@on_simulated_time
async def test_a_reply_that_does_not_come_is_not_waited_for_long() -> None:
    made = bench("hangs", status=document())
    await made.submit(document(done=1), then=PATCH_TIMEOUT_SECONDS + 2)
    assert made.server.times == [0.0, PATCH_TIMEOUT_SECONDS + 1]
    assert made.server.status == document(done=1)


@on_simulated_time
async def test_what_is_submitted_while_a_patch_is_on_its_way_is_not_lost() -> None:
    made = bench("slow", status=document())
    await made.submit(document(done=1), then=1.0)
    made.writer.submit(document(done=2, phase="Complete"))
    assert await made.writer.flush(timeout=10)
    assert made.server.status == document(done=2, phase="Complete")
    assert made.server.times == [0.0, 3.0]


@on_simulated_time
async def test_a_generation_whose_first_word_failed_has_no_second_first_word() -> None:
    made = bench(OSError("reset"), status=document())
    await made.submit(document(generation=3), then=10.0)
    assert made.server.times == [0.0, BETWEEN_SECONDS]


@on_simulated_time
async def test_what_a_lost_reply_may_have_written_is_said_again() -> None:
    """The first patch was applied, nobody knows it, and then the job went back to what it was."""
    made = bench("lost", status=document())
    await made.submit(document(phase="Complete", extra={"a": 1}), then=0.5)
    await made.submit(document(), then=60.0)
    assert made.server.status == document()
    assert len(made.server.calls) == 2
    assert made.server.calls[1][1]["extra"] is None


@on_simulated_time
async def test_a_writer_that_was_cut_off_within_a_patch_says_it_again() -> None:
    made = bench("lost", status=document())
    await made.submit(document(phase="Complete"), then=0.5)
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    made.task = asyncio.create_task(made.writer.run())
    await made.submit(document(), then=5.0)
    assert made.server.status == document()


@on_simulated_time
async def test_a_resource_that_is_gone_ends_the_writer() -> None:
    made = bench(Refused(404), status=document())
    await made.submit(document(done=1), then=0.5)
    assert made.writer.gone
    assert made.task.done()
    await made.submit(document(done=2), then=60.0)
    assert made.server.times == [0.0]
    assert made.ends == ["gone"]
    assert await made.writer.flush(timeout=1)


@on_simulated_time
async def test_flush_does_not_wait_as_long_as_counts_may() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=0.1)
    made.writer.submit(document(done=2))
    assert await made.writer.flush(timeout=10)
    assert made.server.times == [0.0, BETWEEN_SECONDS]


@on_simulated_time
async def test_flush_ends_when_its_time_is_up() -> None:
    made = bench(*[OSError("refused")] * 50, status=document())
    made.writer.submit(document(done=1))
    assert not await made.writer.flush(timeout=7)
    assert made.server.times[-1] <= 7.0


@on_simulated_time
async def test_flush_of_a_writer_that_does_not_run_says_so() -> None:
    made = bench(status=document())
    made.task.cancel()
    await asyncio.gather(made.task, return_exceptions=True)
    made.writer.submit(document(done=1))
    assert not await made.writer.flush(timeout=3)


@on_simulated_time
async def test_an_idle_writer_wakes_up_for_nothing() -> None:
    made = bench(status=document())
    await made.submit(document(done=1), then=10.0)
    wakes = 0
    plan = made.writer._plan

    def counted() -> None:
        nonlocal wakes
        wakes += 1
        plan()

    made.writer._plan = counted  # type: ignore[method-assign]
    await pass_time(3600.0)
    assert wakes == 0


def test_how_urgent_changes_are() -> None:
    known = document(done=1, message="a")
    assert urgency(known, document(done=1, message="a")) is Urgency.NONE
    assert urgency(known, document(done=1, message="b")) is Urgency.WORDING
    assert urgency(known, document(done=2, message="b")) is Urgency.COUNTS
    assert urgency(known, document(done=2, phase="Complete")) is Urgency.FLIP
    assert urgency(known, document(done=1, generation=3)) is Urgency.GENERATION
    assert urgency({}, known) is Urgency.GENERATION
    reason = {**known, "conditions": [{**known["conditions"][0], "reason": "Other"}]}
    assert urgency(known, reason) is Urgency.COUNTS


def test_patches_are_said_again_as_things_are_now() -> None:
    touched = {"a": {"x": 1, "y": 2}, "b": None, "c": 3, "d": {"z": 1}}
    assert retouched(touched, {"a": {"x": 9}, "b": 5, "e": 1}) == {
        "a": {"x": 9, "y": None},
        "b": 5,
        "c": None,
        "d": None,
    }
    assert merged({"a": {"x": 1}, "b": 1}, {"a": {"y": None}, "b": {"z": 2}}) == {
        "a": {"x": 1, "y": None},
        "b": {"z": 2},
    }


def test_what_was_taken_away_stays_spoken_of_until_it_is_sure() -> None:
    """Two fields written, the reply lost; the object taken away, unheard; one field again: the other must go."""
    touched = touching({"more": {"p": 0, "q": 0}}, {"more": None})
    assert retouched(touched, {"more": {"p": 0}}) == {"more": {"p": 0, "q": None}}
    assert retouched(touched, {}) == {"more": None}
    assert retouched(touching(touched, {"more": [1], "other": {"z": 1}}), {"more": [1]}) == {"more": [1], "other": None}
    assert retouched(touching({"more": None}, {"more": {"p": 1}}), {"more": {"q": 1}}) == {"more": {"p": None}}


fates = st.sampled_from([None, None, "slow", "lost", "hangs", Refused(409), Refused(500), OSError("away")])
steps = st.tuples(
    st.floats(0, 12),
    st.integers(0, 4),
    st.sampled_from(["Running", "Complete"]),
    st.integers(1, 3),
    st.dictionaries(st.sampled_from("pq"), st.integers(0, 2), max_size=2),
)


@settings(max_examples=80, deadline=None)
@given(story=st.lists(steps, min_size=1, max_size=25), plan=st.lists(fates, max_size=15))
def test_whatever_happens_the_last_word_arrives_and_never_too_often(
    story: list[tuple[float, int, str, int, dict[str, int]]], plan: list[Any]
) -> None:
    async def main() -> None:
        made = bench(*plan, status=document())
        newest, generations = document(), 0
        seen = GENERATION
        for pause, done, phase, generation, more in story:
            newest = document(done=done, phase=phase, generation=generation, more=more or None)
            generations += generation != seen
            seen = generation
            await made.submit(newest, then=pause)
        assert await made.writer.flush(timeout=600)
        assert merge_patch(made.server.status, newest) is None
        gaps = [b - a for a, b in itertools.pairwise(made.server.times)]
        assert sum(gap < BETWEEN_SECONDS - 0.01 for gap in gaps) <= generations
        quiet = len(made.server.calls)
        await made.submit(newest, then=3600.0)
        assert len(made.server.calls) == quiet

    simulate(main)
