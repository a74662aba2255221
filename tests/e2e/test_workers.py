"""Workers as pods: how many there are, where they land, what they may do, and how they go."""

from __future__ import annotations

import json

from tests.e2e.kubectl import Kubectl, condition, is_true, until
from tests.e2e.lab import Lab

GPU = "example.com/gpu"


async def test_from_zero_to_many_and_back(lab: Lab) -> None:
    """A backlog brings workers, its end takes them away; one late row wakes one worker."""
    rows = 60
    await lab.endpoint.hold()
    job = lab.job(
        source={"rows": [{"id": n} for n in range(1, rows + 2)], "limit": rows},
        workers={"maxReplicas": 3, "rowsPerWorker": 20},
    )
    lab.apply(job)
    until(lambda: len(lab.ready_pods()) == 3, what="three workers", saying=lambda: lab.said(lab.see()))
    told = lab.until(lambda seen: seen["status"]["workers"]["ready"] == 3, what="three workers in the status")
    assert told["status"]["workers"]["desired"] == 3
    await lab.endpoint.release()
    lab.complete()
    until(lambda: not lab.all_pods(), what="no pods")
    assert len(lab.calls()) == rows

    await lab.endpoint.hold()
    lab.kubectl.patch("batchjob", "job", {"spec": {"source": {"limit": rows + 1}}})
    until(lambda: len(lab.ready_pods()) == 1, what="one worker")
    await lab.called(in_flight=1)
    assert len(lab.all_pods()) == 1, "one row needs one worker"
    await lab.endpoint.release()
    done = lab.until(lambda seen: is_true(seen, "Complete") and seen["status"]["rows"]["total"] == rows + 1)
    assert done["status"]["rows"]["succeeded"] == rows + 1
    assert len(lab.calls()) == rows + 1


async def test_fewer_workers_lose_no_work(lab: Lab) -> None:
    """Whichever pods go: what they run is finished and recorded, what they hold is handed back, nothing runs twice."""
    rows = 400
    table = lab.table(rows)
    await lab.endpoint.hold()
    job = lab.job(
        source={"rows": [{"id": n} for n in range(1, rows + 1)]},
        concurrency={"perWorker": 4},
        workers={"maxReplicas": 3, "rowsPerWorker": 10},
    )
    lab.apply(job)
    until(lambda: len(lab.ready_pods()) == 3, what="three workers")
    await lab.called(in_flight=12)
    lab.kubectl.patch("batchjob", "job", {"spec": {"workers": {"maxReplicas": 1}}})
    until(lambda: len(lab.pods()) == 1, what="two pods on their way out")
    await lab.endpoint.play({"default": {"latency": 0.01}})
    await lab.endpoint.release()
    done = lab.complete()
    assert done["status"]["rows"]["retried"] == 0
    (await lab.history(table)).assert_clean(allowed_duplicates=0)


async def test_somebody_else_owns_the_number(lab: Lab) -> None:
    """`scaling: External`: what the scale subresource says, and nobody who fights it."""
    await lab.endpoint.hold()
    lab.apply(lab.job(rows=200, workers={"scaling": "External", "replicas": 1, "rowsPerWorker": 10}))
    until(lambda: len(lab.ready_pods()) == 1, what="one worker")
    lab.kubectl("scale", "batchjob", "job", "--replicas=2")
    until(lambda: len(lab.ready_pods()) == 2, what="two workers")
    seen = lab.until(lambda seen: seen["status"]["workers"]["ready"] == 2)
    assert seen["status"]["observedGeneration"] == seen["metadata"]["generation"]
    scale = json.loads(
        lab.kubectl.api(f"/apis/rowmill.dev/v1alpha1/namespaces/{lab.kubectl.namespace}/batchjobs/job/scale")
    )
    assert (scale["spec"]["replicas"], scale["status"]["replicas"]) == (2, 2)
    counted = lab.kubectl("get", "pods", "-l", scale["status"]["selector"], "-o", "name").split()
    assert len(counted) == 2
    await lab.endpoint.release()
    lab.complete()
    until(lambda: not lab.all_pods(), what="no pods")


async def test_a_gpu_job_lands_on_a_gpu_node(lab: Lab) -> None:
    """Without such a node its condition says why; once a node has the label and the resource it lands there."""
    cluster = lab.kubectl
    (node,) = (one["metadata"]["name"] for one in cluster.list("nodes"))
    job = lab.job(rows=3, workers={"gpu": {"count": 1, "resource": GPU}, "nodeSelector": {"accelerator": "test"}})
    lab.apply(job)
    told = lab.told("Unschedulable")
    assert "workers.nodeSelector" in told["message"] or "accelerator" in told["message"], told["message"]
    try:
        cluster("label", "node", node, "accelerator=test", "--overwrite")
        give_gpus(cluster, node, 2)
        lab.complete()
        assert lab.status()["rows"]["succeeded"] == 3
    finally:
        cluster("label", "node", node, "accelerator-")
        give_gpus(cluster, node, None)


def give_gpus(cluster: Kubectl, node: str, count: int | None) -> None:
    """Extended resources as a device plugin would announce them."""
    value = None if count is None else str(count)
    cluster.patch(
        "node", node, {"status": {"capacity": {GPU: value}, "allocatable": {GPU: value}}}, subresource="status"
    )


async def test_a_worker_can_do_nothing_but_its_job(lab: Lab) -> None:
    """No token, no way to act on the API server, no secret that its job does not name, nothing to write to."""
    await lab.endpoint.hold()
    lab.kubectl("create", "secret", "generic", "named", "--from-literal=token=a-named-secret")
    lab.kubectl("create", "secret", "generic", "other", "--from-literal=token=another-secret")
    job = lab.job(rows=3)
    job["spec"]["executor"]["http"]["headers"] = [
        {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "named", "key": "token"}}}
    ]
    lab.apply(job)
    (pod,) = until(lab.ready_pods, what="a worker")
    name, spec = pod["metadata"]["name"], pod["spec"]

    def inside(program: str) -> str:
        return lab.kubectl("exec", name, "--", "python", "-c", program).strip()

    assert spec["automountServiceAccountToken"] is False
    assert inside("import os; print(os.path.exists('/var/run/secrets/kubernetes.io'))") == "False"
    (container,) = spec["containers"]
    security = {**spec["securityContext"], **container["securityContext"]}
    assert security["runAsNonRoot"] is True
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (
        inside("import os; print(os.getuid(), os.access('/', os.W_OK), os.access('/opt', os.W_OK))")
        == "10001 False False"
    )

    found = inside(
        "import pathlib; print([p.read_text() for p in pathlib.Path('/etc/rowmill/secrets').rglob('*') if p.is_file()])"
    )
    assert "a-named-secret" in found
    assert "another-secret" not in inside(
        "import os,pathlib,subprocess\n"
        "seen = [repr(dict(os.environ))]\n"
        "for folder in ('/etc', '/tmp', '/var', '/run'):\n"
        "    for p in pathlib.Path(folder).rglob('*'):\n"
        "        try: seen.append(p.read_text(errors='replace')) if p.is_file() else None\n"
        "        except OSError: pass\n"
        "print('\\n'.join(seen))"
    )
    # Whoever asks the API server without credentials is told no.
    answer = inside(
        "import os,ssl,urllib.request,urllib.error\n"
        "context = ssl._create_unverified_context()\n"
        "host = os.environ['KUBERNETES_SERVICE_HOST']; port = os.environ['KUBERNETES_SERVICE_PORT']\n"
        f"for path in ('/api/v1/namespaces/{lab.kubectl.namespace}/secrets', '/apis/rowmill.dev/v1alpha1/batchjobs'):\n"
        "    try: print(urllib.request.urlopen(f'https://{host}:{port}{path}', context=context, timeout=5).status)\n"
        "    except urllib.error.HTTPError as error: print(error.code)\n"
        "    except OSError: print('no way')\n"
    )
    assert set(answer.split("\n")) <= {"401", "403", "no way"}, answer
    (policy,) = lab.kubectl.list("networkpolicies", selector="rowmill.dev/job=job")
    blocks = [to["ipBlock"] for rule in policy["spec"]["egress"] for to in rule.get("to", []) if "ipBlock" in to]
    api = lab.kubectl.within("default").get("service", "kubernetes")
    assert api is not None
    assert any(f"{api['spec']['clusterIP']}/32" in block.get("except", []) for block in blocks), blocks
    await lab.endpoint.release()
    done = lab.complete()
    assert condition(done, "Complete")["status"] == "True"
    assert all(call.row for call in lab.calls())
