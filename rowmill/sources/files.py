"""A file as a source's content: that it stays the same while it is read, its digest, its bytes with gzip undone.

States: as it was when opened → changed (for good). Whoever reads asks `unchanged()` after reading and before
handing on, so that no row of another content goes out under this one's fingerprint.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import stat
import zlib
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from rowmill.errors import InvalidInput, SourceChanged

SOURCE_PATH = "spec.source.uri"
READ_BYTES = 65_536
"""Bytes asked for at once: large enough that the cost of a read vanishes, small enough for the caches. A format makes
rows of such a piece in C, in steps of about a millisecond that no other thread of the interpreter can interrupt."""

_GZIP_MAGIC = b"\x1f\x8b"


class _Identity(NamedTuple):
    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _Identity:
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class SourceFile:
    """A regular file that is read several times and must be the same each time.

    `where` is how messages call it, `field` the part of the manifest that names it. Raises InvalidInput when it is
    absent, empty, no regular file or unreadable.
    """

    def __init__(self, *, path: Path, where: str, field: str = SOURCE_PATH) -> None:
        self.path = path
        self.where = where
        self._field = field
        try:
            status = os.stat(path)
            if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
                raise self.invalid("this is no regular file; copy its content into one")  # a pipe would block
            with open(path, "rb") as stream:
                self.magic = stream.read(8)
        except FileNotFoundError:
            raise self.invalid(f"there is no such file (looked for {path}); correct the path") from None
        except IsADirectoryError:
            raise self.invalid("this is a directory; name one file in it") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise self.invalid(f"the file cannot be read: {reason}") from None
        self._identity = _Identity.of(status)
        if status.st_size == 0:
            raise self.invalid("the file is empty; it needs a header or at least one row")

    @property
    def size(self) -> int:
        """Bytes on disk (compressed ones, where it is compressed)."""
        return self._identity.size

    @property
    def gzipped(self) -> bool:
        """Told by the content, not by the name: servers and tools undo gzip without renaming."""
        return self.magic.startswith(_GZIP_MAGIC)

    def invalid(self, message: str) -> InvalidInput:
        """The error for something wrong with the whole file."""
        return InvalidInput.one(self.where, self._field, message)

    def unchanged(self) -> None:
        """Raises SourceChanged when size, modification time or inode are not what they were at first."""
        try:
            now = _Identity.of(os.stat(self.path))
        except OSError:
            raise SourceChanged(
                f"{self.where}: the file was removed while it was in use; put it back and start again"
            ) from None
        if now != self._identity:
            raise SourceChanged(
                f"{self.where}: the file was changed while it was in use, so that its rows can no longer be told "
                "apart by their position; restore it, or start a new run (another runId) with the new content"
            )

    def open(self) -> SourceBytes:
        """A fresh stream of the content, gzip undone. Raises SourceChanged."""
        return SourceBytes(self)

    def digest(self, label: str) -> str:
        """`blake2b:…` of `label` and the content, gzip undone (its header holds a time)."""
        digest = hashlib.blake2b(label.encode() + b"\0", digest_size=32)
        with self.open() as stream:
            while piece := stream.read(READ_BYTES):
                digest.update(piece)
        self.unchanged()
        return f"blake2b:{digest.hexdigest()}"


class SourceBytes:
    """The content as a stream. Damaged gzip data raise InvalidInput, or SourceChanged where that is the reason."""

    def __init__(self, file: SourceFile) -> None:
        self._file = file
        file.unchanged()
        try:
            # SourceBytes is the context manager that closes it.
            stream = gzip.open(file.path, "rb") if file.gzipped else open(file.path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise file.invalid(f"the file cannot be read: {error.strerror}") from None
        self._stream: BinaryIO = cast(BinaryIO, stream)

    def __enter__(self) -> SourceBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def read(self, size: int) -> bytes:
        """Up to `size` bytes; none only at the end."""
        try:
            return self._stream.read(size)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self._file.unchanged()
            raise self._file.invalid("the gzip data are truncated or damaged; fetch the file again") from None
        except OSError as error:
            raise self._file.invalid(f"the file cannot be read: {error.strerror}") from None

    def read_exactly(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        pieces = []
        while size and (piece := self.read(size)):
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)

    def seek(self, offset: int) -> None:
        """Go to `offset` of the content (in gzip, by reading up to it)."""
        try:
            self._stream.seek(offset)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            self._file.unchanged()
            raise self._file.invalid("the gzip data are truncated or damaged; fetch the file again") from None
