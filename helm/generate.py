"""What in the chart is made of something else: the custom resource, the sample's service, the table of its README.

python helm/generate.py           # write what is stale
python helm/generate.py --check   # say what is stale, and exit with 1 if anything is
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "helm" / "rowmill"
DEFINITION: Final = ROOT / "crds" / "batchjobs.rowmill.dev.yaml"
SERVICE: Final = ROOT / "examples" / "textservice"
TABLE: Final = re.compile(r"(?<=<!-- values: begin -->\n).*(?=<!-- values: end -->)", re.DOTALL)


class Value(NamedTuple):
    """A value of the chart that has a comment above it."""

    path: str
    default: Any
    comment: str


def documented(text: str) -> list[Value]:
    """The values that a comment stands directly above, in the order of the file."""
    lines = text.splitlines()

    def comment_above(line: int) -> str:
        first = line
        while first and lines[first - 1].lstrip().startswith("#"):
            first -= 1
        return " ".join(found.lstrip().removeprefix("#").strip() for found in lines[first:line])

    def walk(node: yaml.MappingNode, values: dict[str, Any], above: str) -> Iterator[Value]:
        for key, child in node.value:
            path = f"{above}{key.value}"
            comment = comment_above(key.start_mark.line)
            if comment:
                yield Value(path, values[key.value], comment)
            elif isinstance(child, yaml.MappingNode):
                yield from walk(child, values[key.value], f"{path}.")

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return list(walk(root, yaml.safe_load(text), ""))


def table(values: Sequence[Value]) -> str:
    """The values as a Markdown table."""

    def cell(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    rows = [
        f"| `{value.path}` | {cell(value.comment)} | `{cell(json.dumps(value.default, ensure_ascii=False))}` |"
        for value in values
    ]
    return "\n".join(["| Value | Meaning | Default |", "|---|---|---|", *rows, ""])


def without_rules(schema: Any) -> Any:
    """A definition without its CEL rules: API servers before 1.23 do not know the field, and Helm then refuses it."""
    if isinstance(schema, dict):
        return {key: without_rules(child) for key, child in schema.items() if key != "x-kubernetes-validations"}
    if isinstance(schema, list):
        return [without_rules(child) for child in schema]
    return schema


def wanted() -> dict[Path, str]:
    """Each generated file with the text that it should have."""
    definition = DEFINITION.read_text("utf-8")
    old = yaml.safe_dump(without_rules(yaml.safe_load(definition)), sort_keys=False, allow_unicode=True, width=120)
    values = documented((CHART / "values.yaml").read_text("utf-8"))
    readme = CHART / "README.md"
    return {
        CHART / "files" / "crd.yaml": definition,
        CHART / "files" / "crd-before-1.23.yaml": old,
        **{
            CHART / "files" / "textservice" / name: (SERVICE / name).read_text("utf-8")
            for name in ("names.py", "service.py")
        },
        readme: TABLE.sub(lambda _: table(values), readme.read_text("utf-8")),
    }


def stale() -> dict[Path, str]:
    """What differs from what it is made of, with the text that it should have."""
    return {
        path: text for path, text in wanted().items() if not path.is_file() or path.read_text("utf-8") != text
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="helm/generate.py", description="Writes what the chart has from elsewhere.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is stale")
    options = parser.parse_args(arguments)
    found = stale()
    for path, text in found.items():
        name = path.relative_to(ROOT)
        if options.check:
            print(f"{name} is stale: run `make chart`", file=sys.stderr)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            print(f"wrote {name}")
    return 1 if options.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
