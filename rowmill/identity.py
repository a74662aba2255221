"""What names a run: never a resource's UID, so that a manifest applied again meets its own ledger."""

from __future__ import annotations

from typing import NamedTuple


class RunIdentity(NamedTuple):
    """A run is `installation / namespace / name / run_id`; a new `run_id` is a deliberate new run."""

    installation: str
    namespace: str
    name: str
    run_id: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}/{self.run_id}"
