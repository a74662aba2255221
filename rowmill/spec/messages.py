"""Pydantic's findings as sentences for somebody who sees the manifest's fields for the first time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from rowmill.errors import Problem
from rowmill.spec.base import PATTERNS, SENTENCE, Part
from rowmill.spec.fields import model_at
from rowmill.templating.errors import did_you_mean, shown
from rowmill.templating.values import join_path


def place_path(place: tuple[str | int, ...], root: str = "") -> str:
    """`spec.executor.http.headers[0].name` of its parts."""
    path = root
    for part in place:
        path = join_path(path, part)
    return path


def problems_of(
    exc: ValidationError, *, model: type[Part], root: str = ""
) -> list[tuple[tuple[str | int, ...], Problem]]:
    """Every finding, with its place and as a Problem."""
    found = []
    for error in exc.errors(include_url=False):
        place = error["loc"]
        found.append((place, Problem(place_path(place, root), _message(error, model))))
    return found


def given(value: Any, *, place: tuple[str | int, ...] = ()) -> str:
    """What stands there, in a newcomer's words. What may hold a secret is not repeated."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {value}"
    if isinstance(value, str):
        return "a text" if "headers" in place or "apiKey" in place else f"the text {shown(value)}"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "something else"


def _message(error: ErrorDetails, model: type[Part]) -> str:
    kind, value, place = error["type"], error.get("input"), error["loc"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == SENTENCE:
        return str(error["msg"])
    if kind == "extra_forbidden":
        return _unknown(place, model)
    if kind == "missing":
        return "is missing; this field is required"
    told = given(value, place=place)
    if (wanted := _WANTED.get(kind)) is not None:
        if value is None:
            return f"has nothing after the colon; write {wanted}, or leave the field out"
        hint = f'; quote it: "{value}"' if kind == "string_type" and isinstance(value, int | float) else ""
        if kind == "string_type" and isinstance(value, bool):
            hint = f'; quote it: "{str(value).lower()}"'
        return f"must be {wanted}, not {told}{hint}"
    if (describe := _BOUNDS.get(kind)) is not None:
        return describe(context, told)
    return f"is not right ({kind}); it is {told}"


def _unknown(place: tuple[str | int, ...], model: type[Part]) -> str:
    name = str(place[-1])
    owner = model_at(model, place[:-1])
    known = [f.alias or n for n, f in owner.model_fields.items()] if owner is not None else []
    if meant := did_you_mean(name, known):
        return f"unknown field{meant.replace(chr(34), '`')}"
    return f"unknown field; there are {', '.join(known)}" if known else "unknown field; remove it"


_A_MAPPING: Final = "a mapping (fields, indented below it)"
_WANTED: Final[Mapping[str, str]] = {
    "string_type": "text",
    "string_unicode": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": _A_MAPPING,
    "model_type": _A_MAPPING,
    "model_attributes_type": _A_MAPPING,
}


def _count(context: Mapping[str, Any], name: str, what: str) -> str:
    number = int(context[name])
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _length(context: Mapping[str, Any], name: str) -> str:
    return _count(context, name, "item" if context.get("field_type") != "String" else "character")


_BOUNDS: Final[Mapping[str, Callable[[dict[str, Any], str], str]]] = {
    "literal_error": lambda c, told: f"must be {c['expected'].replace(chr(39), '')}, not {told}",
    "string_pattern_mismatch": lambda c, told: f"must be {PATTERNS.get(c['pattern'], c['pattern'])}; it is {told}",
    "string_too_short": lambda c, _: (
        "is empty; write something, or leave the field out"
        if c["min_length"] == 1
        else f"must have at least {_count(c, 'min_length', 'character')}"
    ),
    "string_too_long": lambda c, _: f"must have at most {_count(c, 'max_length', 'character')}",
    "too_short": lambda c, _: f"must have at least {_length(c, 'min_length')}",
    "too_long": lambda c, _: f"must have at most {_length(c, 'max_length')}",
    "greater_than_equal": lambda c, told: f"must be {c['ge']} or more, not {told}",
    "less_than_equal": lambda c, told: f"must be {c['le']} or less, not {told}",
}
