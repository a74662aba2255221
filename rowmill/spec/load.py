"""From a file to a `BatchJob`, or to all that is wrong with it at once.

    text → YAML → apiVersion and kind → models, templates and queries

A file that is not YAML, or somebody else's resource, is told in a line or two. All other findings are told together,
one line each, in the order of the manifest's lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from rowmill.errors import InvalidInput, Problem
from rowmill.spec.job import API_VERSION, KIND, BatchJob
from rowmill.spec.messages import given, place_path, problems_of
from rowmill.spec.templates import check_raw_templates
from rowmill.spec.yaml_text import MAX_BYTES, Document, NotReadable, Place, read_yaml

MAX_PROBLEMS: Final = 50
"""Problems that are told of one manifest."""


def load_manifest_file(path: str | Path) -> BatchJob:
    """Read and check a manifest file. Raises InvalidInput, which names the file as it was given."""
    where = str(path)
    try:
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise InvalidInput.one(where, "", "there is no such file; check the path") from None
    except IsADirectoryError:
        raise InvalidInput.one(where, "", "is a folder; name a manifest file in it") from None
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) else str(exc)
        raise InvalidInput.one(where, "", f"cannot be read: {reason}") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        if len(raw) > MAX_BYTES:
            text = raw.decode("utf-8", "replace")  # cut within a character: too large is what is wrong
        else:
            line = raw.count(b"\n", 0, exc.start) + 1
            raise InvalidInput.one(where, "", f"line {line}: is not UTF-8; save the file as UTF-8") from None
    return load_manifest(text, where=where)


def load_manifest(text: str, *, where: str) -> BatchJob:
    """Check a manifest. Raises InvalidInput with every problem; `where` names the file in each line."""
    try:
        document = read_yaml(text)
    except NotReadable as exc:
        raise InvalidInput.one(where, "", str(exc)) from None
    wrong_kind = _wrong_kind(document.value)
    if wrong_kind:
        raise InvalidInput(where, wrong_kind)
    return _checked(document, where)


def parse_job(value: Any, *, where: str) -> BatchJob:
    """Check a manifest that has been read already (a resource of the cluster). Raises InvalidInput."""
    wrong_kind = _wrong_kind(value)
    if wrong_kind:
        raise InvalidInput(where, wrong_kind)
    return _checked(Document(value=value), where)


def _wrong_kind(value: Any) -> list[Problem]:
    """Somebody else's resource has no use for thirty lines about its fields."""
    if not isinstance(value, dict):
        return [Problem("", f"is {given(value)}, not a BatchJob; it begins with apiVersion: {API_VERSION}")]
    problems = []
    for name, right in (("apiVersion", API_VERSION), ("kind", KIND)):
        found = value.get(name)
        if name not in value:
            problems.append(Problem(name, f"is missing; write {name}: {right}"))
        elif found != right:
            problems.append(Problem(name, f"must be {right}, not {given(found)}"))
    return problems


def _checked(document: Document, where: str) -> BatchJob:
    found: list[tuple[int, Problem]] = []
    taken: set[str] = set()

    def tell(place: Place, problem: Problem, line: int | None) -> None:
        # What YAML has spoilt is told once, not again by the type of what was put in its stead.
        if problem.path not in taken or place == ():
            shown_line = f" (line {line})" if line is not None else ""
            found.append((line or 0, Problem(problem.path, problem.message + shown_line)))

    for finding in document.findings:
        path = place_path(finding.place)
        tell(finding.place, Problem(path, finding.message), finding.line)
        taken.add(path)
    job: BatchJob | None = None
    try:
        job = BatchJob.model_validate(document.value, by_alias=True, by_name=False)
    except ValidationError as exc:
        for place, problem in problems_of(exc, model=BatchJob):
            tell(place, problem, _line_of(document, place))
    in_templates = check_raw_templates(document.value)
    if in_templates:
        lines = {place_path(place): line for place, line in document.lines.items()}
        for problem in in_templates:
            tell((problem.path,), problem, lines.get(problem.path))
    if found or job is None:
        raise InvalidInput(where, _bounded([problem for _, problem in sorted(found, key=lambda pair: pair[0])]))
    return job


def _line_of(document: Document, place: Place) -> int | None:
    """The line of a place, or of the nearest thing above it that is there."""
    while place:
        if (line := document.lines.get(place)) is not None:
            return line
        place = place[:-1]
    return document.lines.get(())


def _bounded(problems: Iterable[Problem]) -> list[Problem]:
    told = list(dict.fromkeys(problems))
    if len(told) <= MAX_PROBLEMS:
        return told
    return [*told[:MAX_PROBLEMS], Problem("", f"and {len(told) - MAX_PROBLEMS} problems more; mend these first")]
