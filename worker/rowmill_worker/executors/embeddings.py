"""Embeds a row's text by a model of the worker's own, in batches.

The model lives in a child process, so that neither its Python nor a stuck GPU holds up the worker, and a crash or a
lack of memory that it does not survive costs its rows an attempt and no more. See `rowmill_worker.children.embedder`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rowmill.errors import InvalidInput
from rowmill.spec.executors import EmbeddingsExecutor as EmbeddingsSpec
from rowmill.telemetry.batches import BatchMetrics
from rowmill.telemetry.logging import Logger, null_logger
from rowmill.templating import Template, TemplateError, compile_value
from rowmill_worker.batcher import Batcher
from rowmill_worker.children.child import CallFailed, Child, ChildDied, ChildFailed, ChildUnusable, start_child
from rowmill_worker.children.messages import Failure
from rowmill_worker.children.pool import Pool
from rowmill_worker.executors.process_errors import crashed, row_error, unavailable
from rowmill_worker.executors.protocol import Attempt, RowError
from rowmill_worker.microbatch import BatchRules

PATH: Final = "spec.executor.embeddings"
SERVER: Final = "rowmill_worker.children.embedder:serve_model"
LOADER: Final = "rowmill_worker.children.sentence_model:load"

WAITING: Final[Mapping[str, str]] = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Threads of a model on a CPU wait for each other at every step. They do it asleep: spinning, each burns what the other
needs where cores are shared, as in a pod whose CPU is limited. Whoever sets the variable is heeded."""


class TextTemplate:
    """`spec.executor.embeddings.text` compiled. Raises InvalidInput."""

    def __init__(self, *, spec: EmbeddingsSpec, job: Mapping[str, Any], where: str = "") -> None:
        self._job = job
        try:
            self._text: Template = compile_value(spec.text, path=f"{PATH}.text", text=True)
        except TemplateError as exc:
            raise InvalidInput.one(where, exc.path, exc.message) from None

    def render(self, attempt: Attempt) -> str:
        """The text of this attempt. Raises RowError, unspent, where the row does not fit."""
        context = {"row": attempt.row, "key": attempt.key, "seq": attempt.seq, "job": self._job}
        try:
            text: str = self._text.render(context)
        except TemplateError as exc:
            raise RowError("TemplateError", f"{exc.path}: {exc.message}", retryable=False, spent=False) from None
        return text


class EmbeddingsExecutor:
    """`spec.executor.embeddings`. See `rowmill_worker.executors.protocol.Executor`.

    `job` is what templates find of the job, `where` names the manifest in messages, `environ` is what the model's
    process is given, `loader` names what loads the model there. `open` raises InvalidInput where it cannot be loaded.
    """

    def __init__(
        self,
        *,
        spec: EmbeddingsSpec,
        job: Mapping[str, Any],
        environ: Mapping[str, str],
        where: str = "",
        log: Logger | None = None,
        metrics: BatchMetrics | None = None,
        loader: str = LOADER,
    ) -> None:
        self._spec, self._job, self._environ, self._where, self._loader = spec, job, environ, where, loader
        self._log = log or null_logger()
        self._template: TextTemplate | None = None
        self._pool = Pool(start=self._start, size=1, log=self._log)
        self._batcher: Batcher[str, msgspec.Raw] = Batcher(
            rules=BatchRules.of(spec.batching), process=self._run, metrics=metrics
        )

    @property
    def active_sessions(self) -> int:
        """Batches that run right now."""
        return self._pool.busy

    async def open(self) -> None:
        """Compile the template and load the model. Raises InvalidInput."""
        self._template = TextTemplate(spec=self._spec, job=self._job, where=self._where)
        try:
            child = await self._pool.open()
        except ChildUnusable as error:
            raise InvalidInput.one(self._where, f"{PATH}.{error.field}".rstrip("."), error.message) from None
        except ChildFailed as error:
            raise InvalidInput.one(
                self._where,
                f"{PATH}.model",
                f"the process that loads {self._spec.model} did not get ready: {error}; its output is in the worker's "
                "log",
            ) from None
        self._log.info("model loaded", **child.details)

    async def close(self) -> None:
        """Hand back what waits, end the process; waits at most ten seconds."""
        await self._batcher.stop()
        await self._pool.close()

    async def execute(self, attempt: Attempt) -> Any:
        """The row's vector, a JSON list that is encoded already. Raises RowError."""
        if self._template is None:
            raise RuntimeError("execute is called between open and close")
        return await self._batcher.submit(self._template.render(attempt), key=attempt.seq, timeout=attempt.timeout)

    async def _start(self) -> Child:
        spec = self._spec
        settings = spec.model_dump(mode="json", by_alias=True, exclude={"text", "batching"})
        settings |= {"maxSize": spec.batching.max_size, "loader": self._loader}
        return await start_child(
            server=SERVER,
            settings=settings,
            environ={**WAITING, **self._environ},
            within=spec.start_timeout_seconds,
            log=self._log,
        )

    async def _run(self, texts: list[str]) -> list[msgspec.Raw | RowError]:
        try:
            async with self._pool.seat() as child:
                answers = await child.call(texts)
        except (ChildUnusable, ChildFailed) as error:
            raise unavailable(error) from None
        except CallFailed as error:
            raise row_error(error.failure) from None
        except ChildDied as died:
            raise crashed(died) from None
        # Numbers alone, and written by us: they go into the ledger as they are.
        return [row_error(answer) if isinstance(answer, Failure) else msgspec.Raw(answer) for answer in answers]
