"""What is wrong with one container of a worker's pod, told to a person. Pure.

A container waits for what is missing (a Secret, an image), or ends again and again. Messages name the object or the
field and the next step, and hold nothing that differs from pod to pod or from try to try.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from rowmill_operator.kube.conditions import Reason, Trouble
from rowmill_operator.kube.naming import JOB_LABEL, WORKER
from rowmill_operator.kube.refusals import service_account_missing, stable

Json = Mapping[str, Any]

_NOT_FOUND: Final = re.compile(r"\b(?P<kind>secret|configmap)s? \"(?P<name>[^\"]+)\" not found", re.IGNORECASE)
_NO_KEY: Final = re.compile(r"couldn't find key (?P<key>\S+) in (?P<kind>Secret|ConfigMap) [^/\s]+/(?P<name>\S+)")
_NO_KEY_MOUNTED: Final = re.compile(
    r"for volume \"(?P<volume>[^\"]+)\".*references non-existent (?P<kind>secret|config) key: (?P<key>[^\s,\]]+)"
)

_CAUSES: Final = (
    (
        r"pull access denied|may require .docker login|insufficient_scope",
        "there is none of that name, or it is private",
        True,
    ),
    (r"unauthori[sz]ed|authentication required|forbidden|denied|401|403", "the registry refuses to hand it out", True),
    (r"not found|manifest unknown|NotFound|does not exist", "the registry has none of that name and tag", False),
    (r"no match for platform|no matching manifest|exec format", "it is not made for the nodes' architecture", False),
    (
        r"no such host|timeout|refused|unreachable|x509|tls|unavailable|deadline",
        "its registry cannot be reached",
        False,
    ),
)


def missing_object(pod: Json, message: str) -> Trouble | None:
    """The Secret or ConfigMap that a message about a mount or a variable says is missing."""
    names = sorted({(found["kind"].lower(), found["name"]) for found in _NOT_FOUND.finditer(message)})
    if names:
        kind = names[0][0]
        return _no_object(kind, [name for one, name in names if one == kind], pod)
    if found := _NO_KEY.search(message):
        return _no_object_key(found["kind"].lower(), [found["name"]], found["key"])
    if found := _NO_KEY_MOUNTED.search(message):
        kind = "secret" if found["kind"] == "secret" else "configmap"
        return _no_object_key(kind, _with_key(pod, found["volume"], kind, found["key"]), found["key"])
    return None


def _no_object(kind: str, names: list[str], pod: Json) -> Trouble:
    what = "Secret" if kind == "secret" else "ConfigMap"
    reason = Reason.SECRET_MISSING if kind == "secret" else Reason.CONFIG_MAP_MISSING
    if all(_is_own(pod, name) for name in names):
        return Trouble(
            reason, f"the {what} {names[0]} is Rowmill's own and was deleted; the operator makes it again by itself"
        )
    listed = ", ".join(names)
    are = f"{what} {listed} is" if len(names) == 1 else f"{what}s {listed} are"
    return Trouble(
        reason,
        f"the {are} missing in the job's namespace, and workers need it; create it, or correct its name in the job",
    )


def _no_object_key(kind: str, names: list[str], key: str) -> Trouble:
    what = "Secret" if kind == "secret" else "ConfigMap"
    reason = Reason.SECRET_MISSING if kind == "secret" else Reason.CONFIG_MAP_MISSING
    named = f"the {what} {' or '.join(names)}" if names else f"a {what} of the job"
    return Trouble(reason, f"{named} has no key {key}; add it, or correct the key in the job")


def _with_key(pod: Json, volume: str, kind: str, key: str) -> list[str]:
    """Which objects of a volume are asked for a key."""
    part = "secret" if kind == "secret" else "configMap"
    names: set[str] = set()
    for one in items_at(pod, "spec", "volumes"):
        if one.get("name") != volume:
            continue
        for source in [one, *items_at(one, "projected", "sources")]:
            given = source.get(part) or {}
            if any(item.get("key") == key for item in given.get("items") or ()):
                names.add(str(given.get("name") or given.get("secretName") or ""))
    return sorted(names - {""})


def not_configured(pod: Json, container: str, message: str) -> Trouble:
    missing = missing_object(pod, message)
    if missing is not None:
        return missing
    if "runAsNonRoot" in message:
        return Trouble(
            Reason.WORKERS_FAILING,
            f"the image of the container {container} would run as root; give it a USER by number, or set "
            "spec.workers.podTemplate.spec.securityContext.runAsUser",
        )
    if "serviceaccount" in message.lower() and (found := re.search(r"serviceaccount \"([^\"]+)\" not found", message)):
        return service_account_missing(found[1])
    return Trouble(
        Reason.WORKERS_FAILING,
        f"the container {container} cannot be made: {stable(message)}; mend it in spec.workers.podTemplate",
    )


def image_trouble(pod: Json, container: str, reason: str, message: str, told_before: Iterable[str]) -> Trouble:
    specs = [*items_at(pod, "spec", "containers"), *items_at(pod, "spec", "initContainers")]
    image = next((str(one.get("image", "")) for one in specs if one.get("name") == container), "")
    head = f"the image {image or '?'} of the container {container}"
    where = "correct it in spec.workers.podTemplate, or in the settings of this installation"
    if reason == "InvalidImageName":
        return Trouble(Reason.IMAGE_PULL_FAILED, f"{head} has no valid name; {where}")
    if reason == "ErrImageNeverPull":
        advice = "load it there, or set imagePullPolicy: IfNotPresent"
        return Trouble(Reason.IMAGE_PULL_FAILED, f"{head} is not on the node, and its pull policy is Never; {advice}")
    # While the kubelet backs off, older ones do not repeat the cause; their event does.
    failed = (text for text in told_before if text.startswith("Failed to pull") and image in text)
    for text in (message, *failed):
        cause = text.replace(image, "") if image else text
        for pattern, told, private in _CAUSES:
            if re.search(pattern, cause, re.IGNORECASE):
                advice = f"{where}, or name a pull secret in spec.workers.podTemplate.spec.imagePullSecrets"
                return Trouble(
                    Reason.IMAGE_PULL_FAILED, f"{head} cannot be pulled: {told}; {advice if private else where}"
                )
    return Trouble(Reason.IMAGE_PULL_FAILED, f"{head} cannot be pulled; {where}, and see that nodes reach its registry")


def crash(pod: Json, status: Json, ended: Json) -> Trouble:
    container, code = str(status.get("name", "")), ended.get("exitCode")
    reason, words = str(ended.get("reason", "")), _last_words(str(ended.get("message", "")))
    said = f": {words}" if words else ""
    logs = f"kubectl logs -l {_selector(pod)} -c {container} --previous"
    if reason == "OOMKilled":
        told = "runs out of memory"
        advice = "raise spec.workers.resources.limits.memory, or lower spec.concurrency.perWorker"
        said = ""
    elif code in (126, 127, 128) or reason in ("StartError", "ContainerCannotRun"):
        told, advice = "cannot be started", "check its image and command in spec.workers.podTemplate"
    elif code == 2 and container == WORKER:
        told, advice = "cannot work (exit code 2)", "it starts again by itself once that is mended"
    elif code == 137:
        told, advice = "is killed (exit code 137)", f"see whether its node has memory left, and read {logs}"
    elif code == 0:
        told, advice = "ends by itself (exit code 0)", "its command must be a worker's; see spec.workers.podTemplate"
    else:
        told, advice = f"ends again and again (exit code {'?' if code is None else code})", f"read {logs}"
    return Trouble(Reason.WORKERS_FAILING, f"the container {container} {told}{said}; {advice}")


def _last_words(text: str) -> str:
    """The last line that a container left, for a person: the message alone where the line is a record of a log."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    try:
        record = json.loads(lines[-1])
    except ValueError:
        return stable(lines[-1] if len(lines) > 1 and "Traceback" in text else " ".join(lines))
    if not isinstance(record, dict):
        return stable(lines[-1])
    return stable(": ".join(str(record[name]) for name in ("event", "reason", "error") if record.get(name)))


def _is_own(pod: Json, name: str) -> bool:
    """Whether Rowmill makes this object of the job: named as its Deployment, which the ReplicaSet's name tells."""
    for owner in items_at(pod, "metadata", "ownerReferences"):
        workers = str(owner.get("name", "")).rpartition("-")[0]
        if workers and re.fullmatch(re.escape(workers) + "(?:-[0-9a-f]{8})?", name):
            return True
    return False


def _selector(pod: Json) -> str:
    labels = pod.get("metadata", {}).get("labels") or {}
    return f"{JOB_LABEL}={labels.get(JOB_LABEL, '')}"


def items_at(parent: Json, *path: str) -> list[Json]:
    """The objects of the list that lies at `path`; none where there is no list."""
    value: Any = parent
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []
