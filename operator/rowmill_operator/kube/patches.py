"""JSON merge patches (RFC 7396): made of two documents, joined, and said again. Pure.

A field that goes is a null, a list is replaced whole, and a document itself holds no nulls. Objects within documents
are plain dicts, as a JSON parser makes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Document = Mapping[str, Any]


def merge_patch(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any] | None:
    """The smallest JSON merge patch that makes `new` of `old`; None when there is nothing to do.

    What `new` lacks, or holds as None, is sent as null. Lists are replaced whole. Within them objects are plain dicts,
    as a JSON parser makes them.
    """
    old = old or {}
    patch: dict[str, Any] = {key: None for key, value in old.items() if value is not None and new.get(key) is None}
    for key, value in new.items():
        if value is None:
            continue
        held = old.get(key)
        if isinstance(value, dict) and isinstance(held, dict):
            if (inner := merge_patch(held, value)) is not None:
                patch[key] = inner
        elif not _same(held, value):
            patch[key] = without_nulls(value) if isinstance(value, dict) else value
    return patch or None


def retouched(touched: Document, document: Document) -> dict[str, Any]:
    """A merge patch that says again everything that the patch `touched` spoke of, as it is in `document`."""
    patch: dict[str, Any] = {}
    for key, value in touched.items():
        held = document.get(key)
        patch[key] = retouched(value, held) if isinstance(value, dict) and isinstance(held, dict) else held
    return patch


def merged(one: Document, other: Document) -> dict[str, Any]:
    """Two merge patches in one; where both speak of the same, `other` wins."""
    patch = dict(one)
    for key, value in other.items():
        held = patch.get(key)
        patch[key] = merged(held, value) if isinstance(value, dict) and isinstance(held, dict) else value
    return patch


def touching(one: Document, other: Document) -> dict[str, Any]:
    """All that either of two merge patches speaks of, for `retouched`; the values mean nothing. Fields of an object
    stay spoken of though the other patch takes the object away: who knows which of the two was heard."""
    both = dict(one)
    for key, value in other.items():
        held = both.get(key)
        if isinstance(held, dict):
            both[key] = touching(held, value) if isinstance(value, dict) else held
        else:
            both[key] = value
    return both


def without_nulls(value: Mapping[str, Any]) -> dict[str, Any]:
    """An object without its null fields, at every depth but within lists."""
    return {
        key: without_nulls(inner) if isinstance(inner, dict) else inner
        for key, inner in value.items()
        if inner is not None
    }


def _same(one: Any, other: Any) -> bool:
    """Whether two values are one in JSON; to `==` true is 1."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other) and isinstance(one, bool) is isinstance(other, bool)
