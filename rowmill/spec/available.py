"""What this build runs, and where. Everything else that a manifest may ask for is refused by name, never ignored.

A later build adds a name here, and nowhere else. A place has its own: a laptop has files and no ConfigMaps, a cluster
has ConfigMaps and no files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from rowmill.errors import InvalidInput, Problem
from rowmill.spec.job import BatchJob, Spec
from rowmill.spec.source import OBJECT_STORES, uri_scheme


class Place(StrEnum):
    """Where a job runs: by `rowmill run` on this machine, or by the operator in a cluster."""

    LOCAL = "Local"
    CLUSTER = "Cluster"


@dataclass(frozen=True, slots=True)
class Offer:
    """What a place can do. A scheme of "" is a path."""

    sources: frozenset[str]
    source_schemes: frozenset[str]
    output_schemes: frozenset[str]
    source_advice: str
    output_advice: str
    kind_advice: Mapping[str, str]
    """What to take instead of a kind of source that this place does not have; others have the general advice."""


EXECUTORS: Final = frozenset({"comfyui", "dify", "embeddings", "http", "openai", "python"})
FEATURES: Final = frozenset({"concurrency.adaptive", "limits"})
"""Of `limits`, `concurrency.adaptive`."""

_PATHS: Final = frozenset({"", "file"})
_WEB: Final = frozenset({"http", "https"})

OFFERS: Final[Mapping[Place, Offer]] = {
    Place.LOCAL: Offer(
        sources=frozenset({"uri", "rows"}),
        source_schemes=_PATHS | _WEB | OBJECT_STORES,
        output_schemes=_PATHS | OBJECT_STORES,
        source_advice="take a path, http://, https://, s3://, gs:// or az://",
        output_advice="take the path of a file, or a folder by s3://, gs:// or az://",
        kind_advice={"configMap": "there is no cluster to read it from; take source.uri with the path of a file"},
    ),
    Place.CLUSTER: Offer(
        sources=frozenset({"uri", "rows", "configMap"}),
        source_schemes=_WEB | OBJECT_STORES,
        output_schemes=OBJECT_STORES,
        source_advice="take http://, https://, s3://, gs:// or az://",
        output_advice="take a folder in an object store (s3://, gs:// or az://), or leave it out and fetch the "
        "results by kubectl rowmill results",
        kind_advice={},
    ),
}


def not_available(job: BatchJob, place: Place = Place.LOCAL) -> list[Problem]:
    """What the job asks for and this build does not do in that place."""
    return list(_missing(job.spec, place, OFFERS[place]))


def check_available(job: BatchJob, *, where: str = "", place: Place = Place.LOCAL) -> None:
    """Raises InvalidInput where the job asks for what this build does not do; `where` names the manifest."""
    problems = not_available(job, place)
    if problems:
        raise InvalidInput(where or f"{job.metadata.namespace}/{job.metadata.name}", problems)


def _missing(spec: Spec, place: Place, offer: Offer) -> Iterator[Problem]:
    if (kind := spec.executor.kind) not in EXECUTORS:
        yield _refusal(f"spec.executor.{kind}", f"executor {kind}", _alternatives(EXECUTORS))
    if (kind := spec.source.kind) not in offer.sources:
        instead = offer.kind_advice.get(kind) or _alternatives(offer.sources)
        yield _refusal(f"spec.source.{kind}", f"source {kind}", instead)
    if spec.source.uri is not None and (scheme := uri_scheme(spec.source.uri)) not in offer.source_schemes:
        if place is Place.CLUSTER and scheme in _PATHS:
            yield Problem("spec.source.uri", f"is a path, and the operator reads no files; {_UPLOAD}")
        else:
            yield _refusal("spec.source.uri", f"source scheme {scheme}://", offer.source_advice)
    if spec.output.uri is not None and (scheme := uri_scheme(spec.output.uri)) not in offer.output_schemes:
        if place is Place.CLUSTER and scheme in _PATHS:
            yield Problem("spec.output.uri", f"is a path, and pods keep no files; {offer.output_advice}")
        else:
            yield _refusal("spec.output.uri", f"output to {scheme}://", offer.output_advice)
    yield from _missing_stores(spec, place, offer)
    if spec.limits is not None and "limits" not in FEATURES:
        yield _refusal("spec.limits", "limits over a group", "leave it out and set spec.concurrency.perWorker")
    if spec.concurrency.adaptive is not None and "concurrency.adaptive" not in FEATURES:
        yield _refusal("spec.concurrency.adaptive", "adaptive concurrency", "leave it out and set perWorker")


def _missing_stores(spec: Spec, place: Place, offer: Offer) -> Iterator[Problem]:
    """Stores that an executor puts files into: what holds for `output.uri` holds for them."""
    store = spec.executor.comfyui.store if spec.executor.comfyui is not None else None
    if store is None or (scheme := uri_scheme(store.uri)) in offer.output_schemes:
        return
    path = "spec.executor.comfyui.store.uri"
    if place is Place.CLUSTER and scheme in _PATHS:
        yield Problem(path, "is a path, and pods keep no files; take a folder by s3://, gs:// or az://")
    else:
        yield _refusal(path, f"files to {scheme}://", offer.output_advice)


_UPLOAD: Final = (
    "put the table where a URL leads to it (https://, s3://, gs:// or az://), into a ConfigMap (source.configMap), or "
    "its few rows into source.rows"
)


def _refusal(path: str, what: str, instead: str) -> Problem:
    return Problem(path, f"{what} is not available in this build; {instead}")


def _alternatives(names: frozenset[str]) -> str:
    return f"take {' or '.join(sorted(names))}"
