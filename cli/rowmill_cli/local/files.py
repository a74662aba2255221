"""Small files of the state folder, written so that a crash leaves the old content or the new one."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

MAX_LOG_BYTES = 8 * 1024 * 1024
"""A log longer than this is set aside as `<log>.1`, over the one that was there."""


def save_text(path: Path, text: str, *, mode: int = 0o644, durable: bool = True) -> None:
    """Replace `path` by `text` at once: written beside it, renamed. `mode` holds from the start.

    `durable` flushes to disk before the rename; without it a loss of power (not of the process) may lose the text.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        Path(name).chmod(mode)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def save_json(path: Path, value: Any, *, mode: int = 0o644, durable: bool = True) -> None:
    """`save_text` of `value` as indented JSON."""
    save_text(path, json.dumps(value, indent=2) + "\n", mode=mode, durable=durable)


def load_json(path: Path) -> Any:
    """The JSON value in `path`; None where the file is absent or holds none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


@contextlib.contextmanager
def open_log(path: Path) -> Iterator[IO[bytes]]:
    """`path` opened for appending (so that it may be cut while a process writes), set aside first if too long."""
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > MAX_LOG_BYTES:
            path.replace(path.with_name(path.name + ".1"))
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        yield log


def bound_log(path: Path, limit: int = MAX_LOG_BYTES) -> None:
    """Cut a log that a live process appends to once it is longer than `limit` bytes; what it held goes to `<log>.1`.

    Lines written between the copy and the cut are lost: a bounded log is worth more than its every line.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size <= limit:
            return
        path.with_name(path.name + ".1").write_bytes(path.read_bytes())
        os.truncate(path, 0)


def last_line(path: Path, *, within: int = 8192) -> str:
    """The last line with text in `path`, looked for in its last `within` bytes; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - within))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
