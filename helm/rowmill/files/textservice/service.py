"""A small HTTP service that cleans up place names: what the demo sends its rows to.

    python examples/textservice/service.py --port 0     # its first line is its address; SIGTERM or Ctrl-C end it

`POST /v1/names` takes {"name": …, "city": …, "state": …} and answers

    {"name": "livingston municipal", "slug": "livingston-municipal-livingston-tx", "kind": "municipal",
     "also": [], "sound": "L152", "lookalike": "tx-L152", "words": ["livingston", "municipal"]}

400 means that the body is no JSON object, 422 that a field is missing or unusable (`error.field` says which), 413 that
it is too large. `GET /healthz` answers 200. Each call takes `--latency` milliseconds in the median, as real ones do.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from aiohttp import web

if __name__ == "__main__":  # run as a file: find the package from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.textservice.names import distinctive, kind_of, lookalike_key, soundex, take_apart, words_of

MAX_BODY_BYTES = 64 * 1024
MAX_TEXT = 200
PLACEHOLDERS = frozenset({"", "na", "n/a", "none", "null", "unknown", "-", "?"})
SPREAD = 0.35  # of the latency's logarithm: a tail, but a thin one


class Unusable(Exception):
    """A field that cannot be worked with; its text tells the caller why."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def text_field(given: dict[str, Any], field: str) -> str:
    """The field's text without blanks around it. Raises Unusable."""
    value = given.get(field)
    if not isinstance(value, str):
        raise Unusable(field, "is missing" if value is None else "must be a text")
    value = value.strip()
    if len(value) > MAX_TEXT:
        raise Unusable(field, f"has {len(value)} characters; at most {MAX_TEXT}")
    if value.lower() in PLACEHOLDERS:
        raise Unusable(field, f"is {value!r}, which names nothing; airports are told apart by name and place")
    return value


def describe(given: dict[str, Any]) -> dict[str, Any]:
    """The answer to one request. Raises Unusable."""
    name, city, state = (text_field(given, field) for field in ("name", "city", "state"))
    own = take_apart(name)
    if not own.words:
        raise Unusable("name", "has no letter or digit that we know how to write in a slug")
    place = words_of(city)
    sounding = distinctive(own.words)[0]
    return {
        "name": " ".join(own.words),
        "also": list(own.also),
        "words": list(own.words),
        "slug": "-".join([*own.words, *place, *words_of(state)]),
        "kind": kind_of(own.words),
        "sound": soundex(sounding),
        "lookalike": lookalike_key(own.words, place, state),
    }


def make_app(*, latency: Callable[[], float]) -> web.Application:
    """The service; `latency` gives the seconds that the next call takes."""

    async def names(request: web.Request) -> web.Response:
        try:
            given = json.loads(await request.read())
        except ValueError:
            return problem(400, None, "the body is not JSON")
        if not isinstance(given, dict):
            return problem(400, None, "the body must be a JSON object with name, city and state")
        await asyncio.sleep(latency())
        try:
            return web.json_response(describe(given))
        except Unusable as unusable:
            return problem(422, unusable.field, f"{unusable.field} {unusable}")

    async def healthz(request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.add_routes([web.post("/v1/names", names), web.get("/healthz", healthz)])
    return app


def problem(status: int, field: str | None, message: str) -> web.Response:
    return web.json_response({"error": {"field": field, "message": message}}, status=status)


class _Closed(asyncio.Protocol):
    """Tells when nobody holds the other end of a pipe any more."""

    def __init__(self, closed: asyncio.Event) -> None:
        self._closed = closed

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed.set()


async def serve(*, port: int, latency_ms: float, follow_stdin: bool) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if follow_stdin:
        await loop.connect_read_pipe(lambda: _Closed(stop), sys.stdin)
    rng = random.Random()
    seconds = latency_ms / 1000
    app = make_app(latency=lambda: seconds * rng.lognormvariate(0, SPREAD))
    runner = web.AppRunner(app, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=1)
        await site.start()
        print(f"http://127.0.0.1:{runner.addresses[0][1]}", flush=True)
        await stop.wait()
    finally:
        await runner.cleanup()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="service.py", description="Cleans up place names over HTTP.")
    parser.add_argument("--port", type=int, default=8765, help="on 127.0.0.1; 0 takes a free one (default 8765)")
    parser.add_argument("--latency", type=float, default=5.0, metavar="MS", help="median milliseconds a call")
    parser.add_argument(
        "--follow-stdin", action="store_true", help="end when standard input is closed: with whoever started this"
    )
    options = parser.parse_args(arguments)
    try:
        asyncio.run(serve(port=options.port, latency_ms=options.latency, follow_stdin=options.follow_stdin))
    except OSError as error:
        print(f"service.py: cannot listen on port {options.port}: {error.strerror}; try --port 0", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
