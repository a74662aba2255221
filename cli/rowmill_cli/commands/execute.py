"""What `rowmill run` and `rowmill retry` share: an effective job in a held state folder, run and reported."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rich.console import Console

from rowmill.errors import InvalidInput
from rowmill.outcome import State as Outcome
from rowmill.spec.job import BatchJob
from rowmill.status import Phase
from rowmill_cli.export import format_of
from rowmill_cli.interrupts import Interrupts
from rowmill_cli.job import identity_here, is_simulated, results_path, simulated_cost, to_text
from rowmill_cli.local.runner import Runner, kept_log
from rowmill_cli.local.state import LastRun, State
from rowmill_cli.output import write_out
from rowmill_cli.progress import progress_for
from rowmill_cli.report import Ending, render

EXIT_COMPLETE, EXIT_FAILED, EXIT_INTERRUPTED = 0, 1, 130


def execute(
    job: BatchJob,
    *,
    state: State,
    manifest: Path,
    output: Path | None,
    again: str,
    interrupts: Interrupts,
    quiet: bool,
) -> int:
    """Run `job`, an effective one, until its end or an interrupt; returns the exit code.

    `manifest` is where a person finds it, `again` the command that goes on after an interrupt.
    """
    started = time.monotonic()
    if job.spec.suspend:
        raise InvalidInput.one(
            str(manifest), "spec.suspend", "is true, so that nothing would run; set it to false to go on"
        )
    identity = identity_here(job)
    results = results_path(job, option=output, base=manifest.parent, state=state.folder)
    if isinstance(results, Path):
        format_of(results)
    state.remember(LastRun(identity, manifest, output), job=to_text(job))
    console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    if not quiet:
        console.print(f"state: {state.folder}")
    with kept_log(state) as log:
        ended = Runner(
            state=state,
            job=job,
            identity=identity,
            base=manifest.parent,
            results=results,
            columns=job.spec.output.columns,
            include=tuple(one for one in Outcome if one.label in job.spec.output.include),
            timeout_seconds=job.spec.timeout_seconds,
            environ=os.environ,
            sink=progress_for(console, title=f"{identity.namespace}/{identity.name}", quiet=quiet),
            interrupts=interrupts,
            say=console.print,
            log=log,
        ).run()
    ending = Ending(
        identity=identity,
        status=ended.status,
        seconds=time.monotonic() - started,
        state=state.folder,
        again=again,
        results=ended.results,
        interrupted=ended.interrupted,
        simulated=is_simulated(job),
        cost=simulated_cost(job, ended.status.succeeded),
    )
    write_out(render(ending) + "\n")
    if ended.interrupted:
        return EXIT_INTERRUPTED
    return EXIT_COMPLETE if ended.status.phase is Phase.COMPLETE else EXIT_FAILED
