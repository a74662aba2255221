"""Secrets by reference: looked up once when a worker opens its executor, and never told again.

A value lives only in the header that carries it and in the `Redactor`, which takes it out of every text that is on
its way to a person. Neither shows it in `repr`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import quote, quote_plus

from rowmill.errors import InvalidInput

SECRETS_DIR_VARIABLE: Final = "ROWMILL_SECRETS_DIR"
"""Environment variable: the folder where `secretKeyRef` is found, as `<name>/<key>`."""

MAX_SECRET_BYTES: Final = 65_536

_MASK: Final = "[redacted]"
_MIN_REDACTED: Final = 4  # shorter values would tear ordinary words apart and hide nothing worth hiding
_MIN_REDACTED_PART: Final = 8
_SECRET_WORDS: Final = ("SECRET", "TOKEN", "STORAGE_KEY", "CREDENTIALS")  # others are names and addresses
_UNFIT: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class SecretReader:
    """Resolves `valueFrom`. Raises InvalidInput, which says what to set, where something is missing or unfit.

    `environ` is the process's environment, `where` names the manifest in messages. `file` references are resolved
    against `base` when relative.
    """

    def __init__(self, *, environ: Mapping[str, str], base: Path | None = None, where: str = "") -> None:
        self._environ = environ
        self._base = base or Path()
        self._where = where
        self._values: set[str] = set()

    def __repr__(self) -> str:
        return f"SecretReader({len(self._values)} read)"

    @property
    def folder(self) -> Path:
        """Where relative paths of the manifest count from."""
        return self._base

    def redactor(self) -> Redactor:
        """What takes every value that was read so far out of texts."""
        return Redactor(self._values)

    def from_env(self, name: str, *, path: str) -> str:
        """The value of an environment variable; `path` names the reference in the manifest."""
        value = self._environ.get(name)
        if value is None:
            raise self._bad(path, f"the environment variable {name} is not set; set it where the worker runs")
        return self._accept(value, path, f"the environment variable {name}")

    def from_file(self, file: str, *, path: str) -> str:
        """The content of a file, without one trailing newline."""
        return self._read(self._base / file, path, missing="create it, or correct the path")

    def from_secret(self, name: str, key: str, *, path: str) -> str:
        """The value of `key` in the Secret `name`: the file `<name>/<key>` in the folder of secrets."""
        for part in (name, key):
            if not part or "/" in part or "\0" in part or part in (".", ".."):
                raise self._bad(path, f"{part!r} cannot name a secret or a key of one")
        folder = self._environ.get(SECRETS_DIR_VARIABLE)
        if not folder:
            raise self._bad(
                path,
                f"the secret {name}, key {key}, is not to be had here; set {SECRETS_DIR_VARIABLE} to a folder that "
                f"holds the file {name}/{key}",
            )
        return self._read(
            Path(folder) / name / key, path, missing=f"put the value there ({SECRETS_DIR_VARIABLE} is {folder})"
        )

    def from_whole_secret(self, name: str, keys: Iterable[str], *, path: str) -> dict[str, str]:
        """Those of `keys` that the Secret `name` has, as they stand (a key may be a file of many lines).

        Raises InvalidInput where it has none of them.
        """
        folder = self._environ.get(SECRETS_DIR_VARIABLE)
        place = Path(folder) / name if folder else None
        found: dict[str, str] = {}
        for key in keys if place is not None else ():
            assert place is not None
            if not (place / key).is_file():
                continue
            raw = self._bytes(place / key, path, missing="put the value there")
            try:
                found[key] = raw.decode()
            except UnicodeDecodeError:
                raise self._bad(path, f"the file {place / key} is not UTF-8; write the value as text") from None
            if any(word in key for word in _SECRET_WORDS):
                self._values.add(found[key].strip())
        if not found:
            raise self._bad(
                path,
                f"the secret {name} is not to be had here, or has none of the keys that a store takes; "
                + (f"look into {place}" if place else f"set {SECRETS_DIR_VARIABLE} to a folder that holds {name}/KEY"),
            )
        self._values.discard("")
        return found

    def _bytes(self, file: Path, path: str, *, missing: str) -> bytes:
        try:
            with file.open("rb") as stream:
                raw = stream.read(MAX_SECRET_BYTES + 1)
        except OSError as exc:
            raise self._bad(path, f"the file {file} cannot be read ({exc.strerror}); {missing}") from None
        if len(raw) > MAX_SECRET_BYTES:
            raise self._bad(path, f"the file {file} is larger than {MAX_SECRET_BYTES:,} bytes; it is no header's value")
        return raw

    def _read(self, file: Path, path: str, *, missing: str) -> str:
        raw = self._bytes(file, path, missing=missing)
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            raise self._bad(path, f"the file {file} is not UTF-8; write the value as text") from None
        return self._accept(text, path, f"the file {file}")

    def _accept(self, value: str, path: str, what: str) -> str:
        # Editors and `echo` end a file with a newline that was never part of the value.
        value = value.removesuffix("\n").removesuffix("\r")
        if not value:
            raise self._bad(path, f"{what} is empty; put the value there")
        if _UNFIT.search(value):
            raise self._bad(path, f"{what} holds a line break or control character, which no header can carry")
        self._values.add(value)
        return value

    def _bad(self, path: str, message: str) -> InvalidInput:
        return InvalidInput.one(self._where, path, message)


class Redactor:
    """Takes known secret values, as they stand, escaped in JSON or encoded in a URL, out of texts."""

    def __init__(self, values: Iterable[str]) -> None:
        forms: set[str] = set()
        for value in values:
            # An endpoint may quote the token alone of "Bearer <token>".
            parts = [p for p in value.split() if len(p) >= _MIN_REDACTED_PART]
            for part in (value, *parts):
                if len(part) >= _MIN_REDACTED:
                    forms |= {part, json.dumps(part)[1:-1], quote(part, safe=""), quote_plus(part)}
        self._longest = max(map(len, forms), default=0)
        # The longest first, so that no part of a secret is left beside a shorter one's mask.
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None

    def __repr__(self) -> str:
        return "Redactor()"

    @property
    def longest(self) -> int:
        """Characters of the longest form: read this much past an excerpt, so that its cut splits no secret."""
        return self._longest

    def redact(self, text: str) -> str:
        """`text` with every secret value replaced by `[redacted]`."""
        return text if self._pattern is None else self._pattern.sub(_MASK, text)
