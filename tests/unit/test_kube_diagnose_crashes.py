"""From what clusters say of workers that end, of many troubles at once and of refused objects to one sentence."""

from __future__ import annotations

import pytest

from rowmill_operator.kube.conditions import Reason
from rowmill_operator.kube.diagnose import GRAVITY, diagnose
from rowmill_operator.kube.refusals import of_refused_object
from tests.unit.diagnose_helpers import (
    GPU_NOW,
    NOW,
    ago,
    container,
    crashing,
    found,
    pod,
    refused,
    trouble,
    unschedulable,
    waiting,
)


class TestCrashes:
    def test_a_worker_that_cannot_work_says_why(self) -> None:
        said = "/etc/rowmill/job/job.yaml: spec.executor.http.headers[1].valueFrom.env: TENANT is not set"
        result = trouble(crashing(code=2, message=said))
        assert result.reason == Reason.WORKERS_FAILING
        assert said in result.message
        assert "exit code 2" in result.message

    def test_out_of_memory(self) -> None:
        result = trouble(crashing(code=137, reason="OOMKilled"))
        assert "runs out of memory" in result.message
        assert "spec.workers.resources.limits.memory" in result.message

    @pytest.mark.parametrize(
        ("code", "reason", "message", "holds"),
        [
            (
                128,
                "StartError",
                "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create "
                'failed: unable to start container process: exec: "python": executable file not found in $PATH: '
                "unknown",
                "executable file not found",
            ),
            (127, "ContainerCannotRun", "", "check its image and command"),
            (137, "Error", "", "memory left"),
            (0, "Completed", "", "ends by itself"),
            (
                1,
                "Error",
                "a part of this worker failed (KeyError); its log says how",
                "kubectl logs -l rowmill.dev/job=triage",
            ),
            (
                1,
                "Error",
                '{"timestamp":"2026-05-01T11:59:59Z","level":"error","event":"the worker cannot run","reason":"so"}\n',
                "the worker cannot run: so",
            ),
            (
                1,
                "Error",
                'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n'
                "ModuleNotFoundError: No module\n",
                "ModuleNotFoundError: No module",
            ),
        ],
    )
    def test_exit_codes(self, code: int, reason: str, message: str, holds: str) -> None:
        result = trouble(crashing(code=code, reason=reason, message=message))
        assert result.reason == Reason.WORKERS_FAILING
        assert holds in result.message
        assert "2026-05-01" not in result.message
        assert "Traceback" not in result.message

    def test_the_same_at_every_stage_of_the_loop_and_for_every_pod(self) -> None:
        ended = {"exitCode": 2, "reason": "Error", "message": "bad", "finishedAt": ago(1)}
        stages = [
            crashing(code=2, message="bad"),
            crashing(code=2, message="bad", name="q", restartCount=9),
            crashing(code=2, state={"terminated": ended}, lastState={}),
            crashing(code=2, message="bad", state={"running": {"startedAt": ago(1)}}),
        ]
        assert len({trouble(stage).message for stage in stages}) == 1

    def test_a_container_that_ended_once_has_the_grace_to_get_ready(self) -> None:
        once = crashing(code=1, restartCount=1, state={"running": {"startedAt": ago(2)}})
        assert found(once) is None
        slow = crashing(code=1, restartCount=1, state={"running": {"startedAt": ago(20)}})
        assert trouble(slow).reason == Reason.WORKERS_FAILING
        ready = crashing(code=1, restartCount=3, ready=True, state={"running": {"startedAt": ago(20)}})
        assert found(ready) is None

    def test_containers_of_the_tenant_are_named(self) -> None:
        status = crashing(code=1)["status"]["containerStatuses"][0]
        one = pod(status={"phase": "Pending", "initContainerStatuses": [{**status, "name": "fetch"}]})
        assert "the container fetch" in trouble(one).message

    def test_a_container_that_cannot_be_created(self) -> None:
        message = 'failed to create containerd container: get apparmor_parser version: exec: "apparmor_parser"'
        assert "cannot be started" in trouble(waiting("CreateContainerError", message)).message

    def test_evicted_for_what_it_wrote(self) -> None:
        gone = {"phase": "Failed", "reason": "Evicted", "startTime": ago(4000)}
        message = 'Usage of EmptyDir volume "tmp" exceeds the limit "1Gi". '
        recent = [{"type": "DisruptionTarget", "status": "True", "lastTransitionTime": ago(30)}]
        assert "exceeds the limit" in trouble(pod(status={**gone, "message": message, "conditions": recent})).message
        assert found(pod(status={**gone, "message": message})) is None, "long ago"
        pressure = "The node was low on resource: ephemeral-storage. "
        assert found(pod(status={**gone, "message": pressure, "conditions": recent})) is None, "not its fault"


class TestWhichOne:
    def test_all_is_well(self) -> None:
        ready = pod(status={"phase": "Running", "containerStatuses": [container(ready=True, state={"running": {}})]})
        assert found() is None
        assert (
            found(ready, deployment={"status": {"conditions": [{"type": "ReplicaFailure", "status": "False"}]}}) is None
        )
        assert found(pod(status={"phase": "Succeeded"})) is None

    def test_pods_that_go_say_nothing(self) -> None:
        assert found(waiting("ErrImagePull", "not found", metadata={"deletionTimestamp": ago(1)})) is None

    def test_the_gravest_is_told_in_any_order(self) -> None:
        pods = [unschedulable(GPU_NOW), crashing(code=1), waiting("ErrImagePull", "not found")]
        assert {trouble(*order).reason for order in (pods, pods[::-1])} == {Reason.IMAGE_PULL_FAILED}
        quota = refused('pods "x" is forbidden: exceeded quota: q, requested: cpu=1, used: cpu=1, limited: cpu=1')
        assert trouble(*pods, deployment=quota).reason == Reason.IMAGE_PULL_FAILED
        ending = refused(
            'pods "x" is forbidden: unable to create new content in namespace n because it is being terminated'
        )
        assert trouble(*pods, deployment=ending).reason == Reason.NAMESPACE_TERMINATING

    def test_it_has_lasted_as_long_as_for_the_longest_affected_pod(self) -> None:
        old, young = crashing(code=1, name="a"), crashing(code=1, name="b")
        old["status"]["conditions"] = [{"type": "Ready", "status": "False", "lastTransitionTime": ago(300)}]
        assert trouble(young, old).seconds == 300
        assert trouble(young).seconds == 60

    def test_every_reason_has_a_place(self) -> None:
        assert len(set(GRAVITY)) == len(GRAVITY)

    def test_half_written_objects_are_borne(self) -> None:
        for broken in ({}, {"metadata": {}, "status": {"conditions": None}}, {"status": {"containerStatuses": [{}]}}):
            assert diagnose(deployment={}, pods=[broken], events=[{}], now=NOW) is None


class TestRefusedObjects:
    @pytest.mark.parametrize(
        ("status", "message", "reason", "holds"),
        [
            (
                422,
                'Deployment.apps "triage-workers" is invalid: spec.template.spec.containers[1].image: Required value',
                Reason.INVALID_SPEC,
                "spec.workers.podTemplate.spec.containers[1].image: Required value",
            ),
            (
                500,
                "failed to create typed patch object: .spec.template.spec.foo: field not declared in schema",
                Reason.INVALID_SPEC,
                "spec.workers.podTemplate.spec.foo",
            ),
            (
                403,
                'deployments.apps is forbidden: User "system:serviceaccount:rowmill:rowmill-operator" cannot create '
                'resource "deployments" in API group "apps" in the namespace "support"',
                Reason.PODS_REFUSED,
                "may not create deployments",
            ),
            (
                403,
                'secrets "x" is forbidden: unable to create new content in namespace support because it is being '
                "terminated",
                Reason.NAMESPACE_TERMINATING,
                "support",
            ),
            (
                403,
                'deployments.apps "x" is forbidden: exceeded quota: q, requested: count/deployments.apps=1, used: '
                "count/deployments.apps=4, limited: count/deployments.apps=4",
                Reason.QUOTA_EXCEEDED,
                "count/deployments.apps of 4",
            ),
            (
                400,
                'admission webhook "policy.example" denied the request: no labels',
                Reason.PODS_REFUSED,
                "policy.example",
            ),
        ],
    )
    def test_told(self, status: int, message: str, reason: Reason, holds: str) -> None:
        result = of_refused_object(status, message, what="Deployment triage-workers")
        assert result is not None
        assert result.reason == reason
        assert holds in result.message

    @pytest.mark.parametrize("status", [404, 409, 429, 500, 503])
    def test_what_passes_is_no_trouble(self, status: int) -> None:
        assert of_refused_object(status, "the server is busy", what="x") is None
