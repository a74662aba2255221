"""A row's recorded end. One a row and generation, never changed; Succeeded and Deduplicated are final for good."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple


class State(IntEnum):
    """How a row ended; the numbers are what the ledger stores and must never be renumbered."""

    SUCCEEDED = 1
    FAILED = 2
    DEDUPLICATED = 3

    @property
    def label(self) -> str:
        """The name as people meet it: `Succeeded`, `Failed`, `Deduplicated`."""
        return self.name.capitalize()


class Outcome(NamedTuple):
    """What the ledger holds of one row.

    `attempts` counts calls that were sent (0 for a row that was bad before any call). `result`, `key` and
    `columns` are JSON texts (UTF-8), or None. `error_class` is CamelCase (`HTTP503`, `Timeout`, `BadRow`);
    `error_message` is a sentence for a person, at most 2,000 characters, never a secret or a whole payload.
    A Deduplicated row names its winner in `duplicate_of` (`namespace/name/runId#seq`) and carries its result.
    `input_tokens` and `output_tokens` are what the row's last call used, None where its endpoint does not tell.
    """

    seq: int
    state: State
    attempts: int
    result: str | None = None
    error_class: str | None = None
    error_message: str | None = None
    key: str | None = None
    columns: str | None = None
    duplicate_of: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
