"""The chart on a cluster: tested, upgraded with a job at work, rolled back, uninstalled with and without the CRD.

What an upgrade begins from. There is one release before this chart, and it had neither operator nor chart: only the
command line. So the two halves of an upgrade are tested apart:

- its data: `frozen/ledger-without-operator.sql` is a ledger as that release's command line left it when it was cut off
  in the middle of a run, with the schema of then. Today's operator is pointed at it, brings the schema up to date, and
  completes the run without calling a finished row again;
- the chart itself: this chart is upgraded to another revision of itself (another image of workers, other settings)
  while a job is at work, and rolled back. The run keeps the worker, and the image, that it began with.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import pytest

from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from rowmill.outcome import Outcome
from tests.e2e.forward import Forwards
from tests.e2e.install import OPERATOR, RELEASE, SYSTEM, Install
from tests.e2e.kubectl import Json, Kubectl, is_true, until
from tests.e2e.lab import Lab
from tests.support.servers import PrivateServers, fresh_database, run_apart

ROOT = Path(__file__).parents[2]
CRD = "batchjobs.rowmill.dev"
NEXT = "next"
WORKER = "localhost/rowmill-worker"
FROZEN = Path(__file__).parent / "frozen/ledger-without-operator.sql"
TAKEOVER = "takeover"
OWN = "deployments,serviceaccounts,services,networkpolicies,poddisruptionbudgets,roles,rolebindings,leases"
OWN_CLUSTERWIDE = "clusterroles,clusterrolebindings"


@pytest.fixture(scope="module")
def next_image(kubectl: Kubectl) -> str:
    """The tag of the worker of a release to come: today's under another name."""
    command = [str(ROOT / "hack/images"), "build", "--tag", NEXT, "--target", "worker"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return NEXT


@pytest.fixture
def restored(install: Install) -> Iterator[Install]:
    """The release, brought back to what the other tests expect of it."""
    yield install
    install.up()


def test_helm_test(install: Install) -> None:
    told = install.helm("test", RELEASE, "--timeout", "2m")
    assert "Succeeded" in told, told


async def test_upgraded_with_a_job_at_work(lab: Lab, restored: Install, next_image: str) -> None:
    """Rows go on all the while; the run keeps its worker; the next run takes the new image; back again works too."""
    rows = 6000  # thirty a second: more than there is time for an upgrade
    table = lab.table(rows)
    await lab.endpoint.play({"default": {"latency": 0.1}})
    job = lab.job(
        source={"rows": [{"id": n} for n in range(1, rows + 1)]},
        concurrency={"perWorker": 3},
        workers={"maxReplicas": 1},
    )
    lab.apply(job)
    await lab.called(calls=10)
    (worker,) = lab.pods()
    before = lab.install.operator()["metadata"]["name"]
    began = len(lab.calls())
    await asyncio.to_thread(
        restored.up,
        worker={"image": {"repository": WORKER, "tag": next_image}},
        operator={"threads": 2},
    )
    assert lab.install.operator()["metadata"]["name"] != before, "the operator was not replaced"
    called = len(lab.calls())
    assert began + 10 < called < rows, "no row was called while the operator was replaced"
    (still,) = lab.pods()
    assert still["metadata"]["uid"] == worker["metadata"]["uid"], "the upgrade replaced the run's worker"
    await lab.endpoint.play({})
    done = lab.complete()
    assert done["status"]["workers"]["image"] == f"{WORKER}:dev"
    history = await lab.history(table)
    history.assert_clean(allowed_duplicates=0)

    few = lab.job("few", rows=5, workers={"maxReplicas": 1})
    lab.apply(few)
    assert lab.complete("few")["status"]["workers"]["image"] == f"{WORKER}:{next_image}"

    lab.install.helm("rollback", RELEASE, "--wait=watcher", "--timeout", "3m")
    lab.apply({**few, "spec": {**few["spec"], "runId": "2"}})
    second = lab.until(lambda seen: is_true(seen, "Complete") and seen["status"]["run"]["id"] == "2", "few")
    assert second["status"]["workers"]["image"] == f"{WORKER}:dev"
    assert len(lab.calls()) == rows + 2 * 5


async def test_a_ledger_of_the_release_without_an_operator(
    lab: Lab, restored: Install, stores: PrivateServers, forwards: Forwards
) -> None:
    """Its run of 60 rows was cut off after 23 that succeeded and one that failed: the other 36 are called, once."""
    ended = set(range(1, 25))
    with fresh_database(stores.postgres_dsn) as dsn, namespace(lab.kubectl, TAKEOVER) as there:
        run_apart(execute(dsn, FROZEN.read_text()))
        there.apply(*endpoint_service(forwards.address, lab.endpoint.port))
        restored.kubectl.apply(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "postgres-before", "namespace": SYSTEM},
                "stringData": {"dsn": forwards.there(dsn)},
            }
        )
        await asyncio.to_thread(
            restored.up,
            installation="local",  # as the command line calls itself
            postgres={"existingSecret": {"name": "postgres-before", "key": "dsn"}},
        )
        # The frozen part of the manifest is as the run began.
        job = lab.job(rows=60, workers={"maxReplicas": 1}, concurrency={"perWorker": 4}, timeoutSeconds=10)
        job["metadata"] = {"name": "job", "namespace": TAKEOVER}
        job["spec"]["executor"]["http"]["url"] = f"http://endpoint.{TAKEOVER}.svc:8080/"
        there.apply(job)

        def complete() -> Json | None:
            seen = there.get("batchjob", "job")
            return seen if is_true(seen, "Complete") else None

        done = until(complete, what="Complete", saying=lambda: f"{there.get('batchjob', 'job')}")
        rows = done["status"]["rows"]
        assert (rows["total"], rows["succeeded"], rows["failed"]) == (60, 59, 1)
        assert [(one["class"], one["exampleRow"]) for one in done["status"]["errors"]] == [("HTTP400", 5)]
        called = Counter(int(call.row) for call in lab.calls() if call.row)
        assert called == dict.fromkeys(set(range(1, 61)) - ended, 1)

        there.patch("batchjob", "job", {"spec": {"retryGeneration": 1}})
        until(
            lambda: (seen := complete()) is not None and seen["status"]["run"]["generation"] == 1,
            what="the failed row again",
        )
        assert Counter(int(call.row) for call in lab.calls() if call.row) == called + Counter({5: 1})
        outcomes = run_apart(outcomes_of(dsn, RunIdentity("local", TAKEOVER, "job", "1")))
        assert [(one.seq, one.state.label) for one in outcomes] == [(n, "Succeeded") for n in range(1, 61)]
        there.delete("batchjob", "job")
        await asyncio.to_thread(restored.up)


async def test_uninstalled_and_installed_again(lab: Lab) -> None:
    """With `crds.keep` jobs stay and workers go on; without it nothing of the chart is left. Nothing is paid twice."""
    install, rows = lab.install, 60
    finished = lab.job("finished", rows=5, workers={"maxReplicas": 1})
    lab.apply(finished)
    lab.complete("finished")
    await lab.endpoint.hold()
    running = lab.job(
        "running",
        source={"rows": [{"id": 1000 + n} for n in range(1, rows + 1)]},
        workers={"maxReplicas": 1},
    )
    lab.apply(running)
    await lab.called(in_flight=3)
    lab.until(lambda seen: seen["status"]["rows"].get("total") == rows, "running", what="everything fed")

    install.down()
    assert lab.kubectl.get("crd", CRD) is not None
    assert left_of(install.kubectl) == []
    assert is_true(lab.see("finished"), "Complete")
    (worker,) = lab.pods("running")
    await lab.endpoint.release()
    await lab.called(calls=5 + rows, idle=True)
    await asyncio.to_thread(install.up)
    done = lab.complete("running")
    assert done["status"]["rows"]["succeeded"] == rows
    assert len(lab.calls()) == 5 + rows

    for name in ("finished", "running"):
        lab.kubectl.delete("batchjob", name)
    until(lambda: not lab.kubectl.list("batchjobs"), what="no jobs")
    await asyncio.to_thread(install.up, crds={"keep": False})
    install.down()
    until(lambda: lab.kubectl.get("crd", CRD) is None, what="no definition")
    assert left_of(install.kubectl) == []
    await asyncio.to_thread(install.up)
    lab.apply(finished)
    again = lab.complete("finished")
    assert again["status"]["rows"]["succeeded"] == 5
    assert len(lab.calls()) == 5 + rows, "a row was called again"
    assert worker["metadata"]["name"] not in [pod["metadata"]["name"] for pod in lab.all_pods("running")]


def left_of(kubectl: Kubectl) -> list[str]:
    """What is there of the release, besides the definition."""
    mine = f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/name=rowmill"
    until(lambda: not kubectl.list("pods", selector=OPERATOR), what="no pod of the operator")
    return [
        f"{one['kind']}/{one['metadata']['name']}"
        for kinds in (OWN, OWN_CLUSTERWIDE)
        for one in kubectl.list(kinds, selector=mine)
    ]


def endpoint_service(address: str, port: int) -> tuple[Json, Json]:
    """A Service in the cluster for a server that is elsewhere: the frozen run has its name."""
    metadata = {"name": "endpoint", "namespace": TAKEOVER}
    return (
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 8080}]}},
        {
            "apiVersion": "v1",
            "kind": "Endpoints",
            "metadata": metadata,
            "subsets": [{"addresses": [{"ip": address}], "ports": [{"port": port}]}],
        },
    )


@contextmanager
def namespace(kubectl: Kubectl, name: str) -> Iterator[Kubectl]:
    """A namespace of this very name until the block is left."""
    until(lambda: kubectl.get("namespace", name) is None, what=f"no namespace {name} of an earlier run")
    kubectl("create", "namespace", name)
    try:
        yield kubectl.within(name)
    finally:
        kubectl("delete", "namespace", name, "--wait=false")


async def execute(dsn: str, script: str) -> None:
    connection = await asyncpg.connect(dsn, timeout=60)
    try:
        await connection.execute(script, timeout=60)
    finally:
        await connection.close(timeout=60)


async def outcomes_of(dsn: str, identity: RunIdentity) -> list[Outcome]:
    ledger = await Ledger.connect(dsn)
    try:
        record = await ledger.find_run(identity)
        assert record is not None
        return [outcome async for page in ledger.results(record) for outcome in page]
    finally:
        await ledger.close()
