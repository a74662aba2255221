"""Objects below one address: read at any place, written whole or not at all, listed, deleted.

An object that is written passes these states: spooled (a nameless file on this machine; nothing to be seen elsewhere) →
uploading (in parts, where it is large; still nothing to be seen) → there. Failure at each step:

* abandoned, or the process dies, while spooling: the file goes with it;
* the upload fails or the process dies in it: S3 and GCS show nothing (S3 keeps the parts until a lifecycle rule removes
  them); Azure may show a shorter object, which is removed at once where the store answers, and overwritten by the next
  attempt in any case.

Why spooled: the library's streams cannot be aborted, they complete the object when they are collected. Whole content is
handed over at once, or nearly so, and a part that failed keeps S3's stream from completing: no failure can end in a
shorter object.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from rowmill.errors import InvalidInput, RowmillError
from rowmill.storage.addresses import AddressPolicy
from rowmill.storage.clients import Client, Credentials, make_client
from rowmill.storage.faults import fault
from rowmill.storage.place import Kind, Place, place_of, plain

READ_BUFFER_BYTES = 4 * 1024 * 1024
"""Bytes of a request while an object is read from front to back."""

_SEND_BYTES = 32 * 1024 * 1024
"""How much of an upload to S3 may be in memory at once."""

_RENEW_SECONDS = 300.0


class ObjectInfo(NamedTuple):
    """`path` is relative to the store; `version` changes whenever the content may have (entity tag, time, size)."""

    path: str
    size: int
    version: str


class OutputFile(io.RawIOBase):
    """An object being written; nothing is to be seen of it before `close`. Leaving a `with` by an error abandons it."""

    def __init__(self, spool: BinaryIO, commit: Callable[[BinaryIO], None], broken: Callable[[OSError], Exception]):
        super().__init__()
        self._spool = spool
        self._commit: Callable[[BinaryIO], None] | None = commit
        self._broken = broken

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Raises PlaceUnavailable when the disk for spooling is full."""
        try:
            return self._spool.write(data)
        except OSError as error:
            raise self._broken(error) from None

    def close(self) -> None:
        """Upload and commit. Raises InvalidInput, PlaceUnavailable; then nothing is there, and it may be done anew."""
        commit, self._commit = self._commit, None
        try:
            if commit is not None:
                try:
                    self._spool.flush()
                except OSError as error:
                    raise self._broken(error) from None
                commit(self._spool)
        finally:
            with contextlib.suppress(OSError):  # a full disk refuses the flush again
                self._spool.close()
            super().close()

    def abandon(self) -> None:
        """Forget it: nothing is uploaded. Safe to call twice, and after `close`."""
        self._commit = None
        with contextlib.suppress(OSError):
            self._spool.close()
        super().close()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.abandon()

    def __del__(self) -> None:
        # The base class would close, and so commit, what nobody finished.
        self.abandon()


class ObjectStore:
    """What lies below one address. Methods block, bounded by timeouts; they may be called from several threads.

    Paths are relative to the address, with `/` between parts; "" is the object that the address itself names. All raise
    InvalidInput (somebody must mend something) and PlaceUnavailable (it passes).
    """

    def __init__(
        self,
        place: Place,
        *,
        make: Callable[[], Client],
        where: str,
        field: str,
        spool: Path | None,
        wall: Callable[[], float],
    ) -> None:
        self._place = place
        self._make = make
        self._where = where
        self._field = field
        self._spool = spool
        self._wall = wall
        self._lock = threading.Lock()
        self._client = make()

    def __repr__(self) -> str:
        return f"ObjectStore({self._where!r})"

    @property
    def uri(self) -> str:
        """The address as it was given."""
        return self._where

    def info(self, path: str = "") -> ObjectInfo | None:
        """What is known of an object, or None where there is none."""
        key = self._key(path)
        with self._faults(f"looking for {_shown(path)}"):
            found = self._fs().get_file_info(key)
            if not found.is_file:
                return None
            return ObjectInfo(path, int(found.size), self._version(key, found))

    def absent(self, path: str = "") -> InvalidInput:
        """The error for an object that is not there, which tells whether its bucket is."""
        missing = f"there is no {_shown(path)}" if path else "there is no such object"
        if self._place.kind is not Kind.LOCAL:
            kind = "container" if self._place.kind is Kind.AZURE else "bucket"
            with contextlib.suppress(RowmillError), self._faults("looking for the bucket"):
                if self._fs().get_file_info(self._place.bucket).type == _not_found():
                    missing = f"the {kind} {self._place.bucket} does not exist"
        return InvalidInput.one(
            self._where, f"{self._field}.uri", f"{missing}; correct the address, or put there what it names"
        )

    def exists(self, path: str = "") -> bool:
        """Whether there is such an object (a folder is none)."""
        key = self._key(path)
        with self._faults(f"looking for {_shown(path)}"):
            return bool(self._fs().get_file_info(key).is_file)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """The objects whose path begins with `prefix` (as text), at any depth, sorted by path. None: an empty list.

        Versions are of size and time alone.
        """
        from pyarrow import fs

        folder, _, _ = prefix.rpartition("/")
        with self._faults("listing"):
            selector = fs.FileSelector(self._key(folder), recursive=True, allow_not_found=True)
            found = self._fs().get_file_info(selector)
        root = self._key("").rstrip("/")
        cut = len(root) + 1 if root else 0
        infos = [ObjectInfo(f.path[cut:], int(f.size), _brief(f)) for f in found if f.is_file]
        return sorted(info for info in infos if info.path.startswith(prefix))

    def open_input(self, path: str = "") -> io.BufferedReader:
        """An object's content, seekable, fetched in requests of a few MB. Close it."""
        key, what = self._key(path), f"reading {_shown(path)}"
        with self._faults(what):
            native = self._fs().open_input_file(key)
        return io.BufferedReader(_Input(native, lambda: self._faults(what)), READ_BUFFER_BYTES)

    def put(self, path: str, content: bytes) -> None:
        """Write an object whole, over what may be there."""
        self._upload(path, content)

    def open_output(self, path: str) -> OutputFile:
        """A file to write an object of any size into; it is uploaded in parts on `close`."""
        self._key(path)

        def broken(error: OSError) -> Exception:
            # Spooling is on this machine, whatever the store is.
            return fault(error, place=Place(Kind.LOCAL, "", ""), where=self._where, field=self._field, what="spooling")

        try:
            if self._spool is not None:
                self._spool.mkdir(parents=True, exist_ok=True)
            # The output closes it.
            spool: Any = tempfile.TemporaryFile(dir=self._spool)  # noqa: SIM115
        except OSError as error:
            raise broken(error) from None
        return OutputFile(spool, lambda file: self._commit(path, file), broken)

    def delete(self, path: str) -> None:
        """Remove an object; that there is none is fine."""
        key = self._key(path)
        with self._faults(f"deleting {_shown(path)}"):
            try:
                self._fs().delete_file(key)
            except FileNotFoundError:
                return

    def _commit(self, path: str, file: BinaryIO) -> None:
        if os.fstat(file.fileno()).st_size == 0:
            self._upload(path, b"")
            return
        # Not closed by hand: an error's traceback may still look at it.
        self._upload(path, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))

    def _upload(self, path: str, content: bytes | mmap.mmap) -> None:
        import pyarrow as pa

        key = self._key(path)
        with self._faults(f"writing {_shown(path)}"):
            filesystem = self._fs()
            if self._place.kind is Kind.LOCAL:
                _write_file(Path(key), content)
                return
            buffer = pa.py_buffer(content)
            try:
                out = filesystem.open_output_stream(key)
                try:
                    self._send(out, buffer)
                finally:
                    out.close()
            except Exception:
                if self._place.kind is Kind.AZURE:
                    with contextlib.suppress(Exception):
                        filesystem.delete_file(key)
                raise

    def _send(self, out: Any, buffer: Any) -> None:
        """The library copies what it has not sent yet: at S3, let it send before it gets more.

        Not at Azure, where a flush shows what there is so far.
        """
        step = _SEND_BYTES if self._place.kind is Kind.S3 else max(1, buffer.size)
        for start in range(0, buffer.size, step):
            out.write(buffer.slice(start, min(step, buffer.size - start)))
            if start + step < buffer.size:
                out.flush()

    def _fs(self) -> Any:
        with self._lock:
            expires = self._client.expires
            if expires is not None and self._wall() > expires - _RENEW_SECONDS:
                self._client = self._make()
            return self._client.fs

    def _key(self, path: str) -> str:
        if self._place.kind is Kind.LOCAL:
            if not plain(path):
                raise ValueError(f"{path!r} is no path below {self._where}")
            return os.path.join(self._place.path, path) if path else self._place.path
        if not plain(path):
            raise ValueError(f"{path!r} is no path below {self._where}")
        return "/".join(part for part in (self._place.bucket, self._place.path, path) if part)

    def _version(self, key: str, found: Any) -> str:
        """Two contents of one second and one size still differ by their entity tag, where the store has one."""
        if self._place.kind is Kind.LOCAL:
            status = os.stat(key)
            return f"{status.st_ino}/{status.st_mtime_ns}/{status.st_size}"
        with self._fs().open_input_file(key) as stream:
            told: Mapping[Any, Any] = stream.metadata() or {}
        lower = {_text(name).lower(): _text(value) for name, value in told.items()}
        return f"{lower.get('etag', '')}/{_brief(found)}"

    @contextlib.contextmanager
    def _faults(self, what: str) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except RowmillError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise fault(error, place=self._place, where=self._where, field=self._field, what=what) from None


class _Input(io.RawIOBase):
    """A library's file as one of Python's, with our errors."""

    def __init__(self, native: Any, faults: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
        super().__init__()
        self._native = native
        self._faults = faults

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with self._faults():
            return int(self._native.seek(offset, whence))

    def tell(self) -> int:
        return int(self._native.tell())

    def readinto(self, buffer: Any) -> int:
        with self._faults():
            return int(self._native.readinto(buffer))

    def close(self) -> None:
        if not self.closed:
            with self._faults():
                self._native.close()
        super().close()


def open_store(
    uri: str,
    *,
    credentials: Mapping[str, str] | None,
    ambient: bool,
    policy: AddressPolicy,
    field: str = "spec.source",
    spool: Path | None = None,
    wall: Callable[[], float] = time.time,
) -> ObjectStore:
    """The store below `uri`: `s3://`, `gs://`, `az://`, or a path where `policy` allows files.

    `credentials` are a Secret's keys, named as the vendor's environment variables; None: requests go unsigned, or with
    `ambient`, by this process's own identity. `field` (`spec.source`, `spec.output`) is the part of the manifest that
    messages speak of; `spool` the folder for what is written (default: the system's). Blocks: it may resolve a host and
    ask for a token. Raises InvalidInput, PlaceUnavailable.
    """
    place = place_of(uri, field=f"{field}.uri")
    keys = Credentials(credentials) if credentials is not None else None

    def make() -> Client:
        return make_client(place, credentials=keys, ambient=ambient, policy=policy, where=uri, field=field)

    return ObjectStore(place, make=make, where=uri, field=field, spool=spool, wall=wall)


def _write_file(path: Path, content: bytes | mmap.mmap) -> None:
    """A file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(prefix=path.name[:100] + ".", suffix=".partial", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def _not_found() -> Any:
    from pyarrow import fs

    return fs.FileType.NotFound


def _brief(found: Any) -> str:
    return f"{found.mtime_ns}/{found.size}"


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _shown(path: str) -> str:
    return path or "the object"
