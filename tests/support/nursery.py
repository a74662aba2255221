"""Parts in processes of their own, born without paying for their imports: forked from one process that has done them.

A test process starts one nursery when it first needs one and ends it with its last test. The nursery imports every part
once, has neither threads nor an event loop, and forks. A child is a process like any other: it has its own memory, its
output goes to the files that it was given, it is seen by its pid and ends by any signal. It has no command line of
its own: its process name tells what it is, `rowmill-worker` for a worker.

For each birth the test process sends one message with three descriptors: standard output, standard error, and one end
of a pair of sockets. Over that pair the nursery answers with the pid at once and with the exit code when it has reaped
the child. Should the test process end, however, its end of the control socket closes, and the nursery kills what it
bore and ends: nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
PARTS = {
    "worker": "tests.support.worker_process",
    "engine": "tests.support.engine_process",
    "leaky": "tests.support.leaky_worker",
    "endpoint": "tests.support.endpoint",
}
"""Modules with a `main(arguments)`, which returns an exit code."""
_ALSO = (
    "rowmill.sources.csv_file",
    "rowmill_worker.executors.http",
)
"""What a part imports only when a job needs it."""
_MESSAGE_BYTES = 200_000
_BIRTH_SECONDS = 60.0


class Child:
    """A process that the nursery bore, with the methods of asyncio's `Process` that tests use."""

    def __init__(self, pid: int, notice: socket.socket) -> None:
        self.pid = pid
        self._notice = notice
        self._code: int | None = None
        self._ended = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(notice, self._look)

    @property
    def returncode(self) -> int | None:
        """The exit code; a signal's number, negative, where one ended it; None while it runs."""
        self._look()
        return self._code

    async def wait(self) -> int:
        await self._ended.wait()
        assert self._code is not None
        return self._code

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _look(self) -> None:
        if self._code is not None:
            return
        try:
            said = self._notice.recv(16)
        except BlockingIOError:
            return
        assert said, "the nursery has ended, and its children with it"
        self._code = int(said)
        self._loop.remove_reader(self._notice)
        self._notice.close()
        self._ended.set()


class Nursery:
    """Starts the process that forks. `close` ends it, and whatever it bore that still lives."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.nursery", str(theirs.fileno())],
                cwd=ROOT,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C is for the tests, which end what they started
            )

    def bear(
        self, part: str, arguments: Sequence[str], *, environ: Mapping[str, str], output: int, errors: int
    ) -> Child:
        """Start a part with these arguments; blocks for a millisecond, the first time until all parts are imported."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        message = json.dumps({"part": part, "arguments": list(arguments), "environ": dict(environ)}).encode()
        assert len(message) < _MESSAGE_BYTES, "arguments of this size are for a file"
        with theirs:
            socket.send_fds(self._control, [message], [output, errors, theirs.fileno()])
        ours.settimeout(_BIRTH_SECONDS)
        pid = ours.recv(16)
        assert pid, "the nursery has ended; it said why on standard error"
        ours.setblocking(False)
        return Child(int(pid), ours)

    def close(self) -> None:
        self._control.close()
        self._process.wait(60)


class _Kept:
    """The one nursery of this process, from its first use on."""

    nursery: Nursery | None = None


def nursery() -> Nursery:
    """The nursery of this test process."""
    if _Kept.nursery is None:
        _Kept.nursery = Nursery()
    return _Kept.nursery


def close_nursery() -> None:
    """End it, if there is one."""
    if _Kept.nursery is not None:
        _Kept.nursery.close()
        _Kept.nursery = None


# The process that forks.


def _serve(control: socket.socket) -> None:
    mains = {part: importlib.import_module(module).main for part, module in PARTS.items()}
    for module in _ALSO:
        importlib.import_module(module)
    assert threading.active_count() == 1, "a process with threads must not fork"
    gc.freeze()
    children: dict[int, tuple[int, socket.socket]] = {}  # by pidfd
    selector = selectors.DefaultSelector()
    selector.register(control, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is not control:
                pid, notice = children.pop(key.fd)
                selector.unregister(key.fd)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                with notice, contextlib.suppress(OSError):  # nobody may want to know any more
                    notice.send(str(os.waitstatus_to_exitcode(status)).encode())
                continue
            message, descriptors, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 3)
            if not message:
                for pid, _ in children.values():
                    os.kill(pid, signal.SIGKILL)
                return
            output, errors, notice_fd = descriptors
            notice = socket.socket(fileno=notice_fd)
            pid = os.fork()
            if pid == 0:
                selector.close()
                control.close()
                for other in (notice, *(sibling for _, sibling in children.values())):
                    other.close()
                for pidfd in children:
                    os.close(pidfd)
                wanted = json.loads(message)
                _live(wanted["part"], mains[wanted["part"]], wanted["arguments"], wanted["environ"], output, errors)
            os.close(output)
            os.close(errors)
            pidfd = os.pidfd_open(pid)
            children[pidfd] = (pid, notice)
            selector.register(pidfd, selectors.EVENT_READ)
            notice.send(str(pid).encode())


def _live(part: str, main: object, arguments: list[str], environ: dict[str, str], output: int, errors: int) -> None:
    """A child's whole life; does not return."""
    code: object = 1
    try:
        os.dup2(output, 1)
        os.dup2(errors, 2)
        os.close(output)
        os.close(errors)
        Path("/proc/self/comm").write_text(f"rowmill-{part}")
        os.environ.clear()
        os.environ.update(environ)
        assert callable(main)
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as _control:
        _serve(_control)
