"""Rows on their way from a source into the window.

A row is told apart by its position: `seq`, from 1. Its payload is one JSON object in UTF-8, column to cell, as
it travels through Redis and reaches the executor. A row that cannot become a payload is a `BadRow`: it ends
Failed with its number and the reason, and the rows after it go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

MAX_ROW_BYTES = 1_048_576
"""Bytes of one row's payload; a larger one ends Failed with class RowTooLarge."""

MAX_SEQ = 2**31 - 1
"""The last row number: row locks are pairs of 32-bit integers."""


class BadRow(NamedTuple):
    """A row that is bad before any call: `error_class` in CamelCase, `message` for a person, naming the place."""

    seq: int
    error_class: str
    message: str


class Entry(NamedTuple):
    """A row ready for the window."""

    seq: int
    payload: bytes


class Position(NamedTuple):
    """Where reading can go on: the next row's `seq`, and what the format needs to get there fast.

    `hint` is a small JSON object of the format's own (a byte offset, a row group); an empty one is always legal
    and means "skip from the start". It is advisory: a reader that cannot use it skips.
    """

    seq: int = 1
    hint: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a source: `entries` and `bad` together are exactly the seqs `first`..`end.seq - 1`."""

    first: int
    entries: list[Entry]
    bad: list[BadRow]
    end: Position
