"""Which rows a part covers and what it is called. Pure; whoever knows the run knows the names.

Part `i` covers rows `i * part_rows + 1` to `(i + 1) * part_rows`, the last one to the end of the source. Its name tells
the range, so that writing it again takes the place of what was there, and names sort as rows do.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from rowmill.results import SUFFIXES

PART_ROWS: Final = 50_000
"""Rows of a part: few objects for a large run, and little to write again when one row of it changes."""

PART_BYTES: Final = 256 * 1024 * 1024
"""A part is cut into further objects at so many bytes: they are spooled on this machine, and read by others."""

CHECKPOINT: Final = "_rowmill.json"
FAILURES_FILE_ROWS: Final = 1_000_000
"""Rows of a file of failures; more go to a further one: stores bound the size of an object."""

_OURS: Final = re.compile(
    r"part-\d{9,10}-\d{9,10}(_\d{4,})?(\.jsonl|\.csv|\.parquet)|failures(_\d{4,})?\.jsonl", re.ASCII
)


class Span(NamedTuple):
    """Rows `first`..`last`."""

    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first + 1


def span_of(index: int, *, part_rows: int, total: int | None) -> Span:
    """The rows of part `index`, from 0. The last part is cut at `total` where that is known."""
    first = index * part_rows + 1
    last = first + part_rows - 1
    return Span(first, last if total is None else min(last, total))


def parts_up_to(last: int, *, part_rows: int) -> int:
    """How many parts rows 1..`last` take."""
    return -(-last // part_rows)


def part_name(span: Span, format: str, number: int = 1) -> str:
    """The object `number`, from 1, of a part."""
    return f"part-{span.first:09d}-{span.last:09d}{_nth(number)}{SUFFIXES[format]}"


def failures_name(number: int) -> str:
    """The file of failures `number`, from 1."""
    return f"failures{_nth(number)}.jsonl"


def written_by_us(name: str) -> bool:
    """Whether a name is one that only a writer of parts gives: what of it no checkpoint names may be deleted."""
    return _OURS.fullmatch(name) is not None


def run_folder(uri: str, run_id: str) -> str:
    """The folder of a run below `output.uri`; ends with a slash."""
    return f"{uri.rstrip('/')}/{run_id}/"


def _nth(number: int) -> str:
    return "" if number == 1 else f"_{number:04d}"
