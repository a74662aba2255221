"""The command line's own errors."""

from __future__ import annotations

from pathlib import Path


class InternalError(Exception):
    """A mistake in Rowmill itself; `__cause__` is what happened, `details` the file that holds the traceback."""

    def __init__(self, details: Path) -> None:
        super().__init__(f"details: {details}")
        self.details = details
