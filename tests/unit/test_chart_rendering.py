"""Every object that the chart makes, over a matrix of values and versions, is one that an API server takes."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import yaml

from rowmill.spec import check_available, load_manifest
from rowmill_operator.kube.settings import OperatorSettings
from tests.unit.chart_helpers import (
    CHART,
    DEMO,
    EXISTING,
    MIDDLE,
    NAMESPACE,
    NEWEST,
    OLDEST,
    helm,
    merged,
    of_kind,
    pods_of,
    problems,
    render,
    restricted,
    try_render,
)

MONITORED = {
    "monitoring": {
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True, "labels": {"team": "data"}, "annotations": {"folder": "Batch"}},
    }
}
NAMESPACED = {"watchNamespaces": ["support", "orders"]}
ALL_ON: dict[str, Any] = merged(
    EXISTING,
    NAMESPACED,
    MONITORED,
    {
        "nameOverride": "rows",
        "commonLabels": {"team": "data"},
        "imageRegistry": "registry.example:5000/team",
        "image": {"digest": "sha256:" + "a" * 64, "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "worker": {"image": {"tag": "0.1.0-gpu"}, "imagePullSecrets": ["registry", "other"], "httpPort": 9000},
        "redis": {"workerExistingSecret": {"name": "stores", "key": "worker-redis"}},
        "postgres": {"workerExistingSecret": {"name": "stores", "key": "worker-postgres"}},
        "sources": {"allowAddresses": ["127.0.0.0/8", "fe80::/10"], "ambientCredentials": True},
        "dedupe": {"shared": [{"group": "orders", "namespaces": ["shop", "billing"]}]},
        "operator": {
            "replicas": 2,
            "threads": 8,
            "logLevel": "debug",
            "httpPort": 9090,
            "leaseName": "the-lease",
            "nodeSelector": {"pool": "system"},
            "tolerations": [{"key": "system", "operator": "Exists"}],
            "affinity": {"podAntiAffinity": {}},
            "topologySpreadConstraints": [
                {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
            ],
            "priorityClassName": "system-cluster-critical",
            "podAnnotations": {"note": "1"},
            "podLabels": {"tier": "control"},
            "extraEnv": [{"name": "SSL_CERT_FILE", "value": "/etc/authority/ca.crt"}],
            "extraVolumes": [{"name": "authority", "configMap": {"name": "authority"}}],
            "extraVolumeMounts": [{"name": "authority", "mountPath": "/etc/authority", "readOnly": True}],
        },
        "serviceAccount": {"annotations": {"identity": "batch"}},
        "networkPolicy": {"ingressFrom": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]},
        "service": {"annotations": {"note": "1"}, "clusterIP": "10.96.0.77"},
        "monitoring": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
            "prometheusRule": {"runbookBase": "https://docs.example/install.md"},
        },
        "demo": {
            "enabled": True,
            "password": "only4trials",
            "imagePullSecrets": [{"name": "registry"}],
            "redis": {"clusterIP": "10.96.0.78"},
            "postgres": {
                "clusterIP": "10.96.0.79",
                "command": ["start"],
                "volume": {"persistentVolumeClaim": {"claimName": "p"}},
            },
            "sample": {"clusterIP": "10.96.0.80"},
        },
    },
)
ALL_OFF = merged(
    EXISTING,
    {
        "crds": {"enabled": False},
        "serviceAccount": {"create": False},
        "rbac": {"create": False, "aggregate": False},
        "podDisruptionBudget": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "tests": {"enabled": False},
    },
)
MATRIX: dict[str, dict[str, Any]] = {
    "existing": EXISTING,
    "demo": DEMO,
    "demo-with-own-redis": merged(DEMO, {"redis": EXISTING["redis"]}),
    "addresses": {"redis": {"url": "redis://r:6379"}, "postgres": {"url": "postgresql://p/rowmill"}},
    "namespaced": merged(EXISTING, NAMESPACED),
    "namespaced-demo": merged(DEMO, NAMESPACED),
    "monitored": merged(EXISTING, MONITORED),
    "all-on": ALL_ON,
    "all-off": ALL_OFF,
}
CUSTOM = {"PodMonitor", "ServiceMonitor", "PrometheusRule"}
CASES = [pytest.param(values, kube, id=f"{name}-{kube}") for (name, values), kube in
         itertools.product(MATRIX.items(), (OLDEST, MIDDLE, NEWEST))]  # fmt: skip


@pytest.mark.parametrize(("values", "kube"), CASES)
def test_what_is_rendered_is_valid(values: dict[str, Any], kube: str) -> None:
    objects = render(values, kube=kube)
    found = [f"{o['metadata']['name']}: {p}" for o in objects if o["kind"] not in CUSTOM for p in problems(o)]
    assert not found
    names = [(o["apiVersion"], o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects]
    assert len(names) == len(set(names))
    assert all(len(name) <= 63 for *_, kind, _, name in names if kind == "Service")


@pytest.mark.parametrize(("values", "kube"), CASES)
def test_every_pod_meets_restricted(values: dict[str, Any], kube: str) -> None:
    pods = list(pods_of(render(values, kube=kube)))
    assert pods
    assert [problem for name, pod in pods for problem in restricted(name, pod)] == []


@pytest.mark.parametrize(("values", "kube"), CASES)
def test_only_versions_that_the_cluster_has(values: dict[str, Any], kube: str) -> None:
    budgets = of_kind(render(values, kube=kube), "PodDisruptionBudget")
    assert {b["apiVersion"] for b in budgets} <= {"policy/v1beta1" if kube == OLDEST else "policy/v1"}
    definitions = [yaml.safe_dump(d) for d in of_kind(render(values, kube=kube), "CustomResourceDefinition")]
    assert all(("x-kubernetes-validations" in d) is (kube != OLDEST) for d in definitions)


@pytest.mark.parametrize("values", [pytest.param(v, id=name) for name, v in MATRIX.items()])
def test_lint(values: dict[str, Any], tmp_path: Any) -> None:
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    done = helm("lint", "--strict", str(CHART), "--values", str(file))
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_unknown_field_a_wrong_type_and_a_missing_one_are_noticed() -> None:
    deployment = of_kind(render(EXISTING), "Deployment")[0]
    assert problems(deployment) == []
    broken = copy.deepcopy(deployment)
    broken["spec"]["template"]["spec"]["containers"][0]["imagePullPolice"] = "Always"
    broken["spec"]["replicas"] = "1"
    del broken["spec"]["selector"]
    found = "\n".join(problems(broken))
    assert "spec.template.spec.containers.0.imagePullPolice: Extra inputs are not permitted" in found
    assert "spec.replicas: Input should be a valid integer" in found
    assert "spec.selector: Field required" in found


@pytest.mark.parametrize(
    "change",
    [
        lambda pod: pod["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
        lambda pod: pod["containers"][0]["securityContext"].update(allowPrivilegeEscalation=True),
        lambda pod: pod["containers"][0]["securityContext"].update(capabilities={}),
        lambda pod: pod["containers"][0].update(resources={}),
        lambda pod: pod["securityContext"].pop("seccompProfile"),
        lambda pod: pod["securityContext"].pop("runAsNonRoot"),
        lambda pod: pod.update(hostNetwork=True),
        lambda pod: pod["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        lambda pod: pod["volumes"].append({"name": "big", "emptyDir": {}}),
    ],
)
def test_a_pod_that_is_not_restricted_is_noticed(change: Any) -> None:
    name, pod = next(pods_of(render(EXISTING)))
    change(pod)
    assert restricted(name, pod)


def test_the_operator_gets_the_values() -> None:
    (deployment,) = of_kind(render(ALL_ON), "Deployment", "mill-rows")
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    env = {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}
    secret = {name: env[name]["secretKeyRef"] for name in env if name.endswith(("_URL", "_DSN"))}
    assert secret == {
        "ROWMILL_REDIS_URL": {"name": "stores", "key": "redis"},
        "ROWMILL_POSTGRES_DSN": {"name": "stores", "key": "postgres"},
        "ROWMILL_WORKER_REDIS_URL": {"name": "stores", "key": "worker-redis"},
        "ROWMILL_WORKER_POSTGRES_DSN": {"name": "stores", "key": "worker-postgres"},
    }
    assert {name: value for name, value in env.items() if isinstance(value, str)} == {
        "ROWMILL_INSTALLATION": "rowmill",
        "ROWMILL_NAMESPACES": "support,orders",
        "ROWMILL_WORKER_IMAGE": "registry.example:5000/team/rowmill-worker:0.1.0-gpu",
        "ROWMILL_WORKER_IMAGE_PULL_POLICY": "IfNotPresent",
        "ROWMILL_WORKER_IMAGE_PULL_SECRETS": "registry,other",
        "ROWMILL_WORKER_HTTP_PORT": "9000",
        "ROWMILL_LEASE": "the-lease",
        "ROWMILL_HTTP_PORT": "9090",
        "ROWMILL_LOG_LEVEL": "debug",
        "ROWMILL_THREADS": "8",
        "ROWMILL_ALLOW_ADDRESSES": "127.0.0.0/8,fe80::/10",
        "ROWMILL_AMBIENT_CREDENTIALS": "true",
        "ROWMILL_DEDUPE_SHARED": '[{"group":"orders","namespaces":["shop","billing"]}]',
        "ROWMILL_CACHE_DIR": "/var/cache/rowmill",
        "ROWMILL_CACHE_BYTES": "8589934592",
        "SSL_CERT_FILE": "/etc/authority/ca.crt",
    }
    assert container["image"] == "registry.example:5000/team/rowmill-operator@sha256:" + "a" * 64
    assert deployment["spec"]["replicas"] == 2
    assert pod["priorityClassName"] == "system-cluster-critical"
    assert {v["name"] for v in pod["volumes"]} == {"tmp", "cache", "authority"}
    assert pod["nodeSelector"]
    assert pod["tolerations"]
    assert pod["topologySpreadConstraints"]
    assert deployment["spec"]["template"]["metadata"]["labels"]["tier"] == "control"


def test_names_and_labels_follow_their_overrides() -> None:
    objects = render(ALL_ON)
    assert all(o["metadata"]["labels"]["team"] == "data" for o in objects)
    long = merged(EXISTING, {"fullnameOverride": "a" * 40})
    assert of_kind(render(long), "Deployment", "a" * 40)


def test_selectors_meet_their_own_pods_and_no_others() -> None:
    objects = render(DEMO)
    deployments = of_kind(objects, "Deployment")
    assert len(deployments) == 4
    for deployment in deployments:
        selector = deployment["spec"]["selector"]["matchLabels"].items()
        met = [d for d in deployments if selector <= d["spec"]["template"]["metadata"]["labels"].items()]
        assert met == [deployment]
    templates = [d["spec"]["template"] for d in deployments]
    for service in of_kind(objects, "Service"):
        selector = service["spec"]["selector"].items()
        met = [template for template in templates if selector <= template["metadata"]["labels"].items()]
        assert len(met) == 1
        ports = {p["name"] for c in met[0]["spec"]["containers"] for p in c["ports"]}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports


def test_the_definition_is_kept_or_goes() -> None:
    for keep in (True, False):
        (crd,) = of_kind(render(merged(EXISTING, {"crds": {"keep": keep}})), "CustomResourceDefinition")
        kept = crd["metadata"].get("annotations", {}).get("helm.sh/resource-policy") == "keep"
        assert kept is keep
        assert crd["spec"] == yaml.safe_load((CHART / "files" / "crd.yaml").read_text())["spec"]
    assert not of_kind(render(ALL_OFF), "CustomResourceDefinition")


def test_the_demo_knows_its_own_stores() -> None:
    values = merged(DEMO, {"demo": {"password": "only4trials", "redis": {"clusterIP": "10.96.0.78"}}})
    objects = render(values)
    (secret,) = of_kind(objects, "Secret")
    assert secret["stringData"] == {
        "redis": "redis://:only4trials@10.96.0.78:6379/0",
        "postgres": f"postgresql://rowmill:only4trials@mill-rowmill-postgres.{NAMESPACE}.svc:5432/rowmill",
        "password": "only4trials",
    }
    settings = " ".join(
        of_kind(objects, "Deployment", "mill-rowmill-postgres")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    )
    assert "max_connections=" in settings
    assert "max_locks_per_transaction=" in settings
    redis = of_kind(objects, "Deployment", "mill-rowmill-redis")[0]["spec"]["template"]["spec"]["containers"][0]
    assert "maxmemory-policy noeviction" in redis["args"][0]


def test_a_password_is_made_up_where_none_is_given() -> None:
    texts = [try_render(DEMO).stdout for _ in range(2)]
    first, second = (of_kind(list(filter(None, yaml.safe_load_all(text))), "Secret")[0]["stringData"] for text in texts)
    assert len(first["password"]) == 24
    assert first["password"] != second["password"]
    assert first["password"] in first["redis"]
    assert first["password"] in first["postgres"]


def test_stores_of_ones_own_need_no_demo() -> None:
    objects = render(EXISTING)
    assert not of_kind(objects, "Secret")
    assert [d["metadata"]["name"] for d in of_kind(objects, "Deployment")] == ["mill-rowmill"]


def test_the_sample_is_a_job_that_this_build_runs() -> None:
    objects = render(merged(DEMO, {"demo": {"sample": {"clusterIP": "10.96.0.80"}}}))
    (sample,) = of_kind(objects, "ConfigMap", "mill-rowmill-sample")
    manifest = sample["data"]["job.yaml"]
    job = load_manifest(manifest, where="sample")
    check_available(job, where="sample")
    assert yaml.safe_load(manifest)["spec"]["executor"]["http"]["url"] == "http://10.96.0.80:8080/v1/names"
    assert yaml.safe_load(manifest)["spec"]["executor"]["http"]["body"]["name"] == "{{ row.name }}"


def test_the_operator_is_not_reached_and_reaches_no_metadata() -> None:
    (policy,) = of_kind(render(EXISTING), "NetworkPolicy")
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert policy["spec"]["ingress"] == [{"ports": [{"port": 8080, "protocol": "TCP"}]}]
    addresses = [
        peer["ipBlock"] for rule in policy["spec"]["egress"] for peer in rule.get("to", []) if "ipBlock" in peer
    ]
    assert {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]} in addresses
    assert all(
        rule.get("to") or {p["port"] for p in rule["ports"]} == {53, 443, 6443} for rule in policy["spec"]["egress"]
    )
    (open_policy,) = of_kind(render(merged(EXISTING, {"sources": {"ambientCredentials": True}})), "NetworkPolicy")
    assert open_policy["spec"]["policyTypes"] == ["Ingress"]


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, "where is Redis? Set redis.existingSecret.name to a Secret in the namespace batch"),
        ({"redis": EXISTING["redis"]}, "where is Postgres?"),
        (merged(EXISTING, {"redis": {"url": "redis://r"}}), "redis.url and redis.existingSecret.name are both set"),
    ],
)
def test_stores_that_are_not_said_are_asked_for(values: dict[str, Any], said: str) -> None:
    done = try_render(values)
    assert done.returncode != 0
    assert said in done.stderr


def test_the_operator_understands_its_environment() -> None:
    """The chart and the settings are one contract: each variable is read, and each value is one that is accepted."""
    (deployment,) = of_kind(render(ALL_ON), "Deployment", "mill-rows")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    secrets = {
        "ROWMILL_REDIS_URL": "redis://r",
        "ROWMILL_POSTGRES_DSN": "postgresql://p/rowmill",
        "ROWMILL_WORKER_REDIS_URL": "redis://worker-r",
        "ROWMILL_WORKER_POSTGRES_DSN": "postgresql://worker-p/rowmill",
        "POD_NAME": "mill-rows-1",
        "POD_NAMESPACE": NAMESPACE,
    }
    environ = {e["name"]: e.get("value") or secrets[e["name"]] for e in container["env"]}
    seen: set[str] = set()

    class Noticing(dict[str, str]):
        def get(self, key: str, default: Any = None) -> Any:
            seen.add(key)
            return super().get(key, default)

    settings = OperatorSettings.from_environment(Noticing(environ))
    assert set(environ) - seen == {"SSL_CERT_FILE"}, "the chart sets what the operator does not read"
    assert seen - set(environ) == set(), "the operator reads what the chart does not set"
    assert settings.namespaces == ("support", "orders")
    assert settings.worker_redis_url == "redis://worker-r"
    assert settings.worker_image == "registry.example:5000/team/rowmill-worker:0.1.0-gpu"
    assert (settings.http_port, settings.worker_http_port, settings.threads) == (9090, 9000, 8)
    assert settings.ambient_credentials
    assert settings.shared_keys.permits(group="orders", namespace="billing")
    assert not settings.shared_keys.permits(group="orders", namespace="support")
    assert settings.cache.as_posix() in {m["mountPath"] for m in container["volumeMounts"]}
