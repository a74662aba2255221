"""JSON schemas that a manifest holds, and what they say of an answer.

A schema is a tenant's text: it leads nowhere but into itself (`#/…`), so that checking an answer never opens a
connection, and it is tried once before it is used, so that one which cannot be applied is told at `rowmill validate`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import unquote

import jsonschema  # type: ignore[import-untyped]  # ships no types
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.exceptions import Unresolvable

from rowmill.spec.base import Finding

_REFERENCES: Final = ("$ref", "$dynamicRef")
_MAX_FINDINGS: Final = 10
_SHOWN: Final = 200
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


def schema_findings(schema: Mapping[str, Any]) -> list[Finding]:
    """What is wrong with a schema (draft 2020-12), by its place in it; at most ten findings."""
    checker = Draft202012Validator(Draft202012Validator.META_SCHEMA, format_checker=Draft202012Validator.FORMAT_CHECKER)
    findings: list[Finding] = []
    try:
        for error in checker.iter_errors(schema):
            findings.append((tuple(error.absolute_path), f"is no JSON schema: {_short(error.message)}"))
            if len(findings) == _MAX_FINDINGS:
                return findings
    except RecursionError:
        return [((), "is nested too deeply; make it flatter")]
    if findings:
        return findings
    for place, name, reference in _references(schema):
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            findings.append(
                ((*place, name), "leads out of the schema; copy what it names below $defs, and write #/$defs/…")
            )
        elif not _resolves(schema, reference):
            findings.append(((*place, name), f"names {_short(reference)}, and the schema has nothing there"))
    if not findings and not _usable(schema):
        findings.append(((), "refers to itself without end; let every way round lead through properties or items"))
    return findings[:_MAX_FINDINGS]


def compiled_schema(schema: Mapping[str, Any]) -> Callable[[Any], str | None]:
    """A function that says where a JSON value does not fit `schema`, in a few words; None where it does.

    `schema` is one that `schema_findings` takes. Nothing is fetched, whatever it names.
    """
    validator = Draft202012Validator(schema, registry=Registry())

    def misfit(value: Any) -> str | None:
        try:
            error = next(iter(validator.iter_errors(value)), None)
        except RecursionError:
            return "it is nested too deeply to be checked"
        if error is None:
            return None
        return f"{error.json_path}: {_short(error.message)}"

    return misfit


def _references(schema: Mapping[str, Any]) -> Iterator[tuple[tuple[str | int, ...], str, Any]]:
    pending: list[tuple[tuple[str | int, ...], Any]] = [((), schema)]
    while pending:
        place, item = pending.pop()
        if isinstance(item, Mapping):
            for name, inner in item.items():
                # A property that is called $ref is an object; the keyword is a text.
                if name in _REFERENCES and not isinstance(inner, Mapping):
                    yield place, name, inner
                else:
                    pending.append(((*place, name), inner))
        elif isinstance(item, list | tuple):
            pending += [((*place, i), inner) for i, inner in enumerate(item)]


def _resolves(schema: Any, reference: str) -> bool:
    item = schema
    for part in unquote(reference).split("/")[1:]:
        part = part.replace("~1", "/").replace("~0", "~")
        if isinstance(item, Mapping) and part in item:
            item = item[part]
        elif isinstance(item, list) and _INDEX.fullmatch(part) and int(part) < len(item):
            item = item[int(part)]
        else:
            return False
    return isinstance(item, Mapping | bool)


def _usable(schema: Mapping[str, Any]) -> bool:
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        samples: tuple[Any, ...] = (None, {}, [], "", 0)
        for sample in samples:
            validator.is_valid(sample)
    except (RecursionError, Unresolvable, jsonschema.exceptions.UnknownType):
        return False
    return True


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= _SHOWN else flat[: _SHOWN - 1] + "…"
