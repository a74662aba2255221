"""Logs stay small and without secrets, and carry job and row; metrics are counted in blocks, each owner its own."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from rowmill.outcome import State
from rowmill.telemetry.logging import FailureSampler, RowLog, configure_logging, null_logger
from rowmill.telemetry.metrics import MAX_CLASSES, EngineMetrics, WorkerMetrics, exposition


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_every_line_carries_what_was_bound() -> None:
    stream = io.StringIO()
    logger, _ = configure_logging(stream=stream, json=True, job="support/triage/1", worker="w-1")
    logger.bind(row=17, request_id="r-17-1").error("row failed", error_class="HTTP503")
    logger.debug("not told at this level")
    (line,) = lines(stream)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "level": "error",
        "event": "row failed",
        "job": "support/triage/1",
        "worker": "w-1",
        "row": 17,
        "request_id": "r-17-1",
        "error_class": "HTTP503",
    }


def test_lines_of_libraries_take_the_same_way() -> None:
    stream = io.StringIO()
    configure_logging(stream=stream, json=True, redact=lambda text: text.replace("hunter2", "[redacted]"))
    logging.getLogger("aiohttp.server").warning("odd %s", "hunter2\nnext")
    logging.getLogger("aiohttp.server").info("chatter")
    (line,) = lines(stream)
    assert line["logger"] == "aiohttp.server"
    assert line["event"] == "odd [redacted]\nnext"
    assert stream.getvalue().count("\n") == 1


def test_secrets_never_get_out() -> None:
    stream = io.StringIO()
    logger, redactor = configure_logging(stream=stream, json=True)
    redactor.add(lambda text: text.replace("s3cr3t-value", "[redacted]"))
    try:
        raise RuntimeError("cannot use s3cr3t-value")
    except RuntimeError:
        logger.exception(
            "it failed with s3cr3t-value",
            headers={"Authorization": "Bearer abc", "Accept": "*/*"},
            tried=["s3cr3t-value", {"deep": ("s3cr3t-value",)}],
            api_key="k",
            postgres="postgresql://me:pass-word@db/rowmill",
            tokens=12,
            odd=ValueError("s3cr3t-value"),
        )
    text = stream.getvalue()
    for hidden in ("s3cr3t-value", "Bearer abc", "pass-word", '"k"'):
        assert hidden not in text
    (line,) = lines(stream)
    assert line["headers"] == {"Authorization": "[redacted]", "Accept": "*/*"}
    assert line["postgres"] == "postgresql://[redacted]@db/rowmill"
    assert line["tokens"] == 12
    assert "RuntimeError: cannot use [redacted]" in line["exception"]


def test_a_line_stays_small_and_is_written_whatever_it_holds() -> None:
    stream = io.StringIO()
    logger, _ = configure_logging(stream=stream, json=True)
    logger.error("x" * 100_000)
    logger.error("half a character", text="\ud800")
    logger.error("bytes", raw=b"\xff")
    assert len(stream.getvalue().splitlines()) == 3
    assert len(stream.getvalue()) < 4000


def test_people_read_key_and_value() -> None:
    stream = io.StringIO()
    logger, _ = configure_logging(stream=stream, json=False, job="a/b/1")
    logger.warning("row failed", message="two words", row=3)
    line = stream.getvalue()
    assert "warning row failed" in line
    assert line.rstrip().endswith("job=a/b/1 message='two words' row=3")


def test_a_log_that_cannot_be_written_fails_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    logger, _ = configure_logging(stream=Full(), json=True)
    logger.error("row failed", row=1)


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="no log level 'loud'"):
        configure_logging(level="loud", stream=io.StringIO())


def test_the_null_logger_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    null_logger().bind(row=1).error("row failed")
    assert capsys.readouterr() == ("", "")


def test_a_million_failures_are_few_lines_and_none_is_uncounted() -> None:
    now = 0.0
    sampler = FailureSampler(clock=lambda: now, first=20, period=60, every=1000)
    told = logged = 0
    for n in range(1_000_000):
        now = n / 10_000  # a hundred seconds
        left_out = sampler.admit("HTTP503")
        if left_out is not None:
            logged += 1
            told += 1 + left_out
    assert logged <= 20 * 2 + 1000
    assert told + sampler.left_out().get("HTTP503", 0) == 1_000_000
    assert sampler.left_out() == {}


def test_a_rare_class_is_told_beside_a_frequent_one() -> None:
    sampler = FailureSampler(clock=lambda: 0.0, first=2, period=60, every=1000)
    assert [sampler.admit("HTTP503") for _ in range(4)] == [0, 0, None, None]
    assert sampler.admit("Timeout") == 0


def test_the_sampler_holds_a_bounded_number_of_classes() -> None:
    sampler = FailureSampler(clock=lambda: 0.0, first=1, period=60, every=10**9)
    admitted = sum(sampler.admit(f"Class{n}") is not None for n in range(10_000))
    assert admitted == 101  # a hundred classes, and Other


def test_a_failed_row_is_found_by_its_request_id_and_the_rest_is_counted() -> None:
    stream = io.StringIO()
    logger, _ = configure_logging(stream=stream, json=True, job="a/b/1")
    log = RowLog(logger=logger, sampler=FailureSampler(clock=lambda: 0.0, first=1, period=60, every=1000))
    for row in range(5):
        log.failed(row=row, request_id=f"r-{row}", attempt=1, error_class="HTTP503", message="busy", retry_in=1.23456)
    log.failed(row=9, request_id="r-9", attempt=5, error_class="HTTP503", message="busy", retry_in=None)
    log.close()
    first, last, rest = lines(stream)
    assert (first["row"], first["request_id"], first["job"], first["level"]) == (0, "r-0", "a/b/1", "warning")
    assert first["retry_in_seconds"] == 1.235
    assert (last["row"], last["event"], last["level"]) == (9, "row failed", "error")
    assert (rest["error_class"], rest["not_logged"]) == ("HTTP503 retried", 4)


def test_worker_metrics_count_blocks_and_ask_gauges() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    metrics.ended(State.SUCCEEDED, 300)
    metrics.ended(State.FAILED, 2)
    metrics.failed({"HTTP400": 2})
    metrics.attempted(None, 300)
    metrics.attempted("HTTP503", 3)
    metrics.retried("HTTP503", 3)
    metrics.read(302, redelivered=7)
    metrics.handed_back(4)
    metrics.orphans(5, delay=1.5)
    metrics.rows_took([0.2])
    metrics.claimed(0.003)
    metrics.committed(300, 0.004)
    busy = 1
    metrics.watch(
        slots_max=lambda: 3,
        slots_available=lambda: 3 - busy,
        slots_waiting=lambda: 0,
        in_flight=lambda: busy,
        sessions_active=lambda: busy,
        locks_held=lambda: 40,
        permits_waiting=lambda: 6,
    )

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"rowmill_worker_{name}", labels)

    assert value("rows_total", state="Succeeded") == 300
    assert value("rows_total", state="Failed") == 2
    assert value("rows_total", state="Deduplicated") == 0
    assert value("row_failures_total", error_class="HTTP400") == 2
    assert value("attempts_total", error_class="Success") == 300
    assert value("attempts_total", error_class="HTTP503") == 3
    assert value("retries_total", error_class="HTTP503") == 3
    assert (value("rows_read_total"), value("rows_redelivered_total")) == (302, 7)
    assert value("rows_handed_back_total") == 4
    assert value("sweeper_orphans_total") == 5
    assert value("commit_group_rows_sum") == 300
    assert value("row_duration_seconds_count") == 1
    assert value("slots_available") == 2
    busy = 2
    assert value("slots_available") == 1
    assert b"rowmill_worker_locks_held 40.0" in exposition(registry)
    assert value("permits_waiting") == 6


def test_labels_stay_bounded() -> None:
    registry = CollectorRegistry()
    metrics = WorkerMetrics(registry)
    for n in range(MAX_CLASSES + 50):
        metrics.attempted(f"HTTP{n}")
    assert registry.get_sample_value("rowmill_worker_attempts_total", {"error_class": "Other"}) == 50
    series = [line for line in exposition(registry).splitlines() if line.startswith(b"rowmill_worker_attempts_total{")]
    assert len(series) == MAX_CLASSES + 1


def test_two_workers_in_one_process_count_apart() -> None:
    one, other = CollectorRegistry(), CollectorRegistry()
    WorkerMetrics(one).ended(State.SUCCEEDED)
    WorkerMetrics(other)
    assert other.get_sample_value("rowmill_worker_rows_total", {"state": "Succeeded"}) == 0


def test_the_engine_tells_by_run_and_forgets_what_is_over() -> None:
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for run in ("a/b/1", "a/c/1"):
        metrics.fed(run, rows=1000, size=100_000, seconds=0.004)
        metrics.epoch_began(run)
        metrics.window(run, rows=1000, size=100_000)
        metrics.backlog(run, 5000)
    metrics.gap_found("a/b/1", 3)
    assert registry.get_sample_value("rowmill_engine_rows_fed_total", {"run": "a/b/1"}) == 1000
    assert registry.get_sample_value("rowmill_engine_gap_rows_total", {"run": "a/b/1"}) == 3
    metrics.forget("a/b/1")
    text = exposition(registry)
    assert b"a/b/1" not in text
    assert b'rowmill_engine_backlog_rows{run="a/c/1"} 5000.0' in text
