"""Copies of tables that were fetched, in one folder, shared by the runs of all processes that use the folder.

An entry is one address. Its files, after the entry's name (a digest of the address):

    NAME.lock         held exclusively by whoever fetches; nobody else touches the files below but to read or prune
    NAME.partial      what has been fetched so far, with NAME.partial.json: the validators that it belongs to
    NAME-*.content    a whole copy under a name of its own, never written to again; held shared by each reader
    NAME.json         which copy is the newest, its validators, and what tells that it is that very file

States: none → partial → copy in place (renamed) → described (NAME.json replaced). Failure at each step:

* killed while fetching: the lock goes with the process; the next one goes on behind the partial's last byte if the
  server confirms the validators, and the machine was not restarted since (a file's end may be lost with it);
* killed between the two renames: a copy that nothing describes and nobody holds: pruned;
* fetched anew while others read the old copy: theirs stays until they let go of it;
* pruned between looking and holding: whoever holds looks again.

Invariant: a copy is used only if its description fits it, and removed only by whoever holds it exclusively.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import msgspec

from rowmill.errors import PlaceUnavailable, RowmillError

_PARTIAL_SECONDS = 86_400.0
_LOCK_WAIT_SECONDS = 10.0
_LOCK_POLL_SECONDS = 0.05
_ROOM_STEP_BYTES = 64 * 1024 * 1024
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class CacheFailed(RowmillError):
    """The folder cannot be used: permissions, no folder. The text is the system's word for it."""


class CacheTooSmall(RowmillError):
    """One table alone is larger than the whole cache may be."""


class Validators(msgspec.Struct, frozen=True):
    """What a server said of a content: enough to tell whether it is still the same. `length` in bytes, where known."""

    etag: str | None = None
    last_modified: str | None = None
    length: int | None = None


class _Description(msgspec.Struct, frozen=True):
    content: str
    validators: Validators
    inode: int
    size: int
    mtime_ns: int


class _PartialOf(msgspec.Struct, frozen=True):
    validators: Validators
    if_range: str | None
    boot: str


class HeldCopy:
    """A copy that stays where it is until `close`. Safe to close twice."""

    def __init__(self, path: Path, validators: Validators, file: BinaryIO) -> None:
        self.path = path
        self.validators = validators
        self._file = file

    def close(self) -> None:
        self._file.close()  # and with it goes the lock


class Partial:
    """The bytes that were fetched so far. Only whoever holds the entry's lock has one."""

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache = cache
        self._data = cache.folder / f"{name}.partial"
        self._about = cache.folder / f"{name}.partial.json"
        self.validators: Validators | None = None
        self.if_range: str | None = None
        self.size = 0
        self._roomy = 0
        with contextlib.suppress(OSError, msgspec.DecodeError):
            known = msgspec.json.decode(self._about.read_bytes(), type=_PartialOf)
            if known.boot == _boot():
                self.size = self._data.stat().st_size
                self.validators, self.if_range = known.validators, known.if_range

    def restart(self, validators: Validators, *, if_range: str | None = None) -> None:
        """Forget what there is; what is appended from now on belongs to `validators`.

        `if_range` is what to ask the server by for the rest, should this break off.
        """
        with _disk():
            self._about.unlink(missing_ok=True)
            self._data.write_bytes(b"")
            self._about.write_bytes(msgspec.json.encode(_PartialOf(validators, if_range, _boot())))
        self.validators, self.if_range, self.size, self._roomy = validators, if_range, 0, 0

    def fill(self, pieces: Iterator[bytes]) -> None:
        """Append the pieces. What was written stays when `pieces` raises. Raises PlaceUnavailable, CacheTooSmall."""
        expected = self.validators.length if self.validators is not None else None
        with contextlib.ExitStack() as stack:
            with self._room():
                if expected is not None:
                    self._reserve(expected - self.size)
                file = stack.enter_context(open(self._data, "ab", buffering=0))
            for piece in pieces:
                with self._room():
                    if self.size + len(piece) > self._roomy:
                        self._reserve(max(len(piece), _ROOM_STEP_BYTES))
                    _write_all(file, piece)
                self.size += len(piece)
            with self._room():
                os.fsync(file.fileno())

    @contextlib.contextmanager
    def _room(self) -> Iterator[None]:
        """Where there is no room, what was fetched so far goes: kept, it would only stand in the way of others."""
        try:
            with _disk():
                yield
        except (PlaceUnavailable, CacheTooSmall):
            self.discard()
            raise

    def discard(self) -> None:
        """Remove it."""
        for path in (self._about, self._data):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        self.validators, self.if_range, self.size, self._roomy = None, None, 0, 0

    def publish(self, name: str, validators: Validators) -> None:
        """Make it the entry's newest copy."""
        folder = self._cache.folder
        with _disk():
            descriptor, unique = tempfile.mkstemp(prefix=f"{name}-", suffix=".content", dir=folder)
            os.close(descriptor)
            try:
                os.replace(self._data, unique)
                status = os.stat(unique)
                about = _Description(Path(unique).name, validators, status.st_ino, status.st_size, status.st_mtime_ns)
                self._about.write_bytes(msgspec.json.encode(about))
                os.replace(self._about, folder / f"{name}.json")
            except BaseException:
                Path(unique).unlink(missing_ok=True)
                raise
        self.validators, self.if_range, self.size, self._roomy = None, None, 0, 0

    def _reserve(self, more: int) -> None:
        self._cache.make_room(more, for_one=self.size + max(0, more))
        self._roomy = self.size + max(0, more)


class Cache:
    """The folder. `max_bytes` bounds what it holds (None: the disk does)."""

    def __init__(self, folder: Path, *, max_bytes: int | None = None) -> None:
        self.folder = folder
        self._max_bytes = max_bytes

    @staticmethod
    def name_of(address: str) -> str:
        """The entry's name. Whoever needs other credentials than others needs another address: put them into it."""
        return hashlib.blake2b(address.encode(), digest_size=20).hexdigest()

    @contextlib.contextmanager
    def fetching(self, name: str, *, wait: float = _LOCK_WAIT_SECONDS) -> Iterator[Partial]:
        """The entry for oneself. Waits for another who fetches for `wait` seconds, then raises PlaceUnavailable."""
        with _disk():
            self.folder.mkdir(parents=True, exist_ok=True)
        file = self._locked(self.folder / f"{name}.lock", wait)
        try:
            self._remove_leftovers()
            yield Partial(self, name)
        finally:
            file.close()

    def held(self, name: str) -> HeldCopy | None:
        """The newest copy, if there is a whole one."""
        description = self.folder / f"{name}.json"
        for _ in range(5):  # it may be replaced or pruned between two steps
            try:
                about = msgspec.json.decode(description.read_bytes(), type=_Description)
                path = self.folder / Path(about.content).name
                file = open(path, "rb")  # noqa: SIM115 - the copy keeps it
            except (OSError, msgspec.DecodeError):
                return None
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                status = os.fstat(file.fileno())
            except OSError:
                file.close()
                continue
            if not status.st_nlink:
                file.close()
                continue
            if (about.inode, about.size, about.mtime_ns) != (status.st_ino, status.st_size, status.st_mtime_ns):
                file.close()
                return None
            with contextlib.suppress(OSError):
                os.utime(description)  # when it was last used
            return HeldCopy(path, about.validators, file)
        return None

    def make_room(self, more: int, *, for_one: int) -> None:
        """See that `more` bytes fit, by removing copies that nobody holds.

        `for_one` is what the table is known to need altogether. Raises CacheTooSmall when no pruning could ever make
        room for it, PlaceUnavailable when others hold too much, or the disk has too little room.
        """
        if self._max_bytes is not None:
            if for_one > self._max_bytes:
                raise CacheTooSmall(
                    f"the table has more than the {self._max_bytes:,} bytes that may be kept of all tables"
                )
            left = prune_cache(self.folder, max_bytes=self._max_bytes - more)
            if left > self._max_bytes - more:
                raise PlaceUnavailable(
                    f"the cache {self.folder} is full of tables that running jobs read ({left:,} of "
                    f"{self._max_bytes:,} bytes); it goes on when one of them ends"
                )
        if more <= self._free():
            return
        prune_cache(self.folder, max_bytes=0)
        if more > (free := self._free()):
            raise PlaceUnavailable(
                f"the disk of the cache {self.folder} has {free:,} bytes free where {more:,} are needed; free some "
                "space, or give the cache a larger volume. It is tried again"
            )

    def _free(self) -> int:
        with _disk():
            disk = os.statvfs(self.folder)
        return disk.f_bavail * disk.f_frsize

    def _locked(self, path: Path, wait: float) -> BinaryIO:
        until = time.monotonic() + wait
        while True:
            with _disk():
                file = open(path, "ab")  # noqa: SIM115 - the caller closes it
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.exists(path) and os.stat(path).st_ino == os.fstat(file.fileno()).st_ino:
                    return file
                file.close()
                continue  # it was pruned in between
            except BlockingIOError:
                file.close()
            except BaseException:
                file.close()
                raise
            if time.monotonic() > until:
                raise PlaceUnavailable("another run is fetching the same table; this one waits for its copy")
            time.sleep(_LOCK_POLL_SECONDS)

    def _remove_leftovers(self) -> None:
        """Partial files that nobody has touched for a day."""
        for partial in self.folder.glob("*.partial"):
            with contextlib.suppress(OSError):
                if time.time() - partial.stat().st_mtime > _PARTIAL_SECONDS:
                    partial.with_name(partial.name + ".json").unlink(missing_ok=True)
                    partial.unlink()


def prune_cache(folder: Path, *, max_bytes: int | None) -> int:
    """Remove copies that nobody reads: those that newer ones replaced, then the least recently used, until the copies
    and partial files take at most `max_bytes` (None: only the replaced ones). Returns the bytes that are left.

    Safe while others fetch and read. Never raises for what cannot be removed.
    """
    copies = [found for path in folder.glob("*.content") if (found := _size_and_use(path)) is not None]
    left = sum(found.size for found in copies)
    for path in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            left += path.stat().st_size
    for found in sorted(copies, key=lambda found: found.used):
        replaced = found.used == 0.0
        if (replaced or (max_bytes is not None and left > max_bytes)) and _removed(found):
            left -= found.size
    for lock in folder.glob("*.lock"):
        _remove_lock(lock)
    return left


class _Found(NamedTuple):
    path: Path
    description: Path
    size: int
    used: float  # seconds since the epoch; 0 when a newer copy replaced it


def _size_and_use(path: Path) -> _Found | None:
    description = path.with_name(path.name.partition("-")[0] + ".json")
    try:
        size = path.stat().st_size
    except OSError:
        return None
    try:
        about = msgspec.json.decode(description.read_bytes(), type=_Description)
        used = description.stat().st_mtime if about.content == path.name else 0.0
    except (OSError, msgspec.DecodeError):
        used = 0.0
    return _Found(path, description, size, used)


def _removed(found: _Found) -> bool:
    """Remove a copy, unless somebody holds it or the entry is being fetched (the copy may be about to be described)."""
    name = found.path.name.partition("-")[0]
    try:
        with open(found.path.with_name(f"{name}.lock"), "ab") as lock, open(found.path, "rb") as file:
            if found.used == 0.0:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                again = _size_and_use(found.path)
                if again is None or again.used != 0.0:
                    return False
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found.path.unlink()
            return True
    except OSError:
        return False


def _remove_lock(lock: Path) -> None:
    """Remove an entry's lock and description when nothing else is left of it."""
    name = lock.name.removesuffix(".lock")
    if any(lock.parent.glob(f"{name}-*.content")) or lock.with_name(f"{name}.partial").exists():
        return
    try:
        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not any(lock.parent.glob(f"{name}-*.content")) and not lock.with_name(f"{name}.partial").exists():
                lock.with_name(f"{name}.json").unlink(missing_ok=True)
                lock.unlink()
    except OSError:
        return


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    """Errors of the cache's own disk, told apart from those of the network."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PlaceUnavailable(
                "the disk of the cache is full; free some space, or give the cache a larger volume. It is tried again"
            ) from None
        raise CacheFailed(f"the cache cannot be written: {reason}") from None


def _write_all(file: BinaryIO, piece: bytes) -> None:
    """An unbuffered file may take less than it is given."""
    view = memoryview(piece)
    while view:
        view = view[file.write(view) :]


def _boot() -> str:
    """Differs after the machine was restarted; the same text everywhere where that cannot be told."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""
