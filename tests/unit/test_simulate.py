"""A simulated run renders everything, sends nothing, and ends each row alike however often it runs."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.spec.job import Simulate, Spec
from rowmill_worker.executors import build
from rowmill_worker.executors.build import build_executor
from rowmill_worker.executors.http import HttpExecutor
from rowmill_worker.executors.protocol import Executor, RowError
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.executors.simulate import HttpPreview, SimulateExecutor, fate_of
from tests.support.http_rows import JOB, Mirror, attempt, http_executor, http_spec


def simulate(**fields: Any) -> Simulate:
    return Simulate.model_validate(fields)


ERRORS = [{"class": "HTTP503", "percent": 20}, {"class": "HTTP400", "percent": 5, "retryable": False}]


class Slept(list[float]):
    async def __call__(self, seconds: float) -> None:
        self.append(seconds)
        await asyncio.sleep(0)


def executor_for(fields: dict[str, Any], **http: Any) -> tuple[SimulateExecutor, Slept]:
    slept = Slept()
    spec = http_spec("http://triage.nowhere.invalid/v1/{{ row.id }}", **http)
    executor = SimulateExecutor(
        simulate=simulate(**fields), run="support/triage/1", preview=HttpPreview(spec=spec, job=JOB), sleep=slept
    )
    return executor, slept


async def ends_of(executor: Executor, rows: int, number: int = 1) -> list[str]:
    ends = []
    for seq in range(1, rows + 1):
        try:
            await executor.execute(attempt(seq, number=number))
            ends.append("Success")
        except RowError as error:
            ends.append(f"{error.error_class}/{error.retryable}")
    return ends


async def test_the_result_tells_what_would_have_been_sent_but_no_secret() -> None:
    headers = [
        {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "token"}}},
        {"name": "X-Job", "value": "{{ job.name }}"},
    ]
    executor, slept = executor_for({}, headers=headers, body={"text": "{{ row.a }}", "n": "{{ row.id }}"})
    await executor.open()
    result = await executor.execute(attempt(7, a="x"))
    await executor.close()
    request = result["request"]
    assert result["simulated"] is True
    assert (request["method"], request["url"]) == ("POST", "http://triage.nowhere.invalid/v1/7")
    assert request["body"] == {"text": "x", "n": 7}
    assert request["headers"]["Authorization"] == "[secret]"
    assert request["headers"]["X-Job"] == "triage"
    assert request["headers"]["Idempotency-Key"] == "support/triage/1/7"
    assert slept == []


async def test_it_shows_exactly_what_a_real_run_sends() -> None:
    fields: dict[str, Any] = {
        "headers": [{"name": "X-Seq", "value": "{{ seq }}"}],
        "query": {"a": "{{ row.a }}"},
        "body": {"text": "{{ row.a }}!"},
    }
    mirror = Mirror()
    async with mirror as url:
        async with http_executor(url + "/{{ row.id }}", **fields) as real:
            await real.execute(attempt(3, a="ü"))
        preview = HttpPreview(spec=http_spec(url + "/{{ row.id }}", **fields), job=JOB)
        executor = SimulateExecutor(simulate=simulate(), run="r", preview=preview)
        await executor.open()
        request = (await executor.execute(attempt(3, a="ü")))["request"]
    (sent,) = mirror.seen
    assert request["method"] == sent["method"]
    assert request["url"] == url + sent["path"]
    assert request["body"] == {"text": "ü!"}
    assert sent["body"] == '{"text":"ü!"}'
    for name, value in request["headers"].items():
        assert sent["headers"][name.lower()] == value


async def test_a_row_that_does_not_fit_fails_here_too() -> None:
    executor, _ = executor_for({}, body={"t": "{{ row.missing }}"})
    await executor.open()
    with pytest.raises(RowError, match='no column "missing"') as caught:
        await executor.execute(attempt())
    assert (caught.value.error_class, caught.value.spent) == ("TemplateError", False)


@pytest.mark.parametrize("fields", [{"body": {"t": "{{ row. }}"}}, {"result": "a["}])
async def test_a_manifest_that_does_not_compile_is_refused_here_too(fields: dict[str, Any]) -> None:
    executor, _ = executor_for({}, **fields)
    with pytest.raises(InvalidInput, match=r"spec\.executor\.http"):
        await executor.open()


async def test_every_run_and_restart_ends_each_row_alike() -> None:
    first, slept_first = executor_for({"seed": 5, "errors": ERRORS, "latencyMilliseconds": {"min": 1, "max": 500}})
    again, slept_again = executor_for({"seed": 5, "errors": ERRORS, "latencyMilliseconds": {"min": 1, "max": 500}})
    other, _ = executor_for({"seed": 6, "errors": ERRORS})
    for executor in (first, again, other):
        await executor.open()
    ends = await ends_of(first, 400)
    assert ends == await ends_of(again, 400)
    assert slept_first == slept_again
    assert len(set(slept_first)) > 300
    assert all(0.001 <= seconds <= 0.5 for seconds in slept_first)
    assert ends != await ends_of(other, 400)
    assert ends != await ends_of(first, 400, number=2)
    counts = Counter(ends)
    assert 50 <= counts["HTTP503/True"] <= 110
    assert 5 <= counts["HTTP400/False"] <= 40
    assert set(counts) == {"Success", "HTTP503/True", "HTTP400/False"}


@given(seed=st.integers(0, 2**63 - 1), run=st.text(), seq=st.integers(1, 2**31 - 1), number=st.integers(1, 100))
def test_a_fate_stays_within_what_was_asked_for(seed: int, run: str, seq: int, number: int) -> None:
    every = simulate(seed=seed, latencyMilliseconds={"min": 10, "max": 20}, errors=[{"class": "X", "percent": 100}])
    fate = fate_of(every, run=run, seq=seq, attempt=number)
    assert 0.010 <= fate.latency <= 0.020
    assert fate.error == 0
    assert fate_of(every, run=run, seq=seq, attempt=number) == fate
    assert fate_of(simulate(seed=seed), run=run, seq=seq, attempt=number) == (0, None)


async def test_a_latency_past_the_timeout_is_a_timeout() -> None:
    executor, slept = executor_for({"latencyMilliseconds": {"min": 3000, "max": 3000}})
    await executor.open()
    with pytest.raises(RowError, match="Timeout: simulated") as caught:
        await executor.execute(attempt(timeout=2))
    assert (caught.value.retryable, slept) == (True, [2])


async def test_simulated_calls_in_flight_are_counted() -> None:
    executor, _ = executor_for({"latencyMilliseconds": {"min": 5, "max": 5}})
    await executor.open()
    tasks = [asyncio.create_task(executor.execute(attempt(n))) for n in range(3)]
    await asyncio.sleep(0)
    assert executor.active_sessions == 3
    await asyncio.gather(*tasks)
    assert executor.active_sessions == 0


async def test_a_large_body_is_told_by_its_size() -> None:
    executor, _ = executor_for({}, body={"t": "{{ row.t }}"})
    await executor.open()
    result = await executor.execute(attempt(t="x" * 50_000))
    assert result["request"]["body"] == "[50,008 bytes]"


def spec_of(**fields: Any) -> Spec:
    executor = {"http": {"url": "http://triage/v1", "headers": [{"name": "X", "valueFrom": {"env": "UNSET"}}]}}
    return Spec.model_validate({"source": {"rows": [{"id": 1}]}, "executor": executor, **fields})


async def test_the_mode_decides_what_is_built() -> None:
    run = build_executor(spec_of(), job=JOB, run="r", secrets=SecretReader(environ={}), where="job.yaml")
    assert isinstance(run, HttpExecutor)
    with pytest.raises(InvalidInput, match="UNSET is not set"):
        await run.open()
    dry = build_executor(spec_of(mode="Simulate"), job=JOB, run="r", secrets=SecretReader(environ={}), where="job.yaml")
    assert isinstance(dry, SimulateExecutor)
    await dry.open()  # no secret is needed where nothing is sent


def test_what_this_build_lacks_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "KINDS", {"http": build.KINDS["http"]})
    spec = spec_of(executor={"python": {"function": "a.b:c"}})
    with pytest.raises(InvalidInput) as caught:
        build_executor(spec, job=JOB, run="r", secrets=SecretReader(environ={}), where="job.yaml")
    assert caught.value.lines() == [
        "job.yaml: spec.executor.python: executor python is not available in this build; take http"
    ]
