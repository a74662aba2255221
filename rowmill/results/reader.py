"""A run's outcomes from the ledger to standard output: for people who have a shell in a pod, and no database.

    ROWMILL_POSTGRES_DSN=… python -m rowmill.results --namespace support --name triage --run-id 1 [--failed]

The ledger is read in pages of bounded bytes, and nothing is written to it. Exit codes: 0 done, also when whoever read
has gone; 1 the ledger does not know the run, or its outcomes were dropped after their retention; 2 an option or a
ledger that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final, Protocol, TextIO

from rowmill.errors import ResultsDropped, RowmillError
from rowmill.identity import RunIdentity
from rowmill.ledger import Ledger
from rowmill.results.formats import outcome_writer

DSN_VARIABLE: Final = "ROWMILL_POSTGRES_DSN"
INSTALLATION_VARIABLE: Final = "ROWMILL_INSTALLATION"
DEFAULT_INSTALLATION: Final = "rowmill"
EXIT_DONE, EXIT_UNKNOWN, EXIT_INVALID, EXIT_INTERRUPTED = 0, 1, 2, 130
RECEIPT: Final = "rowmill-receipt "
"""How the line begins by which whoever reads over a network knows that nothing was lost: `{"outcomes": …, "bytes": …}`
follows."""
_FORMATS: Final = {"jsonl": "JSONL", "csv": "CSV"}


class Out(Protocol):
    """What outcomes are written to."""

    def write(self, data: bytes, /) -> Any: ...

    def flush(self) -> Any: ...


class UnknownRun(RowmillError):
    """The ledger has no such run."""


async def stream_results(
    ledger: Ledger,
    identity: RunIdentity,
    out: Out,
    *,
    format: str = "JSONL",
    failed_only: bool = False,
    columns: Sequence[str] = (),
) -> int:
    """Write the outcomes of a run, so far as there are any, to `out`; returns how many.

    Raises UnknownRun, ResultsDropped, StoreUnavailable, and what `out` raises.
    """
    record = await ledger.find_run(identity)
    if record is None:
        raise UnknownRun(
            f"the ledger knows no run {identity} of the installation {identity.installation}: see that namespace, name "
            f"and runId are those of the BatchJob (status.run.id), and {INSTALLATION_VARIABLE} that of the operator"
        )
    writer = outcome_writer(format, out, columns)
    count = 0
    async with contextlib.aclosing(ledger.results(record, failed_only=failed_only)) as pages:
        async for page in pages:
            writer.write(page)
            out.flush()
            count += len(page)
    writer.close()
    out.flush()
    return count


def main(
    arguments: Sequence[str] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    out: BinaryIO | None = None,
    err: TextIO | None = None,
) -> int:
    """Run the command; returns its exit code. Every error is one line for a person."""
    err = sys.stderr if err is None else err
    options = _parser().parse_args(arguments)
    dsn = environ.get(DSN_VARIABLE)
    if not dsn:
        err.write(
            f"rowmill: {DSN_VARIABLE} is not set: it names the ledger, as postgresql://user:password@host/database\n"
        )
        return EXIT_INVALID
    installation = environ.get(INSTALLATION_VARIABLE) or DEFAULT_INSTALLATION
    identity = RunIdentity(installation, options.namespace, options.name, options.run_id)
    file = sys.stdout.buffer if out is None else out

    async def work() -> int:
        ledger = await Ledger.connect(dsn, application_name="rowmill results", connections=1)
        try:
            return await stream_results(
                ledger,
                identity,
                counted,
                format=_FORMATS[options.format],
                failed_only=options.failed,
                columns=options.column,
            )
        finally:
            await ledger.close()

    counted = _Counted(file)
    try:
        count = asyncio.run(work())
    except BrokenPipeError:
        # Whoever read has gone, as `head` does. What is still buffered would fail again at exit.
        if out is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_DONE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except (UnknownRun, ResultsDropped) as error:
        err.write(f"rowmill: {error}\n")
        return EXIT_UNKNOWN
    except RowmillError as error:
        err.write(f"rowmill: {error}\n")
        return EXIT_INVALID
    except OSError as error:
        err.write(f"rowmill: the results cannot be written: {error.strerror or error}\n")
        return EXIT_INVALID
    if options.receipt:
        err.write(f"{RECEIPT}{json.dumps({'outcomes': count, 'bytes': counted.bytes})}\n")
    if not count:
        err.write(f"{identity}: no row has {'failed' if options.failed else 'an outcome yet'}\n")
    return EXIT_DONE


class _Counted:
    """A file, and how many bytes were written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def write(self, data: bytes, /) -> None:
        self._file.write(data)
        self.bytes += len(data)

    def flush(self) -> None:
        self._file.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rowmill.results",
        description=f"Print what came of each row of a run. The ledger is named by {DSN_VARIABLE}, the installation by "
        f"{INSTALLATION_VARIABLE} (default: {DEFAULT_INSTALLATION}).",
    )
    parser.add_argument("--namespace", required=True, help="namespace of the BatchJob")
    parser.add_argument("--name", required=True, help="name of the BatchJob")
    parser.add_argument("--run-id", required=True, help="spec.runId (status.run.id) of the run")
    parser.add_argument("--failed", action="store_true", help="only the rows that failed")
    parser.add_argument(
        "--receipt",
        action="store_true",
        help="end with a line on standard error that says how many outcomes and bytes were written",
    )
    parser.add_argument("--format", choices=sorted(_FORMATS), default="jsonl", help="default: jsonl")
    parser.add_argument(
        "--column",
        action="append",
        default=[],
        metavar="NAME",
        help="with csv: a column of spec.output.columns that gets one here; may be given more than once",
    )
    return parser
