"""The `rowmill` command: what it is called, and how every ending becomes one message and one exit code.

0: done. 1: the job failed by its own policy. 2: an input, option or store that cannot be used as it is. 70: a
mistake in Rowmill itself (one line, and a file with the details). 130: interrupted.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

import click

from rowmill.errors import InvalidInput, RowmillError
from rowmill_cli.commands.results import results
from rowmill_cli.commands.retry import retry
from rowmill_cli.commands.run import run
from rowmill_cli.commands.validate import validate
from rowmill_cli.commands.worker import worker
from rowmill_cli.errors import InternalError

EXIT_INVALID = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rowmill")
def cli() -> None:
    """Run every row of a table through a service, and record exactly one outcome for each.

    \b
    A first run:
      rowmill validate job.yaml           is the manifest right?
      rowmill run job.yaml --limit 10     a canary: the first ten rows
      rowmill run job.yaml --dry-run      everything but the calls
      rowmill run job.yaml                the whole table; Ctrl-C, then the same again, goes on
      rowmill results --state DIR         what came of each row
      rowmill retry --state DIR           the failed rows, once more

    A local Redis and Postgres are started for the run and ended with it. Set ROWMILL_REDIS_URL and
    ROWMILL_POSTGRES_DSN to use servers of your own.
    """


for _command in (validate, run, results, retry, worker):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Prints every error as a person should read it, never a traceback."""
    try:
        # Not `cli.main`, which has endings of its own.
        given = list(sys.argv[1:] if arguments is None else arguments)
        with cli.make_context("rowmill", given) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_INVALID
    except InvalidInput as error:
        for line in error.lines():
            click.echo(line, err=True)
        return EXIT_INVALID
    except RowmillError as error:
        click.echo(f"rowmill: {error}", err=True)
        return EXIT_INVALID
    except (KeyboardInterrupt, click.Abort):
        click.echo("rowmill: interrupted", err=True)
        return EXIT_INTERRUPTED
    except InternalError as error:
        return _internal(error.__cause__ or error, error.details)
    except Exception as error:
        return _internal(error, _write_details())
    return code if isinstance(code, int) else 0


def _internal(error: BaseException, details: Path) -> int:
    reason = " ".join(str(error).split())[:300]
    click.echo(
        f"rowmill: something went wrong inside Rowmill: {type(error).__name__}: {reason} (details: {details}). "
        "Recorded outcomes are safe; the same command goes on.",
        err=True,
    )
    return EXIT_INTERNAL


def _write_details() -> Path:
    descriptor, name = tempfile.mkstemp(prefix="rowmill-error-", suffix=".log")
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(f"rowmill {' '.join(sys.argv[1:])}\n{traceback.format_exc()}")
    return Path(name)
