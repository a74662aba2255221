"""What the operator writes as a status is what the CRD lets through: nothing of it is pruned, refused or added to."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest

from rowmill.spec.crd import resource_schema
from rowmill.spec.job_status import JobStatus
from rowmill.status import ErrorCount, Phase, RunStatus
from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.status import Output, Workers, status_document
from tests.unit.crd_helpers import defaulted, pruned

SCHEMA = resource_schema()["properties"]["status"]
BUSY = RunStatus(
    phase=Phase.RUNNING,
    message="x" * 10_000,
    generation=2,
    epoch=3,
    total=10**9,
    queued=9_000,
    running=24,
    succeeded=80_000,
    failed=12,
    retried=31,
    deduplicated=4,
    rows_per_minute=5_400.4,
    seconds_left=3_600.0,
    workers_desired=8,
    workers_ready=7,
    errors=[ErrorCount(f"Http{i}", 10**12, 2**31) for i in range(9)],
)


@pytest.mark.parametrize(
    ("run", "more"),
    [
        (RunStatus(), {}),
        (BUSY, {"workers": Workers(image="i" * 2_000, selector="s" * 2_000)}),
        (BUSY, {"output": Output(uri="s3://b/" + "ä" * 5_000, parts=10**9, failures="s3://b/f.jsonl")}),
        (RunStatus(phase=Phase.COMPLETE, total=0), {"started_at": 1.5, "ended_at": 2.5}),
        *((RunStatus(phase=phase), {"deleting": True}) for phase in Phase),
        *((RunStatus(), {"trouble": Trouble(reason, "m" * 5_000)}) for reason in Reason),
    ],
)
def test_a_status_fits_its_schema(run: RunStatus, more: dict[str, Any]) -> None:
    document = status_document(run, run_id="x" * 63 + "~simulate", observed_generation=7, now=1_700_000_000.25, **more)
    jsonschema.Draft7Validator(SCHEMA, format_checker=jsonschema.FormatChecker()).validate(document)
    JobStatus.model_validate(document, by_alias=True, by_name=False)
    assert pruned(document, SCHEMA) == document
    assert defaulted(document, SCHEMA) == document
