"""The templates and JMESPath expressions of a job: do they compile, and which columns do they need."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final

from rowmill.errors import Problem
from rowmill.spec.executors import Executor, ExecutorChoice
from rowmill.spec.fields import models_in
from rowmill.spec.job import BatchJob
from rowmill.templating import ColumnUse, TemplateError, compile_query, template_problems
from rowmill.templating.errors import did_you_mean, shown

MAX_LISTED: Final = 20
"""Columns that a message lists at most."""


def check_templates(job: BatchJob) -> list[Problem]:
    """Everything wrong with the job's templates and queries, each with the path of its leaf."""
    return _look(job)[0]


def columns_used(job: BatchJob) -> list[ColumnUse]:
    """The columns that templates, `spec.key` and `spec.output.columns` cannot do without."""
    uses = list(_look(job)[1])
    uses += [ColumnUse(f"spec.key[{i}]", column) for i, column in enumerate(job.spec.key)]
    uses += [ColumnUse(f"spec.output.columns[{i}]", column) for i, column in enumerate(job.spec.output.columns)]
    return uses


def missing_columns(job: BatchJob, columns: Collection[str]) -> list[Problem]:
    """The columns used that are not among the source's, for sources whose columns are the same in every row.

    A reference that is guarded by `is defined` or `default` is none. Not for JSONL and inline rows, where a column
    may come with some rows only.
    """
    known = list(columns)
    listed = ", ".join(known[:MAX_LISTED]) + (f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else "")
    return [
        Problem(
            use.path,
            f"the source has no column {shown(use.column)}"
            + (did_you_mean(use.column, known) or f"; it has {listed or 'no columns at all'}"),
        )
        for use in columns_used(job)
        if use.column not in known
    ]


def _look(job: BatchJob) -> tuple[list[Problem], list[ColumnUse]]:
    kind = job.spec.executor.kind
    given = job.spec.executor.chosen.model_dump(by_alias=True)
    return _look_into(type(job.spec.executor.chosen), given, f"spec.executor.{kind}")


def check_raw_templates(manifest: Any) -> list[Problem]:
    """Like `check_templates`, for a manifest that is not right otherwise: looks at whatever executors it has."""
    spec = manifest.get("spec") if isinstance(manifest, dict) else None
    chosen = spec.get("executor") if isinstance(spec, dict) else None
    problems: list[Problem] = []
    for kind, field in ExecutorChoice.model_fields.items():
        given = chosen.get(kind) if isinstance(chosen, dict) else None
        for model in models_in(field.annotation):
            if isinstance(given, dict) and issubclass(model, Executor):
                problems += _look_into(model, given, f"spec.executor.{kind}")[0]
    return problems


def _look_into(model: type[Executor], given: Mapping[str, Any], root: str) -> tuple[list[Problem], list[ColumnUse]]:
    """`given` holds the executor's fields by their names in the manifest, of whatever types."""
    problems: list[Problem] = []
    uses: list[ColumnUse] = []
    for attribute in model.templated:
        name = model.model_fields[attribute].alias or attribute
        value = given.get(name)
        found, used = template_problems(_only_values(value) if name == "headers" else value, path=f"{root}.{name}")
        problems += found
        uses += used
    for attribute in model.queries:
        name = model.model_fields[attribute].alias or attribute
        expression = given.get(name)
        if not isinstance(expression, str) or not expression:
            continue
        try:
            compile_query(expression, path=f"{root}.{name}")
        except TemplateError as exc:
            problems.append(Problem(exc.path, exc.message))
    return problems, uses


def _only_values(headers: Any) -> Any:
    """Of headers only the values are templates; names and references to secrets are not."""
    if not isinstance(headers, list | tuple):
        return None
    return [{"value": header.get("value")} if isinstance(header, dict) else None for header in headers]
