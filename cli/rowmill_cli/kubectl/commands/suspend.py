"""`kubectl rowmill suspend` and `resume`: stop for now, and go on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import click

from rowmill_cli.kubectl import changes
from rowmill_cli.kubectl.client import BATCHJOBS, Kubectl
from rowmill_cli.kubectl.commands.retry import apply
from rowmill_cli.kubectl.errors import Denied, Unreachable
from rowmill_cli.kubectl.options import cluster_options, find_job, say
from rowmill_cli.kubectl.view import JobView, number, part

POLL_SECONDS = 1.0
SPARE_SECONDS = 120
"""To wait beyond a row's timeout, for pods to drain or to come."""

_wait = click.option("--wait", "waits", is_flag=True, help="Return only when it is so.")
_seconds = click.option(
    "--wait-seconds",
    "seconds",
    type=click.IntRange(1, 86_400),
    help=f"How long to wait at most. Default: spec.timeoutSeconds and {SPARE_SECONDS}.",
)


@click.command(short_help="Stop a job for now; finished rows are kept.")
@click.argument("name")
@_wait
@_seconds
@cluster_options
def suspend(name: str, waits: bool, seconds: int | None, kubectl: Kubectl) -> int:
    """Suspend the job NAME: no new row begins, workers finish the rows that they have and go, and their nodes and GPUs
    are free. Finished rows are kept and are not paid for again.

    \b
      kubectl rowmill suspend triage -n support --wait

    With --wait it returns when no pod of the workers is left, or with exit code 1.
    """
    job = find_job(kubectl, name)
    change = changes.suspend(job, access=kubectl.access)
    job = apply(kubectl, job, change)
    click.echo(change.says)
    return _until(kubectl, job, _pods_gone(kubectl), seconds, done="no worker is left") if waits else 0


@click.command(short_help="Go on with a suspended job.")
@click.argument("name")
@_wait
@_seconds
@cluster_options
def resume(name: str, waits: bool, seconds: int | None, kubectl: Kubectl) -> int:
    """Go on with the suspended job NAME, where it was; of one whose calls were refused, try again now.

    \b
      kubectl rowmill resume triage -n support --wait

    With --wait it returns when a worker is ready or the run is over, or with exit code 1.
    """
    job = find_job(kubectl, name)
    change = changes.resume(job, access=kubectl.access, now=changes.asked_at(job, now=time.time()))
    job = apply(kubectl, job, change)
    click.echo(change.says)
    return _until(kubectl, job, _runs, seconds, done="it runs again") if waits else 0


def _until(
    kubectl: Kubectl,
    job: JobView,
    reached: Callable[[JobView], bool],
    seconds: int | None,
    *,
    done: str,
    pause: Callable[[float], object] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> int:
    """0 once `reached`, 1 when it does not come within `seconds`."""
    pause = pause or threading.Event().wait
    limit = seconds if seconds is not None else number(job.spec, "timeoutSeconds") + SPARE_SECONDS
    end, told = now() + limit, ""
    while True:
        try:
            job = JobView(kubectl.get(BATCHJOBS, job.name, namespace=job.namespace))
            if reached(job):
                click.echo(f"{job.where}: {done} ({job.phase})")
                return 0
            why = f"{job.phase}, {job.rows.done:,} rows done"
        except Unreachable as error:
            why = f"{error}. Trying again"
        if now() > end:
            say(f"rowmill: {job.where} is not there yet after {limit} s ({why})")
            return 1
        if why != told:
            say(f"waiting: {why}")
            told = why
        pause(POLL_SECONDS)


def _runs(job: JobView) -> bool:
    ready = number(part(job.status, "workers"), "ready")
    return job.ended or (job.seen and job.phase == "Running" and ready > 0)


def _pods_gone(kubectl: Kubectl) -> Callable[[JobView], bool]:
    from rowmill_operator.kube.naming import selector_text

    def reached(job: JobView) -> bool:
        if job.ended:
            return True
        if not (job.seen and job.true("Suspended")):
            return False
        try:
            return not kubectl.list("pods", namespace=job.namespace, selector=selector_text(job.name))
        except Denied:  # then the status has to do, which counts only the workers that are ready
            return number(part(job.status, "workers"), "ready") == 0

    return reached
