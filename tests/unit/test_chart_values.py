"""Every value is documented, bounded by the schema and used; what is generated is not stale."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from helm.generate import documented
from tests.unit.chart_helpers import CHART, EXISTING, ROOT, merged, try_render

TEXT = (CHART / "values.yaml").read_text("utf-8")
VALUES: dict[str, Any] = yaml.safe_load(TEXT)
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text("utf-8"))
TEMPLATES = "\n".join(path.read_text("utf-8") for path in sorted((CHART / "templates").rglob("*.*")))


def leaves(values: dict[str, Any], above: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        definition = SCHEMA["definitions"][schema["$ref"].rpartition("/")[2]]
        assert isinstance(definition, dict)
        return definition
    return schema


def test_every_leaf_has_a_comment_above() -> None:
    comments = {value.path: value.comment for value in documented(TEXT)}
    bare = [leaf for leaf in leaves(VALUES) if not any(f"{leaf}.".startswith(f"{path}.") for path in comments)]
    assert not bare, f"values.yaml does not say what these mean: {bare}"
    assert all(len(comment) > 8 for comment in comments.values())
    assert len(comments) > 80


def test_a_leaf_without_a_comment_is_noticed() -> None:
    found = documented("# Said\na: 1\nb:\n  # Said as well,\n  # at length\n  c: {d: 1}\n  e: 2\n")
    assert [(value.path, value.comment, value.default) for value in found] == [
        ("a", "Said", 1),
        ("b.c", "Said as well, at length", {"d": 1}),
    ]


def test_schema_and_values_have_the_same_fields() -> None:
    def compare(schema: dict[str, Any], values: dict[str, Any], path: str) -> Iterator[str]:
        schema = resolved(schema)
        if "properties" not in schema:
            return
        if schema.get("additionalProperties") is not False:
            yield f"{path or 'the top'} lets unknown fields in"
        optional = {"global", "claims", "successThreshold", "initialDelaySeconds"}  # Helm's own; not preset
        known = set(schema["properties"])
        if known - optional != set(values) - optional:
            yield f"{path}: {sorted(known ^ set(values))} in one of the two only"
        for key, value in values.items():
            if isinstance(value, dict) and key in known:
                yield from compare(schema["properties"][key], value, f"{path}.{key}")

    assert list(compare(SCHEMA, VALUES, "")) == []


def test_every_value_is_used_by_a_template() -> None:
    """By its last names: templates take many values through `with` and `$demo`."""
    unused = [
        value.path
        for value in documented(TEXT)
        if not re.search(rf"\.{re.escape(value.path.rpartition('.')[2])}\b", TEMPLATES)
    ]
    assert not unused


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"instalation": "x"}, "instalation"),
        ({"operator": {"replica": 2}}, "replica"),
        ({"operator": {"resources": {"limit": {}}}}, "limit"),
        ({"operator": {"threads": 0}}, "/operator/threads"),
        ({"operator": {"threads": "many"}}, "/operator/threads"),
        ({"operator": {"logLevel": "loud"}}, "/operator/logLevel"),
        ({"operator": {"httpPort": 80}}, "/operator/httpPort"),
        ({"image": {"digest": "sha256:1"}}, "/image/digest"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"worker": {"imagePullSecrets": [{"name": "registry"}]}}, "/worker/imagePullSecrets"),
        ({"redis": {"url": "postgresql://swapped"}}, "/redis/url"),
        ({"postgres": {"existingSecrets": {"name": "x"}}}, "existingSecrets"),
        ({"installation": "Has Blanks"}, "/installation"),
        ({"watchNamespaces": ["a,b"]}, "/watchNamespaces/0"),
        ({"sources": {"allowAddresses": ["10.0.0.1"]}}, "/sources/allowAddresses/0"),
        ({"dedupe": {"shared": [{"group": "orders", "namespaces": []}]}}, "/dedupe/shared/0/namespaces"),
        ({"dedupe": {"shared": [{"group": "orders", "namespaces": ["sh*p"]}]}}, "/dedupe/shared/0/namespaces/0"),
        ({"dedupe": {"shared": [{"group": "two words", "namespaces": ["*"]}]}}, "/dedupe/shared/0/group"),
        ({"dedupe": {"shared": [{"namespaces": ["*"]}]}}, "group"),
        ({"demo": {"password": "p@ss word"}}, "/demo/password"),
        ({"demo": {"redis": {"runAsUser": 0}}}, "/demo/redis/runAsUser"),
        ({"monitoring": {"podMonitor": {"interval": "often"}}}, "/monitoring/podMonitor/interval"),
        ({"fullnameOverride": "n" * 41}, "/fullnameOverride"),
    ],
)
def test_what_is_misspelt_or_out_of_bounds_is_refused(values: dict[str, Any], said: str) -> None:
    done = try_render(merged(EXISTING, values))
    assert done.returncode != 0
    assert said in done.stderr
    assert "specifications of the schema" in done.stderr


def test_what_is_generated_is_not_stale() -> None:
    """The copies of the custom resource and of the sample's service, and the table of values in the README."""
    done = subprocess.run(
        [sys.executable, ROOT / "helm" / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_versions_agree() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text("utf-8"))
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    assert f'version = "{chart["appVersion"]}"' in project
