"""What the API server says when it refuses a job's pods or objects, told to a person. Pure.

The same texts come by two ways: as the condition `ReplicaFailure` of a Deployment, whose pods are refused, and as the
answer to an apply of ours. What comes out holds no pod's name and no number that moves: it is written into conditions
and events, and must stay the same while the cause does.
"""

from __future__ import annotations

import re
from typing import Final

from rowmill_operator.kube.conditions import Reason, Trouble

MESSAGE_CHARS: Final = 400
"""Of a text that is passed on as it stands."""

_QUOTA: Final = re.compile(
    r"exceeded quota: (?P<name>[^,]+), requested: (?P<asked>.+?), used: .+?, limited: (?P<limit>.+?)$", re.IGNORECASE
)
_MUST_SPECIFY: Final = re.compile(r"failed quota: (?P<name>[^:]+): must specify (?P<what>.+)$", re.IGNORECASE)
_ACCOUNT: Final = re.compile(
    r"error looking up service account \S+?/[^:\s]+: serviceaccount \"(?P<name>[^\"]+)\" not found"
    r"|service account \S+?/(?P<older>[^\s/]+) was not found"
)
_TERMINATING: Final = re.compile(r"namespace (?P<name>\S+) (?:because it )?is being terminated|NamespaceTerminating")
_PRIORITY: Final = re.compile(r"no PriorityClass with name (?P<name>\S+) was found")
_RUNTIME: Final = re.compile(r"RuntimeClass \"(?P<name>[^\"]+)\" not found")
_RIGHTS: Final = re.compile(r"User \"[^\"]+\" cannot (?P<verb>\w+) resource \"(?P<what>[^\"]+)\"")
_LIMIT_RANGE: Final = re.compile(r"(?:minimum|maximum) \S+ usage per |max limit to request ratio per ")
_SECURITY: Final = re.compile(r"violates PodSecurity|PodSecurityPolic|unable to validate against any (?:pod )?security")

_FORBIDDEN: Final = re.compile(r"^.*?(?:pods|deployments\.apps) \"[^\"]*\" is forbidden: ", re.IGNORECASE | re.DOTALL)
_NOISE: Final = (
    (re.compile(r"\(combined from similar events\): "), ""),
    (re.compile(r"Error creating: "), ""),
    (re.compile(r" ?\(pod: \"[^\"]*\"(?:, container: [^)\s]+\)?)?"), ""),
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "…"),
    (re.compile(r"\b[0-9a-f]{32,64}\b"), "…"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d\S*"), "…"),
    (re.compile(r"(?:\d{1,3}(?:\.\d{1,3}){3}|\[[0-9a-f:]+\]):\d+->"), ""),
    (re.compile(r"\s+"), " "),
)


def of_refused_pods(message: str) -> Trouble:
    """Why a Deployment's pods are refused; `message` is that of its condition `ReplicaFailure`."""
    text = _clean(message)
    known = _known(text)
    if known is not None:
        return known
    reason = _shortened(_FORBIDDEN.sub("", text))
    if _LIMIT_RANGE.search(reason):
        advice = "keep spec.workers.resources within the namespace's LimitRange"
    elif _SECURITY.search(reason):
        advice = "mend spec.workers.podTemplate, or the namespace's pod security label"
    elif "admission webhook" in reason:
        advice = "mend spec.workers.podTemplate, or ask who set up this policy"
    else:
        advice = "mend spec.workers.podTemplate, or what refuses them"
    return Trouble(Reason.PODS_REFUSED, f"the workers' pods are refused: {reason}; {advice}")


def of_refused_object(status: int, message: str, *, what: str) -> Trouble | None:
    """What the answer to an apply means, or None where trying again is all there is to do.

    `status` is the HTTP status, `message` that of the answer, `what` the object, such as `Deployment triage-workers`.
    """
    text = _clean(message)
    known = _known(text)
    if known is not None:
        return known
    if rights := _RIGHTS.search(text):
        return Trouble(
            Reason.PODS_REFUSED,
            f"the operator may not {rights['verb']} {rights['what']} in this namespace; install the chart with a role "
            "for it (its list of namespaces must name this one)",
        )
    if status == 403 or "admission webhook" in text:
        reason = _shortened(_FORBIDDEN.sub("", text))
        return Trouble(Reason.PODS_REFUSED, f"{what} is refused: {reason}; mend spec.workers, or what refuses it")
    if status in (400, 422) or "field not declared in schema" in text:
        told = text.replace("spec.template.", "spec.workers.podTemplate.")
        return Trouble(
            Reason.INVALID_SPEC, f"the API server takes {what} for invalid: {_shortened(told)}; correct spec.workers"
        )
    return None


def stable(text: str) -> str:
    """One line without what changes from pod to pod or from try to try, at most 400 characters."""
    return _shortened(_clean(text))


def _clean(text: str) -> str:
    for pattern, instead in _NOISE:
        text = pattern.sub(instead, text)
    return text.strip()


def _known(text: str) -> Trouble | None:
    if found := _TERMINATING.search(text):
        name = f" {found['name']}" if found["name"] else ""
        return Trouble(
            Reason.NAMESPACE_TERMINATING,
            f"the namespace{name} is being deleted: it takes no new pods, and the job goes with it; apply the job in "
            "another namespace",
        )
    if found := _ACCOUNT.search(text):
        return service_account_missing(found["name"] or found["older"])
    if found := _QUOTA.search(text):
        return Trouble(Reason.QUOTA_EXCEEDED, _over_quota(found["name"], found["asked"], found["limit"]))
    if found := _MUST_SPECIFY.search(text):
        names = re.split(r"[,;]\s*", re.sub(r" for: [^;]*", "", found["what"]))
        wanted = ", ".join(sorted({name.strip() for name in names if name.strip()}))
        return Trouble(
            Reason.QUOTA_EXCEEDED,
            f"the quota {found['name']} takes only pods that state {wanted}; set them in spec.workers.resources",
        )
    if found := _PRIORITY.search(text):
        return Trouble(
            Reason.PODS_REFUSED,
            f"there is no PriorityClass {found['name']}; create it, or correct "
            "spec.workers.podTemplate.spec.priorityClassName",
        )
    if found := _RUNTIME.search(text):
        return Trouble(
            Reason.PODS_REFUSED,
            f"there is no RuntimeClass {found['name']}; create it, or correct "
            "spec.workers.podTemplate.spec.runtimeClassName",
        )
    return None


def service_account_missing(name: str) -> Trouble:
    """The workers' ServiceAccount does not exist."""
    return Trouble(
        Reason.SERVICE_ACCOUNT_MISSING,
        f"there is no ServiceAccount {name} in the job's namespace; create it, or correct "
        "spec.workers.podTemplate.spec.serviceAccountName",
    )


def _over_quota(name: str, asked: str, limit: str) -> str:
    limits = dict(part.split("=", 1) for part in limit.rstrip(".").split(",") if "=" in part)
    parts = [part.split("=", 1) for part in asked.split(",") if "=" in part]
    told = ", ".join(f"{what} of {limits.get(what, 'less')} in all (a worker asks for {one})" for what, one in parts)
    return (
        f"the quota {name} allows no more workers: {told or limit}; raise the quota, or lower "
        "spec.workers.maxReplicas or spec.workers.resources"
    )


def _shortened(text: str) -> str:
    return text if len(text) <= MESSAGE_CHARS else text[: MESSAGE_CHARS - 1] + "…"
