"""The few calls to the Kubernetes API that the operator makes besides watching: plain JSON in, plain JSON out.

The official client (`kubernetes.aio`) knows how to get in: service account or kubeconfig, TLS, tokens that are renewed.
Its typed models are left aside: what the operator writes is made by pure builders, and what it reads is a few fields.

Failures: `ApiError` for an answer that refuses (with its HTTP status), `ApiAway` where there is no answer within
`TIMEOUT_SECONDS`. Calls are counted by verb and resource for the metrics.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import quote, urlencode

import aiohttp
from kubernetes.aio import client, config
from kubernetes.aio.client.exceptions import ApiException

from rowmill.errors import RowmillError

TIMEOUT_SECONDS = 10.0
CONNECTIONS = 32
MERGE = "application/merge-patch+json"
CHANGE = "application/json-patch+json"
APPLY = "application/apply-patch+yaml"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
NOT_FOUND, CONFLICT, FORBIDDEN, UNPROCESSABLE = 404, 409, 403, 422

Json = dict[str, Any]


class ApiError(RowmillError):
    """The API server refused a call."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.headers = dict(headers or {})
        super().__init__(message)


class ApiAway(RowmillError):
    """The API server cannot be reached, or does not answer in time."""


class KubeApi:
    """One client for the whole operator. `called(verb, resource, status)` is told of every call; status 0: away."""

    def __init__(self, api: client.ApiClient, *, called: Callable[[str, str, int], None]) -> None:
        self._api = api
        self._called = called

    @classmethod
    async def connect(cls, *, called: Callable[[str, str, int], None] = lambda *_: None) -> KubeApi:
        """By the pod's service account, else by the kubeconfig. Raises RowmillError where there is neither."""
        settings = client.Configuration()
        try:
            config.load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
        except config.ConfigException:
            try:
                await config.load_kube_config(client_configuration=settings)  # type: ignore[no-untyped-call]
            except (config.ConfigException, OSError) as error:
                raise RowmillError(
                    f"there is no way to the Kubernetes API: this is no pod with a service account, and no kubeconfig "
                    f"is readable ({error}). Set KUBECONFIG"
                ) from error
        settings.connection_pool_maxsize = CONNECTIONS
        return cls(client.ApiClient(configuration=settings), called=called)

    @property
    def client(self) -> client.ApiClient:
        """For the parts of the official client that need it."""
        return self._api

    async def get(self, path: str, **query: str) -> Json:
        return await self._call("GET", path, query=query)

    async def get_metadata(self, path: str, **query: str) -> Json:
        """The same of a list, with the metadata of its items alone."""
        return await self._call("GET", path, query=query, accept=METADATA)

    async def create(self, path: str, body: Json) -> Json:
        return await self._call("POST", path, body=body)

    async def merge(self, path: str, body: Json) -> Json:
        """A JSON merge patch (RFC 7396): null removes a field, lists are replaced."""
        return await self._call("PATCH", path, body=body, content_type=MERGE)

    async def change(self, path: str, operations: list[Json]) -> Json:
        """A JSON patch (RFC 6902): all of the operations, or none."""
        return await self._call("PATCH", path, body=operations, content_type=CHANGE)

    async def apply(self, path: str, body: Json, *, manager: str) -> Json:
        """Server-side apply: makes the object or brings the fields that `manager` owns to what `body` says."""
        query = {"fieldManager": manager, "force": "true"}
        return await self._call("PATCH", path, body=body, content_type=APPLY, query=query)

    async def delete(self, path: str, *, propagation: str = "Background", uid: str | None = None) -> None:
        """Delete; nothing where there is nothing, or where the object is another than `uid`."""
        body: Json = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation}
        if uid is not None:
            body["preconditions"] = {"uid": uid}
        try:
            await self._call("DELETE", path, body=body)
        except ApiError as error:
            if error.status not in (NOT_FOUND, CONFLICT):
                raise

    async def close(self) -> None:
        await self._api.close()  # type: ignore[no-untyped-call]

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Json | list[Json] | None = None,
        content_type: str = "application/json",
        accept: str = "application/json",
        query: Mapping[str, str] | None = None,
    ) -> Json:
        if query:
            path = f"{path}?{urlencode(query)}"
        resource = resource_of(path)
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                prepared = await self._api.param_serialize(
                    method,
                    path,
                    header_params={"Accept": accept, "Content-Type": content_type},
                    auth_settings=["BearerToken"],
                )
                answer = await self._api.call_api(prepared[0], prepared[1], header_params=prepared[2], body=body)
                raw = await answer.read()  # type: ignore[no-untyped-call]
                status, headers = int(answer.status), answer.getheaders()  # type: ignore[no-untyped-call]
        except ApiException as error:
            status, raw, headers = int(error.status or 0), error.body or b"", error.headers or {}
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._called(method, resource, 0)
            why = str(error) or type(error).__name__
            raise ApiAway(f"the Kubernetes API does not answer {method} {path}: {why}") from error
        self._called(method, resource, status)
        document = _document(raw)
        if not 200 <= status < 300:
            text = document.get("message") or f"status {status}"
            raise ApiError(status, f"{method} {path}: {text}", headers=headers)
        return document


def resource_of(path: str) -> str:
    """The resource (with its subresource) that a path names, for metrics: `deployments`, `batchjobs/status`."""
    parts = path.partition("?")[0].strip("/").split("/")
    rest = parts[2:] if parts[0] == "api" else parts[3:]
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        rest = rest[2:]
    return "/".join([*rest[:1], *rest[2:]]) or "other"


def path_of(resource: str, namespace: str, name: str = "", sub: str = "") -> str:
    """The path of a namespaced resource that the operator knows, by its plural."""
    group = GROUPS[resource]
    parts = [group, "namespaces", quote(namespace, safe=""), resource]
    parts += [quote(part, safe="") for part in (name, sub) if part]
    return "/" + "/".join(parts)


GROUPS: Mapping[str, str] = {
    "batchjobs": "apis/rowmill.dev/v1alpha1",
    "configmaps": "api/v1",
    "deployments": "apis/apps/v1",
    "events": "api/v1",
    "leases": "apis/coordination.k8s.io/v1",
    "networkpolicies": "apis/networking.k8s.io/v1",
    "pods": "api/v1",
    "secrets": "api/v1",
}


def _document(raw: bytes | str) -> Json:
    try:
        found = json.loads(raw)
    except ValueError:
        return {"message": (raw.decode(errors="replace") if isinstance(raw, bytes) else raw)[:300]}
    return found if isinstance(found, dict) else {}
