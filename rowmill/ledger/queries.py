"""The statements of `queries.sql` by name, so that SQL is read as SQL and code as code."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files

import msgspec

_NAME = re.compile(r"^-- name: (\w+)\s*$", re.MULTILINE)


@cache
def _statements() -> dict[str, str]:
    text = files("rowmill.ledger").joinpath("queries.sql").read_text("utf-8")
    parts = _NAME.split(text)
    return {name: _without_comments(body) for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def _without_comments(body: str) -> str:
    lines = (line for line in body.splitlines() if not line.startswith("--"))
    return "\n".join(lines).strip()


@lru_cache(1024)
def statement(name: str, *, run: int | None = None, on_conflict: str = "") -> str:
    """The statement `name`; `run` (its number in the ledger) stands for the run's own outcomes table, `on_conflict` for
    the clause of a statement that leaves it open."""
    table = f"rowmill.outcomes_{run:d}" if run is not None else "rowmill.no_run_given"
    return _statements()[name].format(outcomes=table, on_conflict=on_conflict)


def int_array(numbers: Sequence[int]) -> str:
    """An array as Postgres reads it from text (`$1::text::int[]`). The driver's own encoding of an array takes 0.2 µs a
    number, this one a twentieth of it: with four blocks of numbers a row that is felt."""
    return "{" + msgspec.json.encode(numbers)[1:-1].decode() + "}"
