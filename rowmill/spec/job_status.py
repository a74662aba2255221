"""The status of a `BatchJob`, as Rowmill writes it: small whatever the job's size, and never a row's content.

A view and nothing more: what is true stands in the ledger, and a lost status is written again. Machines read the
conditions; `phase`, `done` and `progress` are for people. Texts are bounded loosely and values that a later version may
add to (`phase`, reasons) are no enumerations: a status that the API server refuses would tell nobody anything. Nothing
has a default, so that what is written is what is read again.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints

from rowmill.limits import MOST_JOBS
from rowmill.spec.base import Int, Listed, Part

RFC3339: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"
REASON: Final = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"

MAX_ERRORS: Final = 5
"""Classes of errors that a status tells."""

JobNames = Annotated[
    tuple[Annotated[str, StringConstraints(min_length=1, max_length=128)], ...], Field(max_length=MOST_JOBS), Listed
]

_MAX: Final = 2**63 - 1

Count = Annotated[Int, Field(ge=0, le=_MAX)]
Time = Annotated[
    str,
    StringConstraints(min_length=20, max_length=40, pattern=RFC3339),
    Field(json_schema_extra={"format": "date-time"}),
]
Short = Annotated[str, StringConstraints(max_length=64)]


class Condition(Part):
    """One thing that is true of the job or not."""

    type: Annotated[str, StringConstraints(min_length=1, max_length=64)] = Field(
        description="Complete or Failed when the job ended; Suspended; Ready, Reconciling and Stalled for tools that "
        "watch resources."
    )
    status: Literal["True", "False", "Unknown"] = Field(description="Whether it is so.")
    observed_generation: Count | None = Field(
        default=None, description="The metadata.generation of the manifest that it was found for."
    )
    last_transition_time: Time = Field(description="Since when the status is what it is.")
    reason: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=REASON)] = Field(
        description="Why, in one word of CamelCase; the documentation lists them."
    )
    message: Annotated[str, StringConstraints(max_length=8_192)] | None = Field(
        default=None, description="Why, in a sentence that says what to do next."
    )


class RunView(Part):
    """The run that the status tells of."""

    id: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        description="Its spec.runId; of a simulated run it ends in ~simulate."
    )
    generation: Count | None = Field(default=None, description="The spec.retryGeneration that it is at.")
    epoch: Count | None = Field(
        default=None, description="How often feeding began; 0 before the first row, as long as all fields may change."
    )


class RowsView(Part):
    """Rows by what became of them."""

    total: Count | None = Field(default=None, description="Rows of the source; known once it was read to its end.")
    queued: Count | None = Field(default=None, description="Rows that wait for a worker.")
    running: Count | None = Field(default=None, description="Rows that a worker has.")
    succeeded: Count | None = Field(default=None, description="Rows with a result.")
    failed: Count | None = Field(default=None, description="Rows that ended with an error.")
    retried: Count | None = Field(default=None, description="Attempts beyond the first, over all rows.")
    deduplicated: Count | None = Field(default=None, description="Rows that took the result of another of their key.")


class WorkersView(Part):
    """The job's worker pods."""

    desired: Count | None = Field(default=None, description="Workers that there should be.")
    ready: Count | None = Field(default=None, description="Workers that are ready.")
    image: Annotated[str, StringConstraints(max_length=1_024)] | None = Field(
        default=None, description="The image that this run's workers are pinned to."
    )
    selector: Annotated[str, StringConstraints(max_length=1_024)] | None = Field(
        default=None, description="Label selector of the workers' pods; read by autoscalers."
    )


class OutputView(Part):
    """Where the results are."""

    uri: Annotated[str, StringConstraints(max_length=8_192)] | None = Field(
        default=None, description="The folder of this run's results."
    )
    parts: Count | None = Field(default=None, description="Files of results written so far.")
    failures: Annotated[str, StringConstraints(max_length=8_192)] | None = Field(
        default=None, description="The file of the rows that failed."
    )


class ErrorView(Part):
    """A class of errors that rows ended with."""

    error_class: Annotated[str, StringConstraints(min_length=1, max_length=128)] = Field(
        alias="class", description="The error's class, such as HTTP503 or Timeout."
    )
    count: Count = Field(description="Rows that ended with it.")
    example_row: Count = Field(description="The position of one of them in the source, from 1.")


class SpendView(Part):
    """What calls used."""

    requests: Count | None = Field(default=None, description="Attempts at rows that were sent, also those that failed.")
    input_tokens: Count | None = Field(default=None, description="Tokens that models were sent.")
    output_tokens: Count | None = Field(default=None, description="Tokens that models wrote.")
    cost: Short | None = Field(default=None, description="Money by spec.pricing, as a decimal number.")


class ProjectionView(SpendView):
    """What all rows would use, as those that are done did."""

    rows: Count | None = Field(default=None, description="All rows: of the whole source, whatever source.limit says.")


class RunSpendView(SpendView):
    """What the run has used so far, over all its generations."""

    projected: ProjectionView | None = Field(
        default=None, description="What all rows would use; after a canary (source.limit) those of the whole source."
    )


class LimitsView(Part):
    """What of the limits of the job's group holds for it, while it runs: the lowest number of each kind that a job of
    the group sets. An absent number is no limit."""

    requests_per_minute: Count | None = Field(default=None, description="Calls a minute.")
    tokens_per_minute: Count | None = Field(default=None, description="Tokens of models a minute.")
    max_in_flight: Count | None = Field(default=None, description="Calls at once.")
    lowered_by: JobNames | None = Field(
        default=None, description="Jobs (namespace/name) whose limits hold where this job sets higher ones or none."
    )
    lowers: JobNames | None = Field(
        default=None, description="Jobs that set higher limits or none, and for which those of this job hold."
    )


class JobStatus(Part):
    """How far the job is. Written by Rowmill alone."""

    observed_generation: Count | None = Field(
        default=None, description="The metadata.generation of the manifest that this status tells of."
    )
    phase: Short | None = Field(
        default=None,
        description="For people: Pending, Running, Suspended, Complete, Failed or Invalid. Machines read conditions.",
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16), Listed] | None = Field(
        default=None, description="What is true of the job; of each type one."
    )
    run: RunView | None = Field(default=None, description="The run that the status tells of.")
    rows: RowsView | None = Field(default=None, description="Rows by what became of them.")
    done: Short | None = Field(default=None, description="Rows with an outcome, and of how many: 80012/120000.")
    progress: Short | None = Field(default=None, description="Share of the rows that have an outcome: 66%.")
    success_rate: Short | None = Field(
        default=None, description="Share of the rows with an outcome that did not fail: 99.98%."
    )
    rows_per_minute: Count | None = Field(default=None, description="Rows that ended within the last minute or so.")
    start_time: Time | None = Field(default=None, description="When the run began.")
    completion_time: Time | None = Field(default=None, description="When the run ended.")
    results_dropped_time: Time | None = Field(
        default=None, description="When the recorded outcomes were dropped, after spec.resultsRetentionSeconds."
    )
    estimated_completion_time: Time | None = Field(
        default=None, description="When the run would end at the rate of now."
    )
    workers: WorkersView | None = Field(default=None, description="The job's worker pods.")
    output: OutputView | None = Field(default=None, description="Where the results are.")
    spend: RunSpendView | None = Field(default=None, description="What the run has used so far.")
    errors: Annotated[tuple[ErrorView, ...], Field(max_length=MAX_ERRORS), Listed] | None = Field(
        default=None, description="The most frequent classes of errors; never a row's content."
    )
    limits: LimitsView | None = Field(default=None, description="What holds in the job's limits group.")
