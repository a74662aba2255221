"""What a child process that failed means for the row that was in it. Pure."""

from __future__ import annotations

from typing import Final

from rowmill_worker.children.child import ChildDied, ChildFailed, ChildUnusable
from rowmill_worker.children.messages import Failure
from rowmill_worker.executors.protocol import RowError

START_AGAIN_SECONDS: Final = 5.0


def unavailable(error: ChildUnusable | ChildFailed) -> RowError:
    """No process could be had: the row waits for better times."""
    return RowError(
        "ProcessUnavailable",
        f"no process could be started for this row: {error}; it is handed back, and tried again",
        retryable=True,
        retry_after=START_AGAIN_SECONDS,
        spent=False,
    )


def crashed(died: ChildDied) -> RowError:
    """The process ended under the row. It costs an attempt where only this row can have been at fault."""
    if died.ended:
        return RowError(
            "ProcessEnded",
            f"its process was ended because of another row ({died.how}); the row is handed back",
            retryable=True,
            spent=False,
        )
    if died.beside:
        return RowError(
            "ProcessCrashed",
            f"its process died: {died.how}; {died.beside} other rows ran in it, so the row runs again, alone",
            retryable=True,
            spent=False,
        )
    return RowError("ProcessCrashed", f"its process died: {died.how}", retryable=True)


def row_error(failure: Failure) -> RowError:
    """A failure that a child told."""
    return RowError(failure.error_class, failure.message, retryable=failure.retryable, retry_after=failure.retry_after)
