"""A folder of an object store, or of this machine, as the place of a run's output."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rowmill.errors import InvalidInput
from rowmill.storage import AddressPolicy, ObjectStore, OutputFile, open_store
from rowmill_operator.results.layout import run_folder

FIELD = "spec.output"
MAX_CHECKPOINT_BYTES = 64 * 1024 * 1024
READ_BYTES = 1024 * 1024


class StoreFolder:
    """The objects right below the address of `store`."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    @property
    def uri(self) -> str:
        return self._store.uri

    def read(self, name: str) -> bytes | None:
        if not self._store.exists(name):
            return None
        data = bytearray()
        with self._store.open_input(name) as file:
            # In pieces: a buffer of all that may be there would be made at once.
            while piece := file.read(READ_BYTES):
                data += piece
                if len(data) > MAX_CHECKPOINT_BYTES:
                    raise InvalidInput.one(
                        f"{self.uri}{name}", f"{FIELD}.uri", "is not what Rowmill wrote: it is too large; delete it"
                    )
        return bytes(data)

    def put(self, name: str, data: bytes) -> None:
        self._store.put(name, data)

    def create(self, name: str) -> OutputFile:
        return self._store.open_output(name)

    def sizes(self) -> Mapping[str, int]:
        return {info.path: info.size for info in self._store.list() if "/" not in info.path}

    def delete(self, name: str) -> None:
        self._store.delete(name)


def open_folder(
    uri: str,
    run_id: str,
    *,
    credentials: Mapping[str, str] | None,
    ambient: bool,
    policy: AddressPolicy,
    spool: Path | None = None,
) -> StoreFolder:
    """The folder of a run below `output.uri`. Blocks; raises InvalidInput and PlaceUnavailable."""
    return StoreFolder(
        open_store(
            run_folder(uri, run_id),
            credentials=credentials,
            ambient=ambient,
            policy=policy,
            field=FIELD,
            spool=spool,
        )
    )
