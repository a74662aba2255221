"""What a person is told while a run goes and when it has ended."""

from __future__ import annotations

import io
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from rich.console import Console

from rowmill.identity import RunIdentity
from rowmill.spend import Pause, Reason, Spend
from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_cli.progress import (
    BarProgress,
    PlainProgress,
    QuietProgress,
    describe,
    duration,
    progress_for,
)
from rowmill_cli.report import Ending, render, success_rate

IDENTITY = RunIdentity("local", "support", "triage", "1")


def ending(status: RunStatus, **more: object) -> Ending:
    values: dict[str, object] = {
        "identity": IDENTITY,
        "status": status,
        "seconds": 62.4,
        "state": Path("/some where/state"),
        "again": "rowmill run job.yaml --state '/some where/state'",
    }
    return Ending(**(values | more))  # type: ignore[arg-type]


def test_a_complete_run_with_failures_says_what_failed_and_what_is_next() -> None:
    status = RunStatus(
        phase=Phase.COMPLETE,
        total=3000,
        succeeded=2990,
        failed=9,
        deduplicated=1,
        retried=31,
        errors=[ErrorCount("HTTP503", 8, 4711), ErrorCount("BadRow", 1, 12)],
    )
    text = render(ending(status, results=Path("/out/results.csv")))
    assert text.startswith("Complete: support/triage, run 1\n")
    assert "success rate  99.70%" in text
    assert "1 min 02 s" in text
    assert "HTTP503                 8 rows        such as row 4,711" in text
    assert "1 row " in text
    assert "Results: /out/results.csv" in text
    assert "rowmill results --state '/some where/state' --failed" in text
    assert "rowmill retry --state '/some where/state'" in text


def test_a_clean_run_needs_no_next_step() -> None:
    text = render(ending(RunStatus(phase=Phase.COMPLETE, total=2, succeeded=2), results=Path("/out/r.jsonl")))
    assert "retry --state" not in text
    assert "Errors" not in text


def test_a_failed_job_says_why_and_a_simulated_one_that_it_was() -> None:
    status = RunStatus(phase=Phase.FAILED, message="6% of the rows failed, 5% are allowed", total=9, failed=9)
    text = render(ending(status, simulated=True, identity=IDENTITY._replace(run_id="1~simulate")))
    assert text.startswith("Failed: support/triage, run 1 (simulated: no call was sent)\n6% of the rows failed")


def test_an_interrupted_run_says_how_to_go_on() -> None:
    text = render(ending(RunStatus(phase=Phase.RUNNING, succeeded=5), interrupted=True))
    assert text.startswith("Interrupted: support/triage")
    assert "  rowmill run job.yaml --state '/some where/state'" in text
    assert "not known yet" in text


def test_what_was_used_and_what_all_rows_would_use() -> None:
    spent = Spend(240, 36_000, 1_200, Decimal("0.9120"))
    canary = RunStatus(phase=Phase.COMPLETE, total=200, succeeded=200, spend=spent, source_rows=120_000)
    text = render(ending(canary))
    assert "\n  calls         240\n" in text
    assert "\n  used          36,000 tokens in, 1,200 out, cost 0.912\n" in text
    projected = "144,000 calls, 21,600,000 tokens in, 720,000 out, cost 547.2 for all 120,000 rows"
    assert f"\n  projected     {projected}" in text
    bare = render(ending(replace(canary, spend=Spend(240))))
    assert "  used" not in bare
    assert "\n  projected     144,000 calls for all 120,000 rows" in bare
    assert "projected" not in render(ending(replace(canary, source_rows=None)))
    assert "  calls" not in render(ending(replace(canary, spend=Spend())))
    simulated = render(ending(canary, simulated=True))
    assert "  would call    240" in simulated
    assert "  calls " not in simulated


@pytest.mark.parametrize("reason", Reason)
def test_a_run_that_stands_still_says_why_and_how_to_go_on(reason: Reason) -> None:
    pause = Pause(reason, "the 5 calls of spec.budget.requests are used up. Raise it", 5.0)
    status = RunStatus(phase=Phase.SUSPENDED, message=pause.message, total=9, succeeded=5, spend=Spend(5), pause=pause)
    text = render(ending(status))
    assert text.startswith(f"Suspended: support/triage, run 1\n{pause.message}\n")
    assert "  rowmill run job.yaml --state '/some where/state'" in text
    assert "  rowmill results --state '/some where/state'" in text


def test_a_rate_of_100_percent_is_said_of_no_failure_alone() -> None:
    assert success_rate(RunStatus(succeeded=999_999, failed=1)) == "99.99%"
    assert success_rate(RunStatus(succeeded=7, deduplicated=1)) == "100.00%"
    assert success_rate(RunStatus()) == "no row has finished"
    assert "(99%)" in describe(RunStatus(total=1000, succeeded=999))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


async def test_a_log_gets_a_line_when_the_phase_changes_and_else_every_few_seconds() -> None:
    lines: list[str] = []
    now = [0.0]
    sink = PlainProgress(lines.append, title="support/triage", every=5.0, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        await sink.report(RunStatus(phase=Phase.RUNNING, total=100, succeeded=second))
    assert [line.split("  ")[2] for line in lines] == ["0/100 (0%)", "5/100 (5%)", "10/100 (10%)"]
    await sink.report(RunStatus(phase=Phase.COMPLETE, total=100, succeeded=100))
    assert lines[-1].startswith("support/triage  Complete  100/100 (100%)")
    assert sink.last.succeeded == 100


async def test_a_log_gets_no_line_while_nothing_changes() -> None:
    lines: list[str] = []
    now = [0.0]
    sink = PlainProgress(lines.append, title="t", every=5.0, clock=lambda: now[0])
    for second in range(60):
        now[0] = float(second)
        await sink.report(RunStatus(phase=Phase.RUNNING))
    assert len(lines) == 1


async def test_a_terminal_gets_a_bar_with_counts_rate_and_time_left() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=150)
    with progress_for(console, title="support/triage", quiet=False) as sink:
        assert isinstance(sink, BarProgress)
        await sink.report(
            RunStatus(
                phase=Phase.RUNNING,
                total=3000,
                succeeded=1200,
                failed=2,
                retried=4,
                rows_per_minute=5400,
                seconds_left=20.2,
                workers_desired=2,
                workers_ready=2,
            )
        )
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for part in ("support/triage", "1202/3000", "failed 2", "retried 4", "5,400 rows/min", "20 s left", "workers 2/2"):
        assert part in text, part


def test_the_sink_fits_the_place() -> None:
    assert isinstance(progress_for(Console(file=io.StringIO()), title="t", quiet=False), PlainProgress)
    assert type(progress_for(Console(file=io.StringIO()), title="t", quiet=True)) is QuietProgress


def test_a_simulation_projects_the_cost() -> None:
    status = RunStatus(phase=Phase.COMPLETE, total=1000, succeeded=977, failed=23)
    text = render(ending(status, simulated=True, cost=Decimal("2.4425")))
    assert "(simulated: no call was sent)" in text
    assert "would cost    2.4425" in text
    assert "would cost" not in render(ending(status))
