"""Files that a workflow made, from the server into a store: streamed, bounded, there whole or not at all.

    found → downloading (spooled on this machine) → uploading → there

A failure at any step leaves nothing in the store, and the file at the server: the next attempt finds the prompt by its
key, pays nothing, and downloads anew. Names do not change from attempt to attempt, so that one done twice is one file.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import aiohttp

from rowmill.errors import InvalidInput, PlaceUnavailable
from rowmill.spec.executors import ComfyUIStore
from rowmill.spec.source import uri_scheme
from rowmill.storage import CREDENTIALS, AddressPolicy, ObjectStore, OutputFile, open_store
from rowmill_worker.executors.caller import Caller
from rowmill_worker.executors.comfyui_answers import PATH
from rowmill_worker.executors.protocol import RowError
from rowmill_worker.executors.request import Request
from rowmill_worker.executors.secrets import SecretReader

FIELD: Final = f"{PATH}.store"
MARKER: Final = "_rowmill.json"
"""Stands in the folder of a run's files and names the run."""
_WRITE_BYTES: Final = 1_048_576
_KEPT: Final = "the server keeps what it made, and another attempt takes it from there without running the prompt again"


class Stored(NamedTuple):
    """A file in a store: where, how many bytes, its media type as the server told."""

    uri: str
    size: int
    media_type: str


class FileStore:
    """The folder of a run's files. `root` is how results name it; it ends without a slash."""

    def __init__(self, *, store: ObjectStore, root: str, folder: str, max_bytes: int) -> None:
        self._store, self._root, self._folder, self._max_bytes = store, root, folder, max_bytes

    async def receive(self, caller: Caller, request: Request, *, name: str, timeout: float) -> Stored:
        """Send `request` and put what it answers into the file `name`. Raises RowError.

        `timeout` in seconds bounds the call; what the store does is bounded by its own timeouts.
        """
        out = await _in_store(lambda: self._store.open_output(f"{self._folder}/{name}"))
        told: list[Any] = []
        try:
            await caller.send(request, timeout=timeout, read=self._reader(out, name, told))
            await _in_store(out.close)
        except BaseException:
            out.abandon()
            raise
        size, media_type = told
        return Stored(f"{self._root}/{self._folder}/{name}", size, media_type)

    def _reader(self, out: OutputFile, name: str, told: list[Any]) -> Callable[[aiohttp.ClientResponse, Request], Any]:
        async def read(response: aiohttp.ClientResponse, request: Request) -> bytes:
            size = 0
            waiting = bytearray()
            if (response.content_length or 0) > self._max_bytes:
                raise self._too_large(name)
            while chunk := await response.content.readany():
                size += len(chunk)
                if size > self._max_bytes:
                    raise self._too_large(name)
                waiting += chunk
                if len(waiting) >= _WRITE_BYTES:
                    await _in_store(_writing(out, bytes(waiting)))
                    waiting.clear()
            await _in_store(_writing(out, bytes(waiting)))
            told[:] = size, response.content_type
            return b""

        return read

    def _too_large(self, name: str) -> RowError:
        return RowError(
            "FileTooLarge",
            f"the file {name} is larger than {self._max_bytes:,} bytes; the prompt was run; raise {FIELD}.maxFileBytes",
            retryable=False,
        )


def open_files(spec: ComfyUIStore, *, job: Mapping[str, Any], secrets: SecretReader, where: str) -> FileStore:
    """The folder JOB/RUN below `spec.uri`, seen to take files. Blocks. Raises InvalidInput.

    The Secret's keys are used where one is named, else the process's own identity and environment: a worker is the
    tenant's own pod, so no address is refused to it.
    """
    uri = spec.uri if uri_scheme(spec.uri) else str((secrets.folder / spec.uri).absolute())
    credentials = None
    if spec.secret_name is not None:
        credentials = secrets.from_whole_secret(spec.secret_name, CREDENTIALS, path=f"{FIELD}.secretName")
    try:
        store = open_store(
            uri,
            credentials=credentials,
            ambient=credentials is None,
            policy=AddressPolicy.everything(),
            field=FIELD,
        )
    except ModuleNotFoundError as error:
        raise InvalidInput.one(
            where, FIELD, f"the worker's image has no {error.name}, which stores need; install it there"
        ) from None
    except PlaceUnavailable as error:
        raise InvalidInput.one(where, FIELD, f"the store cannot be reached: {error}") from None
    folder = f"{job['name']}/{job['runId']}"
    try:
        # Rather no row than thousands that are paid for and cannot be put anywhere. It stays, and says whose the files
        # are: whoever may write may not always delete.
        store.put(f"{folder}/{MARKER}", json.dumps(dict(job)).encode())
    except PlaceUnavailable:
        pass  # it passes, and rows are retried
    return FileStore(store=store, root=uri.rstrip("/"), folder=folder, max_bytes=spec.max_file_bytes)


async def _in_store(work: Callable[[], Any]) -> Any:
    """Run it on a thread. Raises RowError."""
    try:
        return await asyncio.to_thread(work)
    except InvalidInput as error:
        raise RowError("StoreRefused", f"{error}; {_KEPT}", retryable=False) from None
    except PlaceUnavailable as error:
        raise RowError("StoreUnavailable", f"{error}; {_KEPT}", retryable=True) from None


def _writing(out: OutputFile, data: bytes) -> Callable[[], Any]:
    return lambda: out.write(data)


__all__ = ["MARKER", "FileStore", "Stored", "open_files"]
