"""`kubectl rowmill`: what it is called, and how every ending becomes one message and one exit code.

0: done. 1: the job failed (`status --watch`), or did not come to what was waited for (`--wait`). 2: cannot be done as
it was asked. 70: a mistake in Rowmill itself. 130: interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from rowmill.errors import RowmillError
from rowmill_cli.kubectl.commands import results, resume, retry, status, suspend

EXIT_INVALID = 2
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="rowmill")
def cli() -> None:
    """Look at BatchJobs on a cluster, read their results, and steer them. No access to a database is needed.

    \b
      kubectl rowmill status                       the jobs of this namespace
      kubectl rowmill status triage                one job: how far it is, why, what to do next
      kubectl rowmill status triage --watch        the same, until it has ended
      kubectl rowmill results triage               what came of each row, one JSON object a line
      kubectl rowmill results triage --failed      only the rows that failed
      kubectl rowmill retry triage                 run the failed rows again
      kubectl rowmill suspend triage               stop for now; finished rows are kept
      kubectl rowmill resume triage                go on

    \b
    It uses your own kubectl, so it sees the cluster that kubectl sees (KUBECTL names another binary).
    Exit codes: 0 done; 1 the job failed, or what was waited for did not come; 2 it cannot be done as
    asked, and why is said; 130 interrupted.
    """


for _command in (status, results, retry, suspend, resume):
    cli.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. Every error is a sentence for a person, never a traceback."""
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        with cli.make_context("kubectl rowmill", given) as context:
            code = cli.invoke(context)
    except click.exceptions.Exit as ending:
        return ending.exit_code
    except click.ClickException as error:
        error.show()
        return EXIT_INVALID
    except RowmillError as error:
        click.echo(f"rowmill: {error}", err=True)
        return EXIT_INVALID
    except (KeyboardInterrupt, click.Abort):
        click.echo("rowmill: interrupted", err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # whoever read has left, and would be written to again at exit
        return 0
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        click.echo(f"rowmill: something went wrong inside this plugin: {type(error).__name__}: {reason}", err=True)
        return EXIT_INTERNAL
    return code if isinstance(code, int) else 0
