"""The statements of `queries.sql` by name, so that SQL is read as SQL and code as code."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def _statements() -> dict[str, str]:
    text = files("rowmill.ledger").joinpath("queries.sql").read_text("utf-8")
    parts = _NAME.split(text)
    return {name: _without_comments(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _without_comments(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()


def statement(name: str, *, run: int | None = None) -> str:
    """The statement `name`; `run` (its number in the ledger) stands for the run's own outcomes table."""
    table = f"rowmill.outcomes_{run:d}" if run is not None else "rowmill.no_run_given"
    return _statements()[name].format(outcomes=table)
