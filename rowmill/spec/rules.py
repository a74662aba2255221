"""What the CRD says between fields, in CEL: told at `kubectl apply`, before anything is stored.

Every rule has its counterpart in the models, which the operator asks in any case: API servers before 1.25 know no CEL.
A rule never refuses what the operator would take; where CEL sees less than the models do (free JSON, templates), or
the API server cannot tell beforehand how much a rule would cost (sums), it lets pass and the operator tells. Every
text and list that a rule reads is bounded, so that the estimate of its cost is.

Only `rule` and `message` are used, and functions that every CEL-speaking API server has: fields that came later (such
as `fieldPath`) are refused by older servers. That is why messages name their field.

The rules about freezing stand at the root, since only there the status is seen. They hold while the run that the
status tells of has been fed (its `epoch` is above 0) and the manifest goes on naming it. The status may be a moment
old, and then the operator is who refuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from rowmill.spec.base import OneOf, Part
from rowmill.spec.budget import TOLD_TOKENS, Budget
from rowmill.spec.executors import (
    ComfyUIExecutor,
    ComfyUIStore,
    DifyExecutor,
    EmbeddingsExecutor,
    ExecutorChoice,
    Header,
    HttpExecutor,
    Microbatch,
    OpenAIExecutor,
    PythonExecutor,
    ValueFrom,
)
from rowmill.spec.frozen import FREE_OF_EXECUTOR, FROZEN_ADVICE, GATHERING
from rowmill.spec.job import Adaptive, BatchJob, Latency, Output, Retry, Spec, Workers
from rowmill.spec.naming import SIMULATED
from rowmill.spec.notify import SECRET_HEADERS, SET_BY_ROWMILL, Notify, NotifyHeader
from rowmill.spec.source import OBJECT_STORES, SUFFIXES, Source


class Rule(NamedTuple):
    """A CEL expression over `self`, and what is told where it is false."""

    rule: str
    message: str


def _exactly_one(model: type[OneOf]) -> Rule:
    flags = ", ".join(f"has(self.{name})" for name in model.alternatives)
    return Rule(f"[{flags}].exists_one(one, one)", f"takes exactly one of {', '.join(model.alternatives)}")


def _not_above(low: str, high: str) -> Rule:
    return Rule(f"self.{low} <= self.{high}", f"{low} is above {high}; make {low} smaller or {high} larger")


def _is_http(field: str) -> tuple[Rule, Rule]:
    return (
        Rule(
            f"self.{field}.matches('(?i)^(https?://|[{{][{{%#])')",
            f"{field} is no http URL; write http://host/path or https://host/path",
        ),
        Rule(
            f"!self.{field}.matches('^[A-Za-z][-+.A-Za-z0-9]*://[^/{{]*@')",
            f"{field} holds a user or password; send them by headers with valueFrom",
        ),
    )


_STORE: Final = f"(?i)^({'|'.join(sorted(OBJECT_STORES))})://"
_SUFFIX: Final = "|".join(suffix.removeprefix(".") for suffix in SUFFIXES)
_NO_PASSWORD: Final = Rule(
    "!has(self.uri) || !self.uri.matches('^[A-Za-z][-+.A-Za-z0-9]*://[^/?#]*@')",
    "uri holds a user or password; a secret never stands in a manifest",
)
_SECRET_WITH_STORE: Final = Rule(
    f"!has(self.secretName) || (has(self.uri) && self.uri.matches('{_STORE}'))",
    "secretName goes with a uri in an object store (s3://, gs://, az://) only; leave it out",
)
_NO_HEADER_TWICE: Final = Rule(
    "self.headers.all(h, self.headers.exists_one(o, o.name.lowerAscii() == h.name.lowerAscii()))",
    "headers name a header twice; set it once",
)
_UNKNOWN_FORMAT: Final = (
    f"format cannot be told from the suffix of the name (known are {', '.join(SUFFIXES)}); set CSV, JSONL, Parquet or "
    "Excel"
)

RULES: Final[Mapping[type[Part], tuple[Rule, ...]]] = {
    Source: (
        _exactly_one(Source),
        _NO_PASSWORD,
        Rule(
            "!has(self.format) || !(has(self.rows) || has(self.query))",
            "format goes with uri or configMap only; leave it out",
        ),
        Rule(
            f"has(self.format) || !has(self.uri) || self.uri.matches('(?i)[.]({_SUFFIX})/*([?#].*)?$')",
            _UNKNOWN_FORMAT,
        ),
        Rule(
            f"has(self.format) || !has(self.configMap) || self.configMap.key.matches('(?i)[.]({_SUFFIX})$')",
            _UNKNOWN_FORMAT,
        ),
        _SECRET_WITH_STORE,
    ),
    ExecutorChoice: (_exactly_one(ExecutorChoice),),
    ValueFrom: (_exactly_one(ValueFrom),),
    Header: (
        Rule("has(self.value) != has(self.valueFrom)", "needs exactly one of value, valueFrom"),
        Rule(
            "!self.name.matches('(?i)^(connection|content-length|idempotency-key|transfer-encoding|x-request-id)$')",
            "name is one that is set by Rowmill; leave it out",
        ),
        Rule(
            "!has(self.value) || self.value.matches('[{][{%#]') || "
            "!self.name.matches('(?i)^(api-key|authorization|cookie|proxy-authorization|x-api-key)$')",
            "value: a secret never stands in a manifest; write valueFrom with secretKeyRef, env or file",
        ),
    ),
    HttpExecutor: (
        *_is_http("url"),
        _NO_HEADER_TWICE,
    ),
    OpenAIExecutor: (
        *_is_http("baseUrl"),
        Rule(
            "(self.endpoint == 'BatchLines') != has(self.model)",
            "model is missing, or stands beside endpoint BatchLines; name it, or leave it to the lines",
        ),
        Rule(
            "!has(self.jsonSchema) || self.endpoint in ['ChatCompletions', 'Responses']",
            "jsonSchema goes with endpoint ChatCompletions or Responses only; leave it out",
        ),
        _NO_HEADER_TWICE,
    ),
    DifyExecutor: _is_http("baseUrl"),
    ComfyUIExecutor: (*_is_http("url"), _NO_HEADER_TWICE),
    ComfyUIStore: (_NO_PASSWORD, _SECRET_WITH_STORE),
    Microbatch: (
        _not_above("minSize", "maxSize"),
        Rule(
            "!has(self.queueSize) || self.queueSize >= self.maxSize",
            "queueSize is below maxSize: no batch could fill; make it larger",
        ),
    ),
    EmbeddingsExecutor: (
        Rule(
            "self.device != 'CPU' || self.dtype != 'Float16'",
            "dtype is Float16, which a CPU computes slowly or not at all; take Float32 or BFloat16",
        ),
    ),
    Budget: (
        Rule(
            "has(self.requests) || has(self.tokens) || has(self.cost)",
            "names nothing; set at least one of requests, tokens, cost, or leave it out",
        ),
    ),
    Latency: (_not_above("min", "max"),),
    Adaptive: (_not_above("min", "max"),),
    Retry: (_not_above("initialSeconds", "maxSeconds"),),
    Workers: (_not_above("minReplicas", "maxReplicas"),),
    Output: (
        _NO_PASSWORD,
        Rule(
            f"!has(self.uri) || self.uri.endsWith('/') || !self.uri.matches('{_STORE}')",
            "uri names no folder of the object store; end it in /, as s3://bucket/prefix/",
        ),
        Rule(
            "!has(self.uri) || has(self.format) || !self.uri.matches('(?i)[.]xlsx$')",
            "uri: results are not written as Excel; end it in .csv, .jsonl or .parquet",
        ),
        _SECRET_WITH_STORE,
    ),
    NotifyHeader: (
        Rule("has(self.value) != has(self.valueFrom)", "needs exactly one of value, valueFrom"),
        Rule(
            f"!self.name.matches('(?i)^({'|'.join(sorted(SET_BY_ROWMILL))})$')",
            "name is one that is set by Rowmill; leave it out",
        ),
        Rule(
            f"!has(self.value) || !self.name.matches('(?i)^({'|'.join(sorted(SECRET_HEADERS))})$')",
            "value: a secret never stands in a manifest; write valueFrom with secretKeyRef",
        ),
    ),
    Notify: (
        _exactly_one(Notify),
        Rule(
            "!has(self.url) || self.url.matches('(?i)^https?://')",
            "url is no http URL; write http://host/path or https://host/path",
        ),
        Rule(
            "!has(self.url) || !self.url.matches('^[A-Za-z][-+.A-Za-z0-9]*://[^/?#]*@')",
            "url holds a user or password; send them by headers with valueFrom, or the address by urlFrom",
        ),
        _NO_HEADER_TWICE,
    ),
    Spec: (
        Rule(
            "!has(self.dedupe) || self.key.size() > 0",
            "key is missing, and dedupe needs it; name the columns by which rows are the same",
        ),
        Rule(
            "!has(self.executor.openai) || self.executor.openai.endpoint != 'BatchLines' || self.key == ['custom_id']",
            "key must be [custom_id] with endpoint BatchLines; by it results are told apart",
        ),
        Rule(
            "!has(self.budget) || !has(self.budget.tokens) || "
            + " || ".join(f"has(self.executor.{kind})" for kind in TOLD_TOKENS),
            "budget.tokens counts nothing, as only openai and dify are told tokens; set budget.requests",
        ),
        Rule(
            "!has(self.budget) || !has(self.budget.cost) || has(self.pricing)",
            "budget.cost counts nothing without a price; set pricing",
        ),
        Rule("self.key.all(c, self.key.exists_one(d, d == c))", "key names a column twice; name it once"),
    ),
}
"""Rules of a model, wherever in the manifest it stands."""


_SAME_RUN: Final = (
    "has(oldSelf.status) && has(oldSelf.status.run) && has(oldSelf.status.run.epoch) && oldSelf.status.run.epoch > 0 "
    "&& self.spec.runId == oldSelf.spec.runId && self.spec.mode == oldSelf.spec.mode && (self.spec.mode == 'Simulate' "
    f"? oldSelf.status.run.id == self.spec.runId + '{SIMULATED}' : oldSelf.status.run.id == self.spec.runId)"
)


def _frozen(path: str, *, unchanged: str | None = None) -> Rule:
    now, before = f"self.{path}", f"oldSelf.{path}"
    same = unchanged or f"has({now}) == has({before}) && (!has({now}) || {now} == {before})"
    return Rule(f"!({_SAME_RUN}) || ({same})", f"{path} {FROZEN_ADVICE}")


_RESERVED: Final = frozenset({"function"})
"""Names of fields that are words of CEL; a rule writes them with underscores around."""

_UNTYPED: Final = frozenset({"messages", "prompt", "input"})
"""Free JSON without a type: a rule cannot name such a field."""


def _same_fields(kind: str, model: type[Part]) -> str:
    """That an executor of one kind is as it was, but for what is free."""
    now, before = f"self.spec.executor.{kind}", f"oldSelf.spec.executor.{kind}"
    same = []
    for name, field in model.model_fields.items():
        alias = field.alias or name
        if alias in (*FREE_OF_EXECUTOR.get(kind, ()), GATHERING.get(kind), *_UNTYPED):
            continue
        escaped = f"__{alias}__" if alias in _RESERVED else alias
        there = f"has({now}.{escaped}) == has({before}.{escaped})"
        if field.is_required():
            same.append(f"{now}.{escaped} == {before}.{escaped}")
        else:
            same.append(f"{there} && (!has({now}.{escaped}) || {now}.{escaped} == {before}.{escaped})")
    return " && ".join(same)


def _same_executor() -> str:
    """As a whole where it is frozen as a whole, else field by field: rules have no way to leave some out."""
    text = "self.spec.executor == oldSelf.spec.executor"
    parted: tuple[tuple[str, type[Part], str], ...] = (
        ("embeddings", EmbeddingsExecutor, "embeddings"),
        ("python", PythonExecutor, "python"),
        # Nothing of it is free without batching, and as a whole its free JSON is compared as well.
        ("openai", OpenAIExecutor, "openai.batching"),
    )
    for kind, model, where in parted:
        there = f"has({{}}.spec.executor.{kind})"
        if where != kind:
            there += f" && has({{}}.spec.executor.{where})"
        both = " && ".join(there.replace("{}", side) for side in ("self", "oldSelf"))
        text = f"({both} ? ({_same_fields(kind, model)}) : {text})"
    return text


_SAME_SIMULATION: Final = (
    # Not the costs: the same money may be written as a number or a text.
    "has(self.spec.simulate) == has(oldSelf.spec.simulate) && (!has(self.spec.simulate) || "
    "(self.spec.simulate.seed == oldSelf.spec.simulate.seed && "
    "self.spec.simulate.latencyMilliseconds == oldSelf.spec.simulate.latencyMilliseconds && "
    "self.spec.simulate.errors == oldSelf.spec.simulate.errors))"
)

ROOT_RULES: Final = (
    Rule(
        "self.metadata.name.size() <= 63 && !self.metadata.name.contains('.')",
        "metadata.name must be lower-case letters, digits and -, at most 63 of them; choose another name",
    ),
    _frozen("spec.source.uri"),
    _frozen("spec.source.rows"),
    _frozen("spec.source.configMap"),
    _frozen("spec.source.query"),
    _frozen("spec.source.format"),
    _frozen("spec.key"),
    _frozen("spec.executor", unchanged=_same_executor()),
    _frozen("spec.dedupe"),
    _frozen("spec.shards"),
    _frozen("spec.timeoutSeconds"),
    _frozen("spec.simulate", unchanged=f"self.spec.mode != 'Simulate' || {_SAME_SIMULATION}"),
)
"""Rules over the whole resource, and over an update of it."""


def rules_of(model: type[Part]) -> tuple[Rule, ...]:
    """The rules of one model."""
    return ROOT_RULES if model is BatchJob else RULES.get(model, ())
