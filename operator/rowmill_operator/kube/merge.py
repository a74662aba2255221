"""The strategic merge of a tenant's pod template into ours, by Kubernetes' own rules.

Objects are merged field by field; `null` takes a field away. A list is replaced as a whole, unless its elements have a
merge key: then those of the same key are merged and the others appended, so that ours stay in front. The keys are those
that Kubernetes declares for pods (`x-kubernetes-patch-merge-key` in its OpenAPI), the same from 1.20 to 1.36.

Directives: `$patch: replace | delete | merge` in an object or element, `{$patch: replace}` as an element of its own for
the whole list, `$deleteFromPrimitiveList/<field>`, `$retainKeys`. `$setElementOrder/<field>` is read over: order counts
for nothing here but that our container is the first. Volumes hold one source: another source than ours replaces it, as
`kubectl apply` would have it.

Nothing here knows what is allowed; `rowmill_operator.kube.pod_guard` looks at what came out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, Final

from rowmill.errors import InvalidInput

PATH: Final = "spec.workers.podTemplate"

_Keys = dict[tuple[str, ...], str]

_CONTAINER_KEYS: Final[_Keys] = {
    (): "name",
    ("env",): "name",
    ("ports",): "containerPort",
    ("volumeDevices",): "devicePath",
    ("volumeMounts",): "mountPath",
}
MERGE_KEYS: Final[_Keys] = {
    ("spec", "volumes"): "name",
    ("spec", "imagePullSecrets"): "name",
    ("spec", "hostAliases"): "ip",
    ("spec", "topologySpreadConstraints"): "topologyKey",
    ("spec", "schedulingGates"): "name",
    ("spec", "resourceClaims"): "name",
    **{
        ("spec", kind, *inner): key
        for kind in ("containers", "initContainers", "ephemeralContainers")
        for inner, key in _CONTAINER_KEYS.items()
    },
}
"""Lists whose elements are told apart, by their place in a pod template. All others are replaced as a whole."""

RETAIN_KEYS: Final = frozenset({("spec", "volumes"), ("spec", "resourceClaims")})
"""Of these an element is one of many kinds: what the patch does not name goes when it names another kind."""

_PATCH: Final = "$patch"
_RETAIN: Final = "$retainKeys"
_DELETE_FROM: Final = "$deleteFromPrimitiveList/"
_ORDER: Final = "$setElementOrder/"


def merge_pod_template(ours: Mapping[str, Any], patch: Mapping[str, Any], *, where: str = "") -> dict[str, Any]:
    """`ours` with `patch` merged in; neither is changed. Raises InvalidInput, which names the field of the patch.

    `where` names the job in messages.
    """
    merged = _Merge(where).objects(ours, patch, (), PATH)
    return {} if merged is None else merged


class _Merge:
    def __init__(self, where: str) -> None:
        self._where = where

    def objects(
        self, ours: Mapping[str, Any], patch: Mapping[str, Any], place: tuple[str, ...], path: str
    ) -> dict[str, Any] | None:
        """None where the patch deletes the object."""
        directive = self._directive(patch, path)
        if directive == "delete":
            return None
        if directive == "replace":
            return self.objects({}, {name: value for name, value in patch.items() if name != _PATCH}, place, path)
        result = self._retained(ours, patch, path)
        for name, value in patch.items():
            below, at = (*place, name), f"{path}.{name}"
            if name in (_PATCH, _RETAIN) or name.startswith(_ORDER):
                continue
            if name.startswith(_DELETE_FROM):
                self._delete_from(result, name.removeprefix(_DELETE_FROM), value, at)
            elif name.startswith("$"):
                raise self._bad(at, "is no directive of a strategic merge; take it out")
            elif value is None:
                result.pop(name, None)
            else:
                self._field(result, name, value, below, at)
        return result

    def _field(self, result: dict[str, Any], name: str, value: Any, place: tuple[str, ...], path: str) -> None:
        given = result.get(name)
        if isinstance(given, Mapping) and not isinstance(value, Mapping):
            raise self._bad(path, f"must be an object, not {_kind(value)}")
        if isinstance(given, list) and not isinstance(value, list):
            raise self._bad(path, f"must be a list, not {_kind(value)}")
        if isinstance(value, Mapping):
            if given is not None and not isinstance(given, Mapping):
                raise self._bad(path, f"must be {_kind(given)}, not an object")
            merged = self.objects(given or {}, value, place, path)
            if merged is None:
                result.pop(name, None)
            else:
                result[name] = merged
        elif isinstance(value, list):
            if given is not None and not isinstance(given, list):
                raise self._bad(path, f"must be {_kind(given)}, not a list")
            result[name] = self._lists(given or [], value, place, path)
        else:
            result[name] = value

    def _lists(self, ours: Sequence[Any], patch: Sequence[Any], place: tuple[str, ...], path: str) -> list[Any]:
        key = MERGE_KEYS.get(place)
        if key is None:
            made = [self._new(item, place, f"{path}[{i}]") for i, item in enumerate(patch)]
            return [new for new in made if new is not None]
        result = list(ours)
        if any(isinstance(item, Mapping) and item == {_PATCH: "replace"} for item in patch):
            result = []
        taken: set[Any] = set()
        for i, item in enumerate(patch):
            if not isinstance(item, Mapping):
                raise self._bad(f"{path}[{i}]", f"must be an object, not {_kind(item)}")
            if item == {_PATCH: "replace"}:
                continue
            name = item.get(key)
            if not isinstance(name, str | int) or isinstance(name, bool) or name == "":
                raise self._bad(f"{path}[{i}]", f"needs {key}: by it the elements of this list are told apart")
            at = f"{path}[{key}={name}]"
            # Two protocols may share a port, and two policies a topology: only within the patch they stand apart.
            if name in taken and key not in ("containerPort", "topologyKey"):
                raise self._bad(at, "stands twice in this list; write it once")
            index = next((n for n, one in enumerate(result) if one.get(key) == name), None)
            if index is None or name in taken:
                new = self._new(item, place, at)
                if new is not None:
                    result.append(new)
            else:
                merged = self.objects(self._one_kind(result[index], item, place), item, place, at)
                if merged is None:
                    del result[index]
                else:
                    result[index] = merged
            taken.add(name)
        return result

    def _new(self, value: Any, place: tuple[str, ...], path: str) -> Any:
        """What stands in the patch alone: without nulls and directives."""
        if isinstance(value, Mapping):
            return self.objects({}, value, place, path)
        if isinstance(value, list):
            return self._lists([], value, place, path)
        return value

    def _one_kind(self, ours: Mapping[str, Any], patch: Mapping[str, Any], place: tuple[str, ...]) -> Mapping[str, Any]:
        if place not in RETAIN_KEYS:
            return ours
        named = {name for name, value in patch.items() if value is not None and not name.startswith("$")} - {"name"}
        if not named or named <= ours.keys():
            return ours
        return {name: value for name, value in ours.items() if name == "name" or name in named}

    def _retained(self, ours: Mapping[str, Any], patch: Mapping[str, Any], path: str) -> dict[str, Any]:
        kept = patch.get(_RETAIN)
        if kept is None:
            return deepcopy(dict(ours))
        if not isinstance(kept, list) or not all(isinstance(name, str) for name in kept):
            raise self._bad(f"{path}.{_RETAIN}", "must be a list of names of fields")
        return {name: deepcopy(value) for name, value in ours.items() if name in kept}

    def _delete_from(self, result: dict[str, Any], name: str, values: Any, path: str) -> None:
        if not isinstance(values, list):
            raise self._bad(path, f"must be a list, not {_kind(values)}")
        given = result.get(name)
        if isinstance(given, list):
            result[name] = [item for item in given if item not in values]

    def _directive(self, patch: Mapping[str, Any], path: str) -> str:
        directive = patch.get(_PATCH, "merge")
        if directive not in ("merge", "replace", "delete"):
            raise self._bad(f"{path}.{_PATCH}", "must be merge, replace or delete")
        return str(directive)

    def _bad(self, path: str, message: str) -> InvalidInput:
        return InvalidInput.one(self._where, path, message)


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, bool):
        return "true or false"
    if value is None:
        return "null"
    return "a text" if isinstance(value, str) else "a number"
