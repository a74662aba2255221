"""Who may share dedupe keys over namespaces, and what is said to who may not."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rowmill.spec import identity_of
from rowmill_operator.kube.conditions import REFUSALS, Reason
from rowmill_operator.kube.shared_keys import SharedKeys
from rowmill_worker.job import dedupe_rule
from tests.support.kube_lab import batch_job, parsed

PERMITTED = SharedKeys.parse(
    json.dumps(
        [
            {"group": "orders", "namespaces": ["shop", "billing"]},
            {"group": "orders", "namespaces": ["late"]},
            {"group": "public", "namespaces": ["*"]},
        ]
    ),
    where="test",
)


@pytest.mark.parametrize(
    ("group", "namespace", "permitted"),
    [
        ("orders", "shop", True),
        ("orders", "billing", True),
        ("orders", "late", True),
        ("orders", "shops", False),
        ("orders", "*", False),
        ("public", "anybody", True),
        ("default", "shop", False),
        ("Orders", "shop", False),
    ],
)
def test_a_permission_is_of_one_group_for_the_namespaces_that_it_names(
    group: str, namespace: str, permitted: bool
) -> None:
    assert PERMITTED.permits(group=group, namespace=namespace) is permitted
    spec: dict[str, Any] = {"key": ["id"], "dedupe": {"scope": "Installation", "group": group}}
    if namespace != "*":
        refusal = PERMITTED.refusal(parsed(batch_job(namespace=namespace, **spec)))
        assert (refusal is None) is permitted


def test_the_refusal_says_who_may_not_what_to_set_and_what_else_to_do() -> None:
    job = parsed(batch_job(namespace="intern", key=["id"], dedupe={"scope": "Installation", "group": "orders"}))
    refusal = PERMITTED.refusal(job)
    assert refusal is not None
    assert refusal.reason is Reason.DEDUPE_NOT_PERMITTED
    assert refusal.reason in REFUSALS
    assert refusal.edit, "nothing is tried again by itself"
    said = str(refusal)
    assert said.startswith("spec.dedupe.scope: the namespace intern may not share the keys of the group orders")
    assert "dedupe.shared of the chart: {group: orders, namespaces: [intern]}" in said
    assert "or set scope to Namespace" in said


@pytest.mark.parametrize("dedupe", [None, {"scope": "Namespace", "group": "orders"}, {"scope": "Run"}, {}])
def test_keys_that_stay_in_the_namespace_need_no_permission(dedupe: dict[str, Any] | None) -> None:
    job = parsed(batch_job(namespace="intern", key=["id"], **({} if dedupe is None else {"dedupe": dedupe})))
    assert SharedKeys().refusal(job) is None


def test_a_shared_key_is_of_one_installation_group_and_executor() -> None:
    def digest(namespace: str, *, installation: str = "mill", url: str = "http://a.example/", **dedupe: str) -> bytes:
        body = batch_job(namespace=namespace, key=["id"], executor={"http": {"url": url}})
        body["spec"]["dedupe"] = {"scope": "Installation", "group": "orders", **dedupe}
        job = parsed(body)
        rule = dedupe_rule(job.spec, identity_of(job, installation=installation))
        assert rule is not None
        return rule.digest("A17")

    shared = digest("shop")
    assert digest("billing") == shared
    others = [
        digest("shop", group="invoices"),
        digest("shop", installation="second"),
        digest("shop", url="http://b.example/"),
        digest("shop", scope="Namespace"),
        digest("billing", scope="Namespace"),
    ]
    assert len({shared, *others}) == 6
