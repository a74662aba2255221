"""The one error that reaches a person: what happened, and what to do about it."""

from __future__ import annotations


class ClusterError(Exception):
    """Something that a person must read. `what` says what happened and where, `fix` what to do next."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(f"{what}\n  {fix}" if fix else what)
        self.what = what
        self.fix = fix
