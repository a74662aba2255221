"""The child's own side: takes calls from its socket and runs them, one at a time or, of async servers, side by side.

    python -m rowmill_worker.children FD

A thread reads the socket; the main thread works, for libraries that want it. The end of the socket is the end of the
worker: the child ends at once, whatever it runs, and the kernel is asked to see to it besides. Nothing of a row is ever
written anywhere but to the socket; standard output and error belong to the user's code, and go to the worker's log.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final, Protocol

from rowmill_worker.children.messages import (
    HEADER,
    Call,
    Cancel,
    Done,
    Failure,
    Ready,
    Reply,
    Request,
    Result,
    Setup,
    Unusable,
    decode_request,
    frame,
)

Answer = bytes | Failure
"""A result as JSON text, or a failure; its call and index are filled in here."""


class Unfit(Exception):
    """What the manifest asks for cannot be had: `field` below the executor's in the manifest, and what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class Blocking(Protocol):
    """A server that runs one call at a time."""

    details: dict[str, Any]

    def run(self, items: list[Any]) -> Iterator[Answer]:
        """An answer for each item, in order; or one Failure of index -1 for all of them. Raises nothing."""
        ...


class Concurrent(Protocol):
    """A server that runs calls side by side."""

    details: dict[str, Any]

    def arun(self, items: list[Any]) -> AsyncIterator[Answer]:
        """As `Blocking.run`; cancelled where nobody waits any more."""
        ...


_PR_SET_PDEATHSIG: Final = 1


def main(fd: int) -> None:
    """Serve until the worker is gone."""
    _die_with_the_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the worker's to handle: it drains
    connection = socket.socket(fileno=fd)
    connection.set_inheritable(False)  # what the function starts must not keep it open
    wire = Wire(connection)
    setup = wire.read()
    if not isinstance(setup, Setup):
        return
    try:
        module, _, name = setup.server.partition(":")
        server = getattr(importlib.import_module(module), name)(setup.settings)
    except Unfit as unfit:
        wire.send(Unusable(unfit.field, unfit.message))
        return
    concurrent = hasattr(server, "arun")
    wire.send(Ready(concurrent, server.details))
    if concurrent:
        asyncio.run(_serve_concurrently(wire, server))
    else:
        _serve(wire, server)


def _die_with_the_worker() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class Wire:
    """The child's end of the socket. Sends may come from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def send(self, message: Reply) -> None:
        try:
            with self._lock:
                self._connection.sendall(frame(message))
        except OSError:
            os._exit(0)

    def read(self) -> Request | None:
        """The next message, or None when the worker is gone."""
        try:
            header = self._exactly(HEADER.size)
            return None if header is None else decode_request(self._exactly(HEADER.unpack(header)[0]) or b"")
        except OSError:
            return None

    def _exactly(self, size: int) -> bytes | None:
        data = bytearray(size)
        view, filled = memoryview(data), 0
        while filled < size:
            count = self._connection.recv_into(view[filled:])
            if count == 0:
                return None
            filled += count
        return bytes(data)

    def read_all(self, take: Callable[[Request], None]) -> None:
        """Hand every message on, from a thread; when the worker is gone, so are we."""

        def reading() -> None:
            while (message := self.read()) is not None:
                take(message)
            os._exit(0)

        threading.Thread(target=reading, name="calls", daemon=True).start()


def _serve(wire: Wire, server: Blocking) -> None:
    calls: queue.SimpleQueue[Request] = queue.SimpleQueue()
    wire.read_all(calls.put)
    while True:
        call = calls.get()
        if isinstance(call, Call):
            for index, answer in enumerate(server.run(call.items)):
                wire.send(_addressed(call.id, index, answer))
            wire.send(Done(call.id))


async def _serve_concurrently(wire: Wire, server: Concurrent) -> None:
    loop = asyncio.get_running_loop()
    running: dict[int, asyncio.Task[None]] = {}

    async def one(call: Call) -> None:
        index = 0
        try:
            async for answer in server.arun(call.items):
                wire.send(_addressed(call.id, index, answer))
                index += 1
        finally:
            wire.send(Done(call.id))

    def take(message: Request) -> None:
        if isinstance(message, Call):
            task = running[message.id] = loop.create_task(one(message))
            task.add_done_callback(lambda _, id=message.id: running.pop(id, None))  # type: ignore[misc]
        elif isinstance(message, Cancel) and message.id in running:
            running[message.id].cancel()

    def hand_over(message: Request) -> None:
        loop.call_soon_threadsafe(take, message)

    wire.read_all(hand_over)
    await loop.create_future()


def _addressed(call: int, index: int, answer: Answer) -> Result | Failure:
    if isinstance(answer, bytes):
        return Result(call, index, answer)
    answer.call = call
    if answer.index >= 0:
        answer.index = index
    return answer
