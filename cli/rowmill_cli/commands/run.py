"""`rowmill run`: a manifest, on this machine, with local workers."""

from __future__ import annotations

import shlex
from pathlib import Path

import click


@click.command(short_help="Run a manifest on this machine, or go on with it.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Worker processes, instead of what the manifest's spec.workers says.",
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N rows: a canary.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Where the results go: .jsonl, .csv or .parquet. [default: spec.output, else results.jsonl in the state]",
)
@click.option(
    "--state",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Where the run is remembered. [default: .rowmill/NAMESPACE-NAME beside FILE]",
)
@click.option(
    "--dry-run", is_flag=True, help="Everything but the calls (mode: Simulate); never counts as the real run."
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, only the report at the end.")
def run(
    file: Path,
    workers: int | None,
    limit: int | None,
    output: Path | None,
    folder: Path | None,
    dry_run: bool,
    quiet: bool,
) -> int:
    """Run the BatchJob in FILE on this machine, until every row has an outcome.

    Interrupt it whenever you like (Ctrl-C, or a crash): the same command goes on where it stopped, and no finished row
    is paid for again. A run that is complete is not run again; give it another spec.runId for that.

    \b
    Exit codes:
      0    complete (single rows may have failed; the report counts them)
      1    the job failed by its own failurePolicy or deadline
      2    an input or option that cannot be used; the message says which
      130  interrupted
    """
    from rowmill.spec import check_available, load_manifest_file
    from rowmill_cli.commands.execute import execute
    from rowmill_cli.interrupts import Interrupts
    from rowmill_cli.job import Options, effective, identity_here
    from rowmill_cli.local.state import State, default_folder

    manifest = file.absolute()
    given = load_manifest_file(file)
    check_available(given, where=str(file))
    job = effective(given, options=Options(workers=workers, limit=limit, dry_run=dry_run))
    identity = identity_here(job)
    folder = default_folder(manifest, identity) if folder is None else folder
    with Interrupts() as interrupts, State.hold(folder, create=True) as state:
        generation = state.retry_generation(identity)
        return execute(
            effective(job, options=Options(), retry_generation=generation),
            state=state,
            manifest=manifest,
            output=None if output is None else output.absolute(),
            again=_again(file, workers, limit, output, state.folder, dry_run, quiet),
            interrupts=interrupts,
            quiet=quiet,
        )


def _again(
    file: Path,
    workers: int | None,
    limit: int | None,
    output: Path | None,
    folder: Path,
    dry_run: bool,
    quiet: bool,
) -> str:
    parts = ["rowmill", "run", str(file)]
    for name, value in (("--workers", workers), ("--limit", limit), ("--output", output), ("--state", folder)):
        if value is not None:
            parts += [name, str(value)]
    parts += [name for name, wanted in (("--dry-run", dry_run), ("--quiet", quiet)) if wanted]
    return shlex.join(parts)
