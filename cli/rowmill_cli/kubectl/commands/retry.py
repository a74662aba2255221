"""`kubectl rowmill retry`: the failed rows, once more."""

from __future__ import annotations

import click

from rowmill_cli.kubectl import changes
from rowmill_cli.kubectl.client import BATCHJOBS, Kubectl
from rowmill_cli.kubectl.errors import NotNow, Rejected
from rowmill_cli.kubectl.options import cluster_options, find_job
from rowmill_cli.kubectl.view import JobView


@click.command(short_help="Run the failed rows of a job again.")
@click.argument("name")
@click.option("--force", is_flag=True, help="Ask for it though the run is not over, or nothing failed.")
@cluster_options
def retry(name: str, force: bool, kubectl: Kubectl) -> int:
    """Run the failed rows of the job NAME again, by raising spec.retryGeneration by one. Rows that succeeded are not
    called again. First mend what made them fail:

    \b
      kubectl rowmill results triage -n support --failed
      kubectl rowmill retry triage -n support

    Two who ask at once do not raise it twice: the second one is told.
    """
    job = find_job(kubectl, name)
    change = changes.retry(job, access=kubectl.access, force=force)
    apply(kubectl, job, change)
    click.echo(change.says)
    return 0


def apply(kubectl: Kubectl, job: JobView, change: changes.Change) -> JobView:
    """Make a change, if there is one to make; the job as it is then. Raises NotNow when somebody else was faster."""
    if change.patch is None:
        return job
    try:
        return JobView(kubectl.patch(BATCHJOBS, job.name, change.patch, namespace=job.namespace, how="json"))
    except Rejected:
        now = JobView(kubectl.get(BATCHJOBS, job.name, namespace=job.namespace))
        if said := changes.overtaken(job, now):
            raise NotNow(said) from None
        raise
