"""Sends rows to an OpenAI-compatible server: rendered → (gathered) → sent → answered → judged → result | failed.

Rendering fails without a call (`openai_request`). A refusal is classed by what the server says, in whichever dialect
(`openai_refusal`). An answer is judged by how it ended before its text counts as a result (`openai_answer`); what it
was charged for is noted first, so that a failure that was paid for is counted too. The call itself is
`rowmill_worker.executors.caller`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import aiohttp

from rowmill.spec.executors import OpenAIExecutor as OpenAISpec
from rowmill.telemetry.batches import BatchMetrics
from rowmill_worker.batcher import Batcher
from rowmill_worker.executors import answer as answers
from rowmill_worker.executors import openai_answer
from rowmill_worker.executors.caller import Caller, shared_connector
from rowmill_worker.executors.http import compiled_search
from rowmill_worker.executors.openai_gather import OF_ONE_ROW, gathered, parted
from rowmill_worker.executors.openai_refusal import ADVICE, Fault, fault_in, refused
from rowmill_worker.executors.openai_request import PATH, Call, call_template, most_tokens
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.executors.request import Request
from rowmill_worker.executors.secrets import Redactor, SecretReader
from rowmill_worker.executors.simulate import MAX_BODY_CHARS
from rowmill_worker.microbatch import BatchRules

_NOT_CHARGED: Final = frozenset(
    {"CertificateError", "ConnectionRefused", "HostUnreachable", "InvalidURL", "NameNotResolved", "TLSError"}
)
PARALLEL_BATCHES: Final = 4
"""Requests that a worker has in flight at once where rows are gathered; there are never more than slots fill."""

_REQUEST_ID: Final = "x-request-id"


class OpenAIExecutor:
    """`spec.executor.openai`. See `rowmill_worker.executors.protocol.Executor`.

    `job` is what templates find under that name, `where` names the manifest in messages; `wall_clock` (seconds since
    the epoch) serves Retry-After dates. `open` raises InvalidInput where a template, a query or a secret is not usable.
    """

    def __init__(
        self,
        *,
        spec: OpenAISpec,
        job: Mapping[str, Any],
        secrets: SecretReader,
        where: str = "",
        wall_clock: Callable[[], float] = time.time,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
        max_answer_bytes: int = answers.MAX_ANSWER_BYTES,
        max_result_bytes: int = answers.MAX_RESULT_BYTES,
        metrics: BatchMetrics | None = None,
    ) -> None:
        self._spec = spec
        self._job = job
        self._secrets = secrets
        self._where = where
        self._wall_clock = wall_clock
        self._connector_factory = connector_factory
        self._max_answer_bytes = max_answer_bytes
        self._max_result_bytes = max_result_bytes
        self._lines = spec.endpoint == "BatchLines"
        accept = spec.accept if spec.accept is not None or not self._lines else openai_answer.ENDINGS
        self._accept = frozenset(accept or ())
        self._render: Callable[[Attempt], Call] | None = None
        self._misfit: Callable[[Any], str | None] | None = None
        self._search: Callable[[Any], Any] | None = None
        self._redactor = Redactor(())
        self._caller: Caller | None = None
        self._batcher: Batcher[tuple[Call, Attempt], Any] | None = None
        if spec.batching is not None:
            self._batcher = Batcher(
                rules=BatchRules.of(spec.batching), process=self._together, parallel=PARALLEL_BATCHES, metrics=metrics
            )

    @property
    def active_sessions(self) -> int:
        """Sessions that are open right now: one a call in flight."""
        return 0 if self._caller is None else self._caller.active_sessions

    async def open(self) -> None:
        """Compile templates and schema, read the secrets, make the connector. Raises InvalidInput."""
        self._render = call_template(self._spec, job=self._job, secrets=self._secrets, where=self._where)
        self._redactor = self._secrets.redactor()
        self._search = compiled_search(self._spec.result, path=f"{PATH}.result", where=self._where)
        if self._spec.json_schema is not None:
            from rowmill.spec.answer_schema import compiled_schema  # a tenth of a second that most jobs do not need

            self._misfit = compiled_schema(self._spec.json_schema.schema_)
        self._caller = Caller(
            redactor=self._redactor,
            advice=ADVICE,
            refusal=self._refused,
            wall_clock=self._wall_clock,
            connector_factory=self._connector_factory,
            max_answer_bytes=self._max_answer_bytes,
        )

    async def close(self) -> None:
        """Hand back what waits for a batch, and close the connections; waits at most five seconds for each."""
        if self._batcher is not None:
            await self._batcher.stop()
        if self._caller is not None:
            await self._caller.close()

    async def execute(self, attempt: Attempt) -> Any:
        """Send the row once and return its result. Raises RowError; `attempt.usage` is set in either case."""
        if self._render is None or self._caller is None:
            raise RuntimeError("execute is called between open and close")
        call = self._render(attempt)
        if self._batcher is not None:
            return await self._batcher.submit((call, attempt), key=attempt.seq, timeout=attempt.timeout)
        usage = attempt.usage = Usage(requests=1)
        reply, value = await self._answer(call.request, [usage], timeout=attempt.timeout)
        openai_answer.read_usage(value, usage)
        return self._judged(call, reply, value)

    async def _together(self, rows: list[tuple[Call, Attempt]]) -> list[Any]:
        """The texts of several rows in one request: a result or a failure for each."""
        usages = [Usage(requests=1) for _ in rows]
        for (_, attempt), usage in zip(rows, usages, strict=True):
            attempt.usage = usage
        # The batcher ends what takes too long, and knows whom to blame.
        timeout = max(attempt.timeout for _, attempt in rows) + 1
        try:
            request = gathered([call.request for call, _ in rows])
            reply, value = await self._answer(request, usages, timeout=timeout)
            sizes = [len(call.request.body or b"") for call, _ in rows]
            parts = parted(value, sizes, origin=reply.origin)
        except RowError as error:
            if error.error_class in OF_ONE_ROW:
                raise
            return [error] * len(rows)
        ends: list[Any] = []
        for (call, _), usage, part in zip(rows, usages, parts, strict=True):
            openai_answer.read_usage(part, usage)
            try:
                ends.append(self._judged(call, reply, part))
            except RowError as error:
                ends.append(error)
        return ends

    async def _answer(self, request: Request, usages: list[Usage], *, timeout: float) -> tuple[answers.Answer, Any]:
        """Send a request of one or more rows, and read what came back as JSON."""
        assert self._caller is not None
        try:
            reply = await self._caller.send(request, timeout=timeout)
        except RowError as error:
            if not error.spent or error.error_class in _NOT_CHARGED:
                for usage in usages:
                    usage.requests = 0
            raise
        value = answers.value_of(reply, wanted=True, redact=self._redactor.redact)
        self._look_for_fault(reply, value)
        return reply, value

    def _judged(self, call: Call, reply: answers.Answer, value: Any) -> Any:
        try:
            openai_answer.judge(call.endpoint, value, accept=self._accept, origin=reply.origin)
        except RowError as error:
            # Its message may quote the server's own words.
            told = self._redactor.redact(error.message)
            raise RowError(error.error_class, told, retryable=error.retryable) from None
        result = self._result(call, reply, value)
        answers.require_storable(result, self._max_result_bytes, ADVICE)
        return result

    def estimate(self, attempt: Attempt) -> tuple[int, int]:
        """Tokens that the attempt may use at most, in and out; none for a row that does not fit its templates and is
        not sent."""
        if self._render is None:
            raise RuntimeError("estimate is called between open and close")
        try:
            return most_tokens(self._render(attempt))
        except RowError:
            return 0, 0

    def _result(self, call: Call, reply: answers.Answer, value: Any) -> Any:
        told = None
        if self._misfit is not None or (self._search is None and not self._lines):
            told = openai_answer.said(call.endpoint, value, many=call.many, origin=reply.origin)
        if self._misfit is not None:
            told = openai_answer.parsed(told, self._misfit, redact=self._redactor.redact)
        if self._search is not None:
            return self._search(value)
        if self._lines:
            request_id = reply.headers.get(_REQUEST_ID) or call.request.headers.get(_REQUEST_ID, "")
            return {"status_code": reply.status, "request_id": request_id, "body": value}
        return told

    def _refused(self, reply: answers.Answer, text: str, retry_after: float | None) -> RowError:
        return refused(reply, text, retry_after, fault=self._redacted(fault_in(reply.body)))

    def _look_for_fault(self, reply: answers.Answer, value: Any) -> None:
        """Some proxies answer 200 with an error inside; a Response always has the field, and null there."""
        if not isinstance(value, Mapping) or not value.get("error"):
            return
        if any(value.get(name) for name in ("choices", "data", "output")) or "status" in value:
            return
        fault = self._redacted(fault_in(value)) or Fault(frozenset(), "")
        status = fault.code if fault.code is not None and 400 <= fault.code < 600 else 500
        raise refused(reply._replace(status=status, reason=None), "", None, fault=fault)

    def _redacted(self, fault: Fault | None) -> Fault | None:
        return None if fault is None else fault._replace(message=self._redactor.redact(fault.message))


class OpenAIPreview:
    """How a row would be sent. See `rowmill_worker.executors.simulate.Preview`."""

    def __init__(self, *, spec: OpenAISpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._render: Callable[[Attempt], Call] | None = None

    def open(self) -> None:
        self._render = call_template(self._spec, job=self._job, secrets=None, where=self._where)
        compiled_search(self._spec.result, path=f"{PATH}.result", where=self._where)

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._render is not None, "opened"
        request = self._render(attempt).request
        shown = request.describe()
        if request.body is not None and len(request.body) > MAX_BODY_CHARS:
            shown["body"] = f"[{len(request.body):,} bytes]"
        return shown
