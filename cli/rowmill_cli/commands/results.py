"""`rowmill results`: the recorded outcomes of the last run of a state folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rowmill.identity import RunIdentity


@click.command(short_help="Print what came of each row.")
@click.option(
    "--state",
    "folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="The state folder of the run, as `rowmill run` printed it.",
)
@click.option("--failed", is_flag=True, help="Only the rows that failed.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="Write them to a file (.jsonl, .csv or .parquet) instead of printing them as JSONL.",
)
@click.option(
    "--format",
    "format",
    type=click.Choice(["openai"]),
    help="Write the files of OpenAI's Batch API: answers to --output, failures beside it (…_error.jsonl).",
)
def results(folder: Path, failed: bool, output: Path | None, format: str | None) -> int:
    """Print what came of each row, one JSON object a line, in the order of the source.

    Works for a finished run and for an interrupted one (then it prints what there is so far), not while a command works
    on the same state folder.
    """
    from rowmill.errors import InvalidInput
    from rowmill_cli.interrupts import Interrupts
    from rowmill_cli.local.runner import kept_log, servers_of
    from rowmill_cli.local.state import State

    if format == "openai" and (output is None or failed):
        what = (
            "name the file by --output PATH"
            if output is None
            else "leave out --failed: failures get a file of their own"
        )
        raise InvalidInput.one("--format openai", "", what)
    with Interrupts() as interrupts, State.hold(folder, create=False) as state, kept_log(state):
        identity = state.last_run().identity
        with servers_of(state, os.environ, interrupts, _say, needs_redis=False) as (_, endpoints):
            count = asyncio.run(_write(endpoints.postgres_dsn, identity, failed=failed, output=output, format=format))
    if not count:
        _say(f"{identity}: no row has {'failed' if failed else 'an outcome yet'}")
    return 0


async def _write(dsn: str, identity: RunIdentity, *, failed: bool, output: Path | None, format: str | None) -> int:
    from rowmill.ledger import Ledger
    from rowmill.results import json_line, vectors_of_frozen
    from rowmill_cli.export import error_file_of, export, export_openai
    from rowmill_cli.local.runner import APPLICATION_NAME
    from rowmill_cli.output import write_out

    ledger = await Ledger.connect(dsn, application_name=APPLICATION_NAME)
    try:
        await ledger.migrate()
        record = await ledger.find_run(identity)
        if record is None:
            return 0
        async with contextlib.aclosing(ledger.results(record, failed_only=failed)) as pages:
            if output is not None and format == "openai":
                answered, refused = await export_openai(pages, output, identity)
                _say(
                    f"{answered:,} answers: {output}"
                    + (f"; {refused:,} failures: {error_file_of(output)}" if refused else "")
                )
                return answered + refused
            if output is not None:
                return await export(pages, output, vectors=vectors_of_frozen(record.frozen))
            count = 0
            async for page in pages:
                text = "".join([json_line(outcome) + "\n" for outcome in page])
                count += len(page)
                if not write_out(text):
                    break
            return count
    finally:
        await ledger.close()


def _say(message: str) -> None:
    click.echo(message, err=True)
