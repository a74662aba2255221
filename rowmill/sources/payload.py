"""From cells to payload bytes: one JSON object a row, or the reason why there is none.

The fast way encodes many rows at once and looks at the bytes only for signs of trouble; only a group that shows
one is looked at row by row. No message ever holds a cell's content: it names the place and the columns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec

from rowmill.row import MAX_ROW_BYTES, BadRow

BAD_ROW = "BadRow"
ROW_TOO_LARGE = "RowTooLarge"
INVALID_TEXT = "InvalidText"

NUL_MARK = b"\\u0000"
"""How a NUL looks in encoded JSON (an escaped backslash before `u0000` looks the same: look closer)."""

_NULL_MARK = b"null"
_NAMES_SHOWN = 5
_NAME_SHOWN = 80

_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines


def shown_names(names: Sequence[str]) -> str:
    """Column names for a message, bounded in number and length."""
    short = [repr(n if len(n) <= _NAME_SHOWN else n[:_NAME_SHOWN] + "…") for n in names[:_NAMES_SHOWN]]
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(short) + more


def too_large(seq: int, place: str, size: int, *, note: str = "") -> BadRow:
    """The bad row for one whose bytes pass MAX_ROW_BYTES; `size` is what was seen of it."""
    return BadRow(
        seq,
        ROW_TOO_LARGE,
        f"{place}: the row takes {size:,} bytes, more than the {MAX_ROW_BYTES:,} that a row may have{note}; "
        "shorten its cells, or hand over a reference to the content in place of the content",
    )


def lines_of(rows: Sequence[Any]) -> list[bytes] | None:
    """The payloads of `rows` where all are beyond doubt, or None: then look at each with `payload_of`."""
    try:
        encoded = _encode_lines(rows)
    except (UnicodeEncodeError, TypeError, ValueError, OverflowError, RecursionError):
        return None
    if NUL_MARK in encoded:
        return None
    payloads = encoded.split(b"\n")
    payloads.pop()
    if len(encoded) > MAX_ROW_BYTES and max(map(len, payloads)) > MAX_ROW_BYTES:
        return None
    return payloads


def payload_of(seq: int, row: Mapping[str, Any], place: Callable[[], str]) -> bytes | BadRow:
    """One row's payload, or why it has none. `place` tells a person where the row is (`line 7`)."""
    try:
        payload = _encode(row)
    except UnicodeEncodeError:
        names = shown_names(_columns_where(row, _has_surrogate))
        return BadRow(
            seq,
            INVALID_TEXT,
            f"{place()}: column {names} holds half of a surrogate pair, which is no character; remove it",
        )
    except TypeError:
        kinds = sorted({type(v).__name__ for v in row.values()})
        return BadRow(seq, BAD_ROW, f"{place()}: a value has no JSON form (types of its cells: {', '.join(kinds)})")
    except (ValueError, OverflowError):
        return BadRow(seq, BAD_ROW, f"{place()}: a number has more digits than can be read; write it as text")
    except RecursionError:
        return BadRow(seq, BAD_ROW, f"{place()}: the row's values are nested too deeply; flatten them")
    if len(payload) > MAX_ROW_BYTES:
        return too_large(seq, place(), len(payload))
    if NUL_MARK in payload and (with_nul := _columns_where(row, _has_nul)):
        return BadRow(
            seq,
            INVALID_TEXT,
            f"{place()}: column {shown_names(with_nul)} holds a NUL character, which cannot be stored; remove it",
        )
    if _NULL_MARK in payload and (infinite := _columns_where(row, _is_infinite)):
        return BadRow(
            seq,
            BAD_ROW,
            f"{place()}: column {shown_names(infinite)} holds an infinite number, which JSON does not have; "
            "write it as text or leave it out",
        )
    return payload


def payloads_of(rows: Sequence[Mapping[str, Any]], first: int, place: Callable[[int], str]) -> list[bytes | BadRow]:
    """Payloads or reasons for consecutive rows from `first`; `place(i)` tells where `rows[i]` is."""
    payloads: Sequence[bytes | None] = lines_of(rows) or [None] * len(rows)
    # A null may have been an infinite number: only such rows are looked at closely.
    return [
        payload
        if payload is not None and _NULL_MARK not in payload
        else payload_of(first + i, rows[i], partial(place, i))
        for i, payload in enumerate(payloads)
    ]


def _columns_where(row: Mapping[str, Any], holds: Callable[[Any], bool]) -> list[str]:
    return [_printable(name) for name, value in row.items() if holds(name) or _anywhere(value, holds)]


def _anywhere(value: Any, holds: Callable[[Any], bool]) -> bool:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, Mapping):
            stack.extend(item.keys())
            stack.extend(item.values())
        elif isinstance(item, list | tuple):
            stack.extend(item)
        elif holds(item):
            return True
    return False


def _has_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _has_surrogate(value: Any) -> bool:
    return isinstance(value, str) and any("\ud800" <= c <= "\udfff" for c in value)


def _is_infinite(value: Any) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _printable(name: object) -> str:
    return str(name).encode("utf-8", "backslashreplace").decode()
