"""From what clusters say (messages of Kubernetes 1.20 and of current versions, as they are) to one sentence."""

from __future__ import annotations

import pytest

from rowmill_operator.kube.conditions import Reason
from rowmill_operator.kube.diagnose import diagnose
from tests.unit.diagnose_helpers import (
    GPU_NOW,
    IMAGE,
    NOW,
    container,
    event,
    found,
    pod,
    refused,
    trouble,
    unschedulable,
    waiting,
)

RESTRICTED = (
    'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false (container "runtime" must set '
    'securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "runtime" must set '
    'securityContext.capabilities.drop=["ALL"])'
)


@pytest.mark.parametrize(
    ("message", "reason", "holds"),
    [
        (
            'pods "triage-workers-6d5f7c9b8-2wm8j" is forbidden: exceeded quota: namespace-quota, requested: '
            "limits.cpu=1,limits.memory=2Gi, used: limits.cpu=6,limits.memory=12Gi, limited: "
            "limits.cpu=6,limits.memory=12Gi",
            Reason.QUOTA_EXCEEDED,
            ["namespace-quota", "limits.cpu of 6", "asks for 1)", "limits.memory of 12Gi", "spec.workers.maxReplicas"],
        ),
        (
            'pods "x-7-abcde" is forbidden: exceeded quota: compute, requested: pods=1, used: pods=10, '
            "limited: pods=10",
            Reason.QUOTA_EXCEEDED,
            ["compute", "pods of 10"],
        ),
        (
            'pods "x" is forbidden: failed quota: fpl-quota: must specify requests.cpu,requests.memory',
            Reason.QUOTA_EXCEEDED,
            ["fpl-quota", "requests.cpu, requests.memory", "spec.workers.resources"],
        ),
        (
            'pods "x" is forbidden: failed quota: q: must specify limits.cpu for: proxy,worker; limits.memory for: '
            "worker",
            Reason.QUOTA_EXCEEDED,
            ["limits.cpu, limits.memory;"],
        ),
        (
            'pods "triage-workers-1" is forbidden: error looking up service account support/puller: serviceaccount '
            '"puller" not found',
            Reason.SERVICE_ACCOUNT_MISSING,
            ["ServiceAccount puller", "spec.workers.podTemplate.spec.serviceAccountName"],
        ),
        (
            'pods "x" is forbidden: service account default/fluentd was not found, retry after the service account is '
            "created",
            Reason.SERVICE_ACCOUNT_MISSING,
            ["ServiceAccount fluentd"],
        ),
        (
            f'pods "nodejs-app-8665bd77fb-2dd4n" is forbidden: {RESTRICTED}',
            Reason.PODS_REFUSED,
            ['PodSecurity "restricted:latest"', "allowPrivilegeEscalation", "pod security label"],
        ),
        (
            'pods "x-" is forbidden: unable to validate against any pod security policy: []',
            Reason.PODS_REFUSED,
            ["pod security policy"],
        ),
        (
            'pods "x" is forbidden: [maximum cpu usage per Container is 500m, but limit is 1, maximum memory usage per '
            "Container is 1Gi.  No limit is specified]",
            Reason.PODS_REFUSED,
            ["maximum cpu usage", "LimitRange"],
        ),
        (
            'pods "x" is forbidden: unable to create new content in namespace support because it is being terminated',
            Reason.NAMESPACE_TERMINATING,
            ["namespace support is being deleted"],
        ),
        (
            'pods "x" is forbidden: no PriorityClass with name urgent was found',
            Reason.PODS_REFUSED,
            ["PriorityClass urgent", "priorityClassName"],
        ),
        (
            'pods "x" is forbidden: pod rejected: RuntimeClass "gvisor" not found',
            Reason.PODS_REFUSED,
            ["RuntimeClass gvisor"],
        ),
        (
            'admission webhook "validate.kyverno.svc-fail" denied the request: resource Pod/support/x was blocked',
            Reason.PODS_REFUSED,
            ["validate.kyverno.svc-fail", "policy"],
        ),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, Reason) else "",
)
def test_refused_pods(message: str, reason: Reason, holds: list[str]) -> None:
    result = trouble(deployment=refused(message))
    assert result.reason == reason
    for text in holds:
        assert text in result.message
    assert result.seconds == 90


def test_a_quota_in_use_tells_nothing_that_moves() -> None:
    messages = {
        trouble(
            deployment=refused(
                f'pods "x-{n}" is forbidden: exceeded quota: q, requested: cpu=1, used: cpu={n}, limited: cpu=9'
            )
        ).message
        for n in range(5, 9)
    }
    assert len(messages) == 1


GPU_120 = (
    "0/3 nodes are available: 1 node(s) had taint {node-role.kubernetes.io/master: }, that the pod didn't tolerate, "
    "2 Insufficient nvidia.com/gpu."
)
SELECTOR_NOW = (
    "0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector. preemption: 0/4 nodes are "
    "available: 4 Preemption is not helpful for scheduling."
)


class TestUnschedulable:
    @pytest.mark.parametrize("message", [GPU_120, GPU_NOW])
    def test_no_gpus(self, message: str) -> None:
        result = trouble(unschedulable(message))
        assert result.reason == Reason.UNSCHEDULABLE
        assert "Insufficient nvidia.com/gpu" in result.message
        assert "add nodes that have nvidia.com/gpu free, or correct spec.workers.gpu" in result.message
        assert "spec.workers.tolerations" in result.message
        assert "preemption" not in result.message.lower()
        assert result.seconds == 60

    @pytest.mark.parametrize(
        "message",
        [
            "0/3 nodes are available: 3 node(s) didn't match node selector.",
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity.",
            SELECTOR_NOW,
        ],
    )
    def test_no_node_has_the_labels(self, message: str) -> None:
        result = trouble(unschedulable(message, spec={"nodeSelector": {"gpu": "a100", "zone": "b"}}))
        assert "spec.workers.nodeSelector asks (gpu=a100, zone=b)" in result.message

    def test_too_small(self) -> None:
        result = trouble(unschedulable("0/2 nodes are available: 1 Insufficient cpu, 2 Insufficient memory."))
        assert "Insufficient cpu; Insufficient memory" in result.message
        assert result.message.count("lower spec.workers.resources") == 1

    def test_volumes(self) -> None:
        message = '0/1 nodes are available: persistentvolumeclaim "models" not found. preemption: not eligible'
        result = trouble(unschedulable(message))
        assert 'persistentvolumeclaim "models" not found' in result.message
        assert "PersistentVolumeClaims of spec.workers.podTemplate" in result.message

    def test_no_nodes(self) -> None:
        assert "no nodes to choose from" in trouble(unschedulable("no nodes available to schedule pods")).message

    def test_counts_and_their_order_do_not_move_the_message(self) -> None:
        one = "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) had taint {a: b}, that the pod didn't tolerate."
        two = "0/9 nodes are available: 7 node(s) had taint {a: b}, that the pod didn't tolerate, 2 Insufficient cpu."
        assert trouble(unschedulable(one)).message == trouble(unschedulable(two)).message

    def test_held_back_by_a_queue(self) -> None:
        gates = {"schedulingGates": [{"name": "kueue.x-k8s.io/admission"}]}
        result = trouble(
            unschedulable(
                "Scheduling is blocked due to non-empty scheduling gates", reason="SchedulingGated", spec=gates
            )
        )
        assert result.reason == Reason.UNSCHEDULABLE
        assert "kueue.x-k8s.io/admission" in result.message

    def test_a_young_pod_has_a_grace(self) -> None:
        assert found(unschedulable(GPU_NOW, age=3)) is None
        assert diagnose(deployment=None, pods=[unschedulable(GPU_NOW, age=3)], now=NOW, grace=2) is not None


class TestImages:
    NOT_FOUND = (
        f'rpc error: code = NotFound desc = failed to pull and unpack image "{IMAGE}": failed to resolve reference '
        f'"{IMAGE}": {IMAGE}: not found'
    )
    DENIED = (
        f'rpc error: code = Unknown desc = failed to pull and unpack image "{IMAGE}": failed to resolve reference '
        f'"{IMAGE}": pull access denied, repository does not exist or may require authorization: server message: '
        "insufficient_scope: authorization failed"
    )
    NO_ROUTE = (
        f'rpc error: code = Unknown desc = failed to pull and unpack image "{IMAGE}": failed to resolve reference '
        f'"{IMAGE}": failed to do request: Head "https://registry.example/v2/team/worker/manifests/1.2": dial tcp: '
        "lookup registry.example on 10.0.0.2:53: no such host"
    )

    @pytest.mark.parametrize(
        ("reason", "message", "holds"),
        [
            ("ErrImagePull", NOT_FOUND, "none of that name and tag"),
            ("ErrImagePull", DENIED, "imagePullSecrets"),
            ("ErrImagePull", NO_ROUTE, "registry cannot be reached"),
            ("ImagePullBackOff", f'Back-off pulling image "{IMAGE}": ErrImagePull: {NOT_FOUND}', "none of that name"),
            (
                "InvalidImageName",
                f'Failed to apply default image tag "{IMAGE}": couldn\'t parse image reference "{IMAGE}": invalid '
                "reference format",
                "no valid name",
            ),
            (
                "ErrImageNeverPull",
                f'Container image "{IMAGE}" is not present with pull policy of Never',
                "IfNotPresent",
            ),
            ("RegistryUnavailable", f"image pull failed for {IMAGE} because the registry is unavailable.", "reached"),
        ],
    )
    def test_cannot_be_pulled(self, reason: str, message: str, holds: str) -> None:
        result = trouble(waiting(reason, message))
        assert result.reason == Reason.IMAGE_PULL_FAILED
        assert IMAGE in result.message
        assert "worker" in result.message
        assert holds in result.message

    def test_older_kubelets_back_off_without_a_cause_and_the_message_stays(self) -> None:
        failing = waiting("ErrImagePull", self.NOT_FOUND)
        backing_off = waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"')
        events = [
            event(failing, "Failed", f'Failed to pull image "{IMAGE}": {self.NOT_FOUND}'),
            event(failing, "Failed", "Error: ErrImagePull", age=1),
        ]
        assert trouble(failing, events=events) == trouble(backing_off, events=events)

    def test_without_a_cause_it_is_still_told(self) -> None:
        assert "cannot be pulled" in trouble(waiting("ImagePullBackOff", f'Back-off pulling image "{IMAGE}"')).message

    def test_the_name_of_an_image_is_no_cause(self) -> None:
        odd = waiting(
            "ErrImagePull", "rpc error: something", spec={"containers": [{"name": "worker", "image": "denied:401"}]}
        )
        assert "imagePullSecrets" not in trouble(odd).message


class TestMissing:
    @pytest.mark.parametrize("kind", ["secret", "secrets"])
    def test_a_secret_that_is_mounted(self, kind: str) -> None:
        one = waiting("ContainerCreating")
        message = f'MountVolume.SetUp failed for volume "secrets" : {kind} "triage" not found'
        result = trouble(one, events=[event(one, "FailedMount", message)])
        assert result.reason == Reason.SECRET_MISSING
        assert result.message.startswith("the Secret triage is missing in the job's namespace")

    def test_several_secrets_in_one_volume(self) -> None:
        one = waiting("ContainerCreating")
        message = 'MountVolume.SetUp failed for volume "secrets" : [secret "b" not found, secret "a" not found]'
        assert "the Secrets a, b are missing" in trouble(one, events=[event(one, "FailedMount", message)]).message

    def test_a_key_of_a_mounted_secret_names_the_secret(self) -> None:
        one = waiting("ContainerCreating")
        message = 'MountVolume.SetUp failed for volume "secrets" : references non-existent secret key: token'
        result = trouble(one, events=[event(one, "FailedMount", message)])
        assert result.reason == Reason.SECRET_MISSING
        assert "the Secret triage has no key token" in result.message

    def test_a_config_map_that_is_mounted(self) -> None:
        one = waiting("ContainerCreating")
        message = 'MountVolume.SetUp failed for volume "rules" : configmap "rules" not found'
        result = trouble(one, events=[event(one, "FailedMount", message)])
        assert result.reason == Reason.CONFIG_MAP_MISSING
        assert "ConfigMap rules" in result.message

    def test_our_own_objects_are_called_so(self) -> None:
        one = waiting("ContainerCreating")
        message = 'MountVolume.SetUp failed for volume "job" : configmap "triage-workers-0a1b2c3d" not found'
        result = trouble(one, events=[event(one, "FailedMount", message)])
        assert result.reason == Reason.CONFIG_MAP_MISSING
        assert "Rowmill's own" in result.message
        assert (
            "Rowmill's own"
            in trouble(waiting("CreateContainerConfigError", 'secret "triage-workers" not found')).message
        )

    @pytest.mark.parametrize(
        ("message", "reason", "holds"),
        [
            ('secret "db" not found', Reason.SECRET_MISSING, "Secret db is missing"),
            ('configmap "env" not found', Reason.CONFIG_MAP_MISSING, "ConfigMap env is missing"),
            (
                "couldn't find key token in Secret support/triage",
                Reason.SECRET_MISSING,
                "Secret triage has no key token",
            ),
            (
                "couldn't find key level in ConfigMap support/env",
                Reason.CONFIG_MAP_MISSING,
                "ConfigMap env has no key level",
            ),
            (
                'container has runAsNonRoot and image will run as root (pod: "t-w-6d5-abcde_support(d7ec6cb8-d04d-4c40-'
                'b333-1b51c5b69219)", container: worker)',
                Reason.WORKERS_FAILING,
                "runAsUser",
            ),
            (
                "container has runAsNonRoot and image has non-numeric user (node), cannot verify user is non-root",
                Reason.WORKERS_FAILING,
                "runAsUser",
            ),
        ],
    )
    def test_what_a_variable_or_the_image_lacks(self, message: str, reason: Reason, holds: str) -> None:
        result = trouble(waiting("CreateContainerConfigError", message))
        assert result.reason == reason
        assert holds in result.message

    def test_the_latest_event_counts(self) -> None:
        one = waiting("ContainerCreating")
        head = 'MountVolume.SetUp failed for volume "secrets" : '
        events = [
            event(one, "FailedMount", head + "references non-existent secret key: token", age=5),
            event(one, "FailedMount", head + 'secret "triage" not found', age=50),
            event(one, "FailedMount", "Unable to attach or mount volumes: unmounted volumes=[secrets]", age=1),
        ]
        assert "has no key token" in trouble(one, events=events).message

    def test_events_of_other_pods_and_of_pods_that_run_say_nothing(self) -> None:
        one, other = waiting("ContainerCreating"), waiting("ContainerCreating", name="another")
        told = event(other, "FailedMount", 'MountVolume.SetUp failed for volume "x" : secret "x" not found')
        assert found(one, events=[told]) is None
        running = pod(status={"phase": "Running", "containerStatuses": [container(ready=True, state={"running": {}})]})
        late = event(running, "FailedMount", 'MountVolume.SetUp failed for volume "x" : secret "x" not found')
        assert found(running, events=[late]) is None

    def test_a_sandbox_that_cannot_be_made(self) -> None:
        one = waiting("ContainerCreating")
        message = (
            'Failed to create pod sandbox: rpc error: code = Unknown desc = failed to setup network for sandbox "a'
        )
        assert "the node cannot start" in trouble(one, events=[event(one, "FailedCreatePodSandBox", message)]).message
