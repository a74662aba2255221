"""Results in a file of this machine: complete, or not there.

Written page by page beside the target, and renamed when complete: whoever finds the file finds all of it. What it looks
like is told in `rowmill.results.formats`.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import AsyncIterable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Final

from rowmill.errors import InvalidInput
from rowmill.identity import RunIdentity
from rowmill.outcome import Outcome, State
from rowmill.results.formats import outcome_writer
from rowmill.results.openai_batch import batch_line
from rowmill.results.vectors import Vectors

_FORMATS: Final = {".jsonl": "JSONL", ".ndjson": "JSONL", ".csv": "CSV", ".parquet": "Parquet"}


def format_of(path: Path) -> str:
    """`JSONL`, `CSV` or `Parquet` by the suffix of `path`. Raises InvalidInput for any other."""
    try:
        return _FORMATS[path.suffix.lower()]
    except KeyError:
        raise InvalidInput.one(
            str(path), "", "results are written as .jsonl, .csv or .parquet: give the file one of these suffixes"
        ) from None


async def export(
    pages: AsyncIterable[Sequence[Outcome]],
    path: Path,
    *,
    columns: Sequence[str] = (),
    include: Iterable[State] = tuple(State),
    vectors: Vectors | None = None,
) -> int:
    """Write the outcomes whose state is in `include` to `path`, in the format of its suffix; returns how many.

    `pages` come ordered by seq; one at a time is held in memory. `columns` are the names that `output.columns`
    carries over, `vectors` is the type of results that are vectors. Raises InvalidInput where the place cannot be
    written; what stood at `path` before stays until all is written.
    """
    wanted = frozenset(include)
    format = format_of(path)
    count = 0
    with _replacing(path) as file:
        writer = outcome_writer(format, file, columns, vectors=vectors)
        try:
            async for page in pages:
                chosen = [outcome for outcome in page if outcome.state in wanted]
                with _explained(path):
                    writer.write(chosen)
                count += len(chosen)
            with _explained(path):
                writer.close()
        except BaseException:
            writer.abandon()
            raise
    return count


def error_file_of(path: Path) -> Path:
    """Where the error file goes that stands beside an output file of OpenAI's Batch API."""
    return path.with_name(f"{path.stem.removesuffix('_output')}_error{path.suffix}")


async def export_openai(pages: AsyncIterable[Sequence[Outcome]], path: Path, identity: RunIdentity) -> tuple[int, int]:
    """Write the outcomes as OpenAI's Batch API does: answers to `path`, failures to what `error_file_of` names; returns
    how many went to each.

    Both are complete, or what stood there stays; without a failure there is no error file, nor is an old one left.
    Raises InvalidInput where a place cannot be written or a result is not the server's whole answer.
    """
    if format_of(path) != "JSONL":
        raise InvalidInput.one(str(path), "", "OpenAI's batch files are JSONL: give the file the suffix .jsonl")
    errors = error_file_of(path)
    counts = {True: 0, False: 0}
    with _replacing(path) as answered, _replacing(errors) as failed:
        async for page in pages:
            lines = [batch_line(identity, outcome) for outcome in page]
            for error, file, place in ((False, answered, path), (True, failed, errors)):
                chosen = [line.text + "\n" for line in lines if line.error is error]
                counts[error] += len(chosen)
                with _explained(place):
                    file.write("".join(chosen).encode("utf-8", "backslashreplace"))
    if not counts[True]:
        with _explained(errors):
            errors.unlink(missing_ok=True)
    return counts[False], counts[True]


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file beside `path` that takes its place, complete and on disk, when the block ends well."""
    with contextlib.ExitStack() as ends:
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = ends.enter_context(
                tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False)
            )
        temporary = Path(file.name)
        try:
            yield file
            with _explained(path):
                file.flush()
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o666 & ~_umask())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    # Only around the file's own operations: the pages come over a connection, whose errors are OSErrors too.
    try:
        yield
    except OSError as error:
        raise InvalidInput.one(
            str(path),
            "",
            f"the results cannot be written there ({error.strerror}); they are safe in the state folder: name "
            "another place with --output PATH and run the same command again",
        ) from error


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
