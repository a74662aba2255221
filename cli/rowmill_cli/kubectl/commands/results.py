"""`kubectl rowmill results`: what came of each row, read by a pod that is made for it and deleted after it."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click

from rowmill_cli.interrupts import Interrupts
from rowmill_cli.kubectl.client import Kubectl
from rowmill_cli.kubectl.errors import ClusterError, Denied, NotNow, Rejected, Unreachable
from rowmill_cli.kubectl.options import cluster_options, find_job, say
from rowmill_cli.kubectl.stream import Gone, Receipt, Target, check, file_at, pump, receipt_of, standard_output
from rowmill_cli.kubectl.view import JobView

POLL_SECONDS = 0.5
TOLD_SECONDS = 5.0
"""After so long without a pod, the person is told what it waits for."""


@click.command(short_help="Print what came of each row.")
@click.argument("name")
@click.option("--failed", is_flag=True, help="Only the rows that failed.")
@click.option("-o", "--format", type=click.Choice(["jsonl", "csv"]), default="jsonl", help="Default: jsonl.")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write them to a file, which appears only when it is complete.",
)
@click.option("--image", metavar="IMAGE", help="Image of Rowmill's workers to read with, instead of the job's.")
@click.option(
    "--pull-secret",
    "pull_secrets",
    multiple=True,
    metavar="NAME",
    help="Secret of the namespace to pull the image with.",
)
@click.option(
    "--wait-seconds", type=click.IntRange(1, 3600), default=120, show_default=True, help="For the pod to start."
)
@cluster_options
def results(
    name: str,
    failed: bool,
    format: str,
    output: Path | None,
    image: str | None,
    pull_secrets: tuple[str, ...],
    wait_seconds: int,
    kubectl: Kubectl,
) -> int:
    """Print what came of each row of the job NAME, in the order of the source: one JSON object a line, or CSV. While
    the job runs: what there is so far.

    \b
      kubectl rowmill results triage -n support --failed
      kubectl rowmill results triage -o csv --output triage.csv

    A short-lived pod in the job's namespace reads them and is deleted at the end, also on Ctrl-C. A connection that
    breaks is noticed: the exit code is 0 only when everything came.
    """
    if output is not None and not output.parent.is_dir():
        raise ClusterError(f"{output} cannot be written: there is no folder {output.parent}")
    job = find_job(kubectl, name)
    _worth_reading(job)
    with Interrupts() as interrupts, _reader(kubectl, job, interrupts, image, pull_secrets, wait_seconds) as pod:
        target = standard_output() if output is None else file_at(output)
        try:
            with target as file:
                receipt = _stream(kubectl, job, pod, file, failed=failed, format=format)
        except Gone:
            return 0
    _tell(job, receipt, failed=failed, output=output)
    return 0


def _worth_reading(job: JobView) -> None:
    if job.results_dropped:
        also = f". Results were written to {job.output_uri}" if job.output_uri else ""
        raise NotNow(job.results_dropped + also)
    if not job.run_id or not job.image:
        raise NotNow(f"{job.where} has no results yet ({job.phase}): {job.message}")
    if not job.rows.done and not job.ended:
        raise NotNow(f"{job.where} has no results yet: no row has an outcome so far ({job.phase}: {job.message})")


@contextlib.contextmanager
def _reader(
    kubectl: Kubectl,
    job: JobView,
    interrupts: Interrupts,
    image: str | None,
    pull_secrets: tuple[str, ...],
    wait_seconds: float,
) -> Iterator[str]:
    """A pod that is ready to read; deleted with the block, whatever happens in it."""
    from rowmill_cli.kubectl.reader_pod import reader_pod, selector_text

    pod = reader_pod(job, suffix=secrets.token_hex(4), image=image, pull_secrets=pull_secrets)
    name = pod["metadata"]["name"]
    made = True  # as far as one knows: a request without an answer may have been granted
    try:
        try:
            kubectl.create(pod)
        except (Denied, Rejected):
            made = False
            raise
        _await(kubectl, job, name, seconds=wait_seconds, pause=threading.Event().wait, now=time.monotonic)
        yield name
    finally:
        if made:
            with interrupts.noted():
                _remove(kubectl, job, name)
                with contextlib.suppress(ClusterError):  # what others left behind who were killed
                    kubectl.delete_ended_pods(namespace=job.namespace, selector=selector_text(job.name))


def _remove(kubectl: Kubectl, job: JobView, name: str) -> None:
    try:
        kubectl.delete("pod", name, namespace=job.namespace)
    except ClusterError as error:
        say(
            f"rowmill: the reader's pod is left behind ({error}). It ends by itself within an hour; delete it with "
            f"`kubectl delete pod {name} -n {job.namespace}`"
        )


def _await(
    kubectl: Kubectl,
    job: JobView,
    name: str,
    *,
    seconds: float,
    pause: Callable[[float], object],
    now: Callable[[], float],
) -> None:
    """Until the pod is ready. Raises ClusterError with why it is not."""
    from rowmill_cli.kubectl.reader_pod import Look, look, why_waiting

    began, told = now(), ""
    while True:
        why = "the API server does not answer"
        with contextlib.suppress(Unreachable):
            pod = kubectl.get("pod", name, namespace=job.namespace)
            if look(pod, job) is Look.READY:
                return
            why = why_waiting(pod)
        waited = now() - began
        if waited > seconds:
            raise ClusterError(
                f"the reader's pod {job.namespace}/{name} did not start within {seconds:g} s ({why}). "
                "--wait-seconds waits longer"
            )
        if waited > TOLD_SECONDS and why != told:
            say(f"rowmill: waiting for the reader's pod: {why}")
            told = why
        pause(POLL_SECONDS)


def _stream(kubectl: Kubectl, job: JobView, pod: str, file: Target, *, failed: bool, format: str) -> Receipt:
    from rowmill_cli.kubectl.reader_pod import CONTAINER, arguments
    from rowmill_cli.kubectl.refusals import refusal

    given = arguments(job, failed=failed, format=format)
    with kubectl.process("exec", pod, f"--namespace={job.namespace}", "-c", CONTAINER, "--", *given) as (process, said):
        assert process.stdout is not None
        came = pump(process.stdout, file)  # type: ignore[arg-type]
        code = process.wait(60)
        words = said.text()
    receipt, others = receipt_of(words)
    if code and not came and "Error from server" in words:
        raise refusal(words, doing=f"read in the pod {pod}")
    return check(receipt, came=came, code=code, said=others)


def _tell(job: JobView, receipt: Receipt, *, failed: bool, output: Path | None) -> None:
    what = "failed row" if failed else "outcome"
    counted = f"1 {what}" if receipt.outcomes == 1 else f"{receipt.outcomes:,} {what}s"
    where = f" in {output}" if output is not None else ""
    say(f"{job.where}, run {job.run_id}: {counted}{where}")
    if not job.ended:
        say(f"The run is not over ({job.phase}): this is what there is so far.")
    if job.output_uri:
        say(f"The results also lie in {job.output_uri}")
