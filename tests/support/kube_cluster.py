"""An API server of Kubernetes in memory, on a real socket: what the operator needs of one, with the rules it relies on.

kmock reads requests and serves discovery and errors; the objects and their rules are here: versions that conflict, a
generation that only the spec raises, a status that only its subresource writes, finalizers, preconditions, owners,
label selectors, pages, watches that go on where a list ended.

`fail` refuses calls as a real one would. Nothing here knows of time: whoever waits, waits for an event (`until`).
"""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import jsonpatch
import kmock

Object = dict[str, Any]
Key = tuple[str, str, str]

KINDS = {
    "batchjobs": ("rowmill.dev/v1alpha1", "BatchJob"),
    "configmaps": ("v1", "ConfigMap"),
    "deployments": ("apps/v1", "Deployment"),
    "events": ("v1", "Event"),
    "leases": ("coordination.k8s.io/v1", "Lease"),
    "networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "pods": ("v1", "Pod"),
    "secrets": ("v1", "Secret"),
}
CREATED = "2027-01-15T08:00:00Z"
_VERBS = {
    kmock.action.LIST: "list",
    kmock.action.WATCH: "watch",
    kmock.action.FETCH: "get",
    kmock.action.CREATE: "create",
    kmock.action.UPDATE: "patch",
    kmock.action.DELETE: "delete",
}


@dataclass(frozen=True)
class Call:
    """A call as the server took it."""

    verb: str
    resource: str
    name: str
    sub: str
    body: Any
    content_type: str
    params: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.verb} {'/'.join(p for p in (self.resource, self.name, self.sub) if p)}"


@dataclass
class Failure:
    """Refuses calls for as long as it is in the cluster's list; `left` counts down where it is given."""

    matches: Callable[[Call], bool]
    status: int
    message: str
    left: int | None = None


@dataclass
class _Watcher:
    resource: str
    namespace: str | None
    labels: str
    events: asyncio.Queue[tuple[str, Object]] = field(default_factory=asyncio.Queue)


class Cluster:
    """The server; an `async with` block starts and ends it."""

    def __init__(self) -> None:
        self.server = kmock.KubernetesScaffold()
        self.objects: dict[Key, Object] = {}
        self.calls: list[Call] = []
        self.failures: list[Failure] = []
        self.held: asyncio.Event | None = None
        """While it is there and not set, no call is answered."""
        self.seen: list[Callable[[str, str, Object], None]] = []
        """Told of every change: resource, ADDED | MODIFIED | DELETED, the object."""
        self._version = 0
        self._history: list[tuple[int, str, str, Object]] = []
        self._watchers: list[_Watcher] = []
        self._changed = asyncio.Event()
        self._listening: kmock.Server | None = None
        for plural in KINDS:
            self.serve(plural)
        # kopf looks for these two before it watches anything.
        self.server.resources["v1/namespaces"] = _info("Namespace", namespaced=False)
        self.server.resources["apiextensions.k8s.io/v1/customresourcedefinitions"] = _info(
            "CustomResourceDefinition", namespaced=False
        )
        for action in kmock.action:
            self.server.fallback[action] << (self._watch if action is kmock.action.WATCH else self._answer)
        self.server.fallback["put", re.compile("/apis?/.*/namespaces/.*")] << self._answer

    async def __aenter__(self) -> Cluster:
        await self.server.__aenter__()
        self._listening = kmock.Server(self.server)
        await self._listening.__aenter__()
        return self

    async def __aexit__(self, *exc: Any) -> None:
        assert self._listening is not None
        if self.held is not None:
            self.held.set()
        for watcher in self._watchers:
            watcher.events.put_nowait(("CLOSE", {}))
        await self._listening.__aexit__(None, None, None)
        await self.server.__aexit__(None, None, None)

    @property
    def url(self) -> str:
        return str(self.server.url).rstrip("/")

    def kubeconfig(self) -> str:
        """The text of a kubeconfig that leads here."""
        return json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "here",
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
                "clusters": [{"name": "here", "cluster": {"server": self.url}}],
                "users": [{"name": "me", "user": {"token": "t"}}],
            }
        )

    # -- what tests say

    def serve(self, plural: str) -> None:
        self.server.resources[_name_of(plural)] = _info(KINDS[plural][1], namespaced=True)

    def unserve(self, plural: str) -> None:
        """As removing a CustomResourceDefinition does: its objects go, finalizers or not, and watches end."""
        del self.server.resources[_name_of(plural)]
        for key in [key for key in self.objects if key[0] == plural]:
            del self.objects[key]
        for watcher in [one for one in self._watchers if one.resource == plural]:
            watcher.events.put_nowait(("CLOSE", {}))

    def fail(
        self, matches: str | Callable[[Call], bool], status: int, message: str, *, times: int | None = None
    ) -> Failure:
        """Refuse calls; `matches` may be the beginning of `verb resource/name/sub`."""
        test = matches if callable(matches) else (lambda call, text=matches: str(call).startswith(text))
        failure = Failure(test, status, message, times)
        self.failures.append(failure)
        return failure

    def mend(self, failure: Failure) -> None:
        self.failures.remove(failure)

    def made(self, prefix: str = "") -> list[Call]:
        """Calls that were taken, in order."""
        return [call for call in self.calls if str(call).startswith(prefix)]

    def get(self, resource: str, name: str, namespace: str = "default") -> Object | None:
        return self.objects.get((resource, namespace, name))

    def all(self, resource: str) -> list[Object]:
        return [one for (held, _, _), one in self.objects.items() if held == resource]

    async def until(self, reached: Callable[[], Any], *, within: float = 90.0) -> Any:
        """Wait for a call or a change after which `reached()` is true; what it returned."""
        try:
            async with asyncio.timeout(within):
                while not (found := reached()):
                    self._changed.clear()
                    await self._changed.wait()
                return found
        except TimeoutError:
            calls = [str(call) for call in self.calls[-25:]]
            jobs = [one.get("status") for one in self.all("batchjobs")][:3]
            raise AssertionError(f"not reached within {within} s; last calls {calls}; jobs {jobs}") from None

    def put(self, resource: str, body: Mapping[str, Any], *, namespace: str = "default") -> Object:
        """Create an object as a person or a controller of Kubernetes does."""
        api_version, kind = KINDS[resource]
        made = {"apiVersion": api_version, "kind": kind, **deepcopy(dict(body))}
        metadata = made.setdefault("metadata", {})
        metadata.setdefault("namespace", namespace)
        metadata |= {"uid": metadata.get("uid") or str(uuid.uuid4()), "creationTimestamp": CREATED, "generation": 1}
        key = (resource, metadata["namespace"], metadata["name"])
        if key in self.objects:
            raise _refused(409, "AlreadyExists", f"{resource} {metadata['name']!r} already exists")
        self.objects[key] = made
        self._tell(resource, "ADDED", made)
        owners = {one["uid"] for one in metadata.get("ownerReferences") or []}
        if owners and not owners & {one["metadata"]["uid"] for one in self.objects.values()}:
            self._delete(key)  # the garbage collector's: its owner is gone already
        return made

    def edit(self, resource: str, name: str, patch: Mapping[str, Any], *, namespace: str = "default") -> Object:
        """A merge patch of everything but the status."""
        return self._patched((resource, namespace, name), {k: v for k, v in patch.items() if k != "status"})

    def set_status(self, resource: str, name: str, status: Mapping[str, Any], *, namespace: str = "default") -> Object:
        return self._patched((resource, namespace, name), {"status": dict(status)})

    def delete(self, resource: str, name: str, *, namespace: str = "default") -> None:
        self._delete((resource, namespace, name))

    def vanish(self, resource: str, name: str, *, namespace: str = "default", silent: bool = False) -> None:
        """Take an object away whatever holds it; `silent`: no watch sees it."""
        body = self.objects.pop((resource, namespace, name))
        if not silent:
            self._tell(resource, "DELETED", body)
        self._collect(body)

    # -- what the server does

    async def _taken(self, request: kmock.Request) -> Call:
        assert request.resource is not None
        verb = _VERBS.get(request.action, "") if request.action else str(request.method.value).lower()
        call = Call(
            verb,
            str(request.resource.plural),
            request.name or (((request.data or {}).get("metadata") or {}).get("name", "") if verb == "create" else ""),
            request.subresource or "",
            request.data,
            request.headers.get("Content-Type", ""),
            request.params,
        )
        self.calls.append(call)
        # kmock looks through all that it has ever taken to know whom a request concerns; `calls` is what we keep.
        del self.server._requests[:-1]
        self._changed.set()
        if self.held is not None:
            await self.held.wait()
        for failure in self.failures:
            if failure.left != 0 and failure.matches(call):
                failure.left = failure.left - 1 if failure.left is not None else None
                raise _refused(failure.status, "Refused", failure.message)
        if _name_of(call.resource) not in self.server.resources:
            raise _refused(404, "NotFound", "the server could not find the requested resource")
        return call

    async def _answer(self, request: kmock.Request) -> Any:
        if request.resource is None or request.resource.plural is None:
            raise NotImplementedError
        call = await self._taken(request)
        namespace = request.namespace or ""
        key = (call.resource, namespace, call.name)
        if call.verb == "list":
            return self._list(call, namespace, request)
        if call.verb == "create":
            return deepcopy(self.put(call.resource, request.data, namespace=namespace))
        applies = "apply-patch" in call.content_type
        if key not in self.objects:
            if applies:
                return deepcopy(self.put(call.resource, request.data, namespace=namespace))
            raise _refused(404, "NotFound", f'{call.resource} "{call.name}" not found')
        if call.verb == "get":
            return deepcopy(self.objects[key])
        if call.verb == "delete":
            self._delete(key, ((request.data or {}).get("preconditions") or {}).get("uid"))
            return {"kind": "Status", "status": "Success"}
        if call.sub == "status":
            return deepcopy(self._patched(key, {"status": request.data.get("status", {})}))
        if "json-patch" in call.content_type:
            return deepcopy(self._operated(key, request.data))
        version = (request.data.get("metadata") or {}).get("resourceVersion")
        if version not in (None, self.objects[key]["metadata"]["resourceVersion"]):
            raise _refused(409, "Conflict", "the object has been modified; apply to the latest version and try again")
        if call.verb == "put":
            request.data["metadata"] |= {k: self.objects[key]["metadata"][k] for k in ("uid", "generation")}
            return deepcopy(self._became(key, deepcopy(request.data)))
        held = self.objects[key]
        if held.get("immutable") and request.data.get("data", held.get("data")) != held.get("data"):
            raise _refused(422, "Invalid", "data: Forbidden: field is immutable when `immutable` is set")
        return deepcopy(self._patched(key, {k: v for k, v in request.data.items() if k != "status"}))

    def _list(self, call: Call, namespace: str, request: kmock.Request) -> Object:
        found = [
            one
            for (resource, held, _), one in sorted(self.objects.items())
            if resource == call.resource
            and namespace in ("", held)
            and _labelled(one, call.params.get("labelSelector"))
        ]
        start, limit = int(call.params.get("continue") or 0), int(call.params.get("limit") or 0)
        page = found[start : start + limit] if limit else found
        if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
            page = [{"metadata": one["metadata"]} for one in page]
        more = str(start + limit) if limit and start + limit < len(found) else ""
        api_version, kind = KINDS[call.resource]
        return {
            "apiVersion": api_version,
            "kind": f"{kind}List",
            "metadata": {"resourceVersion": str(self._version), "continue": more},
            "items": deepcopy(page),
        }

    async def _watch(self, request: kmock.Request) -> Any:
        call = await self._taken(request)
        since = int(call.params.get("resourceVersion") or 0)
        watcher = _Watcher(call.resource, request.namespace, call.params.get("labelSelector", ""))
        for version, resource, kind, body in self._history:
            if version > since and self._concerns(watcher, resource, body):
                watcher.events.put_nowait((kind, body))
        self._watchers.append(watcher)
        self._changed.set()

        async def stream() -> AsyncIterator[Any]:
            try:
                yield b"\n"
                while True:
                    kind, body = await watcher.events.get()
                    if kind == "CLOSE":
                        return
                    yield {"type": kind, "object": body}
            finally:
                self._watchers.remove(watcher)

        return stream()

    def watched(self, resource: str) -> bool:
        """Whether anybody watches it now."""
        return any(one.resource == resource for one in self._watchers)

    def _concerns(self, watcher: _Watcher, resource: str, body: Object) -> bool:
        return (
            watcher.resource == resource
            and watcher.namespace in (None, body["metadata"]["namespace"])
            and _labelled(body, watcher.labels)
        )

    def _tell(self, resource: str, kind: str, body: Object) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        shown = deepcopy(body)
        self._history.append((self._version, resource, kind, shown))
        for watcher in self._watchers:
            if self._concerns(watcher, resource, shown):
                watcher.events.put_nowait((kind, shown))
        for told in list(self.seen):
            told(resource, kind, deepcopy(shown))
        self._changed.set()

    def _patched(self, key: Key, patch: Mapping[str, Any]) -> Object:
        return self._became(key, merge(self.objects[key], patch))

    def _operated(self, key: Key, operations: list[Object]) -> Object:
        try:
            return self._became(key, jsonpatch.apply_patch(self.objects[key], operations))
        except jsonpatch.JsonPatchException as error:
            raise _refused(422, "Invalid", f"the server rejected our request: {error}") from error

    def _became(self, key: Key, after: Object) -> Object:
        before = self.objects[key]
        if after == before:
            return before  # as the real one: nothing changed, nobody is told
        if after.get("spec") != before.get("spec"):
            after["metadata"]["generation"] += 1
        self.objects[key] = after
        if after["metadata"].get("deletionTimestamp") and not after["metadata"].get("finalizers"):
            del self.objects[key]
            self._tell(key[0], "DELETED", after)
            self._collect(after)
        else:
            self._tell(key[0], "MODIFIED", after)
        return after

    def _delete(self, key: Key, uid: str | None = None) -> None:
        body = self.objects[key]
        if uid not in (None, body["metadata"]["uid"]):
            raise _refused(409, "Conflict", f"the UID in the precondition ({uid}) does not match the UID in record")
        if body["metadata"].get("finalizers"):
            self._patched(key, {"metadata": {"deletionTimestamp": CREATED}})
            return
        del self.objects[key]
        self._tell(key[0], "DELETED", body)
        self._collect(body)

    def _collect(self, owner: Object) -> None:
        """What the garbage collector does."""
        for key, one in list(self.objects.items()):
            owners = one["metadata"].get("ownerReferences") or []
            if key in self.objects and any(o["uid"] == owner["metadata"]["uid"] for o in owners):
                self._delete(key)


def _info(kind: str, *, namespaced: bool) -> Any:
    return {
        "namespaced": namespaced,
        "kind": kind,
        "singular": kind.lower(),
        "verbs": {"get", "list", "watch", "create", "patch", "delete"},
        "shortnames": set(),
        "categories": set(),
        "subresources": set(),
    }


def merge(held: Any, patch: Any) -> Any:
    """RFC 7396."""
    if not isinstance(patch, Mapping):
        return deepcopy(patch)
    made = deepcopy(held) if isinstance(held, dict) else {}
    for name, value in patch.items():
        if value is None:
            made.pop(name, None)
        else:
            made[name] = merge(made.get(name), value)
    return made


def condition(job: Mapping[str, Any] | None, kind: str) -> Object:
    """A condition of a job; {} where there is none."""
    held = ((job or {}).get("status") or {}).get("conditions") or []
    return next((one for one in held if one["type"] == kind), {})


def _labelled(body: Object, selector: str | None) -> bool:
    held = body["metadata"].get("labels") or {}
    return all(held.get(name) == value if known else name in held for name, known, value in _terms(selector or ""))


def _terms(selector: str) -> Iterator[tuple[str, bool, str]]:
    for term in filter(None, selector.split(",")):
        name, known, value = term.partition("=")
        yield name, bool(known), value.lstrip("=")


def _refused(status: int, reason: str, message: str) -> kmock.KubernetesError:
    return kmock.KubernetesError(status=status, reason=reason, message=message)


def _name_of(plural: str) -> str:
    return f"{KINDS[plural][0]}/{plural}"
