"""The definition of BatchJob removed and installed again: nothing that was paid for is called again."""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial

from tests.e2e.kubectl import is_true, until
from tests.e2e.lab import Lab

CRD = "batchjobs.rowmill.dev"


async def test_removed_and_installed_again(lab: Lab) -> None:
    """One job had finished, one was at work. Applied again, the one is Complete at once, the other goes on."""
    rows, done_before = 40, 12
    finished = lab.job("finished", rows=rows, workers={"maxReplicas": 1})
    lab.apply(finished)
    lab.complete("finished")
    await lab.endpoint.play({"rows": {str(1000 + n): [{"held": True}] for n in range(done_before + 1, rows + 1)}})
    source = {"rows": [{"id": 1000 + n} for n in range(1, rows + 1)]}
    open_ = lab.job("open", source=source, concurrency={"perWorker": 4}, workers={"maxReplicas": 1})
    lab.apply(open_)
    await lab.called(calls=rows + done_before + 4)
    operator = lab.install.operator()["metadata"]["name"]

    lab.kubectl("delete", "crd", CRD, "--wait=false")
    until(lambda: not lab.pods("open"), what="its worker on the way out", saying=lab.install.logs)
    # What its worker still takes before it hears that it is to go is few, however late that is.
    await lab.endpoint.play({"default": {"latency": 10}})
    await lab.endpoint.release()
    until(lambda: lab.kubectl.get("crd", CRD) is None, what="no definition", saying=lab.install.logs)
    until(lambda: not lab.all_pods("open"), what="no pods")
    await lab.endpoint.play({})
    called = len(lab.calls())
    assert rows + done_before + 4 <= called < 2 * rows, "the job was to be cut off in its middle"
    kept = await lab.outcomes("open")
    assert len(kept) == called - rows, "a call that was answered was not recorded"

    # The operator finds the definition by itself.
    await asyncio.to_thread(lab.install.up)
    lab.apply(finished)
    lab.apply(open_)
    again = lab.complete("finished")
    assert again["status"]["rows"]["succeeded"] == rows
    assert lab.all_pods("finished") == []
    done = lab.complete("open")
    assert done["status"]["rows"]["succeeded"] == rows
    assert lab.install.operator()["metadata"]["name"] == operator, "the operator was restarted"
    assert set(Counter(call.row for call in lab.calls()).values()) == {1}, "a row was called again"
    assert len(lab.calls()) == 2 * rows

    lab.apply({**finished, "spec": {**finished["spec"], "runId": "2"}})
    lab.until(
        lambda job: is_true(job, "Complete") and job["status"]["run"]["id"] == "2", "finished", what="the second run"
    )
    twice = Counter(call.row for call in lab.calls())
    assert [twice[str(n)] for n in range(1, rows + 1)] == [2] * rows


async def test_the_way_out_without_an_operator(lab: Lab) -> None:
    """A job waits for the operator to clear it away; where that is gone for good, taking the finalizer off does."""
    await lab.endpoint.hold()
    lab.apply(lab.job(rows=4, workers={"maxReplicas": 1}))
    await lab.called(in_flight=1)
    lab.install.scale_operator(0)
    try:
        until(lambda: not lab.install.kubectl.list("pods", selector="app.kubernetes.io/component=operator"))
        lab.kubectl("delete", "batchjob", "job", "--wait=false")
        seen = lab.see()
        assert seen["metadata"]["deletionTimestamp"]
        assert seen["metadata"]["finalizers"] == ["rowmill.dev/workers"]
        lab.kubectl("patch", "batchjob", "job", "--type=merge", "--patch", '{"metadata":{"finalizers":null}}')
        until(lambda: lab.kubectl.get("batchjob", "job") is None, what="no job")
        # What belongs to it goes with it, though nobody of ours is there.
        until(lambda: lab.kubectl.get("deployment", "job-workers") is None, what="no Deployment")
        await lab.endpoint.release()
        until(lambda: not lab.all_pods(), what="no pods")
        for kind in ("secrets", "configmaps", "networkpolicies"):
            until(partial(none_left, lab, kind), what=f"no {kind}")
    finally:
        lab.install.scale_operator(1)
    lab.apply(lab.job("after", rows=1))
    lab.complete("after")


def none_left(lab: Lab, kind: str) -> bool:
    return lab.kubectl.list(kind, selector="rowmill.dev/job=job") == []
