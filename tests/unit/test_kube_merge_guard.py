"""What a tenant's pod template may do, and what it is refused: by its field's name, never in silence."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.spec import BatchJob, parse_job
from rowmill_operator.kube.pod_guard import SAFE_SYSCTLS, VOLUME_KINDS
from rowmill_operator.kube.pod_template import WorkloadSettings, pod_template

SETTINGS = WorkloadSettings(image="i:1", installation="rowmill", redis_url="redis://r", postgres_dsn="postgresql://p")
HEADERS = [{"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "token"}}}]
AT = "spec.workers.podTemplate"
WORKER = f"{AT}.spec.containers[name=worker]"


def job_of(template: dict[str, Any]) -> BatchJob:
    return parse_job(
        {
            "apiVersion": "rowmill.dev/v1alpha1",
            "kind": "BatchJob",
            "metadata": {"name": "triage", "namespace": "support"},
            "spec": {
                "source": {"rows": []},
                "executor": {"http": {"url": "http://x.svc/", "headers": HEADERS}},
                "workers": {"podTemplate": template},
            },
        },
        where="test",
    )


def made(template: dict[str, Any]) -> dict[str, Any]:
    return pod_template(job_of(template), settings=SETTINGS, config_map="triage-workers-0")


def spec(**fields: Any) -> dict[str, Any]:
    return {"spec": fields}


def worker(**fields: Any) -> dict[str, Any]:
    return spec(containers=[{"name": "worker", **fields}])


def sidecar(**fields: Any) -> dict[str, Any]:
    return spec(containers=[{"name": "proxy", "image": "p", **fields}])


def context(**fields: Any) -> dict[str, Any]:
    return {"securityContext": fields}


REFUSED: list[tuple[dict[str, Any], str]] = [
    # Pod Security "baseline"
    (spec(hostNetwork=True), f"{AT}.spec.hostNetwork"),
    (spec(hostPID=True), f"{AT}.spec.hostPID"),
    (spec(hostIPC=True), f"{AT}.spec.hostIPC"),
    (spec(hostPID="true"), f"{AT}.spec.hostPID"),
    (worker(**context(privileged=True)), f"{WORKER}.securityContext.privileged"),
    (sidecar(**context(privileged=True)), f"{AT}.spec.containers[name=proxy].securityContext.privileged"),
    (
        spec(initContainers=[{"name": "init", **context(privileged=True)}]),
        f"{AT}.spec.initContainers[name=init].securityContext.privileged",
    ),
    (worker(**context(capabilities={"add": ["NET_ADMIN"]})), f"{WORKER}.securityContext.capabilities.add"),
    (spec(volumes=[{"name": "host", "hostPath": {"path": "/"}}]), f"{AT}.spec.volumes[name=host].hostPath"),
    (sidecar(ports=[{"containerPort": 80, "hostPort": 80}]), f"{AT}.spec.containers[name=proxy].ports[0].hostPort"),
    (
        worker(livenessProbe={"httpGet": {"host": "169.254.169.254"}}),
        f"{WORKER}.livenessProbe.httpGet.host",
    ),
    (
        worker(lifecycle={"preStop": {"httpGet": {"host": "kube-apiserver", "port": 443}}}),
        f"{WORKER}.lifecycle.preStop.httpGet.host",
    ),
    (worker(**context(procMount="Unmasked")), f"{WORKER}.securityContext.procMount"),
    (spec(**context(sysctls=[{"name": "kernel.msgmax", "value": "1"}])), f"{AT}.spec.securityContext.sysctls[0]"),
    (spec(**context(seLinuxOptions={"type": "spc_t"})), f"{AT}.spec.securityContext.seLinuxOptions.type"),
    (worker(**context(seLinuxOptions={"user": "root"})), f"{WORKER}.securityContext.seLinuxOptions.user"),
    (spec(**context(appArmorProfile={"type": "Unconfined"})), f"{AT}.spec.securityContext.appArmorProfile.type"),
    (
        {"metadata": {"annotations": {"container.apparmor.security.beta.kubernetes.io/worker": "unconfined"}}},
        f"{AT}.metadata.annotations.container.apparmor.security.beta.kubernetes.io/worker",
    ),
    (
        {"metadata": {"annotations": {"seccomp.security.alpha.kubernetes.io/pod": "unconfined"}}},
        f"{AT}.metadata.annotations.seccomp.security.alpha.kubernetes.io/pod",
    ),
    (
        worker(**context(windowsOptions={"hostProcess": True})),
        f"{WORKER}.securityContext.windowsOptions.hostProcess",
    ),
    # Pod Security "restricted"
    (
        spec(volumes=[{"name": "nfs", "nfs": {"server": "n", "path": "/"}}]),
        f"{AT}.spec.volumes[name=nfs].nfs",
    ),
    (
        worker(**context(allowPrivilegeEscalation=True)),
        f"{WORKER}.securityContext.allowPrivilegeEscalation",
    ),
    (
        worker(**context(allowPrivilegeEscalation=None, capabilities={"drop": ["NET_RAW"]})),
        f"{WORKER}.securityContext.capabilities.drop",
    ),
    (spec(**context(runAsNonRoot=False)), f"{AT}.spec.securityContext.runAsNonRoot"),
    (spec(**context(runAsNonRoot=None)), f"{AT}.spec.securityContext.runAsNonRoot"),
    (
        spec(**context(runAsNonRoot=False), containers=[{"name": "worker", **context(runAsNonRoot=True)}]),
        f"{AT}.spec.securityContext.runAsNonRoot",
    ),
    (worker(**context(runAsNonRoot=False)), f"{WORKER}.securityContext.runAsNonRoot"),
    (spec(**context(runAsUser=0)), f"{AT}.spec.securityContext.runAsUser"),
    (sidecar(**context(runAsUser=0)), f"{AT}.spec.containers[name=proxy].securityContext.runAsUser"),
    (spec(**context(seccompProfile={"type": "Unconfined"})), f"{AT}.spec.securityContext.seccompProfile.type"),
    (spec(**context(seccompProfile=None)), f"{AT}.spec.securityContext.seccompProfile.type"),
    (worker(**context(seccompProfile={"type": "Unconfined"})), f"{WORKER}.securityContext.seccompProfile.type"),
    (spec(securityContext={"$patch": "delete"}), f"{AT}.spec.securityContext.runAsNonRoot"),
    # credentials for the API server
    (spec(automountServiceAccountToken=True), f"{AT}.spec.automountServiceAccountToken"),
    (spec(automountServiceAccountToken=None), f"{AT}.spec.automountServiceAccountToken"),
    (
        spec(volumes=[{"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]),
        f"{AT}.spec.volumes[name=t].projected.sources[0].serviceAccountToken",
    ),
    # what Rowmill needs
    ({"metadata": {"labels": {"rowmill.dev/job": "another"}}}, f"{AT}.metadata.labels.rowmill.dev/job"),
    (
        {"metadata": {"labels": {"app.kubernetes.io/name": None}}},
        f"{AT}.metadata.labels.app.kubernetes.io/name",
    ),
    ({"metadata": {"labels": {"tier": 1}}}, f"{AT}.metadata.labels.tier"),
    ({"metadata": {"name": "x"}}, f"{AT}.metadata.name"),
    ({"status": {}}, f"{AT}.status"),
    ({"$patch": "delete"}, f"{AT}.spec"),
    ({"spec": {"$patch": "delete"}}, f"{AT}.spec"),
    (spec(initContainers={"name": "x"}), f"{AT}.spec.initContainers"),
    (spec(os={"name": "windows"}), f"{AT}.spec.os.name"),
    (spec(restartPolicy="Never"), f"{AT}.spec.restartPolicy"),
    (spec(terminationGracePeriodSeconds=30), f"{AT}.spec.terminationGracePeriodSeconds"),
    (spec(terminationGracePeriodSeconds=None), f"{AT}.spec.terminationGracePeriodSeconds"),
    (spec(ephemeralContainers=[{"name": "x"}]), f"{AT}.spec.ephemeralContainers"),
    (spec(containers=[{"name": "worker", "$patch": "delete"}]), WORKER),
    (spec(containers=[{"$patch": "replace"}, {"name": "other"}]), WORKER),
    (spec(volumes=[{"name": "job", "emptyDir": {}}]), f"{AT}.spec.volumes[name=job]"),
    (spec(volumes=[{"name": "secrets", "$patch": "delete"}]), f"{AT}.spec.volumes[name=secrets]"),
    (
        worker(volumeMounts=[{"mountPath": "/etc/rowmill/job", "$patch": "delete"}]),
        f"{WORKER}.volumeMounts[mountPath=/etc/rowmill/job]",
    ),
    (
        worker(volumeMounts=[{"mountPath": "/etc/rowmill/secrets/triage", "name": "tmp"}]),
        f"{WORKER}.volumeMounts[mountPath=/etc/rowmill/secrets/triage]",
    ),
    (worker(env=[{"name": "ROWMILL_REDIS_URL", "value": "x"}]), f"{WORKER}.env[name=ROWMILL_REDIS_URL]"),
    (worker(env=[{"name": "ROWMILL_NEW", "value": "x"}]), f"{WORKER}.env[name=ROWMILL_NEW]"),
    (worker(env=[{"name": "POD_NAME", "$patch": "delete"}]), f"{WORKER}.env[name=POD_NAME]"),
    (worker(ports=[{"containerPort": 8081, "$patch": "delete"}]), f"{WORKER}.ports[containerPort=8081]"),
]


@pytest.mark.parametrize(("template", "path"), REFUSED, ids=[path.removeprefix(AT + ".") for _, path in REFUSED])
def test_refused_by_name(template: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        made(template)
    assert path in [problem.path for problem in caught.value.problems]
    assert caught.value.where == "support/triage"


FREE: list[dict[str, Any]] = [
    {},
    worker(image="mine:2", imagePullPolicy="Never", command=["ddtrace-run", "python", "-m", "rowmill_worker"]),
    worker(
        env=[
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "HOME", "value": "/x"},
        ]
    ),
    worker(**context(capabilities={"add": ["NET_BIND_SERVICE"]}, readOnlyRootFilesystem=False)),
    worker(**context(seccompProfile={"type": "Localhost", "localhostProfile": "p.json"}, runAsUser=2000)),
    worker(livenessProbe={"failureThreshold": 60}, resources={"limits": {"memory": "2Gi"}}),
    worker(volumeMounts=[{"mountPath": "/models", "name": "models"}], ports=[{"containerPort": 9000}]),
    sidecar(),
    sidecar(**context(runAsUser=3000)),
    spec(initContainers=[{"name": "fetch", "image": "f", "restartPolicy": "Always"}]),
    spec(volumes=[{"name": "models", "persistentVolumeClaim": {"claimName": "m"}}]),
    spec(volumes=[{"name": "tmp", "emptyDir": {"sizeLimit": "20Gi"}}]),
    spec(volumes=[{"name": "c", "projected": {"sources": [{"configMap": {"name": "a"}}, {"secret": {"name": "b"}}]}}]),
    spec(serviceAccountName="puller", priorityClassName="batch", runtimeClassName="nvidia", schedulerName="other"),
    spec(terminationGracePeriodSeconds=600, dnsPolicy="Default", hostAliases=[{"ip": "10.0.0.9", "hostnames": ["a"]}]),
    spec(affinity={"nodeAffinity": {}}, topologySpreadConstraints=[{"topologyKey": "zone", "maxSkew": 1}]),
    spec(**context(fsGroup=2000, runAsUser=None, sysctls=[{"name": "net.ipv4.ip_local_port_range", "value": "1 2"}])),
    spec(hostNetwork=False, securityContext={"windowsOptions": {}}),
    {"metadata": {"labels": {"team": "a"}, "annotations": {"prometheus.io/scrape": "true"}}},
]


@pytest.mark.parametrize("template", FREE, ids=range(len(FREE)))
def test_free(template: dict[str, Any]) -> None:
    result = made(template)
    assert result["spec"]["containers"][0]["name"] == "worker"


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        made({"spec": {"hostNetwork": True, "hostPID": True, "automountServiceAccountToken": True}})
    assert len(caught.value.problems) == 3


def test_what_a_further_container_leaves_out_is_filled_in() -> None:
    result = made(
        spec(
            containers=[{"name": "proxy", "image": "p", "securityContext": {"runAsUser": 3000}}],
            initContainers=[{"name": "fetch", "image": "f"}],
        )
    )
    for container in (result["spec"]["containers"][1], result["spec"]["initContainers"][0]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert result["spec"]["containers"][1]["securityContext"]["runAsUser"] == 3000


def test_the_lists_of_pod_security_hold_nothing_dangerous() -> None:
    assert "hostPath" not in VOLUME_KINDS
    assert not any(name.startswith(("kernel.msg", "net.core")) for name in SAFE_SYSCTLS)


FIELDS = st.sampled_from(
    [
        *("metadata", "labels", "annotations", "spec", "containers", "initContainers", "volumes", "securityContext"),
        *("name", "env", "ports", "volumeMounts", "projected", "sources", "capabilities", "drop", "sysctls", "os"),
        *("seccompProfile", "lifecycle", "preStop", "httpGet", "host", "hostPort", "$patch", "tolerations"),
    ]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from(["worker", "job", "tmp", "ALL", "", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(FIELDS, inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=100, deadline=None)
@given(inner=st.dictionaries(FIELDS, ANY, max_size=4), container=st.dictionaries(FIELDS, ANY, max_size=4))
def test_any_template_is_taken_or_refused_in_words(inner: dict[str, Any], container: dict[str, Any]) -> None:
    template = {"spec": {**inner, "containers": [{**container, "name": "worker"}]}}
    try:
        result = made(template)
    except InvalidInput:
        return
    pod = result["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
    assert pod["volumes"][0] == {"name": "job", "configMap": {"name": "triage-workers-0", "defaultMode": 0o444}}
