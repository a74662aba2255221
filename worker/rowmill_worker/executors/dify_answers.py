"""What Dify's answers mean: its error codes, its streams, and how a run that was answered 200 ended. Pure.

Facts of its service API (api/controllers/service_api/app and api/core/app/task_pipeline of its source):

* an error is `{"code", "message", "status"}`;
* a blocking workflow answers `{"task_id", "workflow_run_id", "data": {"status", "outputs", "error", "total_tokens"}}`,
  a message `{"answer", "metadata": {"usage"}}`;
* a stream is lines `data: {"event"}`, with `event: ping` between; what failed in it ends with an event `error`, a
  workflow with `workflow_finished`;
* an error of a model comes as 400 `completion_request_error`, or as the `error` of a failed run, and only its words
  tell an overloaded model from a wrong request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from rowmill_worker.executors.advice import Advice
from rowmill_worker.executors.answer import Answer, too_large
from rowmill_worker.executors.classify import shorten
from rowmill_worker.executors.protocol import RowError, Usage

_PASSES: Final = re.compile(
    r"rate.?limit|too many requests|connection error|server unavailable|overloaded|timed? ?out|temporarily|"
    r"bad gateway|service unavailable|\b(429|502|503|504)\b|reached maximum retries",
    re.IGNORECASE,
)
"""Words of an error that may pass by itself."""

_CODES: Final[Mapping[str, tuple[str, bool, str]]] = {
    "app_unavailable": ("AppUnavailable", False, "publish the app, and check spec.executor.dify.app"),
    "not_workflow_app": ("WrongApp", False, "the key is not of a workflow; check spec.executor.dify.app"),
    "not_chat_app": ("WrongApp", False, "the key is not of a chat app; check spec.executor.dify.app"),
    "not_completion_app": ("WrongApp", False, "the key is not of a completion app; check spec.executor.dify.app"),
    "provider_not_initialize": ("ProviderNotConfigured", False, "set the model provider's credentials in Dify"),
    "provider_quota_exceeded": ("QuotaExceeded", False, "the model provider's quota is used up; raise it in Dify"),
    "model_currently_not_support": ("ModelNotSupported", False, "choose another model in the app"),
    "invalid_param": ("InvalidInputs", False, "check spec.executor.dify.inputs against the app's variables"),
    "bad_request": ("InvalidInputs", False, "check spec.executor.dify.inputs against the app's variables"),
    "unsupported_file_type": ("InvalidInputs", False, "the app does not take this kind of file"),
    "file_too_large": ("InvalidInputs", False, "the file is too large for the app"),
    "conversation_completed": ("ConversationCompleted", False, "the conversation has ended"),
    "not_found": ("NotFound", False, "check spec.executor.dify.baseUrl and workflowId"),
    "rate_limit_error": ("RateLimited", True, "lower spec.concurrency.perWorker or spec.workers.maxReplicas"),
    "too_many_requests": ("RateLimited", True, "lower spec.concurrency.perWorker or spec.workers.maxReplicas"),
}
"""By Dify's code: our class, whether it may pass by itself, what to do."""


_TELLING: Final = frozenset({"error", "workflow_finished", "workflow_paused", "message_end"})
"""Events that are read whole."""

_TASK: Final = re.compile(r"[-A-Za-z0-9]{1,64}")


def refusal_of(reply: Answer, excerpt: str, retry_after: float | None) -> RowError | None:
    """The failure that an error of Dify's own is; None for an answer that is not one (a proxy's, say)."""
    try:
        told = msgspec.json.decode(excerpt)
    except msgspec.DecodeError:
        return None
    if not isinstance(told, dict) or not isinstance(told.get("code"), str):
        return None
    code, message = told["code"], str(told.get("message", ""))
    found = error_of(code, message, origin=reply.origin, retry_after=retry_after)
    if found is None and reply.status in (400, 422):
        return _unknown(code, message, origin=reply.origin, retryable=False)
    return found


def error_of(code: str, message: str, *, origin: str, retry_after: float | None = None) -> RowError | None:
    """The failure that a code of Dify's stands for; None for one whose status says enough (401, 500)."""
    said = f": {shorten(message)}" if message else ""
    if code == "completion_request_error":
        passes = _PASSES.search(message) is not None
        return RowError(
            "ModelFailed",
            f"{origin}: the app's model failed{said}",
            retryable=passes,
            retry_after=retry_after,
        )
    known = _CODES.get(code)
    if known is None:
        return None
    error_class, passes, advice = known
    return RowError(error_class, f"{origin} told {code}{said}; {advice}", retryable=passes, retry_after=retry_after)


def outcome_of(value: Any, *, app: str, accept_partial: bool, origin: str, redact: Callable[[str], str] = str) -> None:
    """Return where a run succeeded; raise RowError where it failed inside, or where this is no answer of Dify's."""
    if app != "Workflow":
        if not isinstance(value, dict) or not isinstance(value.get("answer"), str):
            raise _no_answer(origin, "an answer")
        return
    data = value.get("data") if isinstance(value, dict) else None
    status = data.get("status") if isinstance(data, dict) else None
    if not isinstance(data, dict) or not isinstance(status, str):
        raise _no_answer(origin, "data.status")
    if status == "succeeded" or (status == "partial-succeeded" and accept_partial):
        return
    error = redact(str(data.get("error") or ""))
    said = f": {shorten(error)}" if error else ""
    if status in ("failed", "exception"):
        raise RowError(
            "WorkflowFailed",
            f"the workflow failed{said}; the call was made and may have been charged",
            retryable=_PASSES.search(error) is not None,
        )
    if status == "partial-succeeded":
        raise RowError(
            "WorkflowPartial",
            f"the workflow ended partial-succeeded{said}, and spec.executor.dify.acceptPartial is false",
            retryable=False,
        )
    if status == "stopped":
        raise RowError("WorkflowStopped", f"the workflow was stopped in Dify{said}", retryable=False)
    if status == "paused":
        raise RowError(
            "WorkflowPaused",
            "the workflow waits for a person; take that step out of a batch's workflow",
            retryable=False,
        )
    raise _no_answer(origin, f"a known status (it told {shorten(status, 40)})")


def usage_of(value: Any) -> Usage:
    """What a run was charged for. A workflow tells one sum of tokens, counted as output."""
    found = Usage(requests=1)
    if not isinstance(value, dict):
        return found
    data, metadata = value.get("data"), value.get("metadata")
    usage = metadata.get("usage") if isinstance(metadata, dict) else None
    if isinstance(usage, dict):
        found.input_tokens = _count(usage.get("prompt_tokens"))
        found.output_tokens = _count(usage.get("completion_tokens"))
    elif isinstance(data, dict):
        found.output_tokens = _count(data.get("total_tokens"))
    return found


class _Seen(msgspec.Struct):
    """What is looked at of every event; the rest of it is skipped unread, and nodes may tell megabytes."""

    event: Any = None
    task_id: Any = None
    answer: Any = None


_SEEN: Final = msgspec.json.Decoder(_Seen)


class Stream:
    """Puts a stream's events together to the answer of a blocking call. `ended` once nothing that counts follows.

    Bounds: `max_bytes` of the stream in all, `max_kept` of one event and of the text that is kept.
    """

    def __init__(
        self,
        *,
        workflow: bool,
        max_bytes: int,
        max_kept: int,
        origin: str,
        redact: Callable[[str], str],
        advice: Advice,
    ) -> None:
        self._workflow = workflow
        self._max_bytes, self._max_kept = max_bytes, max_kept
        self._origin, self._redact, self._advice = origin, redact, advice
        self._rest = bytearray()
        self._read = 0
        self._text: list[str] = []
        self._text_size = 0
        self._told: dict[str, Any] = {}
        self._finished: dict[str, Any] | None = None
        self.task_id: str | None = None
        self.ended = False

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes. Raises RowError for an `error` event, and past the bounds."""
        self._read += len(chunk)
        if self._read > self._max_bytes:
            raise too_large(self._max_bytes, what=f"the stream of {self._origin}", advice=self._advice)
        searched = max(0, len(self._rest) - 1)
        self._rest += chunk
        start = 0
        while (end := self._rest.find(b"\n", max(start, searched))) >= 0:
            line = bytes(self._rest[start:end])
            start = end + 1
            if line.startswith(b"data:"):
                self._event(line[5:])
        del self._rest[:start]
        if len(self._rest) > self._max_kept:
            raise too_large(self._max_kept, what=f"an event of {self._origin}", advice=self._advice)

    def answer(self) -> dict[str, Any]:
        """The whole. Raises RowError where the stream broke off."""
        if not self.ended:
            raise RowError(
                "IncompleteAnswer",
                f"{self._origin} ended the stream before the run had ended; whether it did the work is not known",
                retryable=True,
            )
        if self._workflow:
            return self._finished or {}
        return {**self._told, "answer": "".join(self._text)}

    def _event(self, data: bytes) -> None:
        try:
            seen = _SEEN.decode(data)
            event = msgspec.json.decode(data) if seen.event in _TELLING else {}
        except (msgspec.DecodeError, UnicodeDecodeError, TypeError):
            return  # a comment or a keep-alive of some proxy
        except RecursionError:
            raise RowError(
                "InvalidAnswer",
                f"{self._origin} told an event that is nested too deeply; the call was made and may have been charged",
                retryable=False,
            ) from None
        kind, task = seen.event, seen.task_id
        if task != self.task_id and isinstance(task, str) and _TASK.fullmatch(task):
            self.task_id = task
        if kind == "error":
            self.ended = True
            status, code = event.get("status"), str(event.get("code", ""))
            message = self._redact(str(event.get("message", "")))
            again = (isinstance(status, int) and status >= 500) or _PASSES.search(message) is not None
            raise error_of(code, message, origin=self._origin) or _unknown(
                code, message, origin=self._origin, retryable=again
            )
        if kind == "workflow_finished" and self._workflow:
            self._finished = {
                "task_id": event.get("task_id"),
                "workflow_run_id": event.get("workflow_run_id"),
                "data": event.get("data"),
            }
            self.ended = True
        elif kind == "workflow_paused" and self._workflow:
            self._finished = {**event, "data": {"status": "paused"}}
            self.ended = True
        elif kind in ("message", "agent_message"):
            self._keep(seen.answer)
        elif kind == "message_replace":
            self._text, self._text_size = [], 0
            self._keep(seen.answer)
        elif kind == "message_end":
            names = ("task_id", "id", "message_id", "conversation_id", "metadata", "files")
            self._told = {"event": "message", **{name: event[name] for name in names if name in event}}
            self.ended = True

    def _keep(self, text: Any) -> None:
        if isinstance(text, str):
            self._text.append(text)
            self._text_size += len(text)
            if self._text_size > self._max_kept:
                raise too_large(self._max_kept, what=f"the answer of {self._origin}", advice=self._advice)


def _unknown(code: str, message: str, *, origin: str, retryable: bool) -> RowError:
    said = f": {shorten(message)}" if message else ""
    return RowError("DifyError", f"{origin} told the error {shorten(code, 80)}{said}", retryable=retryable)


def _no_answer(origin: str, what: str) -> RowError:
    return RowError(
        "InvalidAnswer",
        f"{origin} answered without {what}; the call was made and may have been charged; check that "
        "spec.executor.dify.baseUrl is Dify's service API (it ends in /v1) and app is the key's kind",
        retryable=False,
    )


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0
