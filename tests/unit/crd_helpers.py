"""What an API server does with a CRD, in a few lines each: check the schema, default, prune, evaluate its rules."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import celpy
from celpy import celtypes
from celpy.adapter import json_to_cel

Schema = dict[str, Any]

TYPES = {"object", "array", "string", "integer", "number", "boolean"}
KNOWN = {
    *("description", "type", "format", "enum", "pattern", "default", "required", "properties", "additionalProperties"),
    *("items", "anyOf", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "minProperties"),
    *("maxProperties", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-map-type", "x-kubernetes-validations"),
}
"""All that Rowmill's schema uses. Whatever else pydantic may write one day is looked up before it is let in here."""


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema in a schema, with its path."""
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}" if path else name)
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def schema_problems(root: Schema) -> list[str]:
    """What keeps a schema from being structural, or from teaching and bounding what it should."""
    found: list[str] = []
    for path, node in nodes(root):
        found += [f"{path}: {problem}" for problem in _node_problems(node, free=path == "metadata")]
    return found


def _node_problems(node: Schema, *, free: bool) -> Iterator[str]:
    if unknown := sorted(set(node) - KNOWN):
        yield f"has {', '.join(unknown)}"
    int_or_string = node.get("x-kubernetes-int-or-string") is True
    any_json = node.get("x-kubernetes-preserve-unknown-fields") is True
    kind = node.get("type")
    if not (int_or_string or any_json) and kind not in TYPES:
        yield f"has the type {kind}"
    if "anyOf" in node and not (int_or_string and node["anyOf"] == [{"type": "integer"}, {"type": "string"}]):
        yield "has an anyOf"
    if "properties" in node and "additionalProperties" in node:
        yield "has properties and additionalProperties"
    if isinstance(node.get("additionalProperties"), bool):
        yield "has additionalProperties that are no schema"
    if set(node.get("required", ())) - set(node.get("properties", ())):
        yield "requires what it does not declare"
    if not free and not node.get("description"):
        yield "has no description"
    if kind == "array":
        yield from _list_problems(node)
    if kind == "object" and not free and not any_json and not ({"properties", "additionalProperties"} & set(node)):
        yield "is an object of which everything is pruned"
    if isinstance(node.get("additionalProperties"), dict) and "maxProperties" not in node:
        yield "is a map without bound"
    if kind == "integer" and (node.get("format") != "int64" or "minimum" not in node):
        yield "is an integer without format or lower bound"
    if any(abs(node.get(bound, 0)) >= 2**53 for bound in ("minimum", "maximum")):
        yield "has a bound that a floating number does not hold"
    if (
        kind == "string"
        and "enum" not in node
        and "maxLength" not in node
        and not node["description"].startswith("Alw")
    ):
        yield "is a text without bound"
    if (pattern := node.get("pattern")) is not None:
        yield from _pattern_problems(pattern)
    if "default" in node:
        if node["default"] is None:
            yield "has the default null"
        elif pruned(node["default"], node) != node["default"]:
            yield "has a default that is pruned"
    yield from (f"has a rule of several lines: {r}" for r in node.get("x-kubernetes-validations", ()) if "\n" in str(r))


def _list_problems(node: Schema) -> Iterator[str]:
    items = node.get("items")
    if not isinstance(items, dict) or "maxItems" not in node:
        yield "is a list without items or bound"
        return
    match node.get("x-kubernetes-list-type"):
        case "atomic":
            pass
        case "set":
            if items.get("type") not in ("string", "integer"):
                yield "is a set of what is no scalar"
        case "map":
            keys = node.get("x-kubernetes-list-map-keys", [])
            if not keys or not set(keys) <= set(items.get("required", ())):
                yield "is a map by what is not required"
        case other:
            yield f"has the list type {other}"


def _pattern_problems(pattern: str) -> Iterator[str]:
    re.compile(pattern)
    if not (pattern.startswith("^") and pattern.endswith("$")):
        yield f"has a pattern without anchors: {pattern}"
    if re.search(r"\(\?[=!<]|\\[1-9]|[*+?}]\+", re.sub(r"\[[^]]+\]", "c", pattern)):
        yield f"has a pattern that RE2 does not know: {pattern}"


def stored(resource: Schema, schema: Schema) -> Schema:
    """A resource as the API server stores it."""
    made = defaulted(resource, schema)
    assert isinstance(made, dict)
    return made


def defaulted(value: Any, schema: Schema) -> Any:
    """`value` as the API server stores it: nulls that no schema allows dropped, defaults written, all the way down."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        made = {name: inner for name, inner in value.items() if inner is not None or name not in properties}
        for name, below in properties.items():
            if name not in made and "default" in below:
                made[name] = copy.deepcopy(below["default"])
        values = schema.get("additionalProperties")
        return {
            name: defaulted(inner, properties.get(name, values if isinstance(values, dict) else {}))
            for name, inner in made.items()
        }
    if isinstance(value, list) and "items" in schema:
        return [defaulted(item, schema["items"]) for item in value]
    return value


def pruned(value: Any, schema: Schema) -> Any:
    """`value` without the fields that the schema does not know."""
    if schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
        return value
    if isinstance(value, dict):
        values = schema.get("additionalProperties")
        if isinstance(values, dict):
            return {name: pruned(inner, values) for name, inner in value.items()}
        below = schema.get("properties", {})
        return {name: pruned(inner, below[name]) for name, inner in value.items() if name in below}
    if isinstance(value, list):
        return [pruned(item, schema.get("items", {})) for item in value]
    return value


def _lower_ascii(text: celtypes.StringType) -> celtypes.StringType:
    return celtypes.StringType("".join(c.lower() if c.isascii() else c for c in text))


@cache
def _program(rule: str) -> Any:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule), functions={"lowerAscii": _lower_ascii})


RESERVED = {"as", "break", "const", "continue", "else", "for", "function", "if", "import", "in", "let", "loop"} | {
    *("namespace", "package", "return", "var", "void", "while", "true", "false", "null"),
}
"""Words of CEL: a field of such a name is written with underscores around it."""


def opaque(value: Any, schema: Schema) -> Any:
    """`value` as rules see it: free JSON has no parts, it is equal as a whole or not."""
    if schema.get("x-kubernetes-preserve-unknown-fields") and not schema.get("properties"):
        return json.dumps(value, sort_keys=True)
    if isinstance(value, dict):
        values = schema.get("additionalProperties")
        properties = schema.get("properties", {})
        return {
            f"__{n}__" if n in RESERVED and n in properties else n: opaque(
                v, properties.get(n, values if isinstance(values, dict) else {})
            )
            for n, v in value.items()
        }
    if isinstance(value, list):
        return [opaque(item, schema.get("items", {})) for item in value]
    return value


def holds(rule: str, **variables: Any) -> bool:
    """Evaluate a rule; an error of the evaluation is an error of the test."""
    result = _program(rule).evaluate({name: json_to_cel(value) for name, value in variables.items()})
    assert isinstance(result, celtypes.BoolType), result
    return bool(result)


def refused(value: Any, schema: Schema, *, old: Any = None, path: str = "") -> Iterator[tuple[str, Mapping[str, str]]]:
    """The rules that a (defaulted) value breaks, each with the place where it does; `old` is what it replaces."""
    now, before = (opaque(v, schema) if v is not None else None for v in (value, old))
    for rule in schema.get("x-kubernetes-validations", ()):
        if "oldSelf" in rule["rule"]:
            if before is not None and not holds(rule["rule"], self=now, oldSelf=before):
                yield path, rule
        elif not holds(rule["rule"], self=now):
            yield path, rule
    if isinstance(value, dict):
        for name, below in schema.get("properties", {}).items():
            if name in value:
                earlier = old.get(name) if isinstance(old, dict) else None
                yield from refused(value[name], below, old=earlier, path=f"{path}.{name}" if path else name)
    elif isinstance(value, list) and "items" in schema:
        for i, item in enumerate(value):
            yield from refused(item, schema["items"], path=f"{path}[{i}]")
