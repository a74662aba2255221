"""What is told of a job, and what Prometheus is: pure, but for a writer and events that are noted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.events import EventRecorder, Involved
from rowmill_operator.kube.metrics import (
    LAG_SECONDS,
    STANDSTILL_SECONDS,
    JobNumbers,
    JobsCollector,
    OperatorMetrics,
    lags,
)
from rowmill_operator.kube.report import JobReport
from rowmill_operator.kube.told import told
from tests.support.kube_cluster import condition
from tests.support.kube_lab import Noted

RUNNING = RunStatus(phase=Phase.RUNNING, total=9, succeeded=3)


class Writer:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self.gone = False

    @property
    def document(self) -> dict[str, Any]:
        return self.all[-1] if self.all else {}

    def submit(self, document: dict[str, Any]) -> None:
        self.all.append(document)


class Bench:
    def __init__(self) -> None:
        self.time = 1_800_000_000.0
        self.writer = Writer()
        self.fleet: Trouble | None = None
        self.tokens = iter(range(10_000))
        self.log = Noted()
        self.events = EventRecorder(
            send=self._never,
            instance="o",
            log=Noted(),
            now=lambda: self.time,
            wall=lambda: self.time,
            token=lambda: f"t{next(self.tokens)}",
        )
        self.report = JobReport(
            involved=Involved("default", "job", "u"),
            writer=self.writer,  # type: ignore[arg-type]
            events=self.events,
            now=lambda: self.time,
            wall=lambda: self.time,
            fleet_trouble=lambda: self.fleet,
            log=self.log,
        )

    @staticmethod
    async def _never(namespace: str, body: dict[str, Any]) -> None:
        raise AssertionError

    @property
    def told(self) -> list[str]:
        """Reasons of the events that were made."""
        return [event["reason"] for event in self.events._queue]

    def ready(self) -> Any:
        return condition({"status": self.writer.document}, "Ready")

    @property
    def stalled(self) -> bool:
        return bool(condition({"status": self.writer.document}, "Stalled")["status"] == "True")


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_the_end_of_a_run_is_kept_back_until_it_is_finished(bench: Bench) -> None:
    over = RunStatus(phase=Phase.COMPLETE, total=9, succeeded=9)
    await bench.report.report(over)
    assert bench.writer.document["phase"] == "Running"
    bench.report.writing_results()
    assert bench.ready()["reason"] == "WritingResults"
    bench.report.finished(over)
    assert bench.writer.document["phase"] == "Complete"
    assert [one["phase"] for one in bench.writer.all] == ["Running", "Running", "Complete"]


@pytest.mark.parametrize(
    ("over", "says", "reason"),
    [
        (RunStatus(phase=Phase.COMPLETE, total=9, succeeded=9), "every row had an outcome, none failed; ", "Completed"),
        (
            RunStatus(phase=Phase.COMPLETE, total=9, succeeded=8, failed=1),
            "every row had an outcome, 1 failed; ",
            "CompletedWithFailures",
        ),
        (
            RunStatus(phase=Phase.FAILED, message="longer than activeDeadlineSeconds", total=9, succeeded=3),
            "longer than activeDeadlineSeconds; but ",
            "DeadlineExceeded",
        ),
    ],
)
async def test_results_that_were_dropped_are_told_once_and_known_after_a_restart(
    bench: Bench, over: RunStatus, says: str, reason: str
) -> None:
    bench.report.finished(over)
    before = bench.writer.document
    for _ in range(2):
        bench.report.dropped(1_799_000_000.0)
    assert len(bench.writer.all) == 2
    document = bench.writer.document
    assert document["resultsDroppedTime"] == "2027-01-03T18:13:20Z"
    kept = ("phase", "rows", "completionTime", "done")
    assert [document.get(name) for name in kept] == [before.get(name) for name in kept]
    assert bench.ready()["reason"] == reason
    said = bench.ready()["message"]
    assert said.startswith(
        f"{says}the results were dropped on 2027-01-03 18:13 UTC, after spec.resultsRetentionSeconds"
    )
    assert "retryGeneration" not in said

    anew = Bench()
    found = told(document, run_id="1", now=anew.time)
    assert found is not None
    assert found.run.dropped_at == 1_799_000_000.0
    anew.report.resume(found, generation=1, run_id="1")
    anew.report.dropped(1_799_000_000.0)
    assert anew.writer.all == [], "it was said before"


async def test_events_are_made_only_of_what_becomes_another(bench: Bench) -> None:
    for done in range(5):
        await bench.report.report(RunStatus(phase=Phase.RUNNING, total=9, succeeded=done))
    assert bench.told == ["Running"]
    bench.fleet = Trouble(Reason.UNSCHEDULABLE, "no node has a GPU")
    for _ in range(3):
        bench.report.tell()
    bench.fleet = None
    bench.report.tell()
    assert bench.told == ["Running", "Unschedulable"]


async def test_nothing_is_told_of_what_is_gone(bench: Bench) -> None:
    bench.writer.gone = True
    await bench.report.report(RUNNING)
    assert bench.told == []


async def test_a_trouble_that_is_met_again_and_again_lasts(bench: Bench) -> None:
    trouble = Trouble(Reason.SECRET_MISSING, "there is no Secret s")
    for _ in range(5):
        bench.report.begin(generation=1)
        bench.report.tell()
        bench.report.met(trouble)
        assert not bench.stalled or bench.time >= 1_800_000_120
        bench.time += 40
    bench.report.tell()
    assert bench.stalled
    assert {condition({"status": one}, "Ready")["reason"] for one in bench.writer.all[1:]} == {"SecretMissing"}
    await bench.report.report(RUNNING)
    assert bench.ready()["reason"] == "Running"


async def test_a_trouble_of_the_results_stays_until_they_are_written(bench: Bench) -> None:
    over = RunStatus(phase=Phase.COMPLETE, total=9, succeeded=9)
    trouble = Trouble(Reason.OUTPUT_UNAVAILABLE, "the bucket denies it")
    await bench.report.report(RUNNING)
    bench.report.output_trouble(trouble)
    began = len(bench.writer.all)
    for _ in range(5):
        await bench.report.report(over)
        bench.report.writing_results()
        bench.report.met(trouble)
        bench.report.begin(generation=1)
        bench.time += 40
    bench.report.tell()
    assert bench.stalled
    assert {condition({"status": one}, "Ready")["reason"] for one in bench.writer.all[began:]} == {"OutputUnavailable"}
    bench.report.finished(over)
    assert bench.ready()["reason"] == "Completed"


async def test_an_output_that_can_be_written_again_is_told(bench: Bench) -> None:
    await bench.report.report(RUNNING)
    bench.report.output_trouble(Trouble(Reason.SECRET_MISSING, "there is no Secret s"))
    await bench.report.report(RUNNING)
    assert bench.ready()["reason"] == "SecretMissing"
    bench.report.output_trouble(None)
    assert bench.ready()["reason"] == "Running"


async def test_another_generation_begins_without_the_troubles_of_the_one_before(bench: Bench) -> None:
    bench.report.met(Trouble(Reason.INVALID_SPEC, "spec.timeoutSeconds is negative"))
    bench.report.begin(generation=2)
    bench.report.tell()
    assert (bench.ready()["reason"], bench.writer.document["observedGeneration"]) == ("Pending", 2)


async def test_an_end_is_not_told_of_the_next_generation(bench: Bench) -> None:
    bench.report.finished(RunStatus(phase=Phase.COMPLETE, total=9, succeeded=9))
    bench.report.begin(generation=2)
    bench.report.tell()
    assert bench.writer.document["phase"] == "Pending"


async def test_another_run_begins_with_nothing(bench: Bench) -> None:
    await bench.report.report(RUNNING)
    bench.report.concerns("2")
    bench.report.tell()
    assert bench.writer.document["rows"]["succeeded"] == 0
    assert bench.report.workers.image == ""


# -- metrics


def test_every_number_has_its_name_and_ends_with_its_job() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    jobs = [JobNumbers("default", "job", "Running", RunStatus(total=9, succeeded=3, failed=1, workers_ready=2))]
    registry.register(JobsCollector(lambda: jobs))
    metrics.called("GET", "batchjobs", 200)
    metrics.called("GET", "batchjobs", 0)
    metrics.status_written("ok")
    metrics.event_written("failed")
    metrics.reconciled(0.2)
    metrics.leader.set(1)
    text = generate_latest(registry).decode()
    for line in (
        'rowmill_operator_api_calls_total{code="200",resource="batchjobs",verb="GET"} 1.0',
        'rowmill_operator_api_calls_total{code="0",resource="batchjobs",verb="GET"} 1.0',
        'rowmill_operator_status_writes_total{result="ok"} 1.0',
        'rowmill_operator_events_total{result="failed"} 1.0',
        "rowmill_operator_reconcile_seconds_count 1.0",
        "rowmill_operator_loop_lag_seconds_count 0.0",
        "rowmill_operator_leader 1.0",
        'rowmill_job_rows{name="job",namespace="default",state="succeeded"} 3.0',
        'rowmill_job_rows{name="job",namespace="default",state="failed"} 1.0',
        'rowmill_job_rows{name="job",namespace="default",state="queued"} 0.0',
        'rowmill_job_total_rows{name="job",namespace="default"} 9.0',
        'rowmill_job_recorded_rows{name="job",namespace="default"} 4.0',
        'rowmill_job_rows_per_minute{name="job",namespace="default"} 0.0',
        'rowmill_job_workers{name="job",namespace="default",state="ready"} 2.0',
        'rowmill_job_workers{name="job",namespace="default",state="desired"} 0.0',
        'rowmill_job_phase{name="job",namespace="default",phase="Running"} 1.0',
    ):
        assert line in text
    jobs.clear()
    assert "rowmill_job_rows{" not in generate_latest(registry).decode()


def test_a_standstill_counts_as_often_as_somebody_would_have_come() -> None:
    assert list(lags(-0.001)) == [0.0]
    assert list(lags(0.01)) == [0.01]
    assert list(lags(LAG_SECONDS)) == [LAG_SECONDS]
    assert list(lags(0.12)) == pytest.approx([0.12, 0.07, 0.02])
    assert len(list(lags(3600.0))) == pytest.approx(STANDSTILL_SECONDS / LAG_SECONDS, abs=1), "a machine that slept"


async def test_each_class_of_errors_is_logged_once() -> None:
    """With a row that ended so, as the worker's log and the endpoint name it."""
    bench = Bench()
    first = RunStatus(phase=Phase.RUNNING, failed=1, errors=[ErrorCount("HTTP400", 1, 7)])
    await bench.report.report(first)
    await bench.report.report(
        replace(first, failed=9, errors=[ErrorCount("HTTP400", 8, 7), ErrorCount("Timeout", 1, 3)])
    )
    told = bench.log.said("rows failed")
    assert [(line["error_class"], line["row"]) for line in told] == [
        ("HTTP400", "default/job/1#7.0"),
        ("Timeout", "default/job/1#3.0"),
    ]
