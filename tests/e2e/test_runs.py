"""Whole jobs on the cluster: from `kubectl apply` to results, and what happens when they are applied again."""

from __future__ import annotations

import json
import uuid
from collections import Counter

from tests.e2e.conftest import Web
from tests.e2e.kubectl import condition, is_true, until
from tests.e2e.lab import Lab, ObjectStore


async def test_csv_over_http_to_an_object_store(lab: Lab, web: Web, object_store: ObjectStore) -> None:
    """20,000 rows; the results are joined to the source's columns, in parts, with a file of failures."""
    rows, failing = 20_000, 7
    await lab.endpoint.play({"rows": {str(n * 1000): [400] for n in range(1, failing + 1)}})
    table = lab.table(rows)
    bucket = object_store.bucket(f"results-{uuid.uuid4().hex[:8]}")
    lab.kubectl.apply(object_store.secret("store", lab.kubectl.namespace))
    job = lab.job(
        source={"uri": web.serve(table)},
        key=["id"],
        output={"uri": f"s3://{bucket}/out/", "format": "JSONL", "secretName": "store", "columns": ["text"]},
        concurrency={"perWorker": 64},
        workers={"maxReplicas": 2, "rowsPerWorker": 5000},
    )
    lab.apply(job)
    done = lab.complete()
    status = done["status"]
    assert status["rows"] == {
        "total": rows,
        "succeeded": rows - failing,
        "failed": failing,
        "queued": 0,
        "running": 0,
        "retried": 0,
        "deduplicated": 0,
    }
    assert (status["done"], status["progress"]) == (f"{rows}/{rows}", "100%")
    assert condition(done, "Complete")["reason"] == "CompletedWithFailures"
    assert [(e["class"], e["count"]) for e in status["errors"]] == [("HTTP400", failing)]
    (await lab.history(table)).assert_clean(allowed_duplicates=0)

    found = object_store.listed(bucket)
    prefix = status["output"]["uri"].removeprefix(f"s3://{bucket}/")
    assert prefix == "out/1/"
    parts = sorted(key for key in found if "part-" in key)
    assert len(parts) == status["output"]["parts"]
    lines = [json.loads(line) for part in parts for line in found[part].splitlines()]
    assert [line["seq"] for line in lines] == list(range(1, rows + 1))
    assert all(line["columns"] == {"text": f"some text of a row {line['seq']}"} for line in lines[:: rows // 50])
    assert Counter(line["state"] for line in lines) == {"Succeeded": rows - failing, "Failed": failing}
    failures = [json.loads(line) for line in found[f"{prefix}failures.jsonl"].splitlines()]
    assert [line["seq"] for line in failures] == [n * 1000 for n in range(1, failing + 1)]
    assert status["output"]["failures"].endswith("failures.jsonl")


async def test_a_finished_job_is_applied_again(lab: Lab) -> None:
    """Deleted and applied again it is Complete at once and calls nothing; another runId runs all rows."""
    rows = 40
    job = lab.job(rows=rows)
    lab.apply(job)
    lab.complete()
    calls = len(lab.calls())
    assert calls == rows
    lab.kubectl.delete("batchjob", "job")
    assert lab.kubectl.get("deployment", "job-workers") is None
    lab.apply(job)
    again = lab.complete()
    assert again["status"]["rows"]["succeeded"] == rows
    assert len(lab.calls()) == calls, "a row was called again"
    assert lab.all_pods() == []

    lab.apply({**job, "spec": {**job["spec"], "runId": "2"}})
    second = lab.until(lambda seen: is_true(seen, "Complete") and seen["status"]["run"]["id"] == "2")
    assert second["status"]["rows"]["succeeded"] == rows
    assert Counter(int(call.row) for call in lab.calls() if call.row) == dict.fromkeys(range(1, rows + 1), 2)


async def test_only_the_failed_rows_run_again(lab: Lab) -> None:
    """`retryGeneration` raised: one call more for each failed row, none for the others."""
    rows, bad = 30, {3, 14, 15}
    await lab.endpoint.play({"rows": {str(n): [400] for n in bad}})
    job = lab.job(rows=rows)
    lab.apply(job)
    assert lab.complete()["status"]["rows"]["failed"] == len(bad)
    lab.kubectl.patch("batchjob", "job", {"spec": {"retryGeneration": 1}})
    done = lab.until(lambda seen: is_true(seen, "Complete") and seen["status"]["run"]["generation"] == 1)
    assert (done["status"]["rows"]["succeeded"], done["status"]["rows"]["failed"]) == (rows, 0)
    assert condition(done, "Complete")["reason"] == "Completed"
    called = Counter(int(call.row) for call in lab.calls() if call.row)
    assert called == {n: 2 if n in bad else 1 for n in range(1, rows + 1)}


async def test_suspend_resume_delete(lab: Lab) -> None:
    """Suspended: pods go, finished rows stay. Resumed: it goes on. Deleted: nothing is left but the ledger."""
    rows = 2000
    job = lab.job(rows=rows, concurrency={"perWorker": 4}, workers={"maxReplicas": 1})
    await lab.endpoint.play({"default": {"latency": 0.05}})  # 25 s for all of them
    lab.apply(job)
    await lab.called(calls=20)
    await lab.endpoint.hold()
    lab.kubectl.patch("batchjob", "job", {"spec": {"suspend": True}})
    until(lambda: lab.kubectl.get("deployment", "job-workers")["spec"]["replicas"] == 0, what="no replicas")
    await lab.endpoint.release()
    told = lab.until(lambda seen: is_true(seen, "Suspended"), what="Suspended")
    assert told["status"]["phase"] == "Suspended"
    until(lambda: not lab.all_pods(), what="no pods")
    kept = await lab.outcomes()
    assert 10 < len(kept) < rows
    called = len(lab.calls())
    assert called == len(kept), "a row that ran when the job was suspended was not recorded"

    lab.kubectl.patch("batchjob", "job", {"spec": {"suspend": False}})
    await lab.called(calls=called + 20)
    await lab.endpoint.hold()  # or it might be over before it is looked at
    lab.until(lambda seen: seen["status"]["rows"]["succeeded"] > len(kept), what="rows after the pause")
    token = (await lab.record()).token
    assert lab.keys(token)
    await lab.endpoint.release()
    lab.kubectl.delete("batchjob", "job")
    assert lab.all_pods() == []
    until(lambda: not lab.keys(token), what="no keys", saying=lambda: lab.keys(token))
    until(lambda: lab.kubectl.get("deployment", "job-workers") is None)
    until(lambda: lab.kubectl.list("secrets", selector="rowmill.dev/job=job") == [])
    stopped = len(lab.calls())

    await lab.endpoint.play({})
    lab.apply(job)
    done = lab.complete()
    assert done["status"]["rows"]["succeeded"] == rows
    assert len(lab.calls()) == rows, f"{stopped} rows were called before"


async def test_time_to_live(lab: Lab) -> None:
    lab.apply(lab.job(rows=3, ttlSecondsAfterFinished=2))
    until(lambda: lab.kubectl.get("batchjob", "job") is None, what="the job is gone")
    assert len(await lab.outcomes()) == 3
    assert len(lab.calls()) == 3
