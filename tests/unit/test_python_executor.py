"""A user's function in processes of its own: what it is given, what comes of it, and how little its faults cost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rowmill.errors import InvalidInput
from rowmill.functions import PermanentError, RetryError, batch_function, row_function
from rowmill.spec.executors import PythonExecutor as Spec
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.python import PythonExecutor

ROOT = Path(__file__).parents[2]
MODULE = "tests.support.user_functions"
JOB = {"name": "job", "namespace": "space", "runId": "7"}
LONG = 90.0
BATCHING = {"maxSize": 64, "maxWaitMilliseconds": 20}


class Lines:
    """A log that is kept."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def bind(self, **fields: Any) -> Lines:
        return self

    def info(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})

    debug = warning = error = exception = info

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.lines if line["event"] == event]


def executor_of(
    function: str, *, slots: int = 4, log: Lines | None = None, environ: dict[str, str] | None = None, **fields: Any
) -> PythonExecutor:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return PythonExecutor(
        spec=Spec.model_validate({"function": function, "arguments": {"text": "{{ row.text }}"}, **fields}),
        job=JOB,
        slots=slots,
        environ={**os.environ, "PYTHONPATH": path, **(environ or {})},
        where="job.yaml",
        log=log,
    )


@asynccontextmanager
async def opened(function: str, **fields: Any) -> AsyncIterator[PythonExecutor]:
    executor = executor_of(f"{MODULE}:{function}", **fields)
    await executor.open()
    try:
        yield executor
    finally:
        await executor.close()


def attempt(text: str, *, seq: int = 1, number: int = 1, timeout: float = LONG, **more: Any) -> Attempt:
    return Attempt(seq, {"text": text, **more}, ["k", seq], number, f"once-{seq}", f"req-{seq}.{number}", timeout)


async def run(executor: PythonExecutor, *texts: str, timeout: float = LONG) -> list[Any]:
    """What comes of rows that run at once."""
    calls = (executor.execute(attempt(text, seq=n, timeout=timeout)) for n, text in enumerate(texts))
    return await asyncio.gather(*calls, return_exceptions=True)


async def failure(executor: PythonExecutor, text: str, *, timeout: float = LONG) -> RowError:
    with pytest.raises(RowError) as caught:
        await executor.execute(attempt(text, timeout=timeout))
    return caught.value


async def test_the_function_is_given_arguments_row_and_context_and_no_stores() -> None:
    stores = {"ROWMILL_POSTGRES_DSN": "postgresql://secret", "ROWMILL_REDIS_URL": "redis://secret"}
    arguments = {"text": "{{ row.text | upper }}", "mark": "{{ row.n }}"}
    async with opened("everything", arguments=arguments, environ=stores) as executor:
        result = await executor.execute(attempt("größe", seq=5, number=2, n=2))
        assert executor.active_sessions == 0
    assert result == {
        "text": "GRÖSSE",
        "row": {"text": "größe", "n": 2},
        "key": ["k", 5],
        "who": "space/job/7#5.2",
        "ids": ["once-5", "req-5.2"],
        "stores": [],
        "mark": 2,
    }


async def test_what_a_function_raises_or_returns_is_its_rows_own() -> None:
    async with opened("measure", processes=1) as executor:
        assert await run(executor, "four", "dataclass") == [
            4,
            {"text": "dataclass", "at": "2026-01-02", "price": "1.50"},
        ]
        raised = await failure(executor, "raise")
        assert (raised.error_class, raised.retryable, raised.spent) == ("FunctionError", True, True)
        assert raised.message.startswith("ValueError: cannot read 'raise' (support/user_functions.py, line ")
        assert raised.message.endswith(", in act)")
        wrong = await failure(executor, "permanent")
        assert (wrong.error_class, wrong.retryable) == ("NoSuchThing", False)
        assert wrong.message.startswith("no such thing (")
        later = await failure(executor, "retry")
        assert (later.error_class, later.retryable, later.retry_after) == ("RetryError", True, 7.5)
        expected = {
            "sys.exit": ("FunctionError", True, "SystemExit: enough"),
            "object": ("InvalidResult", False, "object is not JSON"),
            "nan": ("InvalidResult", False, "Out of range float values"),
            "surrogate": ("InvalidText", False, "lone surrogate"),
            "large": ("ResultTooLarge", False, "1,048,579 bytes"),
        }
        for text, (error_class, retryable, words) in expected.items():
            error = await failure(executor, text)
            assert (error.error_class, error.retryable) == (error_class, retryable), error
            assert words in error.message
        with pytest.raises(RowError, match=r"TemplateError: .*arguments.text: the row has no column") as unfit:
            await executor.execute(Attempt(1, {}, None, 1, "k", "r", LONG))
        assert not unfit.value.spent
        for wide, error_class in ((10**30, "InvalidArguments"), ("\udc80", "InvalidText")):
            with pytest.raises(RowError, match=error_class):
                await executor.execute(Attempt(1, {"text": wide}, None, 1, "k", "r", LONG))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit", "exited with code 3"),
        ("segfault", "SIGSEGV, a crash in a native"),
        ("memory", "SIGKILL; out of memory"),
    ],
)
async def test_a_crash_costs_its_row_an_attempt_and_nobody_else(text: str, words: str) -> None:
    log = Lines()
    async with opened("measure", processes=2, log=log) as executor:
        crashed, *others = await run(executor, text, "a", "bb", "ccc")
        assert (crashed.error_class, crashed.retryable, crashed.spent) == ("ProcessCrashed", True, True)
        assert words in crashed.message
        assert others == [1, 2, 3]
        assert await run(executor, "dddd", "eeeee") == [4, 5]
    assert any(words in line["how"] for line in log.of("a process ended"))


async def test_a_hang_costs_its_row_an_attempt_and_its_process() -> None:
    async with opened("measure", processes=1) as executor:
        assert await run(executor, "a") == [1]
        late = await failure(executor, "hang", timeout=0.3)
        assert (late.error_class, late.retryable, late.spent) == ("Timeout", True, True)
        assert await run(executor, "thread", "bb") == [6, 2]
        hanging = asyncio.create_task(executor.execute(attempt("hang")))
        while executor.active_sessions == 0:
            await asyncio.sleep(0.005)
        waited = await failure(executor, "a", timeout=0.1)
        assert (waited.error_class, waited.spent) == ("Timeout", False)
        assert "no process was free" in waited.message
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        assert await run(executor, "ccc") == [3]


async def test_async_rows_run_side_by_side_and_a_late_one_is_cancelled_alone() -> None:
    async with opened("measure_async", slots=64) as executor:
        late = asyncio.create_task(failure(executor, "hang", timeout=0.5))
        assert await run(executor, *["meet"] * 40) == [4] * 40
        assert (await late).spent
        assert await run(executor, "a") == [1]


@pytest.mark.parametrize("bad", ["exit", "block"])
async def test_of_rows_side_by_side_the_one_at_fault_is_found(bad: str) -> None:
    """A process that dies, or stands still, with several rows in it charges none of them; each runs alone then."""
    async with opened("measure_async") as executor:
        beside = [attempt(text, seq=n, timeout=LONG) for n, text in enumerate(["hang", "hang"], start=10)]
        held = [asyncio.create_task(executor.execute(one)) for one in beside]
        while executor.active_sessions < 2:
            await asyncio.sleep(0.005)
        first = await failure(executor, bad, timeout=0.5)
        assert not first.spent
        for ended in await asyncio.gather(*held, return_exceptions=True):
            assert isinstance(ended, RowError)
            assert ended.error_class in ("ProcessCrashed", "ProcessEnded")
            assert not ended.spent
        innocent = [executor.execute(attempt("ok", seq=n)) for n in (10, 11, 12)]
        assert await asyncio.gather(*innocent) == [2, 2, 2]
        beside_it = asyncio.create_task(run(executor, "ok", "ok", "ok", "ok"))
        while not (charged := await failure(executor, bad, timeout=2)).spent:
            assert "no process was free" in charged.message, "one may start slower than that"
        assert await beside_it == [2, 2, 2, 2], "none of them ran in the process that it took along"


async def test_a_batch_function_takes_lists_and_one_bad_row_fails_alone() -> None:
    texts = [f"text {n}" for n in range(64)]
    good = [len(text) for text in texts]
    async with opened("measure_all", batching=BATCHING) as executor:
        assert await run(executor, *texts) == good
        for bad, error_class, retryable in [
            ("exit", "ProcessCrashed", True),
            ("raise", "FunctionError", True),
            ("short", "InvalidResult", False),
            ("", "PermanentError", False),
        ]:
            results = await run(executor, *texts[:40], bad, *texts[41:])
            error = results[40]
            assert (error.error_class, error.retryable, error.spent) == (error_class, retryable, True), error
            assert results[:40] + results[41:] == good[:40] + good[41:]
        later = await run(executor, *texts[:3], "retry")
        assert {(error.error_class, error.retry_after, error.spent) for error in later} == {("RetryError", 7.5, True)}
        late = await run(executor, "hang", "a", timeout=0.5)
        assert {(error.error_class, error.spent) for error in late} == {("Timeout", False)}
        assert await run(executor, "four", "a") == [4, 1]


async def test_an_async_batch_function_is_given_rows_and_contexts() -> None:
    async with opened("measure_all_async", arguments={}, batching=BATCHING) as executor:
        results = await run(executor, "a", "b")
    assert results == [{"text": "a", "seq": 0, "rows": 2}, {"text": "b", "seq": 1, "rows": 2}]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        (
            {"function": "no_such_package.rules:quote"},
            "function: there is no module no_such_package where the worker runs",
        ),
        (
            {"function": "tests.support.user_functions:nothing"},
            "function: module tests.support.user_functions has nothing",
        ),
        (
            {"function": "tests.support.user_functions:not_a_function"},
            "function: tests.support.user_functions:not_a_func",
        ),
        (
            {"arguments": {"txt": 1}},
            "arguments: do not go with tests.support.user_functions:measure: missing a required",
        ),
        ({"batching": {}}, "batching: tests.support.user_functions:measure takes one row; leave batching out"),
        (
            {"function": f"{MODULE}:measure_all"},
            "batching: is missing, and tests.support.user_functions:measure_all takes",
        ),
        ({"arguments": {"text": "{{ row. }}"}}, "arguments.text: the template does not compile"),
        ({"startTimeoutSeconds": 1, "function": "tests.support.slow_import:f"}, "function: the process that imports"),
    ],
)
async def test_what_cannot_be_run_is_told_before_the_first_row(fields: dict[str, Any], line: str) -> None:
    executor = executor_of(**{"function": f"{MODULE}:measure", **fields})
    try:
        with pytest.raises(InvalidInput) as caught:
            await executor.open()
        (told,) = caught.value.lines()
        assert told.startswith(f"job.yaml: spec.executor.python.{line}")
    finally:
        await executor.close()


async def test_a_process_that_cannot_be_started_again_hands_rows_back(tmp_path: Path) -> None:
    environ = {"COUNT_STARTS": str(tmp_path / "starts"), "FAIL_STARTS": "2"}
    async with opened("measure", processes=1, environ=environ) as executor:
        assert (await failure(executor, "exit")).error_class == "ProcessCrashed"
        away = await failure(executor, "a")
        assert (away.error_class, away.spent, away.retryable) == ("ProcessUnavailable", False, True)
        assert "RuntimeError: not this time" in away.message
        assert away.retry_after
        assert await run(executor, "a") == [1]
    assert len((tmp_path / "starts").read_text().split()) == 3


async def test_slots_have_processes_of_their_own_started_when_they_are_wanted(tmp_path: Path) -> None:
    environ = {"COUNT_STARTS": str(tmp_path / "starts")}
    async with opened("measure", slots=3, environ=environ) as executor:
        assert await run(executor, "a") == [1]
        assert len((tmp_path / "starts").read_text().split()) == 1
        held = [asyncio.create_task(executor.execute(attempt("hang", seq=n))) for n in range(3)]
        async with asyncio.timeout(LONG):
            while len((tmp_path / "starts").read_text().split()) < 3:
                await asyncio.sleep(0.02)
        pids = [int(pid) for pid in (tmp_path / "starts").read_text().split()]
        for task in held:
            task.cancel()
        await asyncio.gather(*held, return_exceptions=True)
    assert not [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: ASYNC240 - no disk is behind it


async def test_what_it_prints_is_in_the_log_and_bounded() -> None:
    log = Lines()
    async with opened("measure", processes=1, log=log) as executor:
        assert await run(executor, "loud") == [4]
    told = log.of("output")
    assert "line 0" in {line.get("text") for line in told}
    assert max(len(line.get("text", "")) for line in told) <= 2_001
    assert len(told) < 1_000
    assert sum(line.get("lines_left_out", 0) for line in told) + sum("text" in line for line in told) == 5_001


def test_the_decorators_refuse_what_could_not_be_called() -> None:
    @row_function
    def fine(*, a: int) -> int:
        return a

    assert fine(a=1) == 1
    with pytest.raises(TypeError, match="positional-only"):
        row_function(lambda a, /: a)
    with pytest.raises(TypeError, match="takes a function, not int"):
        row_function(5)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="must take a list of rows"):
        batch_function(lambda *, rows: rows)
    with pytest.raises(TypeError, match="nothing is given for parameter b"):
        batch_function(lambda rows, b: [])
    with pytest.raises(ValueError, match="CamelCase"):
        PermanentError("x", error_class="no good")
    with pytest.raises(ValueError, match="from 0 to 3600"):
        RetryError("x", after=-1)


def test_the_module_for_users_imports_nothing_else() -> None:
    import subprocess
    import sys

    script = (
        "import sys, rowmill.functions; print([m for m in sys.modules if m.split('.')[0] in ('msgspec', 'pydantic')])"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert told.stdout.strip() == "[]"
    assert msgspec.json.decode(b"1") == 1
