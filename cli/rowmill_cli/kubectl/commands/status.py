"""`kubectl rowmill status`: one job as a page, all jobs as a table, or a page that follows the job to its end."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator

import click

from rowmill_cli.kubectl import page
from rowmill_cli.kubectl.client import BATCHJOBS, Kubectl
from rowmill_cli.kubectl.errors import Missing, NotNow, Unreachable
from rowmill_cli.kubectl.options import cluster_options, find_job, say
from rowmill_cli.kubectl.view import JobView

WATCH_SECONDS = 300
"""Of one connection; then a new one."""
PAUSE_SECONDS = (1.0, 15.0)
"""Between two connections that told nothing, the first time and at most."""
CLEAR = "\x1b[H\x1b[J"
"""Moves a terminal's cursor to the top and clears what is below."""


@click.command(short_help="How far a job is, why, and what to do next.")
@click.argument("name", required=False)
@click.option("-A", "--all-namespaces", "everywhere", is_flag=True, help="Jobs of all namespaces.")
@click.option("-w", "--watch", "watching", is_flag=True, help="Follow the job until it has ended.")
@click.option("-o", "--output", "how", type=click.Choice(["text", "json"]), default="text", help="Default: text.")
@cluster_options
def status(name: str | None, everywhere: bool, watching: bool, how: str, kubectl: Kubectl) -> int:
    """How far the job NAME is, why it is as it is, what went wrong, where its results are, and what to do next.
    Without NAME: the jobs of the namespace.

    \b
      kubectl rowmill status triage -n support
      kubectl rowmill status triage --watch && ./next-step.sh
      kubectl rowmill status triage -o json

    With --watch the exit code is 0 when the job completed (with failed rows too: the page says how many), 1 when it
    failed by its own policy or deadline, 2 when it cannot run before somebody edits it, or was deleted. With
    --watch -o json each change is one line.
    """
    if name is None:
        if watching:
            raise click.UsageError("--watch follows one job: name it. For all of them: kubectl get batchjobs --watch")
        return _list(kubectl, everywhere=everywhere, as_json=how == "json")
    job = _only(kubectl, name) if everywhere else find_job(kubectl, name)
    if watching:
        return _watch(kubectl, job, as_json=how == "json")
    if how == "json":
        click.echo(json.dumps(page.document(job, access=kubectl.access), indent=2))
    else:
        click.echo(page.page(job, access=kubectl.access, now=time.time()))
    return 0


def _list(kubectl: Kubectl, *, everywhere: bool, as_json: bool) -> int:
    found = kubectl.list(BATCHJOBS, namespace=kubectl.access.namespace, everywhere=everywhere)
    jobs = sorted((JobView(one) for one in found), key=lambda job: (job.namespace, job.name))
    if as_json:
        click.echo(json.dumps({"items": [page.document(job, access=kubectl.access) for job in jobs]}, indent=2))
    elif jobs:
        click.echo(page.table(jobs, namespaces=everywhere))
    else:
        where = "on this cluster" if everywhere else f"in the namespace {kubectl.access.namespace or 'of your context'}"
        say(f"There are no BatchJobs {where}." + ("" if everywhere else " -A lists those of all namespaces."))
    return 0


def _only(kubectl: Kubectl, name: str) -> JobView:
    """The one job of that name, wherever it is."""
    jobs = [job for job in map(JobView, kubectl.list(BATCHJOBS, everywhere=True)) if job.name == name]
    if not jobs:
        raise Missing(f"there is no BatchJob {name} in any namespace. `kubectl rowmill status -A` lists them all")
    if len(jobs) > 1:
        where = ", ".join(sorted(job.namespace for job in jobs))
        raise NotNow(f"there are {len(jobs)} BatchJobs {name}, in the namespaces {where}: say which one with -n")
    return jobs[0]


def _watch(kubectl: Kubectl, job: JobView, *, as_json: bool) -> int:
    show = _shower(kubectl, as_json=as_json)
    for seen in _following(kubectl, job, pause=threading.Event().wait):
        job = seen
        show(job)
        if job.ended:
            return 1 if job.failed else 0
        if job.refused:
            say(f"rowmill: {job.where} will not run before its manifest is corrected: {job.message}")
            return 2
    raise Missing(f"{job.where} was deleted while it was watched")


def _following(kubectl: Kubectl, job: JobView, *, pause: Callable[[float], object]) -> Iterator[JobView]:
    """The job, and then each change of it, until it is deleted. Connections that break are made anew."""
    yield job
    delay = PAUSE_SECONDS[0]
    while True:
        for event, body in kubectl.watch(BATCHJOBS, job.name, namespace=job.namespace, seconds=WATCH_SECONDS):
            if body.get("kind") != "BatchJob":
                continue
            seen = JobView(body)
            if event == "DELETED" or seen.uid != job.uid:
                return
            delay = PAUSE_SECONDS[0]
            if seen.resource_version != job.resource_version:
                job = seen
                yield job
        pause(delay)
        delay = min(delay * 2, PAUSE_SECONDS[1])
        try:
            seen = JobView(kubectl.get(BATCHJOBS, job.name, namespace=job.namespace))
        except Unreachable as error:
            say(f"rowmill: {error}. Trying again")
            continue
        except Missing:
            return
        if seen.uid != job.uid:
            return
        if seen.resource_version != job.resource_version:
            job = seen
            yield job


def _shower(kubectl: Kubectl, *, as_json: bool) -> Callable[[JobView], None]:
    """Shows a job where we write: in place on a terminal, else a line for each change that can be seen."""
    if as_json:
        return lambda job: click.echo(json.dumps(page.document(job, access=kubectl.access)))
    if sys.stdout.isatty():
        return lambda job: click.echo(
            f"{CLEAR}{page.page(job, access=kubectl.access, now=time.time())}\n\n"
            f"  as of {time.strftime('%H:%M:%S')}; Ctrl-C ends the watch, the job goes on"
        )
    return _Lines(kubectl)


class _Lines:
    def __init__(self, kubectl: Kubectl) -> None:
        self._kubectl = kubectl
        self._last = ""

    def __call__(self, job: JobView) -> None:
        now = time.time()
        if job.ended or job.refused:
            click.echo(page.page(job, access=self._kubectl.access, now=now))
        elif (text := page.line(job, now=now)) != self._last:
            click.echo(f"{time.strftime('%H:%M:%S')}  {job.where}  {text}")
            self._last = text
