"""Errors whose text is told to people as it stands: what happened, where, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Self


class RowmillError(Exception):
    """Base of every error that Rowmill raises on purpose; `str()` of it is fit for a person."""


class Problem(NamedTuple):
    """One thing wrong with an input: `path` (such as `spec.executor.http.url`) and what is wrong, what is right."""

    path: str
    message: str


class InvalidInput(RowmillError):
    """A manifest, a source or an option that cannot be used as it is. The command line exits with 2.

    `where` names the file or object; `problems` hold one entry an error, at least one.
    """

    def __init__(self, where: str, problems: Iterable[Problem]) -> None:
        self.where = where
        self.problems = tuple(problems)
        super().__init__("\n".join(self.lines()))

    @classmethod
    def one(cls, where: str, path: str, message: str) -> Self:
        return cls(where, [Problem(path, message)])

    def lines(self) -> list[str]:
        """One line a problem: `FILE: spec.path: message` (the path left out where there is none)."""
        return [": ".join(part for part in (self.where, p.path, p.message) if part) for p in self.problems]


class FrozenChanged(InvalidInput):
    """A manifest that differs, in what shapes a request, from the one that its run began with."""


class ResultsDropped(InvalidInput):
    """The outcomes of a run were dropped after their retention: it can be neither read nor gone on with."""


class StoreUnavailable(RowmillError):
    """Redis or Postgres cannot be reached or refuses us. Whoever runs goes on waiting; whoever starts says so."""


class PlaceUnavailable(RowmillError):
    """Where a table comes from or results go (a web server, an object store, the cache's disk) cannot be used now.

    It passes, or somebody mends it, without a change of the manifest: whoever runs waits and tries again, not before
    `retry_after` seconds where the place named a time.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class StoreUnsafe(RowmillError):
    """Redis or Postgres answers, but is too old or set in a way that loses rows. Nothing is started."""


class SourceChanged(RowmillError):
    """The source is not the one that the run began with: its rows can no longer be told apart by position."""


class StateInUse(RowmillError):
    """Another process works on this run or state directory."""
