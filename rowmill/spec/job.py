"""The `BatchJob` resource: the one source of the CRD, its defaults, its bounds and its messages."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from rowmill.spec.base import (
    ERROR_CLASS,
    IDENTIFIER,
    RUN_ID,
    Bool,
    Column,
    DnsLabel,
    DnsSubdomain,
    Finding,
    Identifier,
    Int,
    JsonObject,
    Listed,
    NoTraps,
    Part,
    not_above,
    unique,
)
from rowmill.spec.budget import Budget, Money, Pricing, check_budget
from rowmill.spec.executors import ExecutorChoice
from rowmill.spec.notify import Notify
from rowmill.spec.source import Source, check_uri, format_of, in_object_store, secret_without_store

API_VERSION: Final = "rowmill.dev/v1alpha1"
KIND: Final = "BatchJob"

MAX_SECONDS: Final = 31_536_000
MAX_CONCURRENCY: Final = 1_024

LabelValue = Annotated[str, StringConstraints(max_length=63)]
AnnotationValue = Annotated[str, StringConstraints(max_length=262_144)]
Seconds = Annotated[Int, Field(ge=1, le=MAX_SECONDS)]


class Latency(Part):
    """How long a simulated call takes: evenly spread between `min` and `max`."""

    min: Annotated[Int, Field(ge=0, le=3_600_000)] = Field(default=0, description="Shortest, in milliseconds.")
    max: Annotated[Int, Field(ge=0, le=3_600_000)] = Field(default=0, description="Longest, in milliseconds.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return not_above(given, "min", 0, "max", 0)


class SimulatedError(Part):
    """An error that simulated calls end with."""

    error_class: Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=ERROR_CLASS)] = Field(
        alias="class", description="The error's class, as it stands in the outcome.", examples=["HTTP503", "Timeout"]
    )
    percent: Annotated[Int, Field(ge=0, le=100)] = Field(description="Share of the calls, in percent.")
    retryable: Bool = Field(default=True, description="Whether another attempt is made.")


class Simulate(Part):
    """What `mode: Simulate` does in place of the call. Everything else is done as in a real run."""

    seed: Annotated[Int, Field(ge=0, le=2**63 - 1)] = Field(
        default=0, description="The same seed gives every row and attempt the same latency and error."
    )
    latency_milliseconds: Latency = Field(default=Latency(), description="How long a call takes.")
    errors: Annotated[tuple[SimulatedError, ...], Field(max_length=32), Listed] = Field(
        default=(), description="Errors that calls end with; together at most 100 percent of the calls."
    )
    cost_per_row: Money = Field(
        default=Decimal(0),
        validate_default=True,
        description="What a row that succeeds would cost, in any currency. The report projects it: this times the rows "
        "that succeeded. Rows that failed or are duplicates cost nothing.",
        examples=["0.0025"],
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        errors = given.get("errors")
        shares = [e.get("percent") for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
        total = sum(s for s in shares if isinstance(s, int))
        return [(("errors",), f"are {total} percent of the calls together; at most 100")] if total > 100 else []

    def cost(self, succeeded: int) -> Decimal:
        """What so many succeeded rows would have cost."""
        return self.cost_per_row * succeeded


class Output(Part):
    """Where the results go, and what of them."""

    uri: Annotated[str, StringConstraints(min_length=1, max_length=4096), NoTraps, AfterValidator(check_uri)] | None = (
        Field(
            default=None,
            description="A file by path, or a folder in an object store. Results stay in the ledger as well, for "
            "resultsRetentionSeconds.",
            examples=["results.jsonl", "s3://bucket/triage/"],
        )
    )
    secret_name: DnsSubdomain | None = Field(
        default=None,
        description="Secret in the job's namespace with the credentials of the object store that `uri` lies in; "
        "without it the store is written to anonymously.",
    )
    format: Literal["CSV", "JSONL", "Parquet"] | None = Field(
        default=None, description="When absent, from the suffix of a file's `uri`; else, and in a folder, JSONL."
    )
    include: Annotated[
        tuple[Literal["Succeeded", "Failed", "Deduplicated"], ...],
        Field(min_length=1, max_length=3),
        AfterValidator(unique),
        Listed,
    ] = Field(default=("Succeeded", "Failed", "Deduplicated"), description="Rows of which outcomes are written.")
    columns: Annotated[tuple[Column, ...], Field(max_length=256), AfterValidator(unique), Listed] = Field(
        default=(), description="Columns of the source that are carried over beside each outcome."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        uri = given.get("uri")
        findings = secret_without_store(given)
        if isinstance(uri, str) and in_object_store(uri):
            if not uri.endswith("/"):
                findings.append((("uri",), "names no folder of the object store; end it in /, as s3://bucket/prefix/"))
        elif isinstance(uri, str) and given.get("format") is None and uri.lower().endswith(".xlsx"):
            findings.append((("uri",), "results are not written as Excel; end it in .csv, .jsonl or .parquet"))
        return findings

    @property
    def effective_format(self) -> Literal["CSV", "JSONL", "Parquet"]:
        """`format`, or what the suffix of a file tells, else JSONL: the name of a folder tells nothing."""
        if self.format is not None:
            return self.format
        told = format_of(self.uri) if self.uri is not None and not in_object_store(self.uri) else None
        return told if told is not None and told != "Excel" else "JSONL"


class Adaptive(Part):
    """Concurrency that tunes itself: up while the endpoint keeps pace, down on errors and timeouts."""

    min: Annotated[Int, Field(ge=1, le=MAX_CONCURRENCY)] = Field(default=1, description="Never fewer rows at once.")
    max: Annotated[Int, Field(ge=1, le=MAX_CONCURRENCY)] = Field(default=32, description="Never more rows at once.")

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return not_above(given, "min", 1, "max", 32)


class Concurrency(Part):
    """How many rows a worker runs at once."""

    per_worker: Annotated[Int, Field(ge=1, le=MAX_CONCURRENCY)] | None = Field(
        default=None,
        description="Rows at once in a worker. When absent, the worker's variable MAX_CONCURRENT_REQUESTS counts, and "
        "3 without it, or with batching as many as fill two batches. A weak server takes 1-2, a medium one 3-5, a "
        "strong one 5-10.",
    )
    acquire_timeout_seconds: Annotated[Int, Field(ge=1, le=86_400)] = Field(
        default=300, description="How long a row waits for a slot; then it is handed back with no attempt spent."
    )
    adaptive: Adaptive | None = Field(default=None, description="Let the number tune itself within bounds.")


class Limits(Part):
    """Limits over all workers and jobs of the namespace that name the same group; of different numbers the lowest
    hold."""

    group: Identifier = Field(description="What shares the limits: jobs that call one endpoint name one group.")
    max_in_flight: Annotated[Int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="Calls at once. When absent, 5 a worker for HTTP APIs and 10 a worker for ComfyUI."
    )
    requests_per_minute: Annotated[Int, Field(ge=1, le=100_000_000)] | None = Field(
        default=None, description="Calls a minute."
    )
    tokens_per_minute: Annotated[Int, Field(ge=1, le=10_000_000_000)] | None = Field(
        default=None, description="Tokens of models a minute."
    )
    priority: Annotated[Int, Field(ge=-1_000, le=1_000)] = Field(
        default=0,
        description="Jobs of the group with a higher number go first; those with the same share evenly.",
    )


class Retry(Part):
    """What follows a failed attempt: another after `initialSeconds`, doubled each time up to `maxSeconds`, jittered."""

    max_attempts: Annotated[Int, Field(ge=1, le=100)] = Field(
        default=5, description="Calls of a row at most. Errors that no retry can mend end a row at once."
    )
    initial_seconds: Annotated[Int, Field(ge=0, le=3_600)] = Field(
        default=1, description="Delay before the second attempt."
    )
    max_seconds: Annotated[Int, Field(ge=0, le=86_400)] = Field(
        default=60, description="Longest delay; a Retry-After of the endpoint counts besides."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return not_above(given, "initialSeconds", 1, "maxSeconds", 60)


class Dedupe(Part):
    """A key is executed once: later rows of the same key, executor and scope take the first one's result."""

    scope: Literal["Run", "Namespace", "Installation"] = Field(
        default="Namespace",
        description="Which jobs share the keys: this run alone, the namespace's, or all; on a cluster the last is for "
        "namespaces that the chart's dedupe.shared permits it.",
    )
    group: Identifier = Field(default="default", description="Within the scope, only jobs of one group share keys.")
    ttl_seconds: Annotated[Int, Field(ge=0, le=MAX_SECONDS)] = Field(
        default=86_400, description="How long after it finished a key still counts; 0 counts only while it runs."
    )
    on_failed: Literal["Rerun", "Share"] = Field(
        default="Rerun", description="After a failed winner: Rerun runs the next row of the key, Share fails it alike."
    )


class Gpu(Part):
    """GPUs of a worker."""

    count: Annotated[Int, Field(ge=1, le=64)] = Field(default=1, description="GPUs a worker.")
    resource: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=IDENTIFIER)] = Field(
        default="nvidia.com/gpu", description="The resource's name in the cluster."
    )


class Workers(Part):
    """How many workers, and what their pods look like. Without a cluster only the numbers count."""

    min_replicas: Annotated[Int, Field(ge=0, le=1_000)] = Field(
        default=0, description="Workers while there is work, at least."
    )
    max_replicas: Annotated[Int, Field(ge=1, le=1_000)] = Field(default=10, description="Workers at most.")
    scaling: Literal["Operator", "External"] = Field(
        default="Operator",
        description="Who sets the number of workers: Rowmill by the rows that wait, or something outside (KEDA, an "
        "HPA, kubectl scale) by `replicas`.",
    )
    replicas: Annotated[Int, Field(ge=0, le=1_000)] = Field(
        default=0,
        description="Workers wanted where scaling is External; written through the scale subresource. Read only then.",
    )
    rows_per_worker: Annotated[Int, Field(ge=1, le=1_000_000)] = Field(
        default=500, description="Rows waiting for which one worker more is started."
    )
    node_selector: Annotated[dict[str, LabelValue], Field(max_length=64)] = Field(
        default_factory=dict, description="Labels of the nodes that workers run on."
    )
    tolerations: Annotated[tuple[JsonObject, ...], Field(max_length=64), Listed] = Field(
        default=(), description="Taints of nodes that workers tolerate, as in a pod."
    )
    resources: JsonObject = Field(default_factory=dict, description="Requests and limits, as in a pod's container.")
    gpu: Gpu | None = Field(default=None, description="GPUs of a worker; none when absent.")
    pod_template: JsonObject = Field(
        default_factory=dict, description="A pod template that is merged into the workers' own."
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        return not_above(given, "minReplicas", 0, "maxReplicas", 10)


class FailurePolicy(Part):
    """When the job as a whole fails. Without a policy it is Complete, however many rows failed."""

    max_failed_percent: Annotated[Int, Field(ge=0, le=100)] = Field(
        description="The job fails when more than this share of the processed rows failed; 0 allows none."
    )
    min_processed_rows: Annotated[Int, Field(ge=1, le=2**31 - 1)] = Field(
        default=200, description="Not judged before so many rows were processed; a smaller table is judged at its end."
    )


class Spec(Part):
    """What is to be done. What shapes a request is frozen for a run: change `runId` to start a new one."""

    run_id: Annotated[str, StringConstraints(min_length=1, max_length=63, pattern=RUN_ID)] = Field(
        default="1",
        description="Names the run. The same run never does a row twice; another value is a deliberate new run.",
    )
    mode: Literal["Run", "Simulate"] = Field(
        default="Run",
        description="Simulate does everything but the call, in a run of its own: what it records never stands for real "
        "outcomes.",
    )
    simulate: Simulate | None = Field(
        default=None, description="What a simulated call does; counts in mode Simulate only."
    )
    source: Source = Field(description="Where the rows come from. Frozen for a run, but for `limit` and `secretName`.")
    key: Annotated[tuple[Column, ...], Field(max_length=16), AfterValidator(unique), Listed] = Field(
        default=(), description="Columns that name a row, for people and for dedupe. Frozen for a run."
    )
    executor: ExecutorChoice = Field(
        description="What a row is sent to. Frozen for a run, but for how rows are gathered and processes run."
    )
    output: Output = Field(default=Output(), description="Where the results go, and what of them.")
    timeout_seconds: Annotated[Int, Field(ge=1, le=86_400)] = Field(
        default=60, description="Bounds one call, not its waiting for a slot or connection. Frozen for a run."
    )
    concurrency: Concurrency = Field(default=Concurrency(), description="How many rows a worker runs at once.")
    limits: Limits | None = Field(default=None, description="Limits over all workers and jobs of a group.")
    pricing: Pricing | None = Field(default=None, description="What calls cost; the status then tells money, too.")
    budget: Budget | None = Field(
        default=None, description="The most that the run may use; then it is suspended until that is raised."
    )
    retry: Retry = Field(default=Retry(), description="What follows a failed attempt.")
    retry_generation: Annotated[Int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Raise it, and the rows that failed run again; those that succeeded never do."
    )
    dedupe: Dedupe | None = Field(
        default=None, description="Execute a key once, over rows and jobs; needs `key`. Frozen for a run."
    )
    workers: Workers = Field(default=Workers(), description="How many workers, and their pods.")
    shards: Annotated[Int, Field(ge=1, le=256)] = Field(
        default=4, description="Streams that rows are spread over; more for very many workers. Frozen for a run."
    )
    failure_policy: FailurePolicy | None = Field(default=None, description="When the job as a whole fails.")
    notify: Notify | None = Field(
        default=None, description="A webhook that is told what becomes of the run. May change within a run."
    )
    suspend: Bool = Field(default=False, description="Pause: nothing new is started, what is done is kept.")
    completion_target_seconds: Seconds | None = Field(default=None, description="The duration that scaling aims at.")
    active_deadline_seconds: Seconds | None = Field(default=None, description="A hard stop, counted from the start.")
    ttl_seconds_after_finished: Annotated[Int, Field(ge=0, le=MAX_SECONDS)] | None = Field(
        default=None, description="The resource and its pods are deleted so long after the end; never when absent."
    )
    results_retention_seconds: Seconds = Field(
        default=2_592_000,
        description="Outcomes are kept in the ledger so long after the last end, and until `output` is written; then "
        "they are dropped. The run stays known: applied again it is Complete and calls nothing, but it cannot be "
        "retried.",
    )

    @classmethod
    def cross_check(cls, given: Mapping[str, Any]) -> list[Finding]:
        if given.get("dedupe") is not None and not given.get("key"):
            return [(("key",), "is missing, and dedupe needs it; name the columns by which rows are the same")]
        if findings := check_budget(given):
            return findings
        executor = given.get("executor")
        openai = executor.get("openai") if isinstance(executor, dict) else None
        if isinstance(openai, dict) and openai.get("endpoint") == "BatchLines" and given.get("key") != ["custom_id"]:
            return [(("key",), "must be [custom_id] with endpoint BatchLines; by it results are told apart")]
        return []


_SET_BY_SERVER: Final = (
    *("creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "finalizers", "generateName"),
    *("generation", "managedFields", "ownerReferences", "resourceVersion", "selfLink", "uid"),
)


class Metadata(Part):
    """What names the job."""

    name: DnsLabel = Field(description="The job's name.")
    namespace: DnsLabel = Field(default="default", description="The job's namespace.")
    labels: Annotated[dict[str, LabelValue], Field(max_length=256)] = Field(default_factory=dict, description="Labels.")
    annotations: Annotated[dict[str, AnnotationValue], Field(max_length=256)] = Field(
        default_factory=dict, description="Annotations."
    )

    @model_validator(mode="before")
    @classmethod
    def _without_server_fields(cls, data: Any) -> Any:
        # A manifest may be what `kubectl get -o yaml` printed.
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name not in _SET_BY_SERVER}


class BatchJob(Part):
    """Rows of a table, each through an executor, each with one recorded outcome."""

    api_version: Literal["rowmill.dev/v1alpha1"] = Field(description=f"Always {API_VERSION}.")
    kind: Literal["BatchJob"] = Field(description=f"Always {KIND}.")
    metadata: Metadata = Field(description="What names the job.")
    spec: Spec = Field(description="What is to be done.")
    status: JsonObject | None = Field(
        default=None, description="Written by Rowmill; ignored in a manifest.", repr=False
    )


def json_schema() -> dict[str, Any]:
    """The JSON schema of `BatchJob`, in the manifest's own (camelCase) names."""
    return BatchJob.model_json_schema(by_alias=True)
