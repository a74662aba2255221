"""BatchJobs out of the schema of their definition: whatever it allows, and what it just does not.

Three kinds, mixed by a seed:

    anything   every field by its own schema, nothing else asked: mostly contradicting itself
    sensible   a job that runs, with some fields replaced by others that their schema allows
    broken     the same, with one thing in it that the schema forbids (or does not know)

`STEADY` keeps a few numbers within bounds of their own, so that jobs end: no attempt waits for an hour, no job asks for
a thousand pods or deletes itself.
"""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

Schema = Mapping[str, Any]
Json = dict[str, Any]

STEADY: Mapping[str, tuple[int, int]] = {
    "workers.minReplicas": (0, 2),
    "workers.maxReplicas": (1, 1),
    "workers.replicas": (0, 1),
    "simulate.latencyMilliseconds.min": (0, 20),
    "simulate.latencyMilliseconds.max": (0, 20),
    "retry.maxAttempts": (1, 3),
    "retry.initialSeconds": (0, 1),
    "retry.maxSeconds": (0, 1),
    "ttlSecondsAfterFinished": (3600, 31_536_000),
}
OPTIONAL = 0.6
"""How often a field that may be left out is given."""

SUSPENDED = 0.4
"""How often a sensible job is suspended: it is looked at like any other, and needs no pod."""

RICH = ("source", "workers", "executor", "output")
"""Fields behind which most kinds of trouble lie: each sensible job has another of one of these."""

EXECUTORS = ("http", "http", "http", "openai", "dify", "comfyui", "embeddings", "python")
WORDS = ("a", "x1", "rows.csv", "a-b.c", "Error", "HTTP503", "0.25", "X-Header", "KEY", "pkg.mod:run", "1", "team/a")
TEXTS = ("text", "{{ row.id }}", "{{ row.", "{{ nothing.of.it }}", "größer ✓", " ", "x" * 300, "http://127.0.0.1:9/")
ANY: tuple[Any, ...] = ({}, {"a": 1}, {"spec": {"a": [1, None, "x"]}}, {"containers": "x"}, {"requests": {"cpu": "-1"}})


@dataclass(frozen=True)
class Generated:
    """One manifest; `what` says how it came about."""

    manifest: Json
    what: str


class Generator:
    """`schema` is that of `spec`; `pools` are values for fields by their path in it; `...` leaves one to the schema."""

    def __init__(self, schema: Schema, *, pools: Mapping[str, Sequence[Any]], seed: int) -> None:
        self._schema, self._pools = schema, pools
        self._rng = random.Random(seed)

    def jobs(self, base: Json, count: int) -> Iterator[Generated]:
        """So many manifests, named g-000 and on; `base` is a whole one that runs."""
        for n in range(count):
            kind = self._rng.choice(["anything"] + ["sensible"] * 7 + ["broken"] * 2)
            spec, what = {"anything": self._anything, "sensible": self._sensible, "broken": self._broken}[kind](
                base["spec"]
            )
            metadata = {**base["metadata"], "name": f"g-{n:03}"}
            yield Generated({**base, "metadata": metadata, "spec": spec}, f"{kind}: {what}")

    # -- the kinds

    def _anything(self, base: Json) -> tuple[Json, str]:
        made = self.value(self._schema)
        made.setdefault("workers", {})["maxReplicas"] = 1
        return made, "by the schema alone"

    def _sensible(self, base: Json) -> tuple[Json, str]:
        spec = copy.deepcopy(base)
        properties = self._schema["properties"]
        names = set(self._rng.sample(sorted(properties), self._rng.randint(1, 2))) | {self._rng.choice(RICH)}
        for name in sorted(names):
            if name in ("source", "executor"):
                spec[name] = self._one_of(name)
            else:
                spec[name] = self._sparse(self.value(properties[name], name), properties[name])
        spec.setdefault("workers", {})["maxReplicas"] = 1
        spec["suspend"] = self._rng.random() < SUSPENDED
        return spec, ", ".join(sorted(names))

    def _one_of(self, name: str) -> Json:
        """One source, one executor: a job with two is refused, and hides everything else that it has."""
        kinds = {"source": ("uri", "uri", "rows", "configMap", "query"), "executor": EXECUTORS}[name]
        kind, below = self._rng.choice(kinds), self._schema["properties"][name]["properties"]
        made = {kind: self._sparse(self.value(below[kind], f"{name}.{kind}"), below[kind])}
        if "format" in below and kind == "uri":
            made["format"] = self.value(below["format"], f"{name}.format")
        return made

    def _sparse(self, made: Any, schema: Schema) -> Any:
        """An object with few of the fields that may be left out: the more there are, the likelier two contradict."""
        if not isinstance(made, dict) or "properties" not in schema:
            return made
        optional = [name for name in made if name not in schema.get("required", ())]
        kept = self._rng.sample(optional, min(len(optional), self._rng.randint(1, 2)))
        return {name: inner for name, inner in made.items() if name in kept or name in schema.get("required", ())}

    def _broken(self, base: Json) -> tuple[Json, str]:
        spec, what = self._sensible(base)
        breaks: list[tuple[str, Callable[[], object]]] = list(self._breaks(spec, self._schema, ""))
        told, do = self._rng.choice(breaks)
        do()
        return spec, f"{what}; {told}"

    def _breaks(self, value: Any, schema: Schema, path: str) -> Iterator[tuple[str, Callable[[], object]]]:
        """Every way to break what is there."""
        if isinstance(value, dict):
            below = schema.get("properties") or {}
            if below:
                yield f"{path or 'spec'} has an unknown field", partial(value.update, {"notAField": 1})
            for name in schema.get("required", ()):
                if name in value:
                    yield f"{path}.{name} is missing", partial(value.pop, name)
            for name, inner in list(value.items()):
                if name in below:
                    for bad in self._bad(below[name]):
                        yield f"{path}.{name} is bad", partial(value.update, {name: bad})
                    yield from self._breaks(inner, below[name], f"{path}.{name}")
        elif isinstance(value, list) and "items" in schema:
            for inner in value:
                yield from self._breaks(inner, schema["items"], f"{path}[]")

    def _bad(self, schema: Schema) -> Iterator[Any]:
        """Values that a schema forbids."""
        kind = schema.get("type")
        if kind is not None:
            yield {"string": 17, "integer": "x", "boolean": "yes", "array": {"a": 1}, "object": ["a"]}[kind]
        if kind == "integer":
            yield schema["minimum"] - 1
            if "maximum" in schema:
                yield schema["maximum"] + 1
        if "enum" in schema:
            yield "Nonsense"
        elif kind == "string" and "maxLength" in schema:
            yield "a" * (schema["maxLength"] + 1)
        if kind == "array":
            yield [self.value(schema["items"])] * (schema["maxItems"] + 1)

    # -- values

    def value(self, schema: Schema, path: str = "") -> Any:
        """Some value that a schema allows."""
        rng = self._rng
        if (pool := self._pools.get(path)) and (chosen := rng.choice(pool)) is not ...:
            return copy.deepcopy(chosen)
        if "enum" in schema:
            return rng.choice(schema["enum"])
        if schema.get("x-kubernetes-int-or-string"):
            return rng.choice([0, 3, "0.25"])
        match schema.get("type"):
            case "boolean":
                return rng.random() < 0.5
            case "integer":
                low, high = STEADY.get(path, (schema["minimum"], schema.get("maximum", 2**53)))
                return rng.choice([low, high, rng.randint(low, high), min(high, low + 1)])
            case "string":
                return self._text(schema)
            case "array":
                size = rng.randint(schema.get("minItems", 0), min(schema["maxItems"], 3))
                return _told_apart([self.value(schema["items"], f"{path}[]") for _ in range(size)], schema)
            case "object" if "properties" in schema:
                required = schema.get("required", ())
                return {
                    name: self.value(below, f"{path}.{name}" if path else name)
                    for name, below in schema["properties"].items()
                    if name in required or rng.random() < OPTIONAL
                }
            case "object" if isinstance(values := schema.get("additionalProperties"), dict):
                return {
                    name: self.value(values) for name in rng.sample(["a", "b-c", "example.com/x"], rng.randint(0, 2))
                }
            case _:
                return copy.deepcopy(rng.choice(ANY))

    def _text(self, schema: Schema) -> str:
        pattern = schema.get("pattern")
        fitting = [
            word
            for word in (WORDS if pattern else (*WORDS, *TEXTS))
            if schema.get("minLength", 0) <= len(word) <= schema.get("maxLength", 300)
            and (pattern is None or re.search(pattern, word))
        ]
        return self._rng.choice(fitting)


def _told_apart(items: list[Any], schema: Schema) -> list[Any]:
    """Without what a set, or a list with keys, has twice."""
    match schema.get("x-kubernetes-list-type"):
        case "set":
            return list(dict.fromkeys(items))
        case "map":
            keys = schema["x-kubernetes-list-map-keys"]
            return list({tuple(item.get(key) for key in keys): item for item in items}.values())
        case _:
            return items
