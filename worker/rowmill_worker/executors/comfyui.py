"""Runs a ComfyUI workflow for each row, and never twice what was submitted already.

    rendered → looked for → submitted → pending → running → in the history → files stored → answered
                      └────────────── found: another attempt's ──────────┘

A prompt costs minutes of a GPU, or money, and lives on at the server when its row's worker dies. So it carries the
row's key: an attempt first looks into queue and history, and follows what it finds in place of submitting. Failure at
each step:

* before the server has it: nothing was begun; the row is retried;
* the answer to the submission is lost, the worker dies, the row is put back: the next attempt finds the prompt;
* the prompt fails or is interrupted: that is told, and a next attempt is a new prompt (ids count on);
* the row's time is over: a prompt that waits is deleted, one that runs interrupted, if it is the one that runs;
* the server forgets it (it restarted): in neither queue nor history, class PromptLost; the next attempt submits;
* its files cannot be stored: the next attempt takes them from the prompt that succeeded.

Invariant: at no time does a row have two prompts at the server of which none has failed.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from rowmill.spec.executors import ComfyUIExecutor as ComfyUISpec
from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill_worker.executors import answer as answers
from rowmill_worker.executors import comfyui_answers as told
from rowmill_worker.executors.advice import Advice
from rowmill_worker.executors.caller import Caller, shared_connector
from rowmill_worker.executors.comfyui_answers import PATH
from rowmill_worker.executors.comfyui_files import FileStore, open_files
from rowmill_worker.executors.comfyui_follow import USUAL_PACE, Follower, Pace, Shared
from rowmill_worker.executors.http import compiled_search
from rowmill_worker.executors.protocol import Attempt, RowError, Usage
from rowmill_worker.executors.request import (
    CONTENT_TYPE,
    IDEMPOTENCY_KEY,
    REQUEST_ID,
    Request,
    RequestTemplate,
)
from rowmill_worker.executors.secrets import Redactor, SecretReader
from rowmill_worker.executors.simulate import MAX_BODY_CHARS

LOOK_SECONDS: Final = 30.0
"""How long one look at queue or history may take."""
STOP_SECONDS: Final = 5.0
"""Of a row's time, at most a tenth and this much is left for stopping a prompt that ran out of it."""
MAX_LISTING_BYTES: Final = 67_108_864
"""Bytes of a queue or history: it holds whole workflows."""
SCANNED: Final = 256
"""Entries of the history that are looked through at a server that does not take the ids it is told."""

ADVICE: Final = Advice(
    url=f"{PATH}.url",
    result=f"{PATH}.result",
    hints={
        401: f"check the credentials in {PATH}.headers",
        403: f"check that the credentials in {PATH}.headers may do this",
        404: f"check that {PATH}.url is ComfyUI's",
        413: "the workflow is too large for the server or a proxy before it",
    },
)


def request_template(
    spec: ComfyUISpec, *, job: Mapping[str, Any], secrets: SecretReader | None, where: str
) -> RequestTemplate:
    """How a row's request is rendered; its body is the prompt alone. Raises InvalidInput."""
    plain = HttpSpec.model_construct(
        url=spec.url.rstrip("/") + "/prompt", method="POST", headers=spec.headers, body=spec.workflow
    )
    return RequestTemplate(
        spec=plain,
        job=job,
        secrets=secrets,
        where=where,
        path=PATH,
        url_path=f"{PATH}.url",
        body_path=f"{PATH}.workflow",
    )


@dataclass(slots=True)
class _Course:
    """How far a row's prompt is. `own`: this worker's socket tells of it; `trouble` is why the last look failed."""

    request: Request
    token: str
    prompt: str | None = None
    own: bool = False
    ended: bool = False
    trouble: RowError | None = None


class ComfyUIExecutor:
    """`spec.executor.comfyui`. See `rowmill_worker.executors.protocol.Executor`.

    `pace` is how often is looked, `rng` draws the jitter of reconnecting, `client_id` names this worker at the server.
    """

    def __init__(
        self,
        *,
        spec: ComfyUISpec,
        job: Mapping[str, Any],
        secrets: SecretReader,
        where: str = "",
        wall_clock: Callable[[], float] = time.time,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
        pace: Pace = USUAL_PACE,
        rng: random.Random | None = None,
        client_id: str | None = None,
        max_listing_bytes: int = MAX_LISTING_BYTES,
    ) -> None:
        self._spec = spec
        self._job = job
        self._secrets = secrets
        self._where = where
        self._wall_clock = wall_clock
        self._connector_factory = connector_factory
        self._max_listing_bytes = max_listing_bytes
        self._base = URL(spec.url.rstrip("/"))
        self._follower = Follower(
            client_id=client_id or f"rowmill-{uuid.uuid4()}",
            pace=pace,
            rng=rng or random.Random(),
            connector_factory=connector_factory,
        )
        self._queue: Shared[told.Queue] = Shared()
        self._recent: Shared[dict[str, Any]] = Shared()
        self._takes_ids: bool | None = None
        self._template: RequestTemplate | None = None
        self._caller: Caller | None = None
        self._files: FileStore | None = None
        self._redactor = Redactor(())
        self._search: Callable[[Any], Any] | None = None

    @property
    def active_sessions(self) -> int:
        """Sessions of calls in flight; the worker's one socket is none of them."""
        return 0 if self._caller is None else self._caller.active_sessions

    @property
    def socket_connected(self) -> bool:
        """Whether the server tells of prompts over the websocket right now."""
        return self._follower.connected

    async def open(self) -> None:
        """Compile the templates, read the secrets, see that the store takes files. Raises InvalidInput."""
        self._template = request_template(self._spec, job=self._job, secrets=self._secrets, where=self._where)
        self._search = compiled_search(self._spec.result, path=f"{PATH}.result", where=self._where)
        if (store := self._spec.store) is not None:
            self._files = await asyncio.to_thread(
                lambda: open_files(store, job=self._job, secrets=self._secrets, where=self._where)
            )
        self._redactor = self._secrets.redactor()
        self._caller = Caller(
            redactor=self._redactor,
            advice=ADVICE,
            refusal=told.refusal_of(self._redactor.redact),
            wall_clock=self._wall_clock,
            connector_factory=self._connector_factory,
            max_answer_bytes=self._max_listing_bytes,
        )

    async def close(self) -> None:
        """Close the socket and the connections. Prompts go on at the server, and are found by who comes next."""
        await self._follower.close()
        await self._queue.close()
        await self._recent.close()
        if self._caller is not None:
            await self._caller.close()

    async def execute(self, attempt: Attempt) -> Any:
        """Find the row's prompt or submit it, follow it to its end, and store its files. Raises RowError."""
        if self._template is None:
            raise RuntimeError("execute is called between open and close")
        request = self._template.render(attempt)
        assert request.body is not None, "a workflow has nodes"
        attempt.usage = Usage()
        course = _Course(request, told.token_of(attempt.idempotency_key, request.body))
        self._follower.open(self._base, _of_no_row(request.headers))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + attempt.timeout - min(STOP_SECONDS, attempt.timeout / 10)
        try:
            async with asyncio.timeout_at(deadline):
                entry = await self._ended(course, attempt)
                told.require_success(entry, origin=request.origin, redact=self._redactor.redact)
                course.ended = True
                return await self._result(course, attempt, entry, deadline)
        except TimeoutError:
            raise await self._late(course, attempt, loop.time() - deadline) from None

    # -- finding, submitting, following

    async def _ended(self, course: _Course, attempt: Attempt) -> Mapping[str, Any]:
        """The history's entry of the row's prompt, once it has ended.

        One that was found and ends interrupted was stopped with the attempt that submitted it, out of time: this
        attempt has a prompt of its own then.
        """
        while True:
            entry = await self._followed(course, attempt)
            if course.own or not told.was_interrupted(entry):
                return entry
            course.prompt = None

    async def _followed(self, course: _Course, attempt: Attempt) -> Mapping[str, Any]:
        """The entry of the prompt that was found, or else submitted, once it has ended."""
        number, found = await self._look_for(course)
        if found is not None:
            return found
        dropped: RowError | None = None
        if course.prompt is None:
            dropped = await self._submit(course, attempt, number)
        if dropped is not None:
            await self._stop(course)
            raise dropped
        assert course.prompt is not None
        with self._follower.watch(course.prompt, own=course.own) as watch:
            while True:
                entry = await self._looked_at(course, course.prompt)
                if entry is not None:
                    return entry
                await watch.wait()

    async def _look_for(self, course: _Course) -> tuple[int, Mapping[str, Any] | None]:
        """Find what was submitted before. One in the queue becomes the course's; a success is returned; else the number
        is that of the next prompt. Always done: whether an earlier worker has submitted, no attempt can know."""
        queue = await self._listing(course)
        if (found := queue.of_token(course.token)) is not None:
            course.prompt = found
            return 0, None
        number = 0
        while (entry := await self._entry(course, told.prompt_id(course.token, number))) is not None:
            if not told.has_failed(entry):
                course.prompt = told.prompt_id(course.token, number)
                return number, entry
            number += 1
        if self._takes_ids:
            return number, None
        recent = told.succeeded_of_token(await self._recent.get(lambda: self._history(course)), course.token)
        if recent is None:
            return number, None
        course.prompt, entry = recent
        return number, entry

    async def _submit(self, course: _Course, attempt: Attempt, number: int) -> RowError | None:
        """Submit the prompt. Returns the failure where the server dropped an output that is wanted."""
        assert self._caller is not None
        assert course.request.body is not None
        body = told.envelope(
            course.request.body,
            token=course.token,
            number=number,
            client_id=self._follower.client_id,
            key=attempt.idempotency_key,
        )
        attempt.usage = Usage(requests=1)
        reply = await self._caller.send(course.request._replace(body=body), timeout=attempt.timeout)
        course.prompt, dropped = told.accepted(reply, wanted=self._spec.output_nodes)
        course.own = True
        self._takes_ids = course.prompt == told.prompt_id(course.token, number)
        return dropped

    async def _looked_at(self, course: _Course, prompt: str) -> Mapping[str, Any] | None:
        """The entry of a prompt that has ended, or None while it has not. A server that is away for a while is no
        failure of the prompt: what goes wrong meanwhile is kept, and told if time runs out."""
        try:
            entry = await self._entry(course, prompt)
            if entry is None and not (await self._listing(course)).has(prompt):
                # Nothing is between the two places: it ended since, or it is gone.
                entry = await self._entry(course, prompt)
                if entry is None:
                    raise RowError(
                        "PromptLost",
                        f"{course.request.origin} has the prompt {prompt} neither in its queue nor in its history; it "
                        "was restarted, or somebody deleted it; it is submitted anew",
                        retryable=True,
                    )
        except RowError as error:
            if not error.retryable or error.error_class == "PromptLost":
                raise
            course.trouble = error
            return None
        course.trouble = None
        return entry

    async def _late(self, course: _Course, attempt: Attempt, over: float) -> RowError:
        """The failure of a row whose time is over; what it has at the server is stopped before."""
        timeout = attempt.timeout
        if course.ended:
            return RowError(
                "Timeout",
                f"the prompt succeeded, but its files were not stored within {timeout:g} s; another attempt takes them "
                "without running it again; raise spec.timeoutSeconds",
                retryable=True,
            )
        state = "and nothing is known of it"
        try:
            async with asyncio.timeout(max(min(STOP_SECONDS, timeout / 10) - over, 0.01)):
                state = await self._stop(course)
        except (RowError, TimeoutError):
            pass  # it goes on there, and the next attempt finds it
        if course.trouble is not None:
            return course.trouble
        return RowError(
            "Timeout",
            f"no prompt of {course.request.origin} came to its end within {timeout:g} s, {state}; waiting in ComfyUI's "
            "queue counts: raise spec.timeoutSeconds, or lower spec.concurrency.perWorker",
            retryable=True,
        )

    async def _stop(self, course: _Course) -> str:
        """Delete the prompt if it waits, interrupt it if it runs; says what was done. Never another's: an older server
        interrupts whatever runs, so it is asked only while ours is seen running."""
        queue = await self._listing(course)
        prompt = course.prompt or queue.of_token(course.token)
        if prompt in queue.pending:
            await self._call(course, "POST", "queue", body={"delete": [prompt]})
            return "and it was taken out of the queue"
        if prompt in queue.running:
            await self._call(course, "POST", "interrupt", body={"prompt_id": prompt})
            return "and it was interrupted"
        return "and it is not in the queue"

    # -- what came of it

    async def _result(self, course: _Course, attempt: Attempt, entry: Mapping[str, Any], deadline: float) -> Any:
        origin = course.request.origin
        made = told.made_by(entry, wanted=self._spec.output_nodes, origin=origin)
        files: list[dict[str, Any]] = []
        for index, file in enumerate(made.files):
            link = (self._base / "view").with_query(file.query)
            named = {"node": file.node, "name": file.name}
            if self._files is None:
                files.append({**named, "uri": str(link), "bytes": None, "type": file.media_type})
                continue
            left = max(deadline - asyncio.get_running_loop().time(), 0.001)
            stored = await self._stored(course, link, file.stored_as(attempt.seq, index), left)
            files.append({**named, "uri": stored.uri, "bytes": stored.size, "type": stored.media_type})
        value: Any = {"promptId": course.prompt, "files": files, "values": made.values}
        if self._search is not None:
            value = self._search(value)
        answers.require_storable(value, advice=ADVICE)
        return value

    async def _stored(self, course: _Course, link: URL, name: str, left: float) -> Any:
        assert self._caller is not None
        assert self._files is not None
        request = course.request._replace(method="GET", url=link, headers=_without_body(course.request), body=None)
        try:
            return await self._files.receive(self._caller, request, name=name, timeout=left)
        except RowError as error:
            if error.error_class != "HTTP404":
                raise
            raise RowError(
                "OutputMissing",
                f"{course.request.origin} ran the prompt and does not have its file any more ({link.query_string}); "
                "keep its output folder, and start a new run (spec.runId) to make it again",
                retryable=False,
            ) from None

    # -- calls

    async def _listing(self, course: _Course) -> told.Queue:
        return await self._queue.get(lambda: self._queue_now(course))

    async def _queue_now(self, course: _Course) -> told.Queue:
        try:
            return told.queue_of(await self._call(course, "GET", "queue"))
        except RowError as error:
            if error.error_class != "AnswerTooLarge":
                raise
            raise RowError(
                "QueueFull",
                f"the queue of {course.request.origin} is longer than {self._max_listing_bytes:,} bytes, so no prompt "
                "can be found in it; lower spec.concurrency.perWorker, or set spec.limits.maxInFlight",
                retryable=True,
            ) from None

    async def _history(self, course: _Course) -> dict[str, Any]:
        """The newest entries, as many of `SCANNED` as can be read."""
        items = SCANNED
        while True:
            try:
                return told.history_of(await self._call(course, "GET", "history", query={"max_items": str(items)}))
            except RowError as error:
                if error.error_class != "AnswerTooLarge" or items == 1:
                    raise
                items //= 4

    async def _entry(self, course: _Course, prompt: str) -> Mapping[str, Any] | None:
        entry: Mapping[str, Any] | None
        entry = told.history_of(await self._call(course, "GET", f"history/{prompt}")).get(prompt)
        return entry

    async def _call(
        self, course: _Course, method: str, route: str, *, query: Mapping[str, str] | None = None, body: Any = None
    ) -> answers.Answer:
        """One call besides the submission, with the row's headers."""
        assert self._caller is not None
        url = self._base.joinpath(*route.split("/"))
        headers = course.request.headers if body is not None else _without_body(course.request)
        request = course.request._replace(
            method=method,
            url=url.with_query(query) if query else url,
            headers=headers,
            body=None if body is None else told.encoded(body),
        )
        return await self._caller.send(request, timeout=LOOK_SECONDS)


def _without_body(request: Request) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = request.headers.copy()
    headers.popall(CONTENT_TYPE, None)
    return headers


def _of_no_row(headers: CIMultiDict[str]) -> CIMultiDict[str]:
    rest: CIMultiDict[str] = headers.copy()
    for name in (IDEMPOTENCY_KEY, REQUEST_ID, CONTENT_TYPE):
        rest.popall(name, None)
    return rest


class ComfyUIPreview:
    """How a row would be sent to ComfyUI. See `rowmill_worker.executors.simulate.Preview`."""

    def __init__(self, *, spec: ComfyUISpec, job: Mapping[str, Any], where: str = "") -> None:
        self._spec, self._job, self._where = spec, job, where
        self._template: RequestTemplate | None = None

    def open(self) -> None:
        self._template = request_template(self._spec, job=self._job, secrets=None, where=self._where)
        compiled_search(self._spec.result, path=f"{PATH}.result", where=self._where)

    def render(self, attempt: Attempt) -> Mapping[str, Any]:
        assert self._template is not None, "opened"
        request = self._template.render(attempt)
        shown = request.describe()
        if request.body is not None and len(request.body) > MAX_BODY_CHARS:
            return {**shown, "body": f"[{len(request.body):,} bytes]"}
        return {**shown, "body": {"prompt": shown["body"]}}
