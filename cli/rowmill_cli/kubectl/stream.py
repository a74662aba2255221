"""Bytes from a pod to a person, and the proof that all of them came.

A connection that breaks looks, to kubectl, like a program that has ended well. So the reader says at its end how many
bytes it wrote, and only what agrees with that is called complete.
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from rowmill_cli.kubectl.errors import ClusterError, NotNow
from rowmill_cli.kubectl.refusals import printable, spoken

RECEIPT: Final = "rowmill-receipt "
"""How the reader's last line begins; see `rowmill.results.reader`."""
IDLE_SECONDS: Final = 300.0
"""Without one byte, nor the end: the connection is taken for dead."""
CHUNK: Final = 256 * 1024


class Gone(Exception):
    """Whoever reads our standard output has left, as `head` does."""


class Target(Protocol):
    def write(self, data: bytes, /) -> object: ...


@dataclass(frozen=True, slots=True)
class Receipt:
    """What the reader says that it wrote."""

    outcomes: int
    bytes: int


def pump(source: BinaryIO, target: Target, *, idle: float = IDLE_SECONDS) -> int:
    """Copy until the end; returns the number of bytes. Raises ClusterError after `idle` silent seconds, Gone."""
    total = 0
    while True:
        ready, _, _ = select.select([source], [], [], idle)
        if not ready:
            raise ClusterError(
                f"nothing came from the reader for {idle:g} s: the connection is taken for dead. Try again"
            )
        data = os.read(source.fileno(), CHUNK)
        if not data:
            return total
        target.write(data)
        total += len(data)


def receipt_of(said: str) -> tuple[Receipt | None, list[str]]:
    """The receipt among what the reader said, and its other lines, without kubectl's own."""
    receipt, others = None, []
    for line in said.splitlines():
        if line.startswith(RECEIPT):
            receipt = _parsed(line.removeprefix(RECEIPT)) or receipt
        elif line.strip() and not line.startswith("command terminated with exit code"):
            others.append(printable(line))
    return receipt, others


def check(receipt: Receipt | None, *, came: int, code: int, said: list[str]) -> Receipt:
    """The receipt, if everything came. Raises ClusterError."""
    if code == 0 and receipt is not None and receipt.bytes == came:
        return receipt
    words = spoken("\n".join(said)).removeprefix("rowmill: ")
    if code and receipt is None and not came:
        if code == 1 and words:  # the reader looked, and there is nothing to be had
            raise NotNow(words)
        hint = " It ran out of memory" if code == 137 else ""
        raise ClusterError(f"the reader failed (exit code {code}): {words or 'it said nothing'}.{hint}".rstrip("."))
    of = f" of {receipt.bytes:,}" if receipt is not None else ""
    raise ClusterError(
        f"the results are not complete: {came:,}{of} bytes came before the connection ended"
        f"{f' ({words})' if words else ''}. Try again; for large runs have the results written to a store by "
        "spec.output.uri"
    )


@contextmanager
def standard_output() -> Iterator[Target]:
    """Our own, unbuffered by us."""
    yield _Standard(sys.stdout.buffer)
    sys.stdout.buffer.flush()


@contextmanager
def file_at(path: Path) -> Iterator[Target]:
    """A file that has its name only when the block ended well: what was there before stays until then.

    Raises ClusterError when it cannot be written.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name[:200]}.", delete=False) as file:
            temporary = Path(file.name)
            yield file
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
        temporary = None
    except OSError as error:
        raise ClusterError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


class _Standard:
    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def write(self, data: bytes, /) -> None:
        try:
            self._out.write(data)
            self._out.flush()
        except BrokenPipeError as error:
            # What is still buffered would fail again at exit: let it go where nobody minds.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Gone from error


def _parsed(line: str) -> Receipt | None:
    try:
        found = json.loads(line)
        return Receipt(int(found["outcomes"]), int(found["bytes"]))
    except (ValueError, TypeError, KeyError):
        return None


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
