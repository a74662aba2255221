"""The reference of the manifest's fields, written from the models."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from rowmill.spec.base import PATTERNS, Part
from rowmill.spec.fields import fields_of, is_list, models_in
from rowmill.spec.job import BatchJob, json_schema

BEGIN: Final = "<!-- fields: begin (written from the models; do not edit by hand) -->"
END: Final = "<!-- fields: end -->"


def field_tables() -> str:
    """Markdown: a table for each model, in the order in which a reader meets them."""
    schema = json_schema()
    return "\n".join(line for path, model in _sections() for line in _table(path, model, schema)).strip() + "\n"


def refreshed(document: str) -> str:
    """`document` with what stands between the marks written anew. Raises ValueError where a mark is missing."""
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the document needs the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{field_tables()}\n{END}{after}"


def _sections() -> Iterator[tuple[str, type[Part]]]:
    """Each model once, below the first path that leads to it."""
    seen: set[type[Part]] = set()

    def walk(path: str, model: type[Part]) -> Iterator[tuple[str, type[Part]]]:
        if model in seen:
            return
        seen.add(model)
        yield path, model
        for name, _, field in fields_of(model):
            for below in models_in(field.annotation):
                mark = "[]" if is_list(field.annotation) else ""
                yield from walk(f"{path}.{name}{mark}" if path else f"{name}{mark}", below)

    yield from walk("", BatchJob)


def _table(path: str, model: type[Part], schema: dict[str, Any]) -> Iterator[str]:
    properties = (schema if model is BatchJob else schema["$defs"][model.__name__])["properties"]
    yield f"### {f'`{path}`' if path else 'The manifest'}"
    yield ""
    yield _text(model.__doc__ or "")
    yield ""
    yield "| Field | Type | Default | Meaning |"
    yield "|---|---|---|---|"
    for name, _, field in fields_of(model):
        examples = f" Example: {_code(field.examples[0])}." if field.examples else ""
        meaning = f"{_text(field.description or '')}{examples}"
        yield f"| `{name}` | {_kind(properties[name])} | {_default(field)} | {meaning} |"
    yield ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    value = field.default if field.default is not PydanticUndefined else field.get_default(call_default_factory=True)
    if value is None or isinstance(value, Part) or value in ((), {}):
        return ""
    return _code(value)


def _kind(schema: dict[str, Any]) -> str:
    """A field's type and bounds in a few words."""
    options = [s for s in schema.get("anyOf", [schema]) if s.get("type") != "null"]
    return " or ".join(dict.fromkeys(_one_kind({**schema, **option}) for option in options))


def _one_kind(schema: dict[str, Any]) -> str:
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{v}`" for v in schema.get("enum", [schema.get("const")]))
    match schema.get("type"):
        case "integer":
            return f"integer {_number(schema['minimum'])} to {_number(schema['maximum'])}"
        case "number":
            return "number"
        case "boolean":
            return "true or false"
        case "string":
            if schema.get("pattern") in PATTERNS and "anyOf" not in schema:
                return f"text, at most {_number(schema['maxLength'])}: {_text(PATTERNS[schema['pattern']])}"
            return f"text, at most {_number(schema['maxLength'])}" if "maxLength" in schema else "text"
        case "array":
            items = _kind(schema["items"]) if "$ref" not in schema["items"] else "mapping"
            return f"list of at most {_number(schema['maxItems'])}: {items}"
        case "object":
            return "mapping" if "additionalProperties" not in schema else "mapping of any names"
    return "mapping" if "$ref" in schema else "any JSON"


def _number(value: int) -> str:
    return f"{value:,}"


def _code(value: Any) -> str:
    text = str(value) if isinstance(value, Decimal) else json.dumps(value, ensure_ascii=False)
    return f"`{text}`".replace("|", "\\|")


def _text(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """`python -m rowmill.spec.reference docs/manifest.md` writes the tables of a document anew."""
    for name in arguments:
        path = Path(name)
        path.write_text(refreshed(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
