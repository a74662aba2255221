"""What is told when a template or a query is wrong, or does not fit a row."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from rowmill.errors import RowmillError


class TemplateError(RowmillError):
    """A template or query that does not compile, or that cannot be rendered for a row.

    `path` names the leaf in the manifest (`spec.executor.http.body.text`); `message` says what is wrong and what is
    right. It may name columns, never what stands in a cell.
    """

    def __init__(self, path: str, message: str) -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path
        self.message = message


class Refused(Exception):
    """Raised inside a render by what bounds it; becomes a `TemplateError` once the leaf's path is known."""


def shown(name: str) -> str:
    """A name in double quotes, cut to 60 characters, so that a message stays one short line."""
    flat = "".join(c if c.isprintable() else "?" for c in name)
    return f'"{flat}"' if len(flat) <= 60 else f'"{flat[:57]}..."'


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean "x"?)`, or nothing where no known name is near."""
    near = nearest(name, known)
    return f"; did you mean {shown(near)}?" if near is not None else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that a person most likely meant: another case or spelling first, then a near one."""
    names = list(known)
    folded = {_fold(k): k for k in reversed(names)}
    if (same := folded.get(_fold(name))) is not None:
        return same
    near = difflib.get_close_matches(_fold(name)[:200], [f[:200] for f in folded], n=1, cutoff=0.7)
    return next((k for f, k in folded.items() if f[:200] == near[0]), None) if near else None


def _fold(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())
