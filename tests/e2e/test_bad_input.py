"""What cannot work is told by one documented reason, with the field and the next step, and heals by itself."""

from __future__ import annotations

import json
from functools import partial

from tests.e2e.kubectl import Json, condition, is_true, reason, until
from tests.e2e.lab import Lab


async def test_everything_that_is_missing(lab: Lab) -> None:
    """All at once, beside a job that is well: each tells its own trouble, and completes when that goes away."""
    kubectl = lab.kubectl
    quiet = {"workers": {"maxReplicas": 1}}

    def pod(**spec: object) -> dict[str, object]:
        return {"workers": {"maxReplicas": 1, "podTemplate": {"spec": spec}}}

    def headed(name: str, secret: str) -> dict[str, object]:
        job = lab.job(name, rows=2, **quiet)
        job["spec"]["executor"]["http"]["headers"] = [
            {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": secret, "key": "token"}}}
        ]
        return job

    image = {"containers": [{"name": "worker", "image": "localhost/there-is-no-such:image"}]}
    expected = {
        "well": (lab.job("well", rows=2, **quiet), None, ""),
        "secret": (headed("secret", "absent"), "SecretMissing", "absent"),
        "map": (
            lab.job("map", source={"configMap": {"name": "rows", "key": "rows.csv"}}, **quiet),
            "ConfigMapMissing",
            "rows",
        ),
        "account": (lab.job("account", rows=2, **pod(serviceAccountName="nobody")), "ServiceAccountMissing", "nobody"),
        "image": (lab.job("image", rows=2, **pod(**image)), "ImagePullFailed", "there-is-no-such"),
        "nodes": (
            lab.job("nodes", rows=2, workers={"maxReplicas": 1, "nodeSelector": {"no": "where"}}),
            "Unschedulable",
            "no",
        ),
        "invalid": (
            lab.job("invalid", rows=2, timeoutSeconds=60, shards=2, key=["nothing"], **quiet),
            "SourceInvalid",
            "nothing",
        ),
        "template": (
            lab.job("template", rows=2, executor={"http": {"url": "{{ row.", "method": "POST"}}),
            "InvalidSpec",
            "spec.executor.http.url",
        ),
        "path": (lab.job("path", source={"uri": "/etc/passwd", "format": "CSV"}), "NotAvailable", "spec.source.uri"),
        "metadata": (
            lab.job("metadata", source={"uri": "http://169.254.169.254/latest/rows.csv"}),
            "SourceInvalid",
            "allowAddresses",
        ),
    }
    for job, _, _ in expected.values():
        lab.apply(job)
    for name, (_, why, named) in expected.items():
        if why is None:
            continue
        told = lab.told(why, name)
        assert named in told["message"], f"{name}: {told['message']}"
        assert len(told["message"]) < 800
    lab.complete("well")
    for name, (_, why, _) in expected.items():
        if why is not None:
            # An event may come after the status that says the same.
            same = until(partial(events_of, lab, name, why), what=f"an event {why} of {name}")
            assert len(same) == 1, f"{name}: {len(same)} events {why}"

    kubectl("create", "secret", "generic", "absent", "--from-literal=token=t")
    kubectl("create", "configmap", "rows", "--from-literal=rows.csv=id\n1\n2\n")
    kubectl("create", "serviceaccount", "nobody")
    kubectl.patch("batchjob", "image", {"spec": {"workers": {"podTemplate": None}}})
    kubectl.patch("batchjob", "nodes", {"spec": {"workers": {"nodeSelector": None}}})
    kubectl.patch("batchjob", "invalid", {"spec": {"key": ["id"]}})
    lab.apply(lab.job("template", rows=2))
    for name in ("secret", "map", "account", "image", "nodes", "invalid", "template"):
        done = lab.complete(name)
        assert done["status"]["rows"]["succeeded"] == 2, name
    for name in ("path", "metadata"):
        kubectl.delete("batchjob", name)
        assert kubectl.get("batchjob", name) is None


def events_of(lab: Lab, name: str, why: str) -> list[Json]:
    events = json.loads(lab.kubectl("get", "events", "-o", "json", f"--field-selector=involvedObject.name={name}"))
    return [one for one in events["items"] if one["reason"] == why]


async def test_a_quota_that_forbids_pods(lab: Lab) -> None:
    lab.kubectl("create", "quota", "none", "--hard=pods=0")
    lab.apply(lab.job(rows=2))
    told = lab.told("QuotaExceeded")
    assert "none" in told["message"], told
    lab.kubectl.delete("quota", "none")
    lab.complete()


async def test_an_edit_of_a_frozen_field(lab: Lab) -> None:
    """Refused by its name; set back, the run goes on where it was."""
    await lab.endpoint.hold()
    job = lab.job(rows=8, workers={"maxReplicas": 1})
    lab.apply(job)
    await lab.called(in_flight=3)
    lab.apply({**job, "spec": {**job["spec"], "timeoutSeconds": 11}})
    told = lab.told("FrozenFieldChanged")
    assert "spec.timeoutSeconds" in told["message"]
    assert "spec.runId" in told["message"]
    assert is_true(lab.see(), "Stalled")
    lab.apply(job)
    await lab.endpoint.release()
    done = lab.complete()
    assert done["status"]["rows"]["succeeded"] == 8
    assert len(lab.calls()) == 8


async def test_a_namespace_that_goes(lab: Lab) -> None:
    """Deleted with a job at work: nothing hangs, no pod and no key stays."""
    await lab.endpoint.hold()
    name = f"{lab.kubectl.namespace}-going"
    lab.kubectl("create", "namespace", name)
    going = lab.kubectl.within(name)
    # Its calls are held until nothing of it is left: they have to end by themselves.
    job = lab.job(rows=20, timeoutSeconds=10)
    job["metadata"]["namespace"] = name
    going.apply(job)
    await lab.called(in_flight=3)
    lab.kubectl("delete", "namespace", name, "--wait=false")
    until(lambda: not going.list("pods") and going.get("batchjob", "job") is None, what="nothing left")
    await lab.endpoint.release()
    until(lambda: lab.kubectl.get("namespace", name) is None, what="no namespace")
    lab.apply(lab.job("after", rows=1))
    lab.complete("after")


async def test_a_large_manifest(lab: Lab) -> None:
    """250 KB of inline rows: applied, run, edited and deleted like any other."""
    rows = 2500
    wide = [{"id": n, "text": "x" * 80} for n in range(1, rows + 1)]
    job = lab.job(source={"rows": wide}, concurrency={"perWorker": 32}, workers={"maxReplicas": 1})
    assert len(json.dumps(job)) > 250_000
    lab.kubectl("create", "-f", "-", "--validate=false", input=json.dumps(job))
    done = lab.complete()
    assert done["status"]["rows"]["succeeded"] == rows
    assert len(json.dumps(done["status"])) < 8192
    lab.kubectl.patch("batchjob", "job", {"spec": {"workers": {"maxReplicas": 2}}})
    seen = lab.until(lambda seen: seen["status"]["observedGeneration"] == 2 and is_true(seen, "Complete"))
    assert condition(seen, "Complete")["observedGeneration"] == 2
    assert reason(seen) == "Completed"
    lab.kubectl.delete("batchjob", "job")
    assert len(lab.calls()) == rows
