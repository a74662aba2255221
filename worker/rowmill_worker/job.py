"""From the manifest to what a worker needs of it. Pure, but for reading the environment that is passed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

from rowmill.identity import RunIdentity
from rowmill.spec import BatchJob, Spec, canonical_key, effective_concurrency, executor_digest, slot_bounds
from rowmill.spec.budget import TOLD_TOKENS
from rowmill.spend import Prices
from rowmill.telemetry.batches import BatchMetrics
from rowmill.telemetry.logging import Logger
from rowmill.window import GroupLimits
from rowmill_worker.backoff import RetryPolicy
from rowmill_worker.claimer import DedupeRule, RowReader
from rowmill_worker.dispatcher import CallRules
from rowmill_worker.executors.build import build_executor
from rowmill_worker.executors.protocol import Executor
from rowmill_worker.executors.secrets import SecretReader
from rowmill_worker.flow import LimitsRule
from rowmill_worker.held import HeldRow
from rowmill_worker.spending import SpendRule
from rowmill_worker.worker import Job

_WITHOUT_CREDENTIALS = frozenset({"embeddings", "python"})
"""Executors that run in the worker: nobody is called who could refuse."""


def request_id(identity: RunIdentity | str, row: HeldRow) -> str:
    """One attempt at one row: what logs and the endpoint share. `identity` may be its text already."""
    return f"{identity}#{row.seq}.{row.generation}.{row.attempts}"


def executor_of(
    job: BatchJob,
    identity: RunIdentity,
    *,
    secrets: SecretReader,
    environ: Mapping[str, str] | None = None,
    log: Logger | None = None,
    metrics: BatchMetrics | None = None,
) -> Executor:
    """The executor of the manifest, not yet open. Raises InvalidInput."""
    return build_executor(
        job.spec,
        job={"name": identity.name, "namespace": identity.namespace, "runId": job.spec.run_id},
        run=str(identity),
        secrets=secrets,
        where=f"BatchJob {identity.namespace}/{identity.name}",
        environ=environ,
        log=log,
        metrics=metrics,
    )


def worker_job(job: BatchJob, identity: RunIdentity, *, environ: Mapping[str, str]) -> Job:
    """The manifest, resolved. Raises InvalidInput where the environment says something unusable."""
    spec = job.spec
    dedupe = dedupe_rule(spec, identity)
    run = str(identity)
    return Job(
        concurrency=effective_concurrency(spec, environ, spec.executor.kind),
        rules=CallRules(
            timeout=spec.timeout_seconds,
            acquire_timeout=spec.concurrency.acquire_timeout_seconds,
            retry=RetryPolicy(
                max_attempts=spec.retry.max_attempts,
                initial=spec.retry.initial_seconds,
                maximum=spec.retry.max_seconds,
            ),
            idempotency_key=_idempotency_key(run),
            request_id=lambda row: request_id(run, row),
        ),
        rows=RowReader(key=_key_reader(spec), columns=tuple(spec.output.columns)),
        adaptive=slot_bounds(spec, environ) if spec.concurrency.adaptive is not None and spec.mode == "Run" else None,
        spend=spend_rule(spec),
        limits=limits_rule(spec, identity),
        dedupe=dedupe,
        keep_keys_seconds=spec.dedupe.ttl_seconds if spec.dedupe else 0,
        cautious=spec.mode == "Run" and spec.executor.kind not in _WITHOUT_CREDENTIALS,
    )


def spend_rule(spec: Spec) -> SpendRule:
    """What calls cost, and whether they need leave. A simulated call uses no tokens."""
    pricing = spec.pricing
    prices = Prices()
    if pricing is not None:
        prices = Prices(pricing.per_call, pricing.per_million_input_tokens, pricing.per_million_output_tokens)
    told = spec.mode == "Run" and spec.executor.kind in TOLD_TOKENS
    return SpendRule(prices, bounded=spec.budget is not None, tokens=told)


def limits_rule(spec: Spec, identity: RunIdentity) -> LimitsRule | None:
    """What the job wants of its limits group; None without one, and for a simulation: it calls nobody."""
    if spec.limits is None or spec.mode == "Simulate":
        return None
    return LimitsRule(
        installation=identity.installation,
        namespace=identity.namespace,
        group=spec.limits.group,
        job=identity.name,
        limits=GroupLimits(
            spec.limits.requests_per_minute or 0, spec.limits.tokens_per_minute or 0, spec.limits.max_in_flight or 0
        ),
        priority=spec.limits.priority,
    )


def dedupe_rule(spec: Spec, identity: RunIdentity) -> DedupeRule | None:
    """How declared keys are told apart: by scope, group, executor (another prompt is another key) and the key itself.
    A simulated winner never stands for a real one."""
    if spec.dedupe is None:
        return None
    places = {
        "Run": list(identity),
        "Namespace": [identity.installation, identity.namespace],
        "Installation": [identity.installation],
    }
    prefix = msgspec.json.encode([spec.mode, places[spec.dedupe.scope], spec.dedupe.group, executor_digest(spec)])

    def digest(key: str) -> bytes:
        return blake2b(prefix + key.encode(), digest_size=16).digest()

    return DedupeRule(
        digest=digest, owner=lambda seq: f"{identity}#{seq}", rerun_failed=spec.dedupe.on_failed == "Rerun"
    )


def _idempotency_key(run: str) -> Callable[[HeldRow], str]:
    def of_row(row: HeldRow) -> str:
        if row.digest is not None:
            return f"key-{row.digest.hex()}"
        return f"{run}#{row.seq}"

    return of_row


def _key_reader(spec: Spec) -> Callable[[Mapping[str, Any]], str | None]:
    if not spec.key:
        return lambda row: None
    return lambda row: canonical_key(spec, row)
