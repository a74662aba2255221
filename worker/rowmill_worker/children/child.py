"""One child process, seen from its worker: starting → ready → gone.

Gone is final: a child that died, was ended, or said what no child of ours says is never called again; whoever wants one
starts another. Its death resolves every call that was open in it. Whatever it started is in its process group and ends
with it.

A call that is late, or that nobody waits for any more, is given up: a child that runs calls side by side is asked to
cancel it and, where it does not within `CANCEL_SECONDS`, ended; any other is ended at once, for nothing else stops what
it runs. Whoever waits for the other calls of a child that is ended is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from rowmill.telemetry.logging import Logger
from rowmill_worker.children.messages import (
    HEADER,
    MAX_ANSWER,
    Call,
    Cancel,
    Done,
    Failure,
    Ready,
    Request,
    Result,
    Setup,
    Unusable,
    decode_reply,
    frame,
)
from rowmill_worker.children.output import Output

CANCEL_SECONDS: Final = 0.5
"""How long a cancelled call may go on before its child is ended. A late row's worker waits no longer than a second."""

END_SECONDS: Final = 5.0
_LAST_WORDS_SECONDS: Final = 1.0  # what it said before it died may still be on the way
_STORES: Final = frozenset({"ROWMILL_POSTGRES_DSN", "ROWMILL_REDIS_URL"})
"""Variables of the worker that are no business of a user's function."""

Answer = bytes | Failure
"""An item's result as JSON text, or its failure."""


class ChildUnusable(Exception):
    """What the manifest asks for cannot be had: `field` below the executor's, `message` says what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field, self.message = field, message


class ChildFailed(Exception):
    """The child did not get ready; the text says how it ended."""


class ChildDied(Exception):
    """The child is gone before it had answered. `beside` counts the other calls that were open in it; `ended` tells
    that its worker ended it, for a reason that need not be this call's."""

    def __init__(self, how: str, *, beside: int, ended: bool) -> None:
        super().__init__(how)
        self.how, self.beside, self.ended = how, beside, ended


class CallLate(Exception):
    """The call was not done in time. `unclear` tells that its child did not even heed a cancel, and had other calls
    that may have been the reason."""

    def __init__(self, *, unclear: bool) -> None:
        super().__init__()
        self.unclear = unclear


class CallFailed(Exception):
    """The call failed as a whole."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Open:
    """A call that is not answered yet."""

    def __init__(self, size: int, done: asyncio.Future[None]) -> None:
        self.answers: list[Answer | None] = [None] * size
        self.failure: Failure | None = None
        self.done = done
        self.lost = False
        """Its child had to be ended for it."""


class Child:
    """Made by `start_child`."""

    def __init__(self, process: asyncio.subprocess.Process, *, log: Logger) -> None:
        self._process = process
        self._log = log
        self._wire: asyncio.Transport | None = None
        self._output: asyncio.BaseTransport | None = None
        self._lost = asyncio.Event()
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._open: dict[int, _Open] = {}
        self._last = 0
        self._gone = False
        self._given_up = False
        self._why = ""
        self._reaper: asyncio.Task[None] | None = None
        self.concurrent = False
        self.details: Mapping[str, Any] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it can be called."""
        return not self._gone

    @property
    def open_calls(self) -> int:
        return len(self._open)

    async def call(self, items: list[Any], *, within: float | None = None) -> list[Answer]:
        """Run items together; an answer for each. Raises CallFailed, CallLate (past `within` seconds, and half a second
        at most) and ChildDied; cancelling gives the call up."""
        if self._gone or self._wire is None:
            raise ChildDied(self._why or "it is gone", beside=0, ended=False)
        self._last += 1
        id = self._last
        try:
            message = frame(Call(id, items))
        except UnicodeEncodeError:
            raise CallFailed(
                _unfit("InvalidText", "the arguments hold a lone surrogate (half of a character)")
            ) from None
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CallFailed(_unfit("InvalidArguments", f"the arguments cannot be handed over: {error}")) from None
        opened = self._open[id] = _Open(len(items), asyncio.get_running_loop().create_future())
        try:
            self._wire.write(message)
            async with asyncio.timeout(within):
                await asyncio.shield(opened.done)
        except TimeoutError:
            unclear = self.concurrent and len(self._open) > 1
            self._give_up(id)
            await asyncio.wait([opened.done], timeout=2 * CANCEL_SECONDS)
            raise CallLate(unclear=unclear and opened.lost) from None
        except asyncio.CancelledError:
            self._give_up(id)
            raise
        if opened.failure is not None:
            raise CallFailed(opened.failure)
        answers = [answer for answer in opened.answers if answer is not None]
        if len(answers) != len(items):
            raise CallFailed(
                Failure(id, -1, "ExecutorError", f"{len(answers)} answers to {len(items)} rows", retryable=True)
            )
        return answers

    def _give_up(self, id: int) -> None:
        if id in self._open and self.concurrent and not self._gone:
            self._send(Cancel(id))
            asyncio.get_running_loop().call_later(CANCEL_SECONDS, self._end_for, id)
        else:
            self._end_for(id)

    def _end_for(self, id: int) -> None:
        """End the child, unless the call is done."""
        opened = self._open.pop(id, None)
        if opened is not None:
            opened.lost = self._given_up = True
            self.kill("a call in it took too long, or was cancelled, and went on")
            if not opened.done.done():
                opened.done.set_result(None)

    def kill(self, why: str) -> None:
        """SIGKILL to it and all that it started; the calls that are open in it are told why."""
        if self._process.returncode is None:
            self._gone = True
            self._why = self._why or why
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """End it, and wait at most five seconds until it has."""
        self._given_up = True
        self.kill("this worker stops")
        if self._reaper is not None:
            await asyncio.wait([self._reaper], timeout=END_SECONDS)

    # What it says.

    def _send(self, message: Request) -> None:
        if self._wire is not None and not self._gone:
            self._wire.write(frame(message))

    def _said(self, body: bytes) -> None:
        try:
            message = decode_reply(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.kill("it said something that is no answer")
            return
        if isinstance(message, Ready):
            if not self._ready.done():
                self.concurrent, self.details = message.concurrent, message.details
                self._ready.set_result(message)
        elif isinstance(message, Unusable):
            if not self._ready.done():
                self._ready.set_exception(ChildUnusable(message.field, message.message))
        elif isinstance(message, Done):
            opened = self._open.pop(message.call, None)
            if opened is not None and not opened.done.done():
                opened.done.set_result(None)
        elif (opened := self._open.get(message.call)) is not None:
            if isinstance(message, Failure) and message.index < 0:
                opened.failure = message
            elif 0 <= message.index < len(opened.answers):
                opened.answers[message.index] = message.value if isinstance(message, Result) else message

    async def _reap(self) -> None:
        """Wait for its end, then tell everybody who waits for it."""
        code = await self._process.wait()
        self._gone = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_SECONDS):
                await self._lost.wait()
        how = self._why = self._why or exit_in_words(code)
        beside = len(self._open) - 1
        for opened in self._open.values():
            if not opened.done.done():
                opened.done.set_exception(ChildDied(how, beside=beside, ended=self._given_up))
                opened.done.exception()  # whoever called may have gone
        self._open.clear()
        if not self._ready.done():
            self._ready.set_exception(ChildFailed(how))
            self._ready.exception()  # whoever started it may have gone
        for transport in (self._wire, self._output):
            if transport is not None:
                transport.close()
        if not self._given_up:
            self._log.warning("a process ended", process=self.pid, how=how)


class _Frames(asyncio.Protocol):
    """Cuts what arrives into frames."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._buffer = bytearray()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= HEADER.size:
            (size,) = HEADER.unpack_from(buffer, start)
            if size > MAX_ANSWER:
                self._child.kill("it said something that is no answer")
                buffer.clear()
                return
            end = start + HEADER.size + size
            if len(buffer) < end:
                break
            self._child._said(bytes(memoryview(buffer)[start + HEADER.size : end]))
            start = end
        del buffer[:start]

    def connection_lost(self, exc: Exception | None) -> None:
        self._child._lost.set()
        loop = asyncio.get_running_loop()
        loop.call_later(_LAST_WORDS_SECONDS, self._child.kill, "it closed its connection to the worker")


async def start_child(
    *, server: str, settings: dict[str, Any], environ: Mapping[str, str], within: float, log: Logger
) -> Child:
    """A child that is ready. Raises ChildUnusable and ChildFailed; it may take `within` seconds."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "rowmill_worker.children", str(theirs.fileno())),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
            pass_fds=(theirs.fileno(),),
            env={
                **{name: value for name, value in environ.items() if name not in _STORES},
                "PYTHONUNBUFFERED": "1",
            },
            start_new_session=True,
        )
    except BaseException as error:
        ours.close()
        os.close(read_end)
        if isinstance(error, OSError):
            raise ChildFailed(f"no process could be started: {error.strerror or error}") from None
        raise
    finally:
        theirs.close()
        os.close(write_end)
    child = Child(process, log=log)
    child._reaper = asyncio.create_task(child._reap(), name=f"child {process.pid}")
    try:
        child._wire, _ = await loop.create_connection(lambda: _Frames(child), sock=ours)
        child._output, _ = await loop.connect_read_pipe(
            lambda: Output(log=log, pid=lambda: process.pid, clock=loop.time), os.fdopen(read_end, "rb", 0)
        )
        child._send(Setup(server, settings))
        async with asyncio.timeout(within):
            await asyncio.shield(child._ready)
    except TimeoutError:
        await child.end()
        raise ChildFailed(f"it was not ready within {within:g} s") from None
    except BaseException:
        await child.end()
        raise
    return child


def _unfit(error_class: str, message: str) -> Failure:
    return Failure(0, -1, error_class, message, retryable=False)


def exit_in_words(code: int) -> str:
    """How a process ended, for a person."""
    if code >= 0:
        return f"it exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = {
        "SIGKILL": "; out of memory? Raise spec.workers.resources.limits.memory",
        "SIGSEGV": ", a crash in a native library",
        "SIGABRT": ", a crash in a native library",
    }
    return f"it was ended by {name}{hint.get(name, '')}"
