"""What `retry`, `suspend` and `resume` do to a job: the patch, and what is said of it. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rowmill_cli.kubectl.client import Access
from rowmill_cli.kubectl.errors import NotNow
from rowmill_cli.kubectl.page import command
from rowmill_cli.kubectl.view import JobView, seconds

Patch = list[dict[str, Any]]

RESUMED_AT = "rowmill.dev/resumed-at"
"""The annotation by which the operator sees that somebody asked to go on though calls were refused."""


@dataclass(frozen=True, slots=True)
class Change:
    """A JSON patch, and what it does in the words of a person. No patch: it is so already."""

    patch: Patch | None
    says: str


def retry(job: JobView, *, access: Access, force: bool) -> Change:
    """Raise the generation by one. Raises NotNow where it makes no sense; `force` does it all the same, if it can be
    done."""
    again = max(job.retry_generation, job.run_generation) + 1
    if job.seen and job.results_dropped:
        raise NotNow(job.results_dropped)
    if not force:
        _worth_a_retry(job, access)
    rows = job.rows
    parts = []
    if rows.failed:
        parts.append("1 failed row" if rows.failed == 1 else f"{rows.failed:,} failed rows")
    if rows.open:
        parts.append(f"{rows.open:,} that had no outcome yet")
    which = " and ".join(parts) or "what has failed until then"
    says = f"{job.where}: retry {again} is asked for. It runs {which}; rows that succeeded are not called again."
    if job.suspend:
        says += f"\nThe job is suspended, so nothing runs before: {command('resume', job, access)}"
    says += f"\nWatch it: {command('status', job, access, '--watch')}"
    return Change(_guarded(job, "retryGeneration", again), says + _gitops(job, "retryGeneration", again))


def suspend(job: JobView, *, access: Access) -> Change:
    """Raises NotNow where the run is over."""
    _alive(job)
    resume = f"Go on with: {command('resume', job, access)}"
    if job.suspend:
        return Change(None, f"{job.where} is suspended already. {resume}")
    if job.ended:
        raise NotNow(f"{job.where} is over ({job.phase}): there is nothing to suspend")
    says = (
        f"{job.where} is being suspended: no new row begins, workers finish what they have and go, finished rows are "
        f"kept.\n{resume}"
    )
    return Change(_guarded(job, "suspend", True), says + _gitops(job, "suspend", "true"))


def asked_at(job: JobView, *, now: float) -> str:
    """The time of asking (`now` in seconds since the epoch), as RFC 3339 writes it: later than the pause that it is to
    end, even where the clock here is behind that of the cluster."""
    paused = seconds(job.conditions.get("Suspended", {}).get("lastTransitionTime"))
    return datetime.fromtimestamp(max(now, (paused or 0.0) + 1.0), UTC).isoformat()


def resume(job: JobView, *, access: Access, now: str) -> Change:
    """`now` is the time, as RFC 3339 writes it. Raises NotNow where the job is being deleted, or its budget used up."""
    _alive(job)
    watch = f"Watch it: {command('status', job, access, '--watch')}"
    if not job.suspend and job.reason == "CallsRefused":
        says = f"{job.where} tries again: one worker sends a few calls, and goes on when they are taken.\n{watch}"
        return Change(_annotated(job, RESUMED_AT, now), says)
    if not job.suspend and job.reason == "BudgetExhausted":
        raise NotNow(f"{job.where}: {job.message}")
    if not job.suspend:
        return Change(None, f"{job.where} is not suspended ({job.phase}). {watch}")
    rows = "its finished rows are kept" if not job.rows.done else f"its {job.rows.done:,} finished rows are kept"
    says = f"{job.where} goes on where it was; {rows}.\n{watch}"
    return Change(_guarded(job, "suspend", False), says + _gitops(job, "suspend", "false"))


def overtaken(before: JobView, now: JobView) -> str | None:
    """What somebody else changed between our look and our patch, or None."""
    if before.uid != now.uid:
        return f"{now.where} was deleted and made again a moment ago"
    if before.retry_generation != now.retry_generation:
        return f"somebody else asked for retry {now.retry_generation} of {now.where} a moment ago: nothing was changed"
    if before.suspend != now.suspend:
        did = "suspended" if now.suspend else "resumed"
        return f"somebody else {did} {now.where} a moment ago: nothing was changed"
    return None


def _worth_a_retry(job: JobView, access: Access) -> None:
    _alive(job)
    look = command("status", job, access)
    if job.retry_generation > job.run_generation and not job.ended:
        raise NotNow(f"{job.where}: retry {job.retry_generation} was asked for and is not over yet. See: {look}")
    if job.refused:
        raise NotNow(f"{job.where} cannot run as it is ({job.reason}): {job.message}. Correct the manifest first")
    if not job.ended:
        raise NotNow(
            f"{job.where} is not over ({job.phase}): its failed rows can be run again when it is. See: {look}. --force "
            "asks for it all the same: rows that have failed so far then run again now"
        )
    if job.reason == "DeadlineExceeded":
        raise NotNow(
            f"{job.where} has used up spec.activeDeadlineSeconds; a retry alone would end at once. Raise it in the "
            "manifest together with spec.retryGeneration, and apply that (or raise it, then use --force)"
        )
    if not job.rows.failed and not job.rows.open:
        raise NotNow(f"{job.where} is {job.phase} and no row of it failed: there is nothing to run again")


def _alive(job: JobView) -> None:
    if job.deleting:
        raise NotNow(f"{job.where} is being deleted")


def _guarded(job: JobView, field: str, value: Any) -> Patch:
    """A patch that changes nothing if the job is another one by now, or somebody else changed the field."""
    there = field in job.spec
    tests: Patch = [{"op": "test", "path": "/metadata/uid", "value": job.uid}]
    if there:
        tests.append({"op": "test", "path": f"/spec/{field}", "value": job.spec[field]})
    else:
        # Absent only where the API server writes no defaults into objects.
        tests.append({"op": "test", "path": "/metadata/resourceVersion", "value": job.resource_version})
    return [*tests, {"op": "replace" if there else "add", "path": f"/spec/{field}", "value": value}]


def _annotated(job: JobView, name: str, value: str) -> Patch:
    """A patch that sets an annotation of this very job."""
    tests: Patch = [{"op": "test", "path": "/metadata/uid", "value": job.uid}]
    if "annotations" not in job.body.get("metadata", {}):
        tests.append({"op": "test", "path": "/metadata/resourceVersion", "value": job.resource_version})
        return [*tests, {"op": "add", "path": "/metadata/annotations", "value": {name: value}}]
    key = name.replace("~", "~0").replace("/", "~1")
    return [*tests, {"op": "add", "path": f"/metadata/annotations/{key}", "value": value}]


def _gitops(job: JobView, field: str, value: Any) -> str:
    if job.gitops is None:
        return ""
    return (
        f"\nThis manifest comes from a repository ({job.gitops}), which may set it back: write "
        f"spec.{field}: {value} there as well."
    )
