"""Sends rows to an HTTP service: rendered → sent → answered | failed.

Rendering fails without a call; see `rowmill_worker.executors.caller` for the call itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from rowmill.errors import InvalidInput
from rowmill.spec.executors import HttpExecutor as HttpSpec
from rowmill.templating import TemplateError, compile_query
from rowmill_worker.executors import answer as answers
from rowmill_worker.executors.caller import Caller, any_2xx, shared_connector
from rowmill_worker.executors.classify import shorten
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.executors.request import RequestTemplate
from rowmill_worker.executors.secrets import Redactor, SecretReader


class HttpExecutor:
    """`spec.executor.http`. See `rowmill_worker.executors.protocol.Executor`.

    `job` is what templates find under that name, `where` names the manifest in messages; `wall_clock` (seconds since
    the epoch) serves Retry-After dates.
    `open` raises InvalidInput where a template, a query or a secret is not usable.
    """

    def __init__(
        self,
        *,
        spec: HttpSpec,
        job: Mapping[str, Any],
        secrets: SecretReader,
        where: str = "",
        wall_clock: Callable[[], float] = time.time,
        connector_factory: Callable[[], aiohttp.BaseConnector] = shared_connector,
        max_answer_bytes: int = answers.MAX_ANSWER_BYTES,
        max_result_bytes: int = answers.MAX_RESULT_BYTES,
    ) -> None:
        self._spec = spec
        self._job = job
        self._secrets = secrets
        self._where = where
        self._wall_clock = wall_clock
        self._connector_factory = connector_factory
        self._max_answer_bytes = max_answer_bytes
        self._max_result_bytes = max_result_bytes
        self._template: RequestTemplate | None = None
        self._redactor = Redactor(())
        self._search: Callable[[Any], Any] | None = None
        self._caller: Caller | None = None

    @property
    def active_sessions(self) -> int:
        """Sessions that are open right now: one a call in flight."""
        return 0 if self._caller is None else self._caller.active_sessions

    @property
    def rebuilt_connectors(self) -> int:
        """How often the connector was found closed and replaced."""
        return 0 if self._caller is None else self._caller.rebuilt_connectors

    async def open(self) -> None:
        """Compile the templates, read the secrets, make the connector. Raises InvalidInput."""
        self._template = RequestTemplate(spec=self._spec, job=self._job, secrets=self._secrets, where=self._where)
        self._redactor = self._secrets.redactor()
        self._search = compiled_search(self._spec.result, path="spec.executor.http.result", where=self._where)
        codes = self._spec.success_codes
        self._caller = Caller(
            redactor=self._redactor,
            succeeded=any_2xx if codes is None else frozenset(codes).__contains__,
            wall_clock=self._wall_clock,
            connector_factory=self._connector_factory,
            max_answer_bytes=self._max_answer_bytes,
        )

    async def close(self) -> None:
        """Close the connections; waits at most five seconds for them."""
        if self._caller is not None:
            await self._caller.close()

    async def execute(self, attempt: Attempt) -> Any:
        """Send the row once, follow its redirects, and return its result. Raises RowError."""
        if self._template is None or self._caller is None:
            raise RuntimeError("execute is called between open and close")
        request = self._template.render(attempt)
        reply = await self._caller.send(request, timeout=attempt.timeout)
        return answers.result_of(
            reply,
            search=self._search,
            redact=self._redactor.redact,
            max_result_bytes=self._max_result_bytes,
        )


def compiled_search(query: str | None, *, path: str, where: str) -> Callable[[Any], Any] | None:
    """The JMESPath at `path` as a function that raises RowError where an answer does not fit it; None for none.

    Raises InvalidInput where it does not compile.
    """
    if query is None:
        return None
    try:
        compiled = compile_query(query, path=path)
    except TemplateError as exc:
        raise InvalidInput.one(where, exc.path, exc.message) from None
    return lambda value: _searched(compiled.search, value)


def _searched(search: Callable[[Any], Any], value: Any) -> Any:
    try:
        return search(value)
    except TemplateError as exc:
        raise RowError(
            "InvalidAnswer",
            f"{exc.path}: it does not fit this row's answer ({shorten(exc.message)}); "
            "the call was made and may have been charged",
            retryable=False,
        ) from None
