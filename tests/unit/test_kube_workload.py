"""The objects of a job: what is in them, what changes them, what workers read of the manifest."""

from __future__ import annotations

import json
from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.spec import BatchJob, Spec, executor_digest, identity_of, load_manifest, parse_job
from rowmill_operator.kube import naming
from rowmill_operator.kube.pod_template import WorkloadSettings
from rowmill_operator.kube.worker_manifest import MAX_NAME, OPERATOR_FIELDS, WORKER_FIELDS, manifest_text
from rowmill_operator.kube.workload import (
    Workload,
    at_creation,
    build_workload,
    stale_config_maps,
)
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.job import dedupe_rule, executor_of, worker_job

UID = "0f6c1d2e-1111-4222-8333-944455566677"
SETTINGS = WorkloadSettings(
    image="registry.example/rowmill-worker:0.2",
    installation="rowmill",
    redis_url="redis://:hunter2@redis:6379/0",
    postgres_dsn="postgresql://rowmill:hunter2@postgres:5432/rowmill",
    image_pull_secrets=("registry",),
    api_server=("10.96.0.1/32", "192.168.5.9/32", "fd00::1/128"),
)
HEADERS = [
    {"name": "Authorization", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "token"}}},
    {"name": "X-Tenant", "valueFrom": {"env": "TENANT"}},
    {"name": "X-Other", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "other"}}},
    {"name": "X-More", "valueFrom": {"secretKeyRef": {"name": "another.secret", "key": "token"}}},
    {"name": "X-Again", "valueFrom": {"secretKeyRef": {"name": "triage", "key": "token"}}},
]


def manifest(**spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "rowmill.dev/v1alpha1",
        "kind": "BatchJob",
        "metadata": {"name": "triage", "namespace": "support"},
        "spec": {
            "source": {"rows": [{"id": i} for i in range(50)]},
            "executor": {"http": {"url": "http://x.svc/{{ row.id }}", "headers": HEADERS, "body": {"a": [1, None]}}},
            **spec,
        },
    }


def job_of(**spec: Any) -> BatchJob:
    return parse_job(manifest(**spec), where="test")


def build(**spec: Any) -> Workload:
    return build_workload(job_of(**spec), uid=UID, settings=SETTINGS)


def pod_of(workload: Workload) -> dict[str, Any]:
    spec = workload.deployment["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def container_of(workload: Workload) -> dict[str, Any]:
    first = pod_of(workload)["containers"][0]
    assert isinstance(first, dict)
    return first


class TestObjects:
    def test_all_are_owned_labelled_and_in_the_jobs_namespace(self) -> None:
        made = build()
        for one in (made.config_map, made.secret, made.network_policy, made.deployment):
            meta = one["metadata"]
            assert meta["namespace"] == "support"
            assert meta["labels"] == {
                "app.kubernetes.io/name": "rowmill-worker",
                "app.kubernetes.io/instance": "triage",
                "app.kubernetes.io/managed-by": "rowmill",
                "rowmill.dev/job": "triage",
            }
            (owner,) = meta["ownerReferences"]
            assert owner["uid"] == UID
            assert owner["controller"] is True
            assert owner["blockOwnerDeletion"] is True
            assert naming.is_owned(one, UID)
            assert not naming.is_owned(one, "another")
        assert made.name == "triage-workers"
        assert made.config_map["metadata"]["name"].startswith("triage-workers-")

    def test_a_strangers_object_is_not_ours(self) -> None:
        assert not naming.is_owned({"metadata": {}}, UID)
        assert not naming.is_owned({"metadata": {"ownerReferences": [{"uid": UID}]}}, UID)

    def test_the_same_job_gives_the_same_objects(self) -> None:
        assert build() == build()

    def test_only_the_creation_names_replicas(self) -> None:
        made = build().deployment
        assert "replicas" not in made["spec"]
        assert at_creation(made)["spec"]["replicas"] == 0
        assert "replicas" not in made["spec"], "the manifest itself must stay as it is"

    def test_stores_are_in_the_secret_and_nowhere_else(self) -> None:
        made = build()
        assert made.secret["stringData"] == {
            "ROWMILL_REDIS_URL": SETTINGS.redis_url,
            "ROWMILL_POSTGRES_DSN": SETTINGS.postgres_dsn,
            "ROWMILL_INSTALLATION": SETTINGS.installation,
        }
        rest = json.dumps([made.config_map, made.network_policy, made.deployment])
        assert "hunter2" not in rest
        assert "hunter2" not in repr(SETTINGS)

    def test_a_new_address_of_a_store_replaces_the_workers(self) -> None:
        def annotations(settings: WorkloadSettings) -> dict[str, str]:
            made = build_workload(job_of(), uid=UID, settings=settings)
            found: dict[str, str] = made.deployment["spec"]["template"]["metadata"]["annotations"]
            return found

        moved = WorkloadSettings(
            image="i", installation="rowmill", redis_url="redis://b", postgres_dsn="postgresql://b"
        )
        assert annotations(SETTINGS) != annotations(moved)
        assert len(annotations(SETTINGS)["rowmill.dev/stores"]) == 4, "more bits would help to guess the password"

    def test_a_changed_manifest_is_a_new_immutable_config_map_and_the_selector_stays(self) -> None:
        before, after = build(), build(retry={"maxAttempts": 9})
        assert before.config_map["immutable"] is True
        assert before.config_map["metadata"]["name"] != after.config_map["metadata"]["name"]
        mounted = [volume["configMap"]["name"] for volume in pod_of(after)["volumes"] if volume["name"] == "job"]
        assert mounted == [after.config_map["metadata"]["name"]]
        assert before.deployment["spec"]["selector"] == after.deployment["spec"]["selector"]
        assert before.deployment["spec"]["selector"] == {
            "matchLabels": {"app.kubernetes.io/name": "rowmill-worker", "rowmill.dev/job": "triage"}
        }

    @pytest.mark.parametrize(
        "spec",
        [
            {"suspend": True},
            {"retryGeneration": 3},
            {"completionTargetSeconds": 60},
            {"activeDeadlineSeconds": 60},
            {"ttlSecondsAfterFinished": 0},
            {"resultsRetentionSeconds": 60},
            {"failurePolicy": {"maxFailedPercent": 1}},
            {"source": {"rows": []}},
            {"source": {"uri": "https://files.example/a.csv", "limit": 5}},
            {"output": {"uri": "out.jsonl", "include": ["Failed"]}},
            {"workers": {"minReplicas": 2, "rowsPerWorker": 7}},
            {"workers": {"scaling": "External", "replicas": 4}},
            {"simulate": {"seed": 4}},
            {"timeoutSeconds": 60, "mode": "Run"},
        ],
        ids=lambda spec: "-".join(spec),
    )
    def test_what_workers_do_not_read_restarts_none(self, spec: dict[str, Any]) -> None:
        before, after = build(), build(**spec)
        assert after.deployment == before.deployment
        assert after.config_map == before.config_map

    def test_the_network_policy_lets_out_to_all_but_the_api_server(self) -> None:
        spec = build().network_policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        assert spec["ingress"] == [{"ports": [{"port": 8081, "protocol": "TCP"}]}]
        (rule,) = spec["egress"]
        assert {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.96.0.1/32", "192.168.5.9/32"]}} in rule["to"]
        assert {"ipBlock": {"cidr": "::/0", "except": ["fd00::1/128"]}} in rule["to"]
        assert "ports" not in rule
        assert spec["podSelector"] == build().deployment["spec"]["selector"]

    def test_without_known_addresses_nothing_is_excepted(self) -> None:
        bare = WorkloadSettings(image="i", installation="r", redis_url="redis://b", postgres_dsn="postgresql://b")
        (rule,) = build_workload(job_of(), uid=UID, settings=bare).network_policy["spec"]["egress"]
        assert {"ipBlock": {"cidr": "0.0.0.0/0"}} in rule["to"]

    def test_config_maps_that_pods_still_mount_are_kept(self) -> None:
        maps = [{"metadata": {"name": name}} for name in ("a", "b", "c")]
        pods = [{"spec": {"volumes": [{"name": "job", "configMap": {"name": "b"}}, {"name": "tmp", "emptyDir": {}}]}}]
        assert stale_config_maps(maps, current="c", pods=pods) == ["a"]


class TestPod:
    def test_is_pod_security_restricted(self) -> None:
        made = build()
        pod, context = pod_of(made), container_of(made)["securityContext"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True

    @pytest.mark.parametrize("timeout", [1, 60, 86_400])
    def test_the_grace_outlasts_the_workers_own_drain(self, timeout: int) -> None:
        grace = pod_of(build(timeoutSeconds=timeout))["terminationGracePeriodSeconds"]
        job = job_of(timeoutSeconds=timeout)
        resolved = worker_job(job, identity_of(job, installation="rowmill"), environ={})
        assert grace >= resolved.rules.timeout + 5 + 10, "a worker gives its calls timeout + 5 s, then hands back"

    def test_probes_never_kill_a_worker_that_waits_for_its_stores(self) -> None:
        container = container_of(build())
        for name in ("startupProbe", "livenessProbe"):
            assert container[name]["httpGet"]["path"] == "/healthz"
            assert container[name]["failureThreshold"] * container[name]["periodSeconds"] >= 120
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["ports"] == [{"name": "http", "containerPort": 8081, "protocol": "TCP"}]
        for name in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[name]["httpGet"]["port"] == 8081

    def test_secrets_come_by_reference_and_only_those_that_the_job_names(self) -> None:
        made = build()
        (volume,) = [one for one in pod_of(made)["volumes"] if one["name"] == "secrets"]
        assert [source["secret"] for source in volume["projected"]["sources"]] == [
            {"name": "another.secret", "items": [{"key": "token", "path": "another.secret/token"}]},
            {
                "name": "triage",
                "items": [{"key": "other", "path": "triage/other"}, {"key": "token", "path": "triage/token"}],
            },
        ]
        mounts = {mount["name"]: mount for mount in container_of(made)["volumeMounts"]}
        assert mounts["secrets"] == {"name": "secrets", "mountPath": "/etc/rowmill/secrets", "readOnly": True}
        env = {one["name"]: one for one in container_of(made)["env"]}
        assert env["ROWMILL_SECRETS_DIR"]["value"] == "/etc/rowmill/secrets"
        assert env["ROWMILL_REDIS_URL"]["valueFrom"]["secretKeyRef"]["name"] == "triage-workers"

    def test_a_job_without_secrets_mounts_none(self) -> None:
        made = build(executor={"http": {"url": "http://x.svc/"}})
        assert {one["name"] for one in pod_of(made)["volumes"]} == {"job", "tmp"}

    @pytest.mark.parametrize("key", ["..", "..token", "."])
    def test_a_key_that_no_secret_can_have_is_refused(self, key: str) -> None:
        header = {"name": "A", "valueFrom": {"secretKeyRef": {"name": "triage", "key": key}}}
        with pytest.raises(InvalidInput, match="cannot be a key"):
            build(executor={"http": {"url": "http://x.svc/", "headers": [header]}})

    def test_secrets_of_other_executors_are_found_too(self) -> None:
        reference = {"secretKeyRef": {"name": "dify", "key": "app"}}
        made = build(executor={"dify": {"baseUrl": "http://dify.svc/v1", "apiKey": reference, "inputs": {}}})
        (volume,) = [one for one in pod_of(made)["volumes"] if one["name"] == "secrets"]
        assert volume["projected"]["sources"][0]["secret"]["name"] == "dify"

    def test_the_secret_of_a_store_that_workers_write_to_is_mounted_as_far_as_it_goes(self) -> None:
        comfyui = {
            "url": "http://comfy.svc",
            "workflow": {"1": {"class_type": "A", "inputs": {}}},
            "store": {"uri": "s3://images/", "secretName": "images"},
            "headers": [
                {"name": "X", "valueFrom": {"secretKeyRef": {"name": "images", "key": "AWS_SESSION_TOKEN"}}},
            ],
        }
        made = build(executor={"comfyui": comfyui})
        (volume,) = [one for one in pod_of(made)["volumes"] if one["name"] == "secrets"]
        first, second = (one["secret"] for one in volume["projected"]["sources"])
        assert [one["path"] for one in first["items"]] == ["images/AWS_SESSION_TOKEN"]
        assert (second["name"], second["optional"]) == ("images", True)
        paths = [one["path"] for one in second["items"]]
        assert {"images/AWS_ACCESS_KEY_ID", "images/AWS_SECRET_ACCESS_KEY", "images/AWS_ENDPOINT_URL"} < set(paths)
        assert "images/AWS_SESSION_TOKEN" not in paths

    def test_an_environment_variable_of_the_manifest_comes_by_the_pod_template(self) -> None:
        patch = {"spec": {"containers": [{"name": "worker", "env": [{"name": "TENANT", "value": "t1"}]}]}}
        made = build(workers={"podTemplate": patch})
        env = {one["name"]: one.get("value") for one in container_of(made)["env"]}
        assert env["TENANT"] == "t1"
        assert "POD_NAME" in env

    def test_rolling_update_asks_for_no_worker_more_than_there_may_be(self) -> None:
        assert build().deployment["spec"]["strategy"] == {
            "type": "RollingUpdate",
            "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": 0},
        }

    def test_labels_for_kueue_reach_the_deployment(self) -> None:
        raw = manifest(workers={"podTemplate": {"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "gpus"}}}})
        raw["metadata"]["labels"] = {"kueue.x-k8s.io/queue-name": "default", "team": "a"}
        made = build_workload(parse_job(raw, where="test"), uid=UID, settings=SETTINGS)
        labels = made.deployment["metadata"]["labels"]
        assert labels["kueue.x-k8s.io/queue-name"] == "gpus"
        assert "team" not in labels

    def test_placement(self) -> None:
        toleration = {"key": "pool", "operator": "Equal", "value": "batch", "effect": "NoSchedule"}
        pod = pod_of(build(workers={"nodeSelector": {"pool": "batch"}, "tolerations": [toleration]}))
        assert pod["nodeSelector"] == {"pool": "batch"}
        assert pod["tolerations"] == [toleration]
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        (spread,) = pod["topologySpreadConstraints"]
        assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


class TestResources:
    def test_defaults_are_modest_requests_without_limits(self) -> None:
        assert container_of(build())["resources"] == {"requests": {"cpu": "100m", "memory": "128Mi"}}

    def test_a_limit_alone_is_its_own_request(self) -> None:
        resources = container_of(build(workers={"resources": {"limits": {"memory": "64Mi"}}}))["resources"]
        assert resources == {"requests": {"cpu": "100m"}, "limits": {"memory": "64Mi"}}

    def test_what_is_given_wins(self) -> None:
        given = {"requests": {"cpu": 2, "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
        assert container_of(build(workers={"resources": given}))["resources"] == given

    def test_gpus_are_limit_and_request_and_tolerated(self) -> None:
        made = build(workers={"gpu": {"count": 2, "resource": "amd.com/gpu"}})
        resources = container_of(made)["resources"]
        assert resources["limits"] == {"amd.com/gpu": "2"}
        assert resources["requests"]["amd.com/gpu"] == "2"
        assert pod_of(made)["tolerations"] == [{"key": "amd.com/gpu", "operator": "Exists"}]

    def test_the_gpus_taint_is_tolerated_whatever_the_template_tolerates(self) -> None:
        other = {"key": "pool", "operator": "Exists"}
        made = build(workers={"gpu": {}, "podTemplate": {"spec": {"tolerations": [other]}}})
        assert pod_of(made)["tolerations"] == [other, {"key": "nvidia.com/gpu", "operator": "Exists"}]

    @pytest.mark.parametrize(
        ("workers", "path"),
        [
            ({"resources": {"request": {}}}, "spec.workers.resources.request"),
            ({"resources": {"limits": "2Gi"}}, "spec.workers.resources.limits"),
            ({"resources": {"limits": {"memory": "2 Gi"}}}, "spec.workers.resources.limits.memory"),
            ({"resources": {"limits": {"memory": "-1"}}}, "spec.workers.resources.limits.memory"),
            ({"resources": {"limits": {"memory": True}}}, "spec.workers.resources.limits.memory"),
            ({"gpu": {"resource": "gpu"}}, "spec.workers.gpu.resource"),
            (
                {"gpu": {"count": 2}, "resources": {"limits": {"nvidia.com/gpu": 1}}},
                "spec.workers.resources.limits.nvidia.com/gpu",
            ),
        ],
    )
    def test_what_cannot_be_used_is_named(self, workers: dict[str, Any], path: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            build(workers=workers)
        assert [problem.path for problem in caught.value.problems] == [path]
        assert caught.value.where == "support/triage"


FULL: dict[str, Any] = {
    "runId": "7",
    "mode": "Simulate",
    "simulate": {
        "seed": 3,
        "latencyMilliseconds": {"max": 7},
        "errors": [{"class": "HTTP503", "percent": 10, "retryable": False}],
        "costPerRow": "0.0025",
    },
    "key": ["id", "other"],
    "output": {"columns": ["id"], "include": ["Failed"]},
    "timeoutSeconds": 17,
    "concurrency": {"perWorker": 9, "acquireTimeoutSeconds": 11, "adaptive": {"max": 40}},
    "limits": {"group": "g", "maxInFlight": 8},
    "pricing": {"perCall": "0.002"},
    "budget": {"requests": 70, "cost": "0.5"},
    "retry": {"maxAttempts": 2, "initialSeconds": 0},
    "dedupe": {"scope": "Installation", "group": "orders", "ttlSeconds": 60, "onFailed": "Share"},
    "workers": {"maxReplicas": 33},
    "shards": 2,
}


class TestManifestOfWorkers:
    def test_every_field_of_the_spec_is_either_the_workers_or_the_operators(self) -> None:
        assert set(Spec.model_fields) == WORKER_FIELDS | OPERATOR_FIELDS
        assert not WORKER_FIELDS & OPERATOR_FIELDS

    @pytest.mark.parametrize("left_out", [None, *FULL])
    def test_workers_read_from_it_what_the_whole_manifest_says(self, left_out: str | None) -> None:
        spec = {name: value for name, value in FULL.items() if name != left_out}
        if left_out == "key":
            del spec["dedupe"]
        if left_out == "pricing":
            del spec["budget"]
        whole = job_of(**spec)
        given = load_manifest(manifest_text(whole), where="job.yaml")
        identity = identity_of(whole, installation="rowmill")
        assert identity_of(given, installation="rowmill") == identity
        assert executor_digest(given.spec) == executor_digest(whole.spec)
        assert given.spec.executor == whole.spec.executor
        assert seen_by_a_worker(given, identity) == seen_by_a_worker(whole, identity)

    def test_a_budget_is_asked_of_the_ledger_so_that_raising_it_replaces_nobody(self) -> None:
        prices = {"perCall": "0.5", "perMillionInputTokens": 0}
        small, large = build(budget={"requests": 5}), build(budget={"requests": 5_000, "cost": "9"}, pricing=prices)
        assert build(budget={"requests": 6}).config_map == small.config_map
        assert build(budget={"cost": 9}, pricing=prices).config_map == large.config_map
        # Whoever has none does not ask, and whoever knows no prices counts no money.
        assert len({one.config_map["metadata"]["name"] for one in (build(), small, large)}) == 3
        identity = identity_of(job_of(), installation="rowmill")
        for spec in ({}, {"budget": {"requests": 5}}, {"budget": {"cost": 9}, "pricing": prices}):
            whole = job_of(**spec)
            rule = worker_job(load_manifest(manifest_text(whole), where="x"), identity, environ={}).spend
            assert rule == worker_job(whole, identity, environ={}).spend
            assert (rule.bounded, rule.prices.call) == ("budget" in spec, Decimal("0.5" if "pricing" in spec else 0))

    def test_no_row_and_no_address_of_the_source_is_in_it(self) -> None:
        text = manifest_text(job_of(source={"rows": [{"id": "confidential"}]}))
        assert "confidential" not in text
        assert load_manifest(text, where="x").spec.source.rows == ()
        assert "files.example" not in manifest_text(job_of(source={"uri": "https://files.example/a.csv?signed=1"}))

    def test_what_equals_its_default_is_left_out(self) -> None:
        """So that the worker of an older image, to which a run is pinned, need not know the fields of a newer one."""
        assert set(json.loads(manifest_text(job_of()))["spec"]) == {"executor", "source"}

    @settings(max_examples=60, deadline=None)
    @given(
        body=st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63 - 1)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0{}")),
            lambda inner: (
                st.lists(inner, max_size=4)
                | st.dictionaries(
                    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0{}"), max_size=20),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=12,
        )
    )
    def test_any_body_comes_through_unharmed(self, body: Any) -> None:
        whole = job_of(executor={"http": {"url": "http://x.svc/", "body": body}})
        given = load_manifest(manifest_text(whole), where="x")
        assert given.spec.executor.http is not None
        assert given.spec.executor.http.body == body

    @pytest.mark.parametrize(
        ("http", "match"),
        [
            ({"body": {"x" * (MAX_NAME + 1): 1}}, "name is longer"),
            ({"body": [["y" * 65_000] for _ in range(17)]}, "larger than"),
            ({"body": [[0] * 1_000] * 60, "query": {"a": [0] * 50_000}}, "more than"),
        ],
        ids=["name", "bytes", "values"],
    )
    def test_what_workers_could_not_read_is_refused_by_name(self, http: dict[str, Any], match: str) -> None:
        job = job_of(executor={"http": {"url": "http://x.svc/", **http}})
        with pytest.raises(InvalidInput, match=match) as caught:
            build_workload(job, uid=UID, settings=SETTINGS)
        assert caught.value.problems[0].path == "spec.executor.http"


def seen_by_a_worker(job: BatchJob, identity: RunIdentity) -> list[Any]:
    """All that a worker works by, as values that can be compared."""
    resolved = worker_job(job, identity, environ={"MAX_CONCURRENT_REQUESTS": "6"})
    dedupe = dedupe_rule(job.spec, identity)
    reader = SecretReader(environ={}, where="x")
    simulated = executor_of(job, identity, secrets=reader) if job.spec.mode == "Simulate" else None
    return [
        resolved.concurrency,
        resolved.locks_a_row,
        resolved.keep_keys_seconds,
        resolved.rules.timeout,
        resolved.rules.acquire_timeout,
        resolved.rules.retry,
        resolved.rows.columns,
        job.spec.key,
        job.spec.mode,
        job.spec.simulate if simulated is not None else None,
        job.spec.limits,
        resolved.spend,
        job.spec.concurrency,
        job.spec.shards,
        None if dedupe is None else (dedupe.digest("k"), dedupe.owner(4), dedupe.rerun_failed),
    ]


class TestNames:
    def test_long_names_are_cut_and_stay_apart(self) -> None:
        one, two = "a" * 60 + "-x", "a" * 60 + "-y"
        assert naming.workers_name("a" * 44) == "a" * 44 + "-workers"
        for name in (one, two, "a" * 45):
            assert len(naming.workers_name(name)) <= 52
            assert len(naming.config_map_name(name, "0123456789")) <= 61
        assert naming.workers_name(one) != naming.workers_name(two)
        long = "a" * 30 + "." + "b" * 60
        assert len(naming.job_label(long)) <= 63
        assert naming.job_label(long) != naming.job_label(long + "c")

    def test_a_cut_name_ends_well(self) -> None:
        name = naming.workers_name("a" * 42 + "-" * 10 + "b")
        assert "--" not in name

    def test_the_selector_as_text_selects_the_same(self) -> None:
        assert naming.selector_text("triage") == "app.kubernetes.io/name=rowmill-worker,rowmill.dev/job=triage"
        assert deepcopy(naming.selector("triage")).items() <= naming.labels("triage").items()
