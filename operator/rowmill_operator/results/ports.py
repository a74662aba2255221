"""The folder of an object store that a run's output is written to, as the writer needs it.

Every call blocks and is made in a thread; every call has a timeout of its own. Errors are told apart by what helps:
`PlaceUnavailable` waiting, `InvalidInput` a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol


class OutputObject(Protocol):
    """An object that is being written. Nobody sees any of it before `close` has returned."""

    def write(self, data: bytes, /) -> object: ...

    def close(self) -> object:
        """Make it visible as a whole, in the place of one of the same name."""

    def abandon(self) -> object:
        """Leave nothing behind; what stood under the name stays."""


class Folder(Protocol):
    """Objects of one run. Each is there whole or not at all; `name` has no slash in it.

    Every method raises PlaceUnavailable and InvalidInput, with a message that names the place.
    """

    @property
    def uri(self) -> str:
        """For people: ends with a slash."""

    def read(self, name: str) -> bytes | None:
        """The whole of a small object; None where there is none."""

    def put(self, name: str, data: bytes) -> None:
        """A small object, in the place of one of the same name."""

    def create(self, name: str) -> OutputObject:
        """An object that is written piece by piece."""

    def sizes(self) -> Mapping[str, int]:
        """The names that are there, with their sizes in bytes."""

    def delete(self, name: str) -> None:
        """Nothing where it is gone already."""
