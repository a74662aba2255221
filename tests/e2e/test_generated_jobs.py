"""A hundred BatchJobs out of the definition's own schema, valid and not, applied at once.

The API server refuses what the schema forbids, and nothing else. Of what it takes, each settles in exactly one of the
documented states, whatever it asks for, and the operator neither ends nor stops caring for the others.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
from kubernetes.aio.client.exceptions import ApiException

from rowmill_operator.kube.conditions import TYPES, Reason
from tests.e2e.client import connected, noticed
from tests.e2e.conftest import Web
from tests.e2e.generate import Generator
from tests.e2e.kubectl import condition, reason, until
from tests.e2e.lab import Lab
from tests.support.job_states import STATES

JOBS = 100
SEED = 4
AT_ONCE = 20
EVENTS = 6
"""Of a job on its way to where it settles, at most."""


def settled(job: Mapping[str, Any]) -> bool:
    return noticed(job) and reason(job) in STATES


def why_not_one_state(job: Mapping[str, Any]) -> str:
    """What is wrong with the conditions of a settled job; "" if nothing is."""
    held = job["status"]["conditions"]
    if sorted(one["type"] for one in held) != sorted(TYPES):
        return f"conditions {[one['type'] for one in held]}"
    if len({one["reason"] for one in held}) != 1:
        return f"reasons {[one['reason'] for one in held]}"
    if {one["observedGeneration"] for one in held} != {job["metadata"]["generation"]}:
        return "conditions of another generation"
    phases, together = STATES[Reason(reason(job))]
    true = frozenset(one["type"] for one in held if one["status"] == "True")
    if job["status"]["phase"] not in phases:
        return f"the phase {job['status']['phase']} with the reason {reason(job)}"
    if true not in together:
        return f"{sorted(true)} are True with the reason {reason(job)}"
    if not condition(job, "Ready").get("message"):
        return "no message"
    return ""


async def test_each_settles_in_exactly_one_documented_state(lab: Lab, web: Web) -> None:
    definition = lab.kubectl.get("customresourcedefinition", "batchjobs.rowmill.dev")
    assert definition is not None
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    served, there = web.serve(lab.table(3)), lab.forwards.address
    secret = {"name": "absent", "key": "token"}
    image = [{"name": "worker", "image": "localhost/there-is-no-such:image"}]
    generator = Generator(
        schema,
        pools={
            "source.uri": [
                served,
                served.replace(".csv", "-no-such.csv"),
                f"http://{there}:9/rows.csv",
                "http://no-such-host.invalid/rows.csv",
                "http://169.254.169.254/latest/rows.csv",
                "s3://no-such-bucket/rows.parquet",
                "/etc/passwd",
                "ftp://h/rows.csv",
            ],
            "source.format": ["CSV"],
            "source.rows": [[{"id": n} for n in range(1, 4)], [{}], []],
            "output.uri": ["s3://no-such-bucket/out/", "s3://no-such-bucket/out", "/tmp/out.csv", "results/"],
            "key": [["id"], ["id"], ["nothing"]],
            "executor.http.headers": [[], [{"name": "Authorization", "valueFrom": {"secretKeyRef": secret}}]],
            "workers": [
                ...,
                ...,
                {"nodeSelector": {"no": "where"}},
                {"resources": {"requests": {"cpu": "much"}}},
                {"podTemplate": {"spec": {"serviceAccountName": "nobody"}}},
                {"podTemplate": {"spec": {"containers": image}}},
            ],
            "executor.http.url": [lab.forwards.there(lab.endpoint.url)] * 3 + ["http://{{ row.", f"http://{there}:9/"],
        },
        seed=SEED,
    )
    made = {one.manifest["metadata"]["name"]: one for one in generator.jobs(lab.job(rows=3), JOBS)}
    before, began = lab.install.operator(), datetime.now(UTC)
    judge = jsonschema.Draft202012Validator(schema)
    slots = asyncio.Semaphore(AT_ONCE)

    async with connected(lab.kubectl) as client:

        async def create(manifest: Mapping[str, Any]) -> str | None:
            async with slots:
                try:
                    await client.create(manifest)
                except ApiException as error:
                    if error.status not in (400, 422):
                        raise
                    return str(error.body)
                return None

        _, version = await client.listed()
        answers = await asyncio.gather(*(create(one.manifest) for one in made.values()))
        refused = {name: answer for name, answer in zip(made, answers, strict=True) if answer is not None}
        taken = [name for name in made if name not in refused]
        forbidden = {name for name, one in made.items() if not judge.is_valid(one.manifest["spec"])}
        assert set(refused) == forbidden, {
            name: (made[name].what, refused.get(name)) for name in set(refused) ^ forbidden
        }
        for name, answer in refused.items():
            assert "spec" in answer, f"{made[name].what}: {answer}"
        try:
            await client.first_seen(taken, settled, since=version)
        finally:
            listed, _ = await client.listed()
            found = Counter(reason(job) for job in listed)
            print(f"\n{len(refused)} refused by the API server; {dict(found.most_common())}")
            for job in listed:
                if not settled(job):
                    print(f"{made[job['metadata']['name']].what}: {lab.said(job)}\n{json.dumps(job['spec'])[:800]}")

    wrong = {job["metadata"]["name"]: why for job in listed if (why := why_not_one_state(job))}
    assert not wrong, {name: (why, made[name].what) for name, why in wrong.items()}
    assert len(refused) >= 5
    assert len(found) >= 8, "the generator has become dull"
    assert found[Reason.COMPLETED] >= 2
    assert all(len(json.dumps(job["status"])) < 8192 for job in listed)

    names = {job["metadata"]["name"] for job in listed}

    def untold() -> set[str]:
        """Jobs without an event of their reason."""
        told = {(one["involvedObject"]["name"], one["reason"]) for one in lab.kubectl.list("events")}
        return {job["metadata"]["name"] for job in listed if (job["metadata"]["name"], reason(job)) not in told}

    until(lambda: not untold(), what="an event of each", saying=untold)
    told = Counter(one["involvedObject"]["name"] for one in lab.kubectl.list("events"))
    assert max(told[name] for name in names) <= EVENTS, told.most_common(3)

    after = lab.install.operator()
    assert after["metadata"]["name"] == before["metadata"]["name"]
    assert [one["restartCount"] for one in after["status"]["containerStatuses"]] == [0]
    log = lab.install.logs(100_000, since=began)
    assert "controller failed" not in log, [line for line in log.splitlines() if "controller failed" in line][:3]
    assert "Traceback" not in log
    lab.apply(lab.job("well", rows=2, workers={"maxReplicas": 1}))
    lab.complete("well")
