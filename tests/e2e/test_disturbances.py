"""While workers run: pods killed and drained, the operator killed, the stores and the API server restarted.

Each time the five records agree at the end (source, endpoint, ledger, results, Redis), and what was paid twice is at
most what was in flight in what was killed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.kubectl import until
from tests.e2e.lab import Lab

ROWS = 800
SLOTS = 4
WORKERS = 2
CLUSTER = Path(__file__).parents[2] / "hack/cluster"


def kill_a_pod(lab: Lab) -> None:
    lab.kubectl.delete("pod", lab.ready_pods()[0]["metadata"]["name"], "--grace-period=0", "--force")


def drain_a_pod(lab: Lab) -> None:
    """As `kubectl drain` does it: by the eviction API, which asks politely."""
    name = lab.ready_pods()[0]["metadata"]["name"]
    body = f'{{"apiVersion":"policy/v1beta1","kind":"Eviction","metadata":{{"name":"{name}"}}}}'
    path = f"/api/v1/namespaces/{lab.kubectl.namespace}/pods/{name}/eviction"
    lab.kubectl("create", "--raw", path, "-f", "-", input=body)


def kill_the_operator(lab: Lab) -> None:
    lab.install.kill_operator()


def empty_redis(lab: Lab) -> None:
    lab.stores.restart_redis_empty()


def restart_postgres(lab: Lab) -> None:
    lab.stores.restart_postgres_at_once()


def restart_the_api_server(lab: Lab) -> None:
    subprocess.run([CLUSTER, "restart", "apiserver", "--kill"], check=True, capture_output=True, timeout=240)


IN_FLIGHT = SLOTS * WORKERS


@pytest.mark.parametrize(
    ("disturb", "paid_twice"),
    [
        (kill_a_pod, SLOTS),
        (drain_a_pod, 0),
        (kill_the_operator, 0),
        (empty_redis, IN_FLIGHT),
        (restart_postgres, IN_FLIGHT),
        (restart_the_api_server, 0),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
async def test_disturbed(lab: Lab, disturb: Callable[[Lab], None], paid_twice: int) -> None:
    table = lab.table(ROWS)
    await lab.endpoint.play({"default": {"latency": 0.02}})
    await lab.endpoint.hold()
    lab.apply(
        lab.job(
            source={"rows": [{"id": n} for n in range(1, ROWS + 1)]},
            concurrency={"perWorker": SLOTS},
            workers={"maxReplicas": WORKERS, "rowsPerWorker": 10},
        )
    )
    until(lambda: len(lab.ready_pods()) == WORKERS, what="two workers", saying=lambda: lab.said(lab.see()))
    await lab.endpoint.release()
    await lab.called(calls=100)
    disturb(lab)
    done = lab.complete()
    assert done["status"]["rows"]["succeeded"] == ROWS, done["status"]
    assert len(lab.calls()) > 100
    history = await lab.history(table)
    history.assert_clean(allowed_duplicates=paid_twice, allowed_overlaps=paid_twice)


async def test_workers_go_on_without_an_operator(lab: Lab) -> None:
    """Everything that was fed is done while there is no operator; the next one finds it so."""
    rows = 300
    table = lab.table(rows)
    await lab.endpoint.hold()
    lab.apply(
        lab.job(
            source={"rows": [{"id": n} for n in range(1, rows + 1)]},
            concurrency={"perWorker": SLOTS},
            workers={"maxReplicas": 1},
        )
    )
    await lab.called(in_flight=SLOTS)
    lab.until(lambda seen: seen["status"]["rows"].get("total") == rows, what="everything fed")
    lab.install.scale_operator(0)
    try:
        until(lambda: not lab.install.kubectl.list("pods", selector="app.kubernetes.io/component=operator"))
        await lab.endpoint.play({"default": "ok"})
        await lab.endpoint.release()
        await lab.called(calls=rows, idle=True)
        assert lab.status()["rows"]["succeeded"] < rows, "somebody told the status"
    finally:
        lab.install.scale_operator(1)
    done = lab.complete()
    assert done["status"]["rows"]["succeeded"] == rows
    (await lab.history(table)).assert_clean(allowed_duplicates=0)
