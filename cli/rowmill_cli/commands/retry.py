"""`rowmill retry`: the failed rows of the last run, once more."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command(short_help="Run the failed rows of the last run again.")
@click.option(
    "--state",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The state folder of the run, as `rowmill run` printed it.",
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the report at the end.")
def retry(folder: Path, quiet: bool) -> int:
    """Run the failed rows of the last run again, as a new generation, with the manifest that it had.

    Rows that succeeded are not called again. The same could be had by raising spec.retryGeneration in the manifest.
    Exit codes are those of `rowmill run`.
    """
    from rowmill.errors import ResultsDropped
    from rowmill.spec import load_manifest_file
    from rowmill_cli.commands.execute import execute
    from rowmill_cli.interrupts import Interrupts
    from rowmill_cli.job import Options, effective
    from rowmill_cli.local.state import State

    with Interrupts() as interrupts, State.hold(folder, create=False) as state:
        last = state.last_run()
        job = load_manifest_file(state.job_file)
        before = state.retry_generation(last.identity)
        generation = max(job.spec.retry_generation, before) + 1
        state.raise_retry_generation(last.identity, generation)
        try:
            return execute(
                effective(job, options=Options(), retry_generation=generation),
                state=state,
                manifest=last.manifest,
                output=last.output,
                again=shlex.join(["rowmill", "run", str(last.manifest), "--state", str(state.folder)]),
                interrupts=interrupts,
                quiet=quiet,
            )
        except ResultsDropped:
            # Else `rowmill run` would ask for it again, of a run that is complete and stays so.
            state.lower_retry_generation(last.identity, before)
            raise
