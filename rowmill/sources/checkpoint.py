"""Hints for formats read by bytes: "row `seq` begins at byte `offset`, on line `line`", with a check.

A hint comes back from a store, perhaps after the file was replaced or by another version of this code. Its check
binds the numbers to the file's size and to the bytes before the offset: a hint that does not fit is noticed and
not used, and reading skips from the start instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from rowmill.row import Position
from rowmill.sources.files import SourceBytes, SourceFile

TAIL_BYTES = 64
"""Bytes before the offset that the check covers."""

_GZIP_RATIO = 1_100  # deflate cannot pack tighter


class Checkpoint(NamedTuple):
    """A row's beginning in the content. `tail` are the last (up to 64) bytes before `offset`."""

    offset: int
    seq: int
    line: int
    tail: bytes

    def advanced(self, chunk: bytes, rows: int, lines: int) -> Checkpoint:
        """The checkpoint after `chunk`, which held so many rows and lines."""
        tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self.tail + chunk)[-TAIL_BYTES:]
        return Checkpoint(self.offset + len(chunk), self.seq + rows, self.line + lines, tail)

    def hint(self, *, kind: str, size: int) -> dict[str, Any]:
        """What goes into `Position.hint`; `kind` names the format and dialect."""
        return {
            "offset": self.offset,
            "seq": self.seq,
            "line": self.line,
            "check": self._check(kind=kind, size=size),
        }

    def _check(self, *, kind: str, size: int) -> str:
        bound = f"{kind}|{size}|{self.offset}|{self.seq}|{self.line}|".encode()
        return hashlib.blake2b(bound + self.tail, digest_size=12).hexdigest()


def resumed(start: Position, *, origin: Checkpoint, kind: str, file: SourceFile, stream: SourceBytes) -> Checkpoint:
    """The checkpoint to read on from, at or before `start.seq`: the hint's where it fits, else `origin`.

    Leaves `stream` at its offset.
    """
    found = _from_hint(start.hint)
    longest = file.size * (_GZIP_RATIO if file.gzipped else 1)
    if (
        found is not None
        and found.offset <= longest
        and origin.seq <= found.seq <= start.seq
        and found.offset >= origin.offset
    ):
        before = min(TAIL_BYTES, found.offset)
        stream.seek(found.offset - before)
        found = found._replace(tail=stream.read_exactly(before))
        if found.hint(kind=kind, size=file.size) == dict(start.hint):
            return found
    stream.seek(origin.offset)
    return origin


def _from_hint(hint: Mapping[str, Any]) -> Checkpoint | None:
    offset, seq, line = hint.get("offset"), hint.get("seq"), hint.get("line")
    if type(offset) is int and type(seq) is int and type(line) is int and offset >= 0:
        return Checkpoint(offset, seq, line, b"")
    return None
