"""What the options make of a manifest, which run it then is, and where its results go."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from rowmill.errors import InvalidInput
from rowmill.spec import frozen_changes, frozen_part
from rowmill.spec.job import BatchJob
from rowmill_cli.job import Options, effective, identity_here, results_path, simulated_cost, to_text

BASE = Path("/jobs")
STATE = Path("/state")


def job(**spec: Any) -> BatchJob:
    http = {"url": "http://x.example/v1", "headers": [{"name": "X-Token", "valueFrom": {"file": "secrets/token"}}]}
    return BatchJob.model_validate(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage", "namespace": "support"},
            "spec": {"runId": "7", "source": {"uri": "data/t.csv"}, "executor": {"http": http}, **spec},
        }
    )


def test_options_change_what_they_name_and_nothing_else() -> None:
    given = job(workers={"maxReplicas": 10, "rowsPerWorker": 50})
    result = effective(given, options=Options(workers=3, limit=10, dry_run=True))
    workers = result.spec.workers
    assert (workers.min_replicas, workers.max_replicas, workers.rows_per_worker) == (3, 3, 50)
    assert result.spec.source.limit == 10
    assert result.spec.mode == "Simulate"
    plain = effective(given, options=Options())
    assert (plain.spec.mode, plain.spec.source.limit, plain.spec.workers) == ("Run", None, given.spec.workers)


@pytest.mark.parametrize(("manifest", "asked", "expected"), [(0, 0, 0), (0, 2, 2), (5, 2, 5)])
def test_the_higher_retry_generation_counts(manifest: int, asked: int, expected: int) -> None:
    result = effective(job(retryGeneration=manifest), options=Options(), retry_generation=asked)
    assert result.spec.retry_generation == expected


def test_what_a_run_froze_stays_as_it_was_given() -> None:
    given = job()
    changed = effective(given, options=Options(workers=2, limit=5), retry_generation=3)
    assert frozen_changes(frozen_part(given.spec), frozen_part(changed.spec)) == []


def test_a_simulated_run_is_another_run() -> None:
    real = identity_here(effective(job(), options=Options()))
    assert real == ("local", "support", "triage", "7")
    assert identity_here(effective(job(), options=Options(dry_run=True))) != real
    assert identity_here(job(mode="Simulate")) != real


def test_results_go_to_the_option_then_the_manifest_then_the_state() -> None:
    def place(output: dict[str, Any], option: str | None = None) -> str:
        found = results_path(job(output=output), option=Path(option) if option else None, base=BASE, state=STATE)
        return str(found)

    assert place({}) == "/state/results.jsonl"
    assert place({"format": "Parquet"}) == "/state/results.parquet"
    assert place({"uri": "out/r.csv"}) == "/jobs/out/r.csv"
    assert place({"uri": "file:///out/r%20s.csv"}) == "/out/r s.csv"
    assert place({"uri": "out/", "format": "CSV"}) == "/jobs/out/results.csv"
    assert place({"uri": "out/r.csv"}, "/else/x.parquet") == "/else/x.parquet"
    assert place({"uri": "s3://bucket/x/"}) == "s3://bucket/x/"
    with pytest.raises(InvalidInput, match=r"spec\.output\.uri: ftp:// is not available in this build"):
        place({"uri": "ftp://host/x/"})


def test_a_folder_as_option_gets_a_file_inside(tmp_path: Path) -> None:
    found = results_path(job(output={"format": "CSV"}), option=tmp_path, base=BASE, state=STATE)
    assert found == tmp_path / "results.csv"


def test_the_text_is_the_same_job_with_its_nulls() -> None:
    rows = [{"a": None, "b": "é"}, {"a": 1.5, "b": None}]
    body = {"x": None, "y": ["{{ row.a }}"]}
    given = job(source={"rows": rows}, executor={"http": {"url": "http://x.example/", "body": body}})
    text = to_text(given)
    assert BatchJob.model_validate(json.loads(text)) == given
    assert json.loads(text)["spec"]["source"] == {"rows": rows}
    assert json.loads(text)["spec"]["executor"]["http"]["body"] == body
    assert "timeoutSeconds" not in text


def test_what_a_simulated_run_would_have_cost() -> None:
    simulate = {"simulate": {"costPerRow": "0.0025"}}
    assert simulated_cost(job(mode="Simulate", **simulate), 977) == Decimal("2.4425")
    assert simulated_cost(job(mode="Run", **simulate), 977) is None, "a real run's cost is not known here"
    assert simulated_cost(job(mode="Simulate"), 977) is None


def test_a_large_inline_table_stays_within_the_bound_that_readers_have() -> None:
    text = "名" * 100
    large = job(source={"rows": [{"name": text}] * 300})
    assert len(to_text(large)) < 300 * 130, "one character is not six"


def test_simulated_results_never_take_the_place_of_real_ones() -> None:
    dry = effective(job(output={"uri": "out/r.csv"}), options=Options(dry_run=True))
    assert str(results_path(dry, option=None, base=BASE, state=STATE)) == "/state/results.simulated.csv"
    assert str(results_path(dry, option=Path("here.csv"), base=BASE, state=STATE)) == "here.csv"
