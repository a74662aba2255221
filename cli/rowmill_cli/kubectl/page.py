"""What `kubectl rowmill status` prints: a page for one job, a table for many, JSON for programs. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from rowmill_cli.kubectl.client import Access
from rowmill_cli.kubectl.view import JobView, number, part, text

BAR: Final = 30
_WELL: Final = ("", "Pending", "Running", "Suspended", "Completed", "WritingResults", "Deleting")


def page(job: JobView, *, access: Access, now: float) -> str:
    """All that there is to say of one job, without a final line end. `now` is seconds since the epoch."""
    run = f"   run {job.run_id}" if job.run_id else ""
    again = f", generation {job.run_generation}" if job.run_generation else ""
    lines = [f"{job.where}   {job.phase}{run}{again}"]
    if job.status or job.message:
        lines.append(f"  {_sentence(job)}")
    if job.status and not job.seen:
        lines.append("  The manifest was edited a moment ago; the operator has not looked at the edit yet.")
    if job.status:
        lines += ["", f"  {bar(job)}", ""]
        lines += [f"  {name:<14}{value}" for name, value in _facts(job, now)]
    lines += _errors(job)
    lines += _results(job)
    if steps := next_steps(job, access=access):
        lines += ["", "Next:", *(f"  {step}" for step in steps)]
    return "\n".join(lines)


def bar(job: JobView) -> str:
    """How far it is, rounded down: full only when every row has an outcome."""
    rows = job.rows
    if rows.total is None:
        return f"{rows.done:,} rows done; how many there are is not known until the source was read to its end"
    share = rows.done / rows.total if rows.total else float(job.ended)
    filled = min(BAR, int(BAR * share))
    return f"[{'#' * filled}{'.' * (BAR - filled)}] {int(100 * share)}%   {rows.done:,} of {rows.total:,} rows"


def line(job: JobView, *, now: float) -> str:
    """A job in one line, for a log."""
    rows = job.rows
    total = "?" if rows.total is None else f"{rows.total:,}"
    parts = [job.phase, f"{rows.done:,}/{total}", f"failed {rows.failed:,}"]
    if (rate := number(job.status, "rowsPerMinute")) and not job.ended:
        parts.append(f"{rate:,} rows/min")
    if (left := _left(job, now)) is not None:
        parts.append(f"{duration(left)} left")
    workers = part(job.status, "workers")
    parts.append(f"workers {number(workers, 'ready')}/{number(workers, 'desired')}")
    if job.reason not in _WELL:
        parts.append(f"{job.reason}: {job.message}")
    return "  ".join(parts)


def table(jobs: Sequence[JobView], *, namespaces: bool) -> str:
    """Jobs as a table, those that need a person first told by their reason."""
    head = ["NAME", "PHASE", "DONE", "PROGRESS", "FAILED", "WORKERS", "ROWS/MIN", "REASON"]
    rows = [
        [
            job.name,
            job.phase,
            text(job.status, "done") or "-",
            text(job.status, "progress") or "-",
            f"{job.rows.failed}",
            f"{number(part(job.status, 'workers'), 'ready')}/{number(part(job.status, 'workers'), 'desired')}",
            f"{number(job.status, 'rowsPerMinute')}",
            job.reason or "NotSeenYet",
        ]
        for job in jobs
    ]
    if namespaces:
        head = ["NAMESPACE", *head]
        rows = [[job.namespace, *cells] for job, cells in zip(jobs, rows, strict=True)]
    widths = [max(len(cells[column]) for cells in [head, *rows]) for column in range(len(head))]
    return "\n".join(
        "   ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in [head, *rows]
    )


def document(job: JobView, *, access: Access) -> dict[str, Any]:
    """A job for programs. The names stay; more may be added."""
    return {
        "namespace": job.namespace,
        "name": job.name,
        "phase": job.phase,
        "reason": job.reason,
        "message": job.message,
        "ended": job.ended,
        "observed": job.seen,
        "nextSteps": [step for step in next_steps(job, access=access) if not step.startswith("#")],
        "status": dict(job.status),
    }


def next_steps(job: JobView, *, access: Access) -> list[str]:
    """Commands that make sense now, the first one first; a line that begins with # says why."""
    if job.deleting:
        return []
    if not job.status:
        return [
            "# is the operator there, and does it serve this namespace?",
            "kubectl get pods --all-namespaces -l app.kubernetes.io/component=operator",
        ]
    if job.results_dropped and (job.ended or job.reason == "ResultsDropped"):
        return ["# its results are kept no more, so nothing of it can be run again: change spec.runId for a new run"]
    if job.refused:
        return [
            "# correct the manifest and apply it again; by itself nothing will happen",
            _kubectl("describe", job, access),
        ]
    if job.phase == "Suspended" and not job.suspend and job.reason == "CallsRefused":
        return [
            "# it is tried again by itself, as said above; at once, when what is refused is mended:",
            command("resume", job, access),
        ]
    if job.phase == "Suspended" and not job.suspend and job.reason == "BudgetExhausted":
        return ["# raise spec.budget in the manifest and apply it: then it goes on", _kubectl("edit", job, access)]
    steps = []
    if job.true("Stalled") and not job.ended:
        steps += ["# it waits for somebody to mend what is said above; then it goes on by itself"]
        steps += [_kubectl("describe", job, access)]
    if job.suspend and not job.ended:
        return [*steps, command("resume", job, access)]
    if job.ended and job.rows.failed:
        steps += [command("results", job, access, "--failed")]
        if job.failed or job.retry_generation <= job.run_generation:
            steps += ["# when the cause is mended: only the failed rows run again", command("retry", job, access)]
    elif job.failed:
        steps += ["# when the cause is mended: only rows without a result run", command("retry", job, access)]
    if job.ended and not job.failed and not job.rows.failed:
        steps += [command("results", job, access)]
    if not job.ended and not job.suspend:
        steps += [command("status", job, access, "--watch")]
    return steps


def command(name: str, job: JobView, access: Access, *more: str) -> str:
    """A command of this plugin for this job, on the same cluster."""
    words = ["kubectl", "rowmill", name, job.name, "-n", job.namespace, *access.flags(), *more]
    return shlex.join(words)


def _kubectl(verb: str, job: JobView, access: Access) -> str:
    return shlex.join(["kubectl", verb, "batchjob", job.name, "-n", job.namespace, *access.flags()])


def duration(seconds: float) -> str:
    """Seconds as a person says them: `42 s`, `3 min 05 s`, `2 h 10 min`, `3 d 04 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600:02} h"


def _sentence(job: JobView) -> str:
    message = job.message[:1].upper() + job.message[1:]
    end = "" if message.endswith((".", "!", "?", "…")) else "."
    return f"{message}{end}" + (f" ({job.reason})" if job.reason and job.reason != job.phase else "")


def _facts(job: JobView, now: float) -> Iterable[tuple[str, str]]:
    rows = job.rows
    yield "succeeded", f"{rows.succeeded:,}"
    yield "failed", f"{rows.failed:,}"
    if rows.deduplicated:
        yield "deduplicated", f"{rows.deduplicated:,} (took the result of another row of their key)"
    if not job.ended:
        yield "waiting", f"{rows.queued:,} queued, {rows.running:,} with a worker"
    if rows.retried:
        yield "attempts more", f"{rows.retried:,} (beyond the first of each row)"
    if rate := text(job.status, "successRate"):
        yield "success rate", rate
    if job.phase == "Running":
        yield "rate", f"{number(job.status, 'rowsPerMinute'):,} rows a minute"
    if (left := _left(job, now)) is not None:
        yield "time left", f"about {duration(left)} (until {text(job.status, 'estimatedCompletionTime')})"
    yield from _times(job, now)
    if job.results_dropped:
        yield "dropped", f"{text(job.status, 'resultsDroppedTime')} (the recorded outcomes, after their retention)"
    yield from _spend(part(job.status, "spend"))
    if job.limits:
        yield "limits", job.limits.removeprefix("limits ")
    workers = part(job.status, "workers")
    if not job.ended:
        owner = part(job.spec, "workers").get("scaling") == "External"
        by = "; their number is set from outside (spec.workers.scaling: External)" if owner else ""
        yield "workers", f"{number(workers, 'ready')} ready of {number(workers, 'desired')} wanted{by}"


def _spend(spend: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    if spend:
        yield "used", _amounts(spend)
    if projected := part(spend, "projected"):
        yield "projected", f"{_amounts(projected)}, for {number(projected, 'rows'):,} rows"


def _amounts(spend: Mapping[str, Any]) -> str:
    told = [f"{number(spend, 'requests'):,} calls"]
    if "inputTokens" in spend:
        told.append(f"{number(spend, 'inputTokens'):,} tokens in, {number(spend, 'outputTokens'):,} out")
    if cost := text(spend, "cost"):
        told.append(f"cost {cost}")
    return ", ".join(told)


def _times(job: JobView, now: float) -> Iterable[tuple[str, str]]:
    started, ended = job.time("startTime"), job.time("completionTime")
    if started is None:
        return
    took = f"{duration(now - started)} ago" if ended is None else text(job.status, "startTime")
    yield "started", took
    if ended is not None:
        yield "ended", f"{text(job.status, 'completionTime')}, after {duration(ended - started)}"


def _left(job: JobView, now: float) -> float | None:
    end = job.time("estimatedCompletionTime")
    return None if end is None or job.ended or job.phase != "Running" else max(0.0, end - now)


def _errors(job: JobView) -> list[str]:
    found = [one for one in job.status.get("errors") or () if isinstance(one, Mapping)]
    if not found:
        return []
    lines = [
        f"  {text(one, 'class'):<24}{_rows(number(one, 'count')):<14}such as row {number(one, 'exampleRow'):,}"
        for one in found
    ]
    return ["", "Errors, the most frequent first:", *lines]


def _results(job: JobView) -> list[str]:
    output = part(job.status, "output")
    if not job.output_uri:
        return []
    parts = output.get("parts")
    counted = f" ({parts:,} {'file' if parts == 1 else 'files'})" if isinstance(parts, int) else ""
    lines = ["", f"Results: {job.output_uri}{counted}"]
    if failures := text(output, "failures"):
        lines.append(f"Failed rows: {failures}")
    return lines


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
