"""A real HTTP service that misbehaves on demand and writes down every call it received.

In a test's own process::

    async with Endpoint(plan=Plan(default=Behaviour("ok", latency=0.01)), log=path) as endpoint:
        ... endpoint.url, endpoint.stats(), await endpoint.wait(in_flight=4), endpoint.hold(), endpoint.release()

or in a process of its own, which outlives what is killed around it::

    python -m tests.support.endpoint --port 0 --log calls.jsonl --plan '{"default": {"kind": "echo"}}'

which prints its port as its first line and ends on SIGTERM. Paths that begin with `/_/` steer it (JSON):
`GET /_/stats`, `POST /_/plan`, `POST /_/hold`, `POST /_/release`, `GET /_/wait?in_flight=4&timeout=30`
(also `calls=`, `idle=1`). Everything else is a call.

The log is append-only JSONL, one `write` a line, and a line is written before what it tells of can be seen outside: a
call's start before its answer begins, its end (what it was answered, or `closed`, or `client gone`) as the answer is
handed to the connection. `n` joins the two. A call that is closed before its body was read has no `row` unless its
URL names it; its `key` it has always.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from tests.support.remote_endpoint import RemoteEndpoint as RemoteEndpoint
from tests.support.remote_endpoint import spawn as spawn

CLOSING = frozenset({"close_unread", "close_read", "close_mid", "reset"})
KINDS = CLOSING | frozenset(
    {
        *("ok", "echo", "text", "raw", "huge", "redirect", "hang", "garbage", "kill"),
        *("half", "half_chunked", "half_unframed"),
    }
)


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What one call meets.

    `ok` answers `body` (JSON; default `{"row": <row>, "ok": true}`) with `status`; `echo` the request's own JSON;
    `text` and `raw` answer `body` as it stands, as `content_type`; `redirect` to `location` with `status`; `huge`
    answers `size` bytes of JSON; `hang` never answers. The connection ends without an answer by `close_unread` (body
    left unread), `close_read`, `reset` (RST), within it by `close_mid`, `half`, `half_chunked`, `half_unframed`
    (`body`, whose end nothing tells). `garbage` is no HTTP. `kill` sends SIGKILL to the calling process, if its command
    line holds `match`. `latency` is in seconds; `held` waits for `release` even when nothing else does.
    """

    kind: str = "ok"
    status: int = 200
    latency: float = 0.0
    body: Any = None
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    location: str = ""
    size: int = 0
    held: bool = False
    match: str = ""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"no behaviour {self.kind!r}; one of {', '.join(sorted(KINDS))}")

    @classmethod
    def of(cls, value: Any) -> Behaviour:
        """From a mapping, or in short: a kind, or a status other than 200."""
        if isinstance(value, Behaviour):
            return value
        if isinstance(value, int):
            return cls("ok", status=value, body={"error": f"played {value}"})
        return cls(value) if isinstance(value, str) else cls(**value)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which call meets what: `rows` by row and by how often it has called (after its list, `default`); else at random.

    `rate` of the other calls meet one of `kinds`, by `seed`. `choose(row, nth)`, in process only, goes before
    everything where it returns a behaviour. `row_field` is where a JSON body names its row.
    """

    default: Behaviour = field(default_factory=Behaviour)
    rows: Mapping[str, Sequence[Behaviour]] = field(default_factory=dict)
    rate: float = 0.0
    kinds: Sequence[str] = ("close_unread", "close_read", "close_mid")
    seed: int = 0
    row_field: str = "row"
    choose: Callable[[str | None, int], Behaviour | None] | None = None

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Plan:
        """From JSON."""
        given = dict(value)
        given["default"] = Behaviour.of(given.get("default", "ok"))
        given["rows"] = {row: [Behaviour.of(b) for b in list_] for row, list_ in given.get("rows", {}).items()}
        return cls(**given)


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the log tells it; times in seconds since the epoch, `end` None where it never ended."""

    n: int
    row: str | None
    key: str | None
    request_id: str | None
    start: float
    end: float | None
    answered: str | None


def read_log(path: Path) -> list[Call]:
    """Every call in a log, by `n`; a last line that was cut by a kill is left out."""
    starts: dict[int, dict[str, Any]] = {}
    ends: dict[int, dict[str, Any]] = {}
    for line in path.read_bytes().split(b"\n")[:-1]:
        entry = msgspec.json.decode(line)
        (ends if "t_end" in entry else starts)[entry["n"]] = entry
    calls = []
    for n, entry in sorted(starts.items()):
        end = ends.get(n, {})
        calls.append(
            Call(
                n,
                end.get("row", entry["row"]),
                entry["key"],
                entry["request_id"],
                entry["t_start"],
                end.get("t_end"),
                end.get("answered"),
            )
        )
    return calls


class Endpoint:
    """The service; `async with` it. `log` is made when absent. `port` 0 takes a free one, told by `port` and `url`."""

    def __init__(
        self, *, plan: Plan | None = None, log: Path | None = None, port: int = 0, host: str = "127.0.0.1"
    ) -> None:
        self._plan = plan or Plan()
        self._rng = random.Random(self._plan.seed)
        self._log_path = log
        self._log = -1
        self.host, self.port = host, port
        self._server: web.Server | None = None
        self._listener: asyncio.Server | None = None
        self._calls_of: Counter[str] = Counter()
        self._answered: Counter[str] = Counter()
        self._held = 0
        self._calls = self._closed = self._in_flight = self._max_in_flight = 0
        self._open = asyncio.Event()
        self._open.set()
        self._never_held = asyncio.Event()
        self._watchers: list[tuple[Callable[[], bool], asyncio.Future[None]]] = []

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}/"

    async def __aenter__(self) -> Endpoint:
        if self._log_path is not None:
            self._log = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        # Handlers of callers that have gone are cancelled; idle connections are never closed from this side, so
        # that each close is one that was meant and counted.
        self._server = web.Server(
            self._handle, handler_cancellation=True, keepalive_timeout=86_400, access_log=None, lingering_time=1.0
        )
        self._listener = await asyncio.get_running_loop().create_server(
            self._server, self.host, self.port, backlog=4096
        )
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        assert self._listener is not None
        self._listener.close()
        self.release()
        await self._server.shutdown(timeout=0.2)
        await self._listener.wait_closed()
        if self._log >= 0:
            os.close(self._log)

    # -- what tests steer and ask ----------------------------------------------------------------------------------

    def play(self, plan: Plan) -> None:
        """Meet the calls from now on by another plan; how often a row has called starts anew."""
        self._plan = plan
        self._rng = random.Random(plan.seed)
        self._calls_of.clear()

    def hold(self) -> None:
        """Answer nothing until `release`; calls come in and count as in flight."""
        self._open.clear()

    def release(self) -> None:
        """Answer what was held, also what a `held` behaviour holds by now."""
        self._open.set()
        released, self._never_held = self._never_held, asyncio.Event()
        released.set()

    def stats(self) -> dict[str, Any]:
        """Counters; `closed` are the connections that were ended without a whole answer."""
        return {
            "calls": self._calls,
            "closed": self._closed,
            "in_flight": self._in_flight,
            "max_in_flight": self._max_in_flight,
            "rows": len(self._calls_of),
            "connections": len(self._server.connections) if self._server else 0,
            "answered": dict(self._answered),
        }

    async def wait(
        self, *, in_flight: int = 0, calls: int = 0, idle: bool = False, all_held: bool = False, timeout: float = 90.0
    ) -> dict[str, Any]:
        """Wait until at least so many calls are in flight, have come in, or none is in flight; then the counters.

        `all_held`: until every call in flight came after `hold`, so that none of them is answered before `release`.

        Raises TimeoutError after `timeout` seconds.
        """

        def reached() -> bool:
            return (
                self._in_flight >= in_flight
                and self._calls >= calls
                and not (idle and self._in_flight)
                and not (all_held and self._held != self._in_flight)
            )

        if not reached():
            future = asyncio.get_running_loop().create_future()
            watcher = (reached, future)
            self._watchers.append(watcher)
            try:
                await asyncio.wait_for(future, timeout)
            finally:
                self._watchers.remove(watcher)
        return self.stats()

    # -- calls -----------------------------------------------------------------------------------------------------

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path.startswith("/_/"):
            return await self._steer(request)
        self._calls += 1
        n = self._calls
        started = time.time()
        self._in_flight += 1
        self._max_in_flight = max(self._max_in_flight, self._in_flight)
        answered = "client gone"
        row = request.query.get("row") if request.query_string else None
        try:
            behaviour = self._random_close()
            if behaviour is None or behaviour.kind != "close_unread":
                content = await request.content.read()  # `request.read` would refuse a megabyte
                if row is None:
                    row = _row_in(content, self._plan.row_field)
            else:
                content = b""
            self._write_start(n, row, request, started)
            if self._watchers:
                self._changed()
            nth = 0
            if row is not None:
                self._calls_of[row] += 1
                nth = self._calls_of[row]
            if behaviour is None:
                behaviour = self._behaviour(row, nth)
            if not self._open.is_set():
                await self._wait_for_release()
            if behaviour.held:
                await self._never_held.wait()
            if behaviour.latency:
                await asyncio.sleep(behaviour.latency)
            if behaviour.kind == "hang":
                await asyncio.Event().wait()
            response, answered = self._answer(request, behaviour, row, content)
            return response
        finally:
            self._in_flight -= 1
            self._answered[answered] += 1
            self._write_end(n, row, answered)
            if self._watchers:
                self._changed()

    async def _wait_for_release(self) -> None:
        self._held += 1
        try:
            if self._watchers:
                self._changed()
            await self._open.wait()
        finally:
            self._held -= 1

    def _random_close(self) -> Behaviour | None:
        plan = self._plan
        if plan.rate and self._rng.random() < plan.rate:
            return Behaviour(self._rng.choice(plan.kinds))
        return None

    def _behaviour(self, row: str | None, nth: int) -> Behaviour:
        plan = self._plan
        if plan.choose is not None and (chosen := plan.choose(row, nth)) is not None:
            return chosen
        mine = plan.rows.get(row, ()) if row is not None else ()
        return mine[nth - 1] if 0 < nth <= len(mine) else plan.default

    def _answer(
        self, request: web.BaseRequest, behaviour: Behaviour, row: str | None, content: bytes
    ) -> tuple[web.StreamResponse, str]:
        kind = behaviour.kind
        if kind in ("ok", "echo", "huge"):
            if kind == "huge":
                body = b'{"filler": "' + b"x" * behaviour.size + b'"}'
            elif kind == "echo":
                body = content or b"null"
            else:
                value = {"row": row, "ok": True} if behaviour.body is None else behaviour.body
                body = msgspec.json.encode(value)
            return _response(behaviour, body), str(behaviour.status)
        if kind in ("text", "raw"):
            body = behaviour.body if isinstance(behaviour.body, bytes) else str(behaviour.body).encode()
            return _response(behaviour, body), str(behaviour.status)
        if kind == "redirect":
            headers = {"Location": behaviour.location, **behaviour.headers}
            return web.Response(status=behaviour.status, headers=headers), str(behaviour.status)
        if kind == "kill":
            killed = kill_caller(request, behaviour.match)
            return web.Response(status=500, text="" if killed else "no process to kill"), "killed" if killed else "500"
        self._closed += 1
        transport = request.transport
        if transport is not None:
            if kind == "reset":
                sock = transport.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
            else:
                if beginning := _BEGINNINGS.get(kind):
                    transport.write(beginning)
                if kind == "half_unframed":
                    transport.write(_UNFRAMED + str(behaviour.body).encode())
                transport.close()
        # Never written: the transport is closing, and aiohttp drops what comes after.
        return web.Response(), "closed"

    def _write_start(self, n: int, row: str | None, request: web.BaseRequest, started: float) -> None:
        if self._log >= 0:
            entry = {
                "n": n,
                "row": row,
                "key": request.headers.get("Idempotency-Key"),
                "request_id": request.headers.get("X-Request-Id"),
                "t_start": started,
            }
            os.write(self._log, msgspec.json.encode(entry) + b"\n")

    def _write_end(self, n: int, row: str | None, answered: str) -> None:
        if self._log >= 0:
            entry = {"n": n, "row": row, "t_end": time.time(), "answered": answered}
            os.write(self._log, msgspec.json.encode(entry) + b"\n")

    def _changed(self) -> None:
        for reached, future in self._watchers:
            if not future.done() and reached():
                future.set_result(None)

    async def _steer(self, request: web.BaseRequest) -> web.Response:
        match request.path.removeprefix("/_/"):
            case "stats":
                return web.json_response(self.stats())
            case "plan":
                self.play(Plan.of(json.loads(await request.read())))
            case "hold":
                self.hold()
            case "release":
                self.release()
            case "wait":
                query = request.query
                try:
                    stats = await self.wait(
                        in_flight=int(query.get("in_flight", 0)),
                        calls=int(query.get("calls", 0)),
                        idle=query.get("idle") == "1",
                        all_held=query.get("all_held") == "1",
                        timeout=float(query.get("timeout", 30)),
                    )
                except TimeoutError:
                    return web.json_response(self.stats(), status=504)
                return web.json_response(stats)
            case other:
                return web.json_response({"error": f"no /_/{other}"}, status=404)
        return web.json_response({})


_BEGINNINGS = {
    "close_mid": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"row": ',
    "half": b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 400\r\n\r\n{"row": ',
    "half_chunked": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\n[1,2,\r\n",
    "garbage": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
}
_UNFRAMED = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"


def _response(behaviour: Behaviour, body: bytes) -> web.Response:
    headers = {"Content-Type": behaviour.content_type, **behaviour.headers}
    if not behaviour.content_type:
        del headers["Content-Type"]
    return web.Response(status=behaviour.status, body=body, headers=headers)


def _row_in(content: bytes, field_: str) -> str | None:
    try:
        value = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    row = value.get(field_) if isinstance(value, dict) else None
    return None if row is None else str(row)


def kill_caller(request: web.BaseRequest, match: str) -> bool:
    """SIGKILL the process at the other end of a call, if `match` is its name or in its command line; whether it was."""
    import psutil

    peer = request.transport.get_extra_info("peername") if request.transport else None
    if not match or peer is None:
        return False
    for connection in psutil.net_connections("tcp"):
        if connection.laddr == peer[:2] and connection.pid not in (None, os.getpid()):
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(connection.pid)
                if match == process.name() or match in " ".join(process.cmdline()):
                    os.kill(connection.pid, signal.SIGKILL)
                    return True
    return False


async def _serve(options: argparse.Namespace) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with Endpoint(plan=Plan.of(json.loads(options.plan)), log=options.log, port=options.port) as endpoint:
        print(endpoint.port, flush=True)
        await stop.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="endpoint", description="A service that misbehaves on demand.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one; it is printed as the first line")
    parser.add_argument("--log", type=Path, help="append every call to this file (JSONL)")
    parser.add_argument("--plan", default="{}", help="JSON: default, rows, rate, kinds, seed, row_field")
    options = parser.parse_args(arguments)
    import uvloop

    uvloop.run(_serve(options))
    return 0


def closes(calls: Sequence[Call]) -> Iterator[Call]:
    """The calls whose connection was ended on purpose."""
    return (call for call in calls if call.answered == "closed")


if __name__ == "__main__":
    sys.exit(main())
