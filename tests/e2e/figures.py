"""What running on a cluster costs: `python -m tests.e2e.figures`, on the cluster that `hack/cluster up` brought up.

Everything in one run, for the machine counts: the time from applying a job to its first row's commit, next to that of a
bare Kubernetes Job which runs the same image and does the same for one row; the operator's memory and its writes to the
API server; the images' sizes. Figures are printed; nothing is held against a bound here.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Mapping
from typing import Any

import asyncpg
import pytest

from tests.e2e.client import connected
from tests.e2e.kubectl import is_true, until
from tests.e2e.lab import Lab
from tests.e2e.metrics import Metrics

RUNS = 5
JOBS = 100
WORKING = 3
SUSPENDED = 60
MINUTE = 60.0
IMAGE = "localhost/rowmill-worker:dev"
WRITES = ("POST", "PATCH", "PUT", "DELETE")
NOBODY = {"scaling": "External", "replicas": 0}

ONE_ROW = """
import asyncio, os, urllib.request, asyncpg
urllib.request.urlopen(os.environ["ENDPOINT"], data=b'{"row": 1}').read()
async def commit():
    ledger = await asyncpg.connect(os.environ["DSN"])
    await ledger.execute("insert into bare_rows (name) values ($1)", os.environ["NAME"])
    await ledger.close()
asyncio.run(commit())
"""
"""What a bare Job does for its one row: the call, and the record of it."""


def bare_job(lab: Lab, name: str) -> dict[str, Any]:
    variables = {
        "ENDPOINT": lab.forwards.there(lab.endpoint.url),
        "DSN": lab.forwards.there(lab.stores.postgres_dsn),
        "NAME": name,
    }
    container = {
        "name": "row",
        "image": IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", ONE_ROW],
        "env": [{"name": key, "value": value} for key, value in variables.items()],
    }
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    metadata = {"name": name, "namespace": lab.kubectl.namespace}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": template}}


@pytest.mark.timeout(600)
async def test_from_apply_to_the_first_committed_row(lab: Lab) -> None:
    """By kubectl both, in turns; the time of the commit is the database's, which runs on this machine."""
    ledger = await asyncpg.connect(lab.stores.postgres_dsn)
    await ledger.execute(
        "create table if not exists bare_rows (name text, committed timestamptz default clock_timestamp())"
    )
    took: dict[str, list[float]] = {"bare Job": [], "BatchJob": []}

    async def committed(query: str, *given: Any) -> float:
        end = time.monotonic() + 90
        while time.monotonic() < end:
            if (found := await ledger.fetchval(query, *given)) is not None:
                return float(found.timestamp())
            await asyncio.sleep(0.1)
        raise TimeoutError(f"nothing was committed: {lab.install.logs()}")

    lab.apply(lab.job("warm", rows=1, workers={"maxReplicas": 1}))
    lab.complete("warm")
    for n in range(RUNS):
        began = time.time()
        lab.kubectl.apply(bare_job(lab, f"bare-{n}"))
        took["bare Job"].append(await committed("select committed from bare_rows where name = $1", f"bare-{n}") - began)
        began = time.time()
        lab.apply(lab.job(f"job-{n}", rows=1, workers={"maxReplicas": 1}))
        lab.complete(f"job-{n}")
        run = (await lab.record(f"job-{n}")).id
        took["BatchJob"].append(await committed(f"select min(finished_at) from rowmill.outcomes_{run}") - began)
    await ledger.close()
    medians = {name: statistics.median(times) for name, times in took.items()}
    print("\nfrom apply to the first committed row, by kubectl, image present:")
    for name, times in took.items():
        print(f"  {name:9} median {medians[name]:.2f} s of {', '.join(f'{one:.2f}' for one in sorted(times))}")
    print(
        f"  a BatchJob takes {medians['BatchJob'] - medians['bare Job']:+.2f} s, "
        f"{medians['BatchJob'] / medians['bare Job']:.2f} times as long"
    )


@pytest.mark.timeout(600)
async def test_memory_and_writes(lab: Lab) -> None:
    """A new operator; one job at work; then a hundred, of which few have pods."""
    lab.install.kill_operator()
    await lab.endpoint.play({"default": {"latency": 1.0}})
    working: dict[str, Any] = {
        "source": {"rows": [{"id": n} for n in range(1, 5001)]},
        "concurrency": {"perWorker": 4},
        "workers": {"maxReplicas": 1},
    }
    lab.apply(lab.job("working-0", **working))
    lab.until(lambda job: job["status"]["rows"]["succeeded"] > 8, "working-0", what="rows that are done")
    idle = memory(lab)
    told = await writes(lab, jobs=1)
    print(f"\n1 BatchJob at work (4 rows a second, one worker): {idle}; {told}")

    async with connected(lab.kubectl) as client:
        _, version = await client.listed()
        jobs = [lab.job(f"working-{n}", **working) for n in range(1, WORKING)]
        jobs += [lab.job(f"suspended-{n}", rows=10, suspend=True) for n in range(SUSPENDED)]
        jobs += [lab.job(f"fed-{n}", rows=10, workers=NOBODY) for n in range(JOBS - WORKING - SUSPENDED)]
        await client.answered_in(jobs)
        names = [job["metadata"]["name"] for job in jobs]

        def steady(job: Mapping[str, Any]) -> bool:
            status = job.get("status") or {}
            return is_true(job, "Suspended") or status.get("rows", {}).get("total") is not None

        await client.first_seen(names, steady, since=version)
    until(lambda: all(len(lab.ready_pods(f"working-{n}")) == 1 for n in range(WORKING)), what="workers")
    await quiet(lab)
    told = await writes(lab, jobs=JOBS)
    print(
        f"{JOBS} BatchJobs ({WORKING} at work with a worker each, {SUSPENDED} suspended, the rest fed and waiting for "
        f"workers, their events out): {memory(lab)}; {told}"
    )


def test_images(lab: Lab) -> None:
    (node,) = lab.kubectl.list("nodes")
    print("\nimages, as the node has them:")
    for image in node["status"]["images"]:
        name = next((one for one in image.get("names") or [] if "rowmill" in one and "@" not in one), None)
        if name is not None:
            print(f"  {name:45} {image['sizeBytes'] / 1e6:8.1f} MB")


def memory(lab: Lab) -> str:
    program = "import json; print(json.dumps(dict(line.split(':', 1) for line in open('/proc/1/status'))))"
    name = lab.install.operator()["metadata"]["name"]
    told = json.loads(lab.install.kubectl("exec", name, "--", "python", "-c", program))
    now, most = (int(told[field].split()[0]) / 1024 for field in ("VmRSS", "VmHWM"))
    return f"the operator's memory {now:.0f} MiB (at most {most:.0f})"


async def quiet(lab: Lab) -> None:
    """Wait until the events of a hundred new jobs are out: they are held back, so as not to flood anybody."""
    sent, before = 0.0, -1.0
    while sent != before:
        before = sent
        await asyncio.sleep(5)
        sent = Metrics(lab.install.metrics()).total("rowmill_operator_events_total")


async def writes(lab: Lab, *, jobs: int) -> str:
    """Calls to the API server that change something, in a minute."""

    def counted() -> tuple[float, dict[str, float]]:
        metrics = Metrics(lab.install.metrics())
        by = {
            resource: sum(
                metrics.total("rowmill_operator_api_calls_total", verb=verb, resource=resource) for verb in WRITES
            )
            for resource in metrics.by("rowmill_operator_api_calls_total", "resource")
        }
        return time.monotonic(), by

    began, before = counted()
    await asyncio.sleep(MINUTE)
    ended, after = counted()
    minutes = (ended - began) / 60
    rates = {name: (after[name] - before.get(name, 0.0)) / minutes for name in sorted(after)}
    listed = ", ".join(f"{name} {rate:.1f}" for name, rate in rates.items() if rate)
    return (
        f"API writes a minute: {sum(rates.values()):.1f}, {sum(rates.values()) / jobs:.2f} a job ({listed or 'none'})"
    )


def main() -> int:
    """Run all of it; returns pytest's exit code."""
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores; load before {load:.1f}: {'a busy machine' if load > 1 else 'a quiet machine'}")
    return int(pytest.main([__file__, "-q", "-s", "-p", "no:cacheprovider"]))


if __name__ == "__main__":
    sys.exit(main())
