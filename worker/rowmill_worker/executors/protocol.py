"""The one seam between the worker and whatever a row is sent to.

States of an attempt: rendered → sent → answered | failed. A failure before anything was sent (a template that
does not fit the row) is never retried; a failure after it is classed by the executor, retried by the worker.
An executor never loops, never sleeps and never retries: it makes one attempt and tells what came of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(slots=True)
class Usage:
    """What a call was charged for, as the endpoint told it; an executor fills it in, also for a call that failed.

    Tokens as the server counts them. `requests` is 0 until a call was sent.
    """

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


@dataclass(slots=True)
class Attempt:
    """One try at one row. `number` counts from 1; `timeout` in seconds bounds the call, not the wait for a slot.

    `idempotency_key` is the same for every attempt at the same row (or at the same dedupe key); `request_id`
    tells the attempts apart and is what logs and the endpoint share.
    """

    seq: int
    row: Mapping[str, Any]
    key: Any
    number: int
    idempotency_key: str
    request_id: str
    timeout: float
    usage: Usage | None = None
    """Set by an executor that knows what the call used."""


class RowError(Exception):
    """An attempt that failed. `error_class` is CamelCase (`HTTP429`, `Timeout`, `ConnectionReset`).

    `retry_after` is what the endpoint asked for, in seconds. `spent` is False when no call was sent, so that the
    attempt is not counted (a closed session rebuilt, say).
    """

    def __init__(
        self,
        error_class: str,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None = None,
        spent: bool = True,
    ) -> None:
        super().__init__(f"{error_class}: {message}")
        self.error_class = error_class
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.spent = spent


class Estimates(Protocol):
    """What an executor has besides, if its calls are counted in tokens: limits and budgets reserve them."""

    def estimate(self, attempt: Attempt) -> tuple[int, int]:
        """Tokens that the call may use at most, in and out. Raises nothing; sends nothing.

        What of them was not used is given back, by `attempt.usage`.
        """
        ...


class Executor(Protocol):
    """Sends rows. `open` and `close` frame its life; `execute` is called concurrently, at most `concurrency` times."""

    @property
    def active_sessions(self) -> int:
        """Sessions that are open right now (one a request in flight)."""
        ...

    async def open(self) -> None:
        """Get ready to send. Raises InvalidInput where what the manifest names is missing (a secret, say)."""
        ...

    async def execute(self, attempt: Attempt) -> Any:
        """Send one row and return its result, a JSON value. Raises RowError. Returns within `attempt.timeout`."""
        ...

    async def close(self) -> None:
        """Let go of everything; called once, when nothing is in flight."""
        ...
