"""What of a spec shapes a request, and so never changes within a run.

A run's frozen part is kept with its ledger; a manifest that differs from it is refused. Rows stand in it by digest:
a ledger has no use for a copy of a table. Fields that are not set are left out, so that a field which a later version
adds (and which defaults to nothing) does not make a difference to the runs of today.

How rows are gathered and processes run changes no row's request or result: such fields of an executor are free. Parts
that an older version recorded still hold them, so a comparison leaves them out of both sides.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from rowmill.errors import Problem
from rowmill.spec.job import Spec
from rowmill.templating.values import join_path

MAX_CHANGES: Final = 20
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
_FROZEN: Final = ("mode", "source", "key", "executor", "dedupe", "shards", "timeoutSeconds")
_FREE_OF_SOURCE: Final = ("limit", "secretName")
FREE_OF_EXECUTOR: Final[Mapping[str, tuple[str, ...]]] = {
    "embeddings": ("batching", "startTimeoutSeconds"),
    "python": ("batching", "processes", "startTimeoutSeconds"),
}
"""Fields that may change within a run. Whether a function takes rows one by one is the function's own, and `batching`
has to go with it."""

GATHERING: Final[Mapping[str, str]] = {"openai": "batching"}
"""Fields of which only whether they are there counts: what goes into a request of several rows differs from what goes
into one of a single row; how many rows there are, and when they go, does not matter to any of them."""

FROZEN_ADVICE: Final = "is frozen for a run: change spec.runId to start a new one, or set it back"


def canonical_json(value: Any) -> bytes:
    """The one JSON text of a value: names sorted, no white space, UTF-8. Raises ValueError on NaN and infinity."""
    return _ENCODER.encode(value).encode()


def frozen_part(spec: Spec) -> dict[str, Any]:
    """The frozen fields by their names in the manifest, as plain JSON.

    `source.limit` and `source.secretName` may change, and the fields of `FREE_OF_EXECUTOR`; `simulate` counts in mode
    Simulate only.
    """
    whole: dict[str, Any] = spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    part: dict[str, Any] = {name: whole[name] for name in _FROZEN if name in whole}
    for name in _FREE_OF_SOURCE:
        part["source"].pop(name, None)
    part["executor"] = _shaping(part["executor"])
    rows = part["source"].get("rows")
    if rows is not None:
        part["source"]["rows"] = {"count": len(rows), "digest": _digest(rows)}
    if spec.mode == "Simulate":
        part["simulate"] = whole.get("simulate", {})
    return part


def frozen_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Problem]:
    """The frozen fields in which two frozen parts differ; none where a run may go on. At most 20 are named."""
    before, after = ({**part, "executor": _shaping(part.get("executor", {}))} for part in (old, new))
    changes = [Problem(path, FROZEN_ADVICE) for path in _differences(before, after, "spec")]
    return changes[:MAX_CHANGES]


def executor_digest(spec: Spec) -> str:
    """Names an executor and all that shapes its requests and results: 32 hexadecimal digits.

    Two rows of one dedupe key are duplicates only under the same digest. A simulated call is no call: mode Simulate
    has digests of its own, so that its results never stand for real ones.
    """
    executor = _shaping(spec.executor.model_dump(mode="json", by_alias=True, exclude_none=True))
    return _digest({"executor": executor, "mode": spec.mode})


def _shaping(executor: Mapping[str, Any]) -> dict[str, Any]:
    """`spec.executor` as plain JSON, without what shapes no request and no result."""
    shaping: dict[str, Any] = {}
    for kind, fields in executor.items():
        free, gathering = FREE_OF_EXECUTOR.get(kind, ()), GATHERING.get(kind)
        shaping[kind] = {name: {} if name == gathering else value for name, value in fields.items() if name not in free}
    return shaping


def _digest(value: Any) -> str:
    return hashlib.blake2b(canonical_json(value), digest_size=16).hexdigest()


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict) and path != "spec.source.rows":
        for name in dict.fromkeys([*old, *new]):
            below = join_path(path, name)
            if name in old and name in new:
                yield from _differences(old[name], new[name], below)
            else:
                yield below
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (before, after) in enumerate(zip(old, new, strict=True)):
            yield from _differences(before, after, join_path(path, i))
    elif canonical_json(old) != canonical_json(new):
        yield path
