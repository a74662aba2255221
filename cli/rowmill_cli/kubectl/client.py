"""The user's own kubectl, as a client: JSON in and out, every call bounded, every failure a sentence.

A call that takes long may be a login that waits for a person (a browser, a device code): what kubectl says meanwhile is
then shown as it comes. Watching and streaming are processes that whoever asked for them reads and ends.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from rowmill_cli.kubectl.errors import ClusterError, Unreachable
from rowmill_cli.kubectl.refusals import printable, refusal

Json = dict[str, Any]

BATCHJOBS: Final = "batchjobs.rowmill.dev"
REQUEST_SECONDS: Final = 20
"""kubectl's own limit on one request."""
CALL_SECONDS: Final = 180.0
"""Of a whole call: a login may wait for a person within it."""
QUIET_SECONDS: Final = 3.0
"""After so long, what kubectl says is shown while it says it."""
END_SECONDS: Final = 5.0
"""For a process that was told to end."""
TAIL_BYTES: Final = 64 * 1024
"""Of what a process says on standard error, the last of which is kept."""


@dataclass(frozen=True, slots=True)
class Access:
    """Which cluster, as whom, and in which namespace; None: as kubectl is set up."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: str | None = None
    user: str | None = None
    """To act as, as `kubectl --as`."""

    def flags(self) -> list[str]:
        """For kubectl, without the namespace."""
        given = (("--context", self.context), ("--kubeconfig", self.kubeconfig), ("--as", self.user))
        return [f"{name}={value}" for name, value in given if value]


class Kubectl:
    """`binary` is kubectl's path; `tell` shows a line to the person."""

    def __init__(
        self,
        *,
        binary: str,
        access: Access,
        tell: Callable[[str], object],
        call_seconds: float = CALL_SECONDS,
        quiet_seconds: float = QUIET_SECONDS,
    ) -> None:
        self.access = access
        self._command = [binary, *access.flags()]
        self._tell = tell
        self._call_seconds = call_seconds
        self._quiet_seconds = quiet_seconds

    # -- one call, one answer; each raises ClusterError

    def get(self, kind: str, name: str, *, namespace: str | None = None) -> Json:
        """One object; from the context's namespace where none is named. Raises Missing."""
        return self._json("get", kind, name, "-o", "json", *_within(namespace), doing=f"read the {_named(kind)} {name}")

    def list(
        self, kind: str, *, namespace: str | None = None, everywhere: bool = False, selector: str = ""
    ) -> list[Json]:
        where = ["--all-namespaces"] if everywhere else _within(namespace)
        chosen = ["-l", selector] if selector else []
        found = self._json("get", kind, "-o", "json", *where, *chosen, doing=f"list {_named(kind)}s")
        items = found.get("items")
        return [one for one in items if isinstance(one, dict)] if isinstance(items, list) else []

    def create(self, document: Mapping[str, Any]) -> Json:
        """Make an object in the namespace that it names. Raises Rejected."""
        metadata = document["metadata"]
        doing = f"create the {document['kind']} {metadata['namespace']}/{metadata['name']}"
        where = _within(metadata["namespace"])
        # Without validation by the client: that would need the server's schemas, and another right to read them.
        return self._json(
            "create", "--validate=false", "-f", "-", "-o", "json", *where, doing=doing, input=json.dumps(document)
        )

    def patch(self, kind: str, name: str, patch: Any, *, namespace: str, how: str) -> Json:
        """Change an object by a `merge` or a `json` patch; returns it as it is now. Raises Rejected, Missing."""
        given = ["--type", how, "-p", json.dumps(patch), "-o", "json", *_within(namespace)]
        return self._json("patch", kind, name, *given, doing=f"change the {_named(kind)} {namespace}/{name}")

    def delete(self, kind: str, name: str, *, namespace: str) -> None:
        """Delete an object that may not be there, without waiting. A Ctrl-C does not reach this call."""
        given = ["--ignore-not-found", "--wait=false", *_within(namespace)]
        self._call("delete", kind, name, *given, doing=f"delete the {_named(kind)} {namespace}/{name}", apart=True)

    def delete_ended_pods(self, *, namespace: str, selector: str) -> None:
        """Delete the pods that have ended among those that `selector` picks."""
        ended = "status.phase!=Running,status.phase!=Pending"
        given = ["-l", selector, f"--field-selector={ended}", "--ignore-not-found", "--wait=false", *_within(namespace)]
        self._call("delete", "pods", *given, doing="delete pods that have ended", apart=True)

    # -- processes

    @contextmanager
    def process(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], Said]]:
        """A kubectl whose standard output the caller reads; ended with the block."""
        with Said() as said:
            process = self._start(arguments, said, stdin=subprocess.DEVNULL)
            try:
                yield process, said
            finally:
                end(process)

    def watch(self, kind: str, name: str, *, namespace: str, seconds: int) -> Iterator[tuple[str, Json]]:
        """What happens to one object: `("ADDED", …)` for what there is, then each change; for at most `seconds`.

        Ends, without an error, whenever the connection does. Whoever wants to know why looks with `get`.
        """
        given = ["get", kind, name, "--watch", "--output-watch-events", "-o", "json", *_within(namespace)]
        with self.process(f"--request-timeout={seconds}s", *given) as (process, _):
            assert process.stdout is not None
            for event in documents(iter(lambda: os.read(process.stdout.fileno(), 65536), b"")):  # type: ignore[union-attr]
                found = event.get("object")
                if isinstance(found, dict):
                    yield str(event.get("type")), found

    def _json(self, *arguments: str, doing: str, input: str | None = None) -> Json:
        text = self._call(*arguments, doing=doing, input=input)
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise ClusterError(f"could not {doing}: kubectl's answer is no JSON object: {printable(text[:200])!r}")
        return found

    def _call(self, *arguments: str, doing: str, input: str | None = None, apart: bool = False) -> str:
        bounded = (f"--request-timeout={REQUEST_SECONDS}s", *arguments)
        with Said() as said:
            stdin = subprocess.PIPE if input is not None else None
            process = self._start(bounded, said, stdin=stdin, apart=apart)
            given = input.encode() if input is not None else None
            try:
                try:
                    out, _ = process.communicate(given, timeout=self._quiet_seconds)
                except subprocess.TimeoutExpired:
                    said.show(self._tell)
                    out, _ = process.communicate(timeout=self._call_seconds)
            except subprocess.TimeoutExpired as error:
                raise Unreachable(
                    f"could not {doing}: kubectl has not answered for {self._call_seconds:g} s and was ended. If it "
                    "waits for a login, log in first: `kubectl auth whoami`"
                ) from error
            finally:
                end(process)
            if process.returncode:
                raise refusal(said.text(), doing=doing)
        return out.decode("utf-8", "replace")

    def _start(
        self, arguments: Sequence[str], said: Said, *, stdin: int | None, apart: bool = False
    ) -> subprocess.Popen[bytes]:
        try:
            process = subprocess.Popen(
                [*self._command, *arguments],
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=said.end_of_writer,
                process_group=0 if apart else None,
            )
        except OSError as error:
            raise ClusterError(f"{self._command[0]} cannot be run: {error.strerror or error}") from error
        finally:
            said.begin()
        return process


class Said:
    """What one process says on standard error: read as it comes, the end of it kept."""

    def __init__(self) -> None:
        self._reader, self.end_of_writer = os.pipe()
        self._kept = bytearray()
        self._lock = threading.Lock()
        self._show: Callable[[str], object] | None = None
        self._shown = 0
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._began = False

    def __enter__(self) -> Said:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._began:
            os.close(self.end_of_writer)
            os.close(self._reader)
        else:
            self._thread.join(END_SECONDS)

    def begin(self) -> None:
        """The process has its end of the pipe."""
        os.close(self.end_of_writer)
        self._began = True
        self._thread.start()

    def show(self, tell: Callable[[str], object]) -> None:
        """Show what was said, and from now on each line."""
        with self._lock:
            self._show = tell
            self._tell_lines()

    def text(self) -> str:
        """All of it, once the process has ended."""
        self._thread.join(END_SECONDS)
        with self._lock:
            return self._kept.decode("utf-8", "replace")

    def _read(self) -> None:
        with os.fdopen(self._reader, "rb", buffering=0) as file:
            while data := file.read(8192):
                with self._lock:
                    self._kept += data
                    if (over := len(self._kept) - TAIL_BYTES) > 0:
                        del self._kept[:over]
                        self._shown = max(0, self._shown - over)
                    self._tell_lines()

    def _tell_lines(self) -> None:
        if self._show is None:
            return
        whole = self._kept.rfind(b"\n") + 1
        for line in self._kept[self._shown : whole].decode("utf-8", "replace").splitlines():
            # What ends a call is told as a sentence of ours.
            if line.strip() and not line.startswith(("Error", "error", "Unable to connect", "The connection to")):
                self._show(f"kubectl: {printable(line)}")
        self._shown = max(self._shown, whole)


def documents(chunks: Iterator[bytes]) -> Iterator[Json]:
    """JSON objects that follow each other in a stream, each as soon as it is whole."""
    decoder, text = json.JSONDecoder(), bytearray()
    for chunk in chunks:
        text += chunk
        if not chunk.rstrip().endswith(b"}"):
            continue
        decoded = text.decode("utf-8", "replace")
        at = 0
        while True:
            while at < len(decoded) and decoded[at].isspace():
                at += 1
            try:
                found, at = decoder.raw_decode(decoded, at)
            except ValueError:
                break
            if isinstance(found, dict):
                yield found
        text = bytearray(decoded[at:].encode())


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process that may have ended, and wait for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(END_SECONDS)
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            try:
                stream.close()
            except OSError:
                pass  # what was not read yet is of no use to anybody


def find_kubectl(environ: Mapping[str, str]) -> str:
    """The path of kubectl: what the variable KUBECTL names, else the first in PATH. Raises ClusterError."""
    wanted = environ.get("KUBECTL") or "kubectl"
    found = shutil.which(wanted, path=environ.get("PATH"))
    if found is None:
        raise ClusterError(
            f"there is no program {wanted} in your PATH. Install kubectl, or name it by the variable KUBECTL "
            "(KUBECTL=/path/to/kubectl)"
        )
    return found


def _within(namespace: str | None) -> list[str]:
    return [f"--namespace={namespace}"] if namespace else []


def _named(kind: str) -> str:
    return {BATCHJOBS: "BatchJob", "pod": "pod", "pods": "pod"}.get(kind, kind)
