"""A run stops where its calls are refused and where its budget ends, says what to do, and goes on when that is done."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

from tests.e2e.kubectl import condition, is_true, until
from tests.e2e.lab import Lab


async def test_refused_calls_and_a_budget_suspend_a_job_and_both_go_on(lab: Lab) -> None:
    rows = 60
    await lab.endpoint.play({"default": {"kind": "ok", "status": 401}})
    spec = {"budget": {"requests": 40}, "pricing": {"perCall": "0.25"}, "concurrency": {"perWorker": 16}}
    lab.apply(lab.job(rows=rows, workers={"maxReplicas": 1}, **spec))
    said = lab.told("CallsRefused")
    assert "HTTP401" in said["message"]
    refused = lab.see()
    assert is_true(refused, "Suspended")
    assert is_true(refused, "Stalled")
    until(lambda: not lab.all_pods(), what="no pods")
    assert len(lab.calls()) == 10, "as many as make a storm, whatever the slots"
    assert lab.status()["rows"]["failed"] == 0

    # Mended, and somebody asks. (Later than the pause by the operator's clock, which is this machine's.)
    await lab.endpoint.play({})
    asked = (datetime.now(UTC) + timedelta(seconds=1)).isoformat(timespec="seconds")
    lab.kubectl.patch("batchjob", "job", {"metadata": {"annotations": {"rowmill.dev/resumed-at": asked}}})
    said = lab.told("BudgetExhausted")
    assert "40 calls of spec.budget.requests" in said["message"]
    until(lambda: not lab.all_pods(), what="no pods")
    assert len(lab.calls()) == 40
    spend = lab.status()["spend"]
    assert (spend["requests"], spend["cost"]) == (40, "10")
    assert spend["projected"]["rows"] == rows

    lab.kubectl.patch("batchjob", "job", {"spec": {"budget": {"requests": 1000}}})
    done = lab.complete()
    assert (done["status"]["rows"]["succeeded"], done["status"]["spend"]["requests"]) == (rows, 10 + rows)
    assert condition(done, "Complete")["reason"] == "Completed"
    called = Counter(int(call.row) for call in lab.calls() if call.row)
    assert sum(called.values()) == 10 + rows
    assert set(called) == set(range(1, rows + 1))
