"""The documents say what is there: tests, links, commands, options, make targets, error classes, manifests."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from urllib.parse import unquote

import click
import pytest
import yaml

from rowmill.errors import InvalidInput
from rowmill.spec import Place, check_available, load_manifest
from rowmill.spec.available import EXECUTORS
from rowmill_cli.kubectl.main import cli as kubectl_cli
from rowmill_cli.main import cli
from rowmill_operator.kube.conditions import Reason

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path
    for top in ROOT.iterdir()
    if not top.name.startswith(".")  # not even looked into: tens of thousands of files that others wrote
    for path in (top.rglob("*.md") if top.is_dir() else [top])
    if path.suffix == ".md" and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
)
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language."""
    return [body for found, body in FENCE.findall(text) if found == language]


def prose(text: str) -> str:
    """A document without its fenced blocks and its code spans: what is left holds links."""
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def anchors(path: Path) -> set[str]:
    """What `#…` may name in a document, as GitHub makes it of headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", path.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_documents_are_there() -> None:
    wanted = {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/README.md", "docs/correctness.md"}
    assert wanted <= {name(path) for path in DOCUMENTS}
    assert (ROOT / "LICENSE").is_file()


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_no_relative_link_is_broken(document: Path) -> None:
    broken = []
    for link in LINK.findall(prose(document.read_text("utf-8"))):
        if re.match(r"[a-z]+:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (document.parent / unquote(place)).resolve() if place else document
        missing = not target.exists() or not target.is_relative_to(ROOT)
        if missing or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken, f"{name(document)} links to what is not there: {broken}"


def test_links_are_found_and_anchors_are_made() -> None:
    text = "[a](b.md) `[no](no.md)` [c](d.md#e) \n```text\n[no](no.md)\n```\n"
    assert LINK.findall(prose(text)) == ["b.md", "d.md#e"]
    assert "a-rows-way-and-the-failure-at-each-step" in anchors(ROOT / "docs" / "correctness.md")


def defined_tests(path: Path) -> set[str]:
    """The tests that a file defines; none where it is absent."""
    tree = ast.parse(path.read_text("utf-8") if path.is_file() else "")
    return {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def proofs(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each test that a table names, with the files that its section links to before it."""
    files: tuple[str, ...] = ()
    for line in text.splitlines():
        if line.startswith("#"):
            files = ()
        if line.startswith("|"):
            yield from ((test, files) for test in re.findall(r"`(test_\w+)`", line))
        else:
            files += tuple(link for link in LINK.findall(line) if link.endswith(".py"))


@pytest.mark.parametrize("document", [ROOT / "docs" / "correctness.md", ROOT / "docs" / "systems.md"], ids=name)
def test_every_proof_that_is_named_exists(document: Path) -> None:
    named = list(proofs(document.read_text("utf-8")))
    defined = {file: defined_tests(document.parent / file) for file in {file for _, files in named for file in files}}
    missing = [
        f"{test} (in {', '.join(files) or 'no file: link it above the table'})"
        for test, files in named
        if not any(test in defined[file] for file in files)
    ]
    assert not missing, f"{name(document)} names tests that are not there: {missing}"
    assert len(named) >= 50


def test_every_file_of_proofs_is_named() -> None:
    text = (ROOT / "docs" / "correctness.md").read_text("utf-8")
    proving = [path for folder in ("proofs", "e2e") for path in sorted((ROOT / "tests" / folder).glob("test_*.py"))]
    unnamed = [name(path) for path in proving if f"(../{name(path)})" not in text]
    assert not unnamed, f"docs/correctness.md says nothing of {unnamed}: add what they prove"


def commands(text: str) -> list[str]:
    """The `rowmill …`, `kubectl rowmill …` and `make …` lines of a document's console blocks, with or without a
    prompt."""
    lines = [line.strip().removeprefix("$ ") for body in blocks(text, "console") for line in body.splitlines()]
    return [line for line in lines if line.startswith(("rowmill ", "kubectl rowmill ", "make "))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))


SHELL = frozenset({"|", "&&", ";", ">", ">>", "<"})
"""What ends a command within its line."""


def why_not(command: str) -> str | None:
    """What is wrong with a command that a document shows, or None. Nothing is run."""
    program, *arguments = takewhile(lambda word: word not in SHELL, shlex.split(command, comments=True))
    if program == "make":
        unknown = [target for target in arguments if "=" not in target and target not in make_targets()]
        return f"no target {unknown}" if unknown or not arguments else None
    group = cli
    if program == "kubectl":
        group, arguments = kubectl_cli, arguments[1:]
    try:
        if not arguments or arguments[0].startswith("-"):
            group.make_context("rowmill", arguments)
            return None
        with click.Context(group, info_name="rowmill") as context:
            command_named = group.get_command(context, arguments[0])
            if command_named is None:
                return f"no command {arguments[0]}"
            command_named.make_context(arguments[0], arguments[1:], parent=context)
    except click.exceptions.Exit:
        return None  # --help, --version
    except click.ClickException as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_command_that_is_shown_exists(document: Path) -> None:
    wrong = {command: why for command in commands(document.read_text("utf-8")) if (why := why_not(command))}
    assert not wrong, f"{name(document)} shows commands that are none: {wrong}"


def test_the_readme_shows_the_commands() -> None:
    shown = commands(README.read_text("utf-8"))
    assert {"make demo", "make test"} <= set(shown)
    used = {shlex.split(line)[1] for line in shown if line.startswith("rowmill")}
    assert {"validate", "run", "results", "retry"} <= used
    assert "make cluster" in shown
    assert {shlex.split(line)[2] for line in shown if line.startswith("kubectl")} >= {"results", "retry"}


@pytest.mark.parametrize(
    ("command", "right"),
    [
        ("make demo", True),
        ("make demos", False),
        ("make", False),
        ("rowmill run job.yaml --limit 3", True),
        ("rowmill run job.yaml --limits 3", False),
        ("rowmill run job.yaml --limit many", False),
        ("rowmill results", False),
        ("rowmill status", False),
        ("rowmill run --help", True),
        ("kubectl rowmill status", True),
        ("kubectl rowmill results triage -n support --failed", True),
        ("kubectl rowmill results triage --failed > failed.jsonl", True),
        ("kubectl rowmill status triage --watch && ./next-step.sh", True),
        ("kubectl rowmill results triage --fail > failed.jsonl", False),
        ("kubectl rowmill validate job.yaml", False),
    ],
)
def test_a_command_that_is_none_is_noticed(command: str, right: bool) -> None:
    assert (why_not(command) is None) is right


def test_the_jobs_in_the_readme_are_the_examples() -> None:
    shown = [block for block in blocks(README.read_text("utf-8"), "yaml") if "kind: BatchJob" in block]
    examples = [
        one
        for path in ("demo/job.yaml", "kubernetes/csv-to-s3.yaml")
        for one in yaml.safe_load_all((ROOT / "examples" / path).read_text("utf-8"))
        if one["kind"] == "BatchJob"
    ]
    assert [yaml.safe_load(block) for block in shown] == examples


def test_the_table_of_executors_is_what_this_build_runs() -> None:
    """One line a kind, whose page is there and has the error classes; http's is the manifest's."""
    table = re.findall(r"^\| \[`(\w+)`\]\(([^)]+)\) \|(.+)\|(.+)\|$", README.read_text("utf-8"), re.MULTILINE)
    assert sorted(kind for kind, *_ in table) == sorted(EXECUTORS)
    for kind, page, what, needs in table:
        assert what.strip(), kind
        assert needs.strip(), kind
        assert page == ("docs/manifest.md#specexecutorhttp" if kind == "http" else f"docs/executors/{kind}.md")
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    unlinked = [
        path.name for path in (ROOT / "docs" / "executors").glob("*.md") if f"(executors/{path.name})" not in index
    ]
    assert not unlinked, f"docs/README.md does not link {unlinked}"


def test_the_columns_in_the_readme_are_those_of_the_resource() -> None:
    definition = yaml.safe_load((ROOT / "crds" / "batchjobs.rowmill.dev.yaml").read_text("utf-8"))
    (version,) = definition["spec"]["versions"]
    (heading,) = re.findall(r"^NAME +PHASE.*$", README.read_text("utf-8"), re.MULTILINE)
    columns = [one["name"].upper() for one in version["additionalPrinterColumns"] if not one.get("priority")]
    assert heading.split() == ["NAME", *columns]


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_whole_manifest_is_valid(document: Path) -> None:
    for block in blocks(document.read_text("utf-8"), "yaml"):
        if block.startswith("apiVersion: rowmill.dev/"):
            assert runs_somewhere(block, where=name(document))


def runs_somewhere(manifest: str, *, where: str) -> bool:
    """Whether one of the places runs it. Raises InvalidInput where none can, for it is invalid."""
    job = load_manifest(manifest, where=where)
    refused = 0
    for place in Place:
        try:
            check_available(job, where=where, place=place)
        except InvalidInput:
            refused += 1
    return refused < len(Place)


CLASS = re.compile(r"[A-Z][A-Za-z]+")
MAKERS = {"RowError", "_unfit", "failed", "BadRow"}
"""What an error class is handed to."""


def error_classes() -> set[str]:
    """Error classes as the sources spell them, but for `HTTP…`, which is made of a status."""
    found: set[str] = set()
    for folder in ("rowmill", "worker/rowmill_worker", "operator/rowmill_operator"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    given = [k.value for k in node.keywords if k.arg == "error_class"]
                    given += node.args[:2] if node.func.id in MAKERS else []
                elif isinstance(node, ast.Assign) and path.name == "payload.py":
                    given = [node.value]  # BAD_ROW and the like
                else:
                    continue
                found |= {a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {text for text in found if CLASS.fullmatch(text)}


def test_every_error_class_is_explained() -> None:
    classes = error_classes()
    assert {"Timeout", "PoisonRow", "BadRow", "TemplateError", "ResultRefused", "DuplicateOfFailed"} <= classes
    documents = [ROOT / "docs" / "troubleshooting.md", *sorted((ROOT / "docs" / "executors").glob("*.md"))]
    text = "\n".join(path.read_text("utf-8") for path in documents)
    unexplained = sorted(found for found in classes if f"`{found}`" not in text)
    assert not unexplained, f"docs/troubleshooting.md and docs/executors say nothing of {unexplained}"


def test_every_reason_has_its_section() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
    section = text.partition("## What a BatchJob says\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### (\w+)\n", section, flags=re.MULTILINE)
    told = dict(zip(parts[1::2], parts[2::2], strict=True))
    assert sorted(told) == sorted(Reason), "docs/troubleshooting.md, What a BatchJob says: one section for each reason"
    short = [reason for reason, said in told.items() if len(said.split()) < 10]
    assert not short, f"docs/troubleshooting.md says too little of {short}"
