"""The JSON schema bounds and describes everything; the reference for people is fresh and its examples are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rowmill.spec import json_schema, load_manifest, not_available
from rowmill.spec.reference import BEGIN, END, main, refreshed
from rowmill.templating.filters import filter_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "manifest.md"


def parts(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(schema, list):
        for i, item in enumerate(schema):
            yield from parts(item, f"{path}[{i}]")
    elif isinstance(schema, dict):
        yield path, schema
        for name, item in schema.items():
            if name not in ("default", "examples"):
                yield from parts(item, f"{path}.{name}")


def test_everything_in_the_schema_is_bounded_and_described() -> None:
    schema = json_schema()
    unbounded = []
    for path, part in parts(schema, ""):
        fixed = "enum" in part or "const" in part
        wanted = {
            "integer": ("minimum", "maximum"),
            "string": () if fixed else ("maxLength",),
            "array": ("maxItems",),
        }.get(part.get("type", "") if isinstance(part.get("type"), str) else "", ())
        unbounded += [f"{path} has no {bound}" for bound in wanted if bound not in part]
        for name, field in part.get("properties", {}).items() if "additionalProperties" in part else ():
            inherited = schema["$defs"].get(field.get("$ref", "").rpartition("/")[2], {})
            if not (field.get("description") or inherited.get("description")):
                unbounded.append(f"{path}.{name} has no description")
    assert unbounded == []


def test_names_in_the_schema_are_those_of_the_manifest() -> None:
    names = [name for _, part in parts(json_schema(), "") for name in part.get("properties", {})]
    assert len(names) > 100
    assert [name for name in names if not re.fullmatch(r"[a-z][A-Za-z]*", name)] == []


def test_the_reference_is_fresh() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert refreshed(text) == text, "write it anew: python -m rowmill.spec.reference docs/manifest.md"


def test_the_reference_is_written_in_place(tmp_path: Path) -> None:
    path = tmp_path / "m.md"
    path.write_text(f"before\n{BEGIN}\nstale words\n{END}\nafter\n", encoding="utf-8")
    assert main([str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "`timeoutSeconds`" in text
    assert "stale words" not in text
    with pytest.raises(ValueError, match="needs the lines"):
        refreshed("no marks")


def test_the_examples_of_the_reference_are_right() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert len(examples) >= 3
    whole = yaml.safe_load(examples[0])
    for example in examples:
        part = yaml.safe_load(example)
        job = {**whole, "spec": {**whole["spec"], **part.get("spec", {})}}
        if "headers" in part:
            job["spec"]["executor"] = {"http": {"url": "http://x/", "headers": part["headers"]}}
        assert not_available(load_manifest(yaml.safe_dump(job), where="example")) == []


def test_every_filter_is_told() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in filter_table() if not re.search(rf"`{name}(?:\(\w+\))?`", text)] == []
