"""`python -m rowmill.results`, as the plugin runs it in a pod: streams, and ends with a sentence whatever happens."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import os
import subprocess
import sys

import pytest

from rowmill.ledger import Ledger, RunRecord
from rowmill.outcome import Outcome, State
from rowmill.results.reader import main

ARGUMENTS = ["--namespace", "default", "--name", "job", "--run-id", "1"]


@pytest.fixture
async def environ(ledger: Ledger, record: RunRecord) -> dict[str, str]:
    """A run with five outcomes, and how it is found."""
    outcomes = [
        Outcome(seq, State.SUCCEEDED, 1, result=json.dumps(f"é {seq}"), key=str(seq), columns='{"a": 7}')
        for seq in (1, 2, 3, 5)
    ]
    failure = Outcome(4, State.FAILED, 5, error_class="HTTP503", error_message='said\n"no"', columns='{"a": "x"}')
    await ledger.work(record, worker="w").commit([*outcomes, failure], generation=0)
    return {"ROWMILL_POSTGRES_DSN": ledger.dsn, "ROWMILL_INSTALLATION": "test"}


async def run(arguments: list[str], environ: dict[str, str]) -> tuple[int, str, str]:
    out, err = io.BytesIO(), io.StringIO()
    code = await asyncio.to_thread(main, arguments, environ=environ, out=out, err=err)
    return code, out.getvalue().decode(), err.getvalue()


async def test_every_outcome_a_line(environ: dict[str, str]) -> None:
    code, out, err = await run(ARGUMENTS, environ)
    rows = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")
    assert [(row["seq"], row["state"]) for row in rows] == [
        *((seq, "Succeeded") for seq in (1, 2, 3)),
        (4, "Failed"),
        (5, "Succeeded"),
    ]
    assert rows[0]["columns"] == {"a": 7}


async def test_only_failures_as_csv(environ: dict[str, str]) -> None:
    code, out, _ = await run([*ARGUMENTS, "--failed", "--format", "csv", "--column", "a"], environ)
    (row,) = csv.DictReader(io.StringIO(out, newline=""))
    assert code == 0
    assert (row["seq"], row["error_class"], row["error_message"], row["a"]) == ("4", "HTTP503", 'said\n"no"', "x")


@pytest.mark.parametrize(
    ("changed", "environment", "code", "says"),
    [
        (["--name", "other"], {}, 1, "the ledger knows no run default/other/1 of the installation test"),
        ([], {"ROWMILL_INSTALLATION": ""}, 1, "of the installation rowmill"),
        ([], {"ROWMILL_POSTGRES_DSN": ""}, 2, "ROWMILL_POSTGRES_DSN is not set"),
        ([], {"ROWMILL_POSTGRES_DSN": "postgresql://u:secret@127.0.0.1:1/x"}, 2, "127.0.0.1:1/x"),
    ],
)
async def test_what_is_wrong_is_said(
    environ: dict[str, str], changed: list[str], environment: dict[str, str], code: int, says: str
) -> None:
    found, out, err = await run([*ARGUMENTS, *changed], environ | environment)
    assert (found, out) == (code, "")
    assert says in err
    assert err.count("\n") == 1
    assert "secret" not in err


async def test_no_outcome_is_said(ledger: Ledger, record: RunRecord) -> None:
    environ = {"ROWMILL_POSTGRES_DSN": ledger.dsn, "ROWMILL_INSTALLATION": "test"}
    assert await run([*ARGUMENTS, "--failed"], environ) == (0, "", "default/job/1: no row has failed\n")


async def test_a_ledger_that_nobody_has_made_yet(postgres_dsn: str) -> None:
    code, out, err = await run(ARGUMENTS, {"ROWMILL_POSTGRES_DSN": postgres_dsn})
    assert (code, out) == (2, "")
    assert "rowmill.runs" in err


async def test_whoever_reads_may_go(ledger: Ledger, record: RunRecord) -> None:
    """`| head -1` of several pages, each more than a pipe holds: no traceback, no error."""
    outcomes = [Outcome(seq, State.SUCCEEDED, 1, result=json.dumps("x" * 400)) for seq in range(1, 6001)]
    await ledger.work(record, worker="w").commit(outcomes, generation=0)
    environ = {**os.environ, "ROWMILL_POSTGRES_DSN": ledger.dsn, "ROWMILL_INSTALLATION": "test"}
    read_end, write_end = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "rowmill.results", *ARGUMENTS),
        env=environ,
        stdout=write_end,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(write_end)
    first = await asyncio.to_thread(os.read, read_end, 10)
    os.close(read_end)
    assert first.startswith(b'{"seq": 1')
    _, err = await process.communicate()
    assert (process.returncode, err) == (0, b"")


def test_it_needs_what_a_workers_image_has() -> None:
    """Neither the command line's packages nor those that only Parquet needs."""
    names = ("click", "rich", "pyarrow", "openpyxl", "kopf", "kubernetes", "pandas", "psutil", "rowmill_cli")
    code = f"import sys, rowmill.results.reader; print([n for n in {names!r} if n in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


async def test_the_receipt_counts_what_was_written(environ: dict[str, str]) -> None:
    """So that whoever reads over a network knows that nothing was lost."""
    code, out, err = await run([*ARGUMENTS, "--receipt"], environ)
    assert code == 0
    assert err == f'rowmill-receipt {{"outcomes": 5, "bytes": {len(out.encode())}}}\n'
