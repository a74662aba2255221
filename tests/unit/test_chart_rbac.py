"""What the operator may do, verb by verb: no more than it needs, and nothing outside of what it is told to watch."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.chart_helpers import DEMO, EXISTING, NAMESPACE, merged, of_kind, render

NEEDED = {
    ("rowmill.dev", "batchjobs"): {"get", "list", "watch", "patch", "delete"},
    ("rowmill.dev", "batchjobs/status"): {"patch"},
    ("rowmill.dev", "batchjobs/finalizers"): {"update"},
    ("apps", "deployments"): {"get", "list", "watch", "create", "patch", "delete"},
    ("apps", "deployments/scale"): {"patch"},
    ("", "configmaps"): {"get", "list", "create", "patch", "delete"},
    ("", "secrets"): {"get", "create", "patch", "delete"},
    ("networking.k8s.io", "networkpolicies"): {"get", "create", "patch", "delete"},
    ("", "pods"): {"get", "list"},
    ("", "serviceaccounts"): {"get"},
    ("", "events"): {"list", "create", "patch"},
}
"""Where BatchJobs live. Secrets are neither listed nor watched."""

CLUSTER_WIDE = {("", "endpoints"): {"get"}}
LEASE = {("coordination.k8s.io", "leases"): {"get", "create", "update", "patch"}}
Rights = dict[tuple[str, str], set[str]]


def rights(role: dict[str, Any]) -> Rights:
    """Verbs by group and resource."""
    found: Rights = {}
    for rule in role["rules"]:
        assert set(rule) <= {"apiGroups", "resources", "verbs", "resourceNames"}
        for group in rule["apiGroups"]:
            for resource in rule["resources"]:
                found.setdefault((group, resource), set()).update(rule["verbs"])
    return found


def granted(objects: list[dict[str, Any]]) -> dict[str, Rights]:
    """What the operator's account is bound to: by namespace, or `*` for the whole cluster."""
    (account,) = {
        d["spec"]["template"]["spec"]["serviceAccountName"] for d in of_kind(objects, "Deployment", "mill-rowmill")
    }
    subject = {"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}
    found: dict[str, Rights] = {}
    for binding in [*of_kind(objects, "RoleBinding"), *of_kind(objects, "ClusterRoleBinding")]:
        assert binding["subjects"] == [subject]
        where = binding["metadata"].get("namespace", "*")
        roles = [
            role
            for role in of_kind(objects, binding["roleRef"]["kind"], binding["roleRef"]["name"])
            if role["metadata"].get("namespace", "*") == where
        ]
        assert len(roles) == 1, f"{binding['metadata']['name']} binds a role that is not there"
        for what, verbs in rights(roles[0]).items():
            found.setdefault(where, {}).setdefault(what, set()).update(verbs)
    return found


@pytest.mark.parametrize("values", [EXISTING, DEMO], ids=["existing", "demo"])
def test_cluster_wide_it_may_exactly_what_it_needs(values: dict[str, Any]) -> None:
    assert granted(render(values)) == {"*": {**NEEDED, **CLUSTER_WIDE}, NAMESPACE: LEASE}


def test_with_namespaces_it_has_nothing_elsewhere() -> None:
    objects = render(merged(EXISTING, {"watchNamespaces": ["support", "orders", "support"]}))
    assert granted(objects) == {"support": NEEDED, "orders": NEEDED, NAMESPACE: LEASE}
    assert not of_kind(objects, "ClusterRoleBinding")


def test_its_own_namespace_may_be_among_them() -> None:
    objects = render(merged(EXISTING, {"watchNamespaces": [NAMESPACE]}))
    assert granted(objects) == {NAMESPACE: {**NEEDED, **LEASE}}


def test_no_other_lease_is_its_own() -> None:
    (role,) = of_kind(render(EXISTING), "Role", "mill-rowmill-lease")
    (deployment,) = of_kind(render(EXISTING), "Deployment", "mill-rowmill")
    env = {e["name"]: e.get("value") for e in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
    named = [rule for rule in role["rules"] if rule["verbs"] != ["create"]]  # a name cannot bound creating
    assert [rule["resourceNames"] for rule in named] == [[env["ROWMILL_LEASE"]]]


def test_nobody_escalates() -> None:
    for objects in (render(EXISTING), render(DEMO)):
        for role in [*of_kind(objects, "Role"), *of_kind(objects, "ClusterRole")]:
            for (group, resource), verbs in rights(role).items():
                assert "*" not in {group, resource, *verbs}
                assert not verbs & {"escalate", "bind", "impersonate"}
                assert group != "rbac.authorization.k8s.io"


def test_people_edit_and_view_batchjobs_by_the_roles_that_they_have() -> None:
    objects = render(EXISTING)
    (edit,) = of_kind(objects, "ClusterRole", f"{NAMESPACE}-mill-rowmill-edit")
    (view,) = of_kind(objects, "ClusterRole", f"{NAMESPACE}-mill-rowmill-view")

    def joins(role: dict[str, Any]) -> set[str]:
        prefix = "rbac.authorization.k8s.io/aggregate-to-"
        return {label.removeprefix(prefix) for label in role["metadata"]["labels"] if label.startswith(prefix)}

    assert joins(edit) == {"edit", "admin"}
    assert joins(view) == {"view", "edit", "admin"}
    assert set(rights(edit)) == {("rowmill.dev", "batchjobs"), ("rowmill.dev", "batchjobs/scale")}
    assert rights(view)["rowmill.dev", "batchjobs"] == {"get", "list", "watch"}
    assert ("rowmill.dev", "batchjobs/status") not in rights(edit), "the status is the operator's alone"
    without = render(merged(EXISTING, {"rbac": {"aggregate": False}}))
    assert [role["metadata"]["name"] for role in of_kind(without, "ClusterRole")] == [f"{NAMESPACE}-mill-rowmill"]


def test_only_the_operator_and_the_test_have_a_token() -> None:
    objects = render(DEMO)
    mounted = {
        o["metadata"]["name"]
        for o in objects
        if o["kind"] in ("Deployment", "Pod")
        and (o["spec"]["template"]["spec"] if o["kind"] == "Deployment" else o["spec"])["automountServiceAccountToken"]
    }
    assert mounted == {"mill-rowmill", "mill-rowmill-test"}
    assert [a["automountServiceAccountToken"] for a in of_kind(objects, "ServiceAccount")] == [False]


def test_nothing_is_granted_where_somebody_else_does() -> None:
    objects = render(merged(EXISTING, {"rbac": {"create": False}}))
    assert granted(objects) == {}
