"""A row's key: what people and dedupe know it by. Rows themselves are told apart by position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from rowmill.errors import RowmillError
from rowmill.spec.frozen import canonical_json
from rowmill.spec.job import Spec
from rowmill.templating.errors import did_you_mean, shown

MAX_KEY_BYTES: Final = 1_024


class BadKey(RowmillError):
    """A row that has no usable key: it ends Failed with `error_class`. The message never repeats a cell."""

    error_class: Final = "BadKey"


def key_value(spec: Spec, row: Mapping[str, Any]) -> Any:
    """The key as templates see it: one column's value, a list of several, None where the spec declares none."""
    if not spec.key:
        return None
    values = []
    for column in spec.key:
        if column not in row:
            meant = did_you_mean(column, row) or "; correct the row or spec.key"
            raise BadKey(f"the row has no column {shown(column)}, which spec.key names{meant}")
        values.append(row[column])
    if spec.dedupe is not None and all(value is None or value == "" for value in values):
        raise BadKey(f"the key ({', '.join(spec.key)}) is empty, and all empty keys would be one; fill it in")
    return values[0] if len(values) == 1 else values


def canonical_key(spec: Spec, row: Mapping[str, Any]) -> str | None:
    """The key as JSON text, the same for equal keys: at most 1,024 bytes. Raises BadKey; None without `spec.key`."""
    if not spec.key:
        return None
    try:
        text = canonical_json(key_value(spec, row))
    except (ValueError, TypeError, RecursionError):
        raise BadKey(f"the key ({', '.join(spec.key)}) is no JSON value; correct the row") from None
    if len(text) > MAX_KEY_BYTES:
        raise BadKey(f"the key ({', '.join(spec.key)}) takes {len(text):,} bytes, and {MAX_KEY_BYTES:,} are allowed")
    return text.decode()
