"""Runs a user's function, a row or a batch of rows at a time, in processes of its own.

Rendering fails without a call. What the function raises is its row's failure. A process that dies takes nothing with it
but the attempt of the row that ran in it: a batch is parted until the row at fault is alone, and of rows that ran side
by side none is charged, but each runs alone the next time, so that the one at fault is found.

A call that runs out of time is cancelled where the function is async, and its process ended where that does not help or
the function is not async; rows that ran beside it are handed back with no attempt spent.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Final

import msgspec

from rowmill.errors import InvalidInput
from rowmill.spec.executors import PythonExecutor as PythonSpec
from rowmill.telemetry.batches import BatchMetrics
from rowmill.telemetry.logging import Logger, null_logger
from rowmill.templating import Template, TemplateError, compile_value
from rowmill_worker.batcher import MAX_SUSPECTS, Batcher
from rowmill_worker.children.child import (
    Answer,
    CallFailed,
    CallLate,
    Child,
    ChildDied,
    ChildFailed,
    ChildUnusable,
    start_child,
)
from rowmill_worker.children.messages import Failure
from rowmill_worker.children.pool import Pool
from rowmill_worker.executors.process_errors import crashed, row_error, unavailable
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.microbatch import BatchRules

PATH: Final = "spec.executor.python"
SERVER: Final = "rowmill_worker.children.functions:serve_function"


class ArgumentsTemplate:
    """`spec.executor.python.arguments` compiled. Raises InvalidInput."""

    def __init__(self, *, spec: PythonSpec, job: Mapping[str, Any], where: str = "") -> None:
        self._job = job
        try:
            self._arguments: Template = compile_value(spec.arguments, path=f"{PATH}.arguments")
        except TemplateError as exc:
            raise InvalidInput.one(where, exc.path, exc.message) from None

    def render(self, attempt: Attempt) -> dict[str, Any]:
        """The keyword arguments of this attempt. Raises RowError, unspent, where the row does not fit."""
        context = {"row": attempt.row, "key": attempt.key, "seq": attempt.seq, "job": self._job}
        try:
            arguments: dict[str, Any] = self._arguments.render(context)
        except TemplateError as exc:
            raise RowError("TemplateError", f"{exc.path}: {exc.message}", retryable=False, spent=False) from None
        return arguments


class PythonExecutor:
    """`spec.executor.python`. See `rowmill_worker.executors.protocol.Executor`.

    `job` is what templates and the function's context find of the job, `where` names the manifest in messages, `slots`
    is how many rows run at once, `environ` what the processes are given. `open` raises InvalidInput where the function
    cannot be imported or does not go with the manifest.
    """

    def __init__(
        self,
        *,
        spec: PythonSpec,
        job: Mapping[str, Any],
        slots: int,
        environ: Mapping[str, str],
        where: str = "",
        log: Logger | None = None,
        metrics: BatchMetrics | None = None,
    ) -> None:
        self._spec, self._job, self._slots, self._environ, self._where = spec, job, slots, environ, where
        self._log = log or null_logger()
        self._template: ArgumentsTemplate | None = None
        self._wants: Mapping[str, Any] = {}
        self._suspects: OrderedDict[int, None] = OrderedDict()
        self._pool = Pool(start=self._start, size=1, log=self._log)
        self._batcher: Batcher[Any, Any] | None = None
        if spec.batching is not None:
            self._batcher = Batcher(
                rules=BatchRules.of(spec.batching),
                process=self._run_batch,
                parallel=spec.processes or 1,
                metrics=metrics,
            )

    @property
    def active_sessions(self) -> int:
        """Calls that run right now."""
        return self._pool.busy

    async def open(self) -> None:
        """Compile the templates and import the function. Raises InvalidInput."""
        self._template = ArgumentsTemplate(spec=self._spec, job=self._job, where=self._where)
        try:
            child = await self._pool.open()
        except ChildUnusable as error:
            raise InvalidInput.one(self._where, f"{PATH}.{error.field}", error.message) from None
        except ChildFailed as error:
            raise InvalidInput.one(
                self._where,
                f"{PATH}.function",
                f"the process that imports {self._spec.function} did not get ready: {error}; its output is in the "
                "worker's log",
            ) from None
        self._wants = child.details
        one_each = not child.concurrent and self._batcher is None
        self._pool.resize(self._spec.processes or (self._slots if one_each else 1))
        self._log.info("function imported", function=self._spec.function, processes=self._pool.size)

    async def close(self) -> None:
        """Hand back what waits, end the processes; waits at most ten seconds."""
        if self._batcher is not None:
            await self._batcher.stop()
        await self._pool.close()

    async def execute(self, attempt: Attempt) -> Any:
        """Call the function for one row, in a batch where the manifest says so. Raises RowError."""
        if self._template is None:
            raise RuntimeError("execute is called between open and close")
        item = self._item(attempt, self._template.render(attempt))
        if self._batcher is not None:
            return await self._batcher.submit(item, key=attempt.seq, timeout=attempt.timeout)
        return await self._run_row(item, attempt)

    def _item(self, attempt: Attempt, arguments: dict[str, Any]) -> dict[str, Any]:
        item: dict[str, Any] = {"arguments": arguments}
        if self._wants.get("row"):
            item["row"] = attempt.row
        if self._wants.get("context"):
            item["context"] = {
                "namespace": self._job.get("namespace", ""),
                "job": self._job.get("name", ""),
                "run_id": self._job.get("runId", ""),
                "seq": attempt.seq,
                "key": attempt.key,
                "attempt": attempt.number,
                "idempotency_key": attempt.idempotency_key,
                "request_id": attempt.request_id,
            }
        return item

    async def _start(self) -> Child:
        settings = {
            "function": self._spec.function,
            "arguments": list(self._spec.arguments),
            "batch": self._batcher is not None,
        }
        return await start_child(
            server=SERVER,
            settings=settings,
            environ=self._environ,
            within=self._spec.start_timeout_seconds,
            log=self._log,
        )

    async def _run_row(self, item: Any, attempt: Attempt) -> Any:
        seq = attempt.seq
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(attempt.timeout) as limit:
                    child = await stack.enter_async_context(self._pool.seat(alone=seq in self._suspects))
                left = (limit.when() or 0.0) - asyncio.get_running_loop().time()
                (answer,) = await child.call([item], within=max(left, 0.001))
        except TimeoutError:
            raise _late("no process was free", attempt, spent=False) from None
        except CallLate as late:
            if late.unclear:
                self._suspect(seq)
                told = "no result, and none of the rows beside it either, so the row runs again alone"
                raise _late(told, attempt, spent=False) from None
            self._suspects.pop(seq, None)
            raise _late("no result", attempt, spent=True) from None
        except (ChildUnusable, ChildFailed) as error:
            raise unavailable(error) from None
        except CallFailed as error:
            raise row_error(error.failure) from None
        except ChildDied as died:
            if died.beside or died.ended:
                self._suspect(seq)
            else:
                self._suspects.pop(seq, None)
            raise crashed(died) from None
        self._suspects.pop(seq, None)
        return value_of(answer)

    def _suspect(self, seq: int) -> None:
        self._suspects[seq] = None
        if len(self._suspects) > MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    async def _run_batch(self, items: list[Any]) -> list[Any]:
        try:
            async with self._pool.seat() as child:
                answers = await child.call(items)
        except (ChildUnusable, ChildFailed) as error:
            raise unavailable(error) from None
        except CallFailed as error:
            raise row_error(error.failure) from None
        except ChildDied as died:
            raise crashed(died) from None
        return [row_error(answer) if isinstance(answer, Failure) else value(answer) for answer in answers]


def _late(what: str, attempt: Attempt, *, spent: bool) -> RowError:
    told = f"{what} within {attempt.timeout:g} s; raise spec.timeoutSeconds or {PATH}.processes"
    return RowError("Timeout", told, retryable=True, spent=spent)


def value_of(answer: Answer) -> Any:
    """A row's result. Raises RowError."""
    if isinstance(answer, Failure):
        raise row_error(answer)
    result = value(answer)
    if isinstance(result, RowError):
        raise result
    return result


def value(answer: bytes) -> Any:
    """A result's JSON text as a value, or the failure that it is where it is none."""
    try:
        return msgspec.json.decode(answer)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return RowError("InvalidResult", "the function's process answered what is no JSON", retryable=False)
