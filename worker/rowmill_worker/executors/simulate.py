"""`mode: Simulate`: everything but the call.

Wraps the rendering of any kind of executor: each attempt is rendered exactly as a real one would be, so that a template
that does not fit a row fails here too; then, in place of the call, it waits and ends as `spec.simulate` says. What an
attempt meets is drawn from seed, run, row and attempt alone: whichever worker runs it, in whatever order, after
whatever restart, the row ends alike. No secret is read, and none needs to be there.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from rowmill.errors import InvalidInput
from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill.spec.job import Simulate
from rowmill.templating import TemplateError, compile_query
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.request import RequestTemplate

MAX_BODY_CHARS: Final = 16_384
"""Characters of a rendered body that a simulated result shows; of a longer one its size is told."""


class Preview(Protocol):
    """Renders a kind of executor's attempts without sending."""

    def open(self) -> None:
        """Compile. Raises InvalidInput."""
        ...

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        """The request as a person may see it, a JSON object without secrets. Raises RowError, unspent."""
        ...


class HttpPreview:
    """How an HTTP row would be sent."""

    def __init__(self, *, spec: HttpSpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._template: RequestTemplate | None = None

    def open(self) -> None:
        self._template = RequestTemplate(spec=self._spec, job=self._job, secrets=None, where=self._where)
        if self._spec.result is not None:
            try:
                compile_query(self._spec.result, path="spec.executor.http.result")
            except TemplateError as exc:
                raise InvalidInput.one(self._where, exc.path, exc.message) from None

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._template is not None, "opened"
        request = self._template.render(attempt)
        shown = request.describe()
        if request.body is not None and len(request.body) > MAX_BODY_CHARS:
            shown["body"] = f"[{len(request.body):,} bytes]"
        return shown


class Fate(NamedTuple):
    """What an attempt meets: seconds of latency, and the index of its error in `spec.simulate.errors`, or None."""

    latency: float
    error: int | None


def fate_of(simulate: Simulate, *, run: str, seq: int, attempt: int) -> Fate:
    """Drawn from these alone; evenly between the latency's bounds, and by the errors' shares."""
    draw = hashlib.blake2b(f"{simulate.seed}\0{run}\0{seq}\0{attempt}".encode(), digest_size=16).digest()
    low, high = simulate.latency_milliseconds.min, simulate.latency_milliseconds.max
    latency = (low + (high - low) * int.from_bytes(draw[:8]) / 2**64) / 1000
    share = int.from_bytes(draw[8:]) * 100 / 2**64
    for index, error in enumerate(simulate.errors):
        share -= error.percent
        if share < 0:
            return Fate(latency, index)
    return Fate(latency, None)


class SimulateExecutor:
    """See `rowmill_worker.executors.protocol.Executor`. `run` names the run; `sleep` waits for so many seconds.

    A row's result is `{"simulated": true, "request": …}` with what would have been sent. A latency past the row's
    timeout is a Timeout, as it would be.
    """

    def __init__(
        self,
        *,
        simulate: Simulate,
        run: str,
        preview: Preview,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._simulate, self._run, self._preview, self._sleep = simulate, run, preview, sleep
        self._active = 0

    @property
    def active_sessions(self) -> int:
        """Simulated calls in flight."""
        return self._active

    async def open(self) -> None:
        self._preview.open()

    async def close(self) -> None:
        return None

    async def execute(self, attempt: Attempt) -> Any:
        request = self._preview.render(attempt)
        fate = fate_of(self._simulate, run=self._run, seq=attempt.seq, attempt=attempt.number)
        self._active += 1
        try:
            if fate.latency:
                await self._sleep(min(fate.latency, attempt.timeout))
        finally:
            self._active -= 1
        if fate.latency > attempt.timeout:
            raise RowError(
                "Timeout",
                f"simulated: no complete answer within {attempt.timeout:g} s; raise spec.timeoutSeconds or lower "
                "spec.simulate.latencyMilliseconds",
                retryable=True,
            )
        if fate.error is not None:
            error = self._simulate.errors[fate.error]
            raise RowError(error.error_class, "simulated, as spec.simulate.errors asks for", retryable=error.retryable)
        return {"simulated": True, "request": request}
