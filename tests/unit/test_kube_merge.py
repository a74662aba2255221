"""The strategic merge: Kubernetes' rules, and clear words for what is no patch."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill_operator.kube.merge import merge_pod_template

OURS: dict[str, Any] = {
    "metadata": {"labels": {"a": "1", "b": "2"}},
    "spec": {
        "nodeSelector": {"x": "1"},
        "tolerations": [{"key": "t1"}],
        "imagePullSecrets": [{"name": "s1"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["one"]}],
        "topologySpreadConstraints": [{"topologyKey": "host", "maxSkew": 1}],
        "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}, {"name": "job", "configMap": {"name": "c"}}],
        "containers": [
            {
                "name": "worker",
                "image": "ours",
                "args": ["--a"],
                "env": [{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"fieldRef": {"fieldPath": "x"}}}],
                "ports": [{"name": "http", "containerPort": 8081, "protocol": "TCP"}],
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, {"name": "job", "mountPath": "/job"}],
            }
        ],
    },
}


def merged(patch: dict[str, Any]) -> dict[str, Any]:
    before, given = deepcopy(OURS), deepcopy(patch)
    result = merge_pod_template(OURS, patch, where="ns/job")
    assert before == OURS
    assert given == patch
    return result


def worker(patch: dict[str, Any]) -> dict[str, Any]:
    result = merged({"spec": {"containers": [{"name": "worker", **patch}]}})
    first = result["spec"]["containers"][0]
    assert isinstance(first, dict)
    return first


def test_nothing_changes_nothing() -> None:
    assert merged({}) == OURS
    assert merged({"spec": {}, "metadata": {}}) == OURS


def test_objects_are_merged_and_null_takes_away() -> None:
    result = merged(
        {"metadata": {"labels": {"b": None, "c": "3"}, "annotations": {"d": "4"}}, "spec": {"hostname": "h"}}
    )
    assert result["metadata"] == {"labels": {"a": "1", "c": "3"}, "annotations": {"d": "4"}}
    assert result["spec"]["hostname"] == "h"
    assert result["spec"]["nodeSelector"] == {"x": "1"}


def test_containers_and_their_lists_are_merged_by_key() -> None:
    found = worker(
        {
            "image": "theirs",
            "env": [{"name": "A", "value": "2"}, {"name": "C", "value": "3"}],
            "ports": [{"containerPort": 9000, "name": "debug"}],
            "volumeMounts": [{"mountPath": "/data", "name": "data"}],
        }
    )
    assert found["image"] == "theirs"
    assert [one["name"] for one in found["env"]] == ["A", "B", "C"]
    assert found["env"][0]["value"] == "2"
    assert [one["containerPort"] for one in found["ports"]] == [8081, 9000]
    assert [one["mountPath"] for one in found["volumeMounts"]] == ["/tmp", "/job", "/data"]


def test_our_container_stays_the_first() -> None:
    result = merged({"spec": {"containers": [{"name": "sidecar", "image": "s"}], "initContainers": [{"name": "i"}]}})
    assert [one["name"] for one in result["spec"]["containers"]] == ["worker", "sidecar"]
    assert result["spec"]["initContainers"] == [{"name": "i"}]


def test_lists_without_a_key_are_replaced() -> None:
    result = merged({"spec": {"tolerations": [{"key": "t2"}]}})
    assert result["spec"]["tolerations"] == [{"key": "t2"}]
    assert worker({"args": ["--b", "--c"], "command": ["x"]})["args"] == ["--b", "--c"]


@pytest.mark.parametrize(
    ("name", "item", "count"),
    [
        ("imagePullSecrets", {"name": "s2"}, 2),
        ("imagePullSecrets", {"name": "s1"}, 1),
        ("hostAliases", {"ip": "10.0.0.2", "hostnames": ["two"]}, 2),
        ("topologySpreadConstraints", {"topologyKey": "zone", "maxSkew": 2}, 2),
        ("topologySpreadConstraints", {"topologyKey": "host", "maxSkew": 2}, 1),
    ],
)
def test_lists_of_the_pod_are_merged_by_key(name: str, item: dict[str, Any], count: int) -> None:
    found = merged({"spec": {name: [item]}})["spec"][name]
    assert len(found) == count
    assert found[-1].items() >= item.items()


def test_a_volume_of_another_kind_replaces_ours() -> None:
    found = merged({"spec": {"volumes": [{"name": "tmp", "persistentVolumeClaim": {"claimName": "p"}}]}})
    assert found["spec"]["volumes"][0] == {"name": "tmp", "persistentVolumeClaim": {"claimName": "p"}}


def test_a_volume_of_the_same_kind_is_merged() -> None:
    found = merged({"spec": {"volumes": [{"name": "tmp", "emptyDir": {"medium": "Memory"}}]}})
    assert found["spec"]["volumes"][0]["emptyDir"] == {"sizeLimit": "1Gi", "medium": "Memory"}


class TestDirectives:
    def test_delete_an_element(self) -> None:
        assert [one["name"] for one in worker({"env": [{"name": "A", "$patch": "delete"}]})["env"]] == ["B"]

    def test_delete_what_is_not_there(self) -> None:
        assert len(worker({"env": [{"name": "Z", "$patch": "delete"}]})["env"]) == 2

    def test_delete_an_object(self) -> None:
        assert "nodeSelector" not in merged({"spec": {"nodeSelector": {"$patch": "delete"}}})["spec"]

    def test_replace_an_object(self) -> None:
        found = merged({"spec": {"nodeSelector": {"$patch": "replace", "y": "2"}}})
        assert found["spec"]["nodeSelector"] == {"y": "2"}

    def test_replace_an_element(self) -> None:
        env = worker({"env": [{"name": "B", "value": "2", "$patch": "replace"}]})["env"]
        assert env[1] == {"name": "B", "value": "2"}

    def test_replace_a_whole_list(self) -> None:
        assert worker({"env": [{"$patch": "replace"}, {"name": "Z", "value": "1"}]})["env"] == [
            {"name": "Z", "value": "1"}
        ]

    def test_retain_keys(self) -> None:
        found = merged({"spec": {"nodeSelector": {"$retainKeys": ["y"], "y": "2"}}})
        assert found["spec"]["nodeSelector"] == {"y": "2"}

    def test_delete_from_a_primitive_list(self) -> None:
        assert worker({"$deleteFromPrimitiveList/args": ["--a"]})["args"] == []

    def test_an_order_is_read_over(self) -> None:
        found = merged({"spec": {"$setElementOrder/containers": [{"name": "x"}, {"name": "worker"}]}})
        assert found == OURS

    def test_directives_and_nulls_never_reach_the_result(self) -> None:
        patch = {"spec": {"affinity": {"$patch": "replace", "a": None, "b": [{"$patch": "merge", "c": None, "d": 1}]}}}
        assert merged(patch)["spec"]["affinity"] == {"b": [{"d": 1}]}


@pytest.mark.parametrize(
    ("patch", "path"),
    [
        ({"spec": []}, "spec.workers.podTemplate.spec"),
        ({"spec": "x"}, "spec.workers.podTemplate.spec"),
        ({"spec": {"containers": {}}}, "spec.workers.podTemplate.spec.containers"),
        ({"spec": {"containers": ["x"]}}, "spec.workers.podTemplate.spec.containers[0]"),
        ({"spec": {"containers": [{"image": "x"}]}}, "spec.workers.podTemplate.spec.containers[0]"),
        ({"spec": {"containers": [{"name": True}]}}, "spec.workers.podTemplate.spec.containers[0]"),
        ({"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}, "spec.workers.podTemplate.spec.containers[name=a]"),
        (
            {"spec": {"containers": [{"name": "worker", "env": {"A": "1"}}]}},
            "spec.workers.podTemplate.spec.containers[name=worker].env",
        ),
        (
            {"spec": {"containers": [{"name": "worker", "image": ["x"]}]}},
            "spec.workers.podTemplate.spec.containers[name=worker].image",
        ),
        (
            {"spec": {"containers": [{"name": "worker", "image": {"x": 1}}]}},
            "spec.workers.podTemplate.spec.containers[name=worker].image",
        ),
        ({"spec": {"$patch": "remove"}}, "spec.workers.podTemplate.spec.$patch"),
        ({"spec": {"$other": 1}}, "spec.workers.podTemplate.spec.$other"),
        ({"spec": {"nodeSelector": {"$retainKeys": "y"}}}, "spec.workers.podTemplate.spec.nodeSelector.$retainKeys"),
        (
            {"spec": {"$deleteFromPrimitiveList/args": "x"}},
            "spec.workers.podTemplate.spec.$deleteFromPrimitiveList/args",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_patch_is_named(patch: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        merge_pod_template(OURS, patch, where="ns/job")
    assert [problem.path for problem in caught.value.problems] == [path]
    assert caught.value.where == "ns/job"


NAMES = st.sampled_from(
    ["metadata", "labels", "spec", "containers", "name", "env", "volumes", "$patch", "$retainKeys", "emptyDir", "tmp"]
)
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.sampled_from(["worker", "delete", "replace", "tmp", "", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=15,
)


@settings(max_examples=300, deadline=None)
@given(patch=st.dictionaries(NAMES, ANY, max_size=4))
def test_any_patch_is_merged_or_refused_in_words(patch: dict[str, Any]) -> None:
    try:
        result = str(merge_pod_template(OURS, patch))
        paths = []
    except InvalidInput as error:
        result = ""
        paths = [problem.path for problem in error.problems]
    assert all(path.startswith("spec.workers.podTemplate") for path in paths)
    assert "$patch" not in result
    assert "$retainKeys" not in result
