"""Every ending of the command becomes one message and one exit code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import click
import pytest

from rowmill.errors import InvalidInput, Problem, SourceChanged, StateInUse, StoreUnavailable, StoreUnsafe
from rowmill_cli import main as module
from rowmill_cli.errors import InternalError
from rowmill_cli.main import main

MANIFEST = """\
apiVersion: rowmill.dev/v1alpha1
kind: BatchJob
metadata: {name: triage}
spec:
  source: {rows: [{row: 1}]}
  executor: {http: {url: "http://127.0.0.1:9/v1"}}
"""
WRONG = """\
apiVersion: rowmill.dev/v1alpha1
kind: BatchJob
metadata: {name: triage}
spec:
  source: {rows: [{row: 1}], uri: t.csv}
  executor: {http: {url: "ftp://127.0.0.1/"}}
  colour: red
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(MANIFEST)
    (tmp_path / "wrong.yaml").write_text(WRONG)
    return tmp_path


@pytest.mark.usefixtures("folder")
class TestValidate:
    def test_a_right_manifest(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["validate", "job.yaml"]) == 0
        assert capsys.readouterr().out == "job.yaml: ok\n"

    def test_every_error_is_a_line_with_its_file_and_place(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["validate", "job.yaml", "wrong.yaml", "absent.yaml"]) == 2
        said = capsys.readouterr()
        assert said.out == "job.yaml: ok\n"
        lines = said.err.splitlines()
        assert len(lines) == 4
        assert [line.split(": ")[:2] for line in lines[:3]] == [
            ["wrong.yaml", "spec.source"],
            ["wrong.yaml", "spec.executor.http.url"],
            ["wrong.yaml", "spec.colour"],
        ]
        assert lines[3].startswith("absent.yaml: there is no such file")

    def test_what_this_build_does_not_run_is_refused_by_name(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        text = MANIFEST.replace("source: {", "source: {query: {connection: {name: a, key: b}, sql: x}} #")
        assert text != MANIFEST
        (folder / "query.yaml").write_text(text)
        assert main(["validate", "query.yaml"]) == 2
        assert "query.yaml: spec.source.query: source query is not available in this build" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        (["run", "absent.yaml"], {}, r"^absent\.yaml: there is no such file"),
        (["run", "wrong.yaml"], {}, r"^wrong\.yaml: spec\.executor\.http\.url: "),
        (["run"], {}, r"Missing argument 'FILE'"),
        (["run", "job.yaml", "--output", "x.xlsx"], {}, r"x\.xlsx: results are written as \.jsonl, \.csv or"),
        (["run", "job.yaml", "--workers", "0"], {}, r"--workers"),
        (["run", "job.yaml", "--state", "."], {}, r"holds other things already"),
        (["retry", "--state", "absent"], {}, r"absent: no run was started with this --state folder"),
        (["results", "--state", "absent"], {}, r"absent: no run was started with this --state folder"),
        (
            ["run", "job.yaml", "-q"],
            {"ROWMILL_POSTGRES_DSN": "postgresql://u:s3cr3t@127.0.0.1:1/x", "ROWMILL_REDIS_URL": "redis://127.0.0.1:1"},
            r"^rowmill: .*127\.0\.0\.1:1",
        ),
        (["worker", "--job", "job.yaml"], {}, r"ROWMILL_REDIS_URL: is not set; a worker needs it, such as redis://"),
        (["sing"], {}, r"No such command 'sing'"),
    ],
)
def test_bad_input_is_told_in_a_line_and_exits_with_2(
    arguments: list[str],
    environ: Mapping[str, str],
    expected: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert re.search(expected, said, re.MULTILINE), said
    assert "s3cr3t" not in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (InvalidInput("f", [Problem("a", "b"), Problem("", "c")]), 2, "f: a: b\nf: c\n"),
        (StoreUnavailable("Postgres is away"), 2, "rowmill: Postgres is away\n"),
        (StoreUnsafe("Redis evicts"), 2, "rowmill: Redis evicts\n"),
        (SourceChanged("changed"), 2, "rowmill: changed\n"),
        (StateInUse("in use"), 2, "rowmill: in use\n"),
        (KeyboardInterrupt(), 130, "rowmill: interrupted\n"),
    ],
)
def test_each_error_has_its_code(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fail_with(error, monkeypatch)
    assert main(["fail"]) == code
    assert capsys.readouterr().err == said


def test_a_mistake_of_ours_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fail_with(ZeroDivisionError("by\nzero"), monkeypatch)
    assert main(["fail"]) == 70
    (details,) = tmp_path.iterdir()
    said = capsys.readouterr().err
    assert said.startswith("rowmill: something went wrong inside Rowmill: ZeroDivisionError: by zero")
    assert len(said.splitlines()) == 1
    assert str(details) in said
    assert "Traceback" in details.read_text()


def test_a_mistake_while_a_state_is_held_is_kept_in_its_log(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = InternalError(Path("/state/logs/rowmill.log"))
    error.__cause__ = ZeroDivisionError("by zero")
    fail_with(error, monkeypatch)
    assert main(["fail"]) == 70
    assert "ZeroDivisionError: by zero (details: /state/logs/rowmill.log)" in capsys.readouterr().err


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> NoReturn:
        raise error

    monkeypatch.setitem(module.cli.commands, "fail", fail)


@pytest.mark.parametrize("command", [[], ["validate"], ["run"], ["results"], ["retry"], ["worker"]])
def test_help_is_there_for_each_command(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--help"]) == 0
    assert "Usage: rowmill" in capsys.readouterr().out


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rowmill_cli", "--version"], capture_output=True, text=True, timeout=60, check=True
    )
    assert "rowmill" in done.stdout


def test_help_and_workers_start_without_what_they_do_not_need() -> None:
    program = "import sys, rowmill_cli.main; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    heavy = {"pyarrow", "rich", "aiohttp", "asyncpg", "redis", "psutil", "pydantic", "openpyxl"}
    assert heavy & set(done.stdout.split()) == set()


def test_output_that_nobody_reads_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    program = "from rowmill_cli.output import write_out; assert not write_out('a'); assert write_out('b')"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")
