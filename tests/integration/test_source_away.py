"""A source whose server is away is waited for, not given up; nobody waits longer than the engine is wanted."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from rowmill.errors import InvalidInput
from rowmill.status import Phase
from rowmill_operator.engine import engine as engine_module
from tests.support.endpoint import spawn
from tests.support.engine_here import EngineHere
from tests.support.rig import Rig, eventually

ROWS = 20
BODY = b"id,text\n" + b"".join(b"%d,x\n" % n for n in range(1, ROWS + 1))


class Tables(ThreadingHTTPServer):
    """Serves one table; `statuses` are given out first, `cut` bytes of the table are sent before that."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.statuses: list[int] = []
        self.cut: int | None = None
        self.ranges: list[str | None] = []
        self.stall = threading.Event()
        self.stalls = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/table.csv"


class _Handler(BaseHTTPRequestHandler):
    server: Tables

    def do_GET(self) -> None:
        tables = self.server
        asked = self.headers.get("Range")
        tables.ranges.append(asked)
        if tables.statuses:
            self.send_response(tables.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(len(BODY) - start))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        self.end_headers()
        end, tables.cut = tables.cut, None
        self.wfile.write(BODY[start:end])
        self.wfile.flush()
        if tables.stalls:
            tables.stall.wait(60)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def tables() -> Iterator[Tables]:
    with Tables() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.stall.set()
        running.shutdown()
        thread.join()


@pytest.fixture
async def rig(
    tmp_path: Path, redis_url: str, postgres_dsn: str, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Rig]:
    monkeypatch.setattr(engine_module, "PLACE_RETRY_SECONDS", (0.01, 0.05))
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        async with Rig(tmp_path, redis_url=redis_url, postgres_dsn=postgres_dsn, endpoint=endpoint) as rig:
            rig.job(source={"uri": tables.url})
            yield rig


async def test_a_source_that_is_away_is_waited_for_and_told(rig: Rig, tables: Tables) -> None:
    tables.statuses, tables.cut = [503, 429, 500], 60
    await rig.start_worker(wait=False)
    async with EngineHere(rig) as engine:
        status = await engine.ended()
        told = [s.message for s in engine.statuses if s.message.startswith("waiting for the source: ")]
    assert (status.phase, status.succeeded, status.message) == (Phase.COMPLETE, ROWS, "")
    assert told[0] == (
        f"waiting for the source: {tables.url}: the server answered 503 Service Unavailable; it is tried again"
    )
    assert [answer for answer in told if "ended early" in answer] != []
    assert tables.ranges == [None, None, None, None, "bytes=60-"]


async def test_what_waiting_does_not_mend_ends_it(rig: Rig, tables: Tables) -> None:
    tables.statuses = [503, 404]
    async with EngineHere(rig) as engine:
        with pytest.raises(InvalidInput, match="404 Not Found; correct the address"):
            await engine.ended()
    assert tables.statuses == []


async def test_an_engine_that_waits_for_its_source_stops_when_told(
    rig: Rig, tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PLACE_RETRY_SECONDS", (600.0, 600.0))
    tables.statuses = [503] * 100
    async with EngineHere(rig) as engine:
        await engine.until(lambda s: s.message.startswith("waiting for the source"))
        engine.stop()
        assert (await engine.ended(within=90)).phase is Phase.PENDING
    assert len(tables.ranges) == 1


async def test_an_engine_whose_source_hangs_stops_when_told(rig: Rig, tables: Tables) -> None:
    """The socket's own patience is thirty seconds."""
    tables.cut, tables.stalls = 60, True
    async with EngineHere(rig) as engine:
        await eventually(lambda: bool(tables.ranges))
        engine.stop()
        await engine.ended(within=25)
    tables.stall.set()
    await eventually(lambda: not any("source" in thread.name for thread in threading.enumerate()))


async def test_a_copy_is_let_go_of_when_the_run_ends(rig: Rig, tables: Tables) -> None:
    await rig.start_worker(wait=False)
    async with EngineHere(rig) as engine:
        await engine.ended()
    (copy,) = rig.folder.glob("*.content")
    async with EngineHere(rig) as engine:
        assert (await engine.ended()).phase is Phase.COMPLETE
    assert copy.exists(), "a run that is complete needs no source"
    assert len(tables.ranges) == 1
