"""`row_overhead`: the worker's CPU a row against a bare aiohttp loop that makes the same call.

Both run in one process by turns, on uvloop, 32 calls at a time, against a service in another process. The loop has
what nobody can do without: rows that are decoded already, the same compiled template, one shared session, the answer
read and parsed. The worker is the whole one (`whole_worker.py`): reads from Redis, locks, looks up, a session a row,
headers, outcomes to Postgres, acknowledgements. Only CPU of this process counts: what it waits for costs nothing.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import aiohttp
import msgspec

from bench.children import module, started
from bench.report import Figure, Missing, median
from bench.runs import payload
from bench.whole_worker import CONCURRENCY, port_of, working
from rowmill.templating import compile_value
from rowmill_cli.local.servers import Endpoints

NAME = "row_overhead"
HEADERS = {"Content-Type": "application/json"}
BODY = {"text": "{{ row.text }}", "id": "{{ row.id }}"}


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, turns, rows = (1, 2, 100) if quick else (7, 6, 800)
    ratios, bare, worker = [], [], []
    gc.collect()
    gc.freeze()  # as the worker's own process does
    with started("the endpoint", module("endpoint"), stdin=True) as child:
        url = f"http://127.0.0.1:{port_of(child)}/"
        loop = BareLoop(url)
        http = {"url": url, "method": "POST", "body": BODY}
        async with working(stores, NAME, {"http": http}, rows * (turns * rounds + 2)) as whole:
            await loop.turn(rows)
            await whole.turn(rows)
            for number in range(1, rounds + 1):
                mine = theirs = 0.0
                for _ in range(turns):
                    theirs += await loop.turn(rows)
                    mine += await whole.turn(rows)
                bare.append(theirs / (turns * rows) * 1e6)
                worker.append(mine / (turns * rows) * 1e6)
                ratios.append(mine / theirs)
                say(f"round {number}: worker {worker[-1]:.0f} µs of CPU a row, bare loop {bare[-1]:.0f} µs")
            await whole.turn(rows)
        await loop.close()
    parts = {
        "CPU in µs a row": {"rowmill": median(worker), "bare aiohttp": median(bare)},
        "rows": f"{rounds} rounds of {turns} turns of {rows} each",
    }
    what = f"worker CPU a row over a bare aiohttp loop, concurrency {CONCURRENCY}"
    return [Figure(NAME, what, median(ratios), (1.6, 1.25), False, ratios, parts)]


class BareLoop:
    """What anybody would write: one session, as many tasks as calls at a time."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._template = compile_value(BODY, path="body")
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CONCURRENCY))

    async def turn(self, rows: int) -> float:
        """CPU seconds of so many rows."""
        waiting = iter([msgspec.json.decode(payload(seq)) for seq in range(1, rows + 1)])
        answers: list[Any] = []
        began = time.process_time()
        await asyncio.gather(*(self._slot(waiting, answers) for _ in range(CONCURRENCY)))
        cpu = time.process_time() - began
        assert len(answers) == rows
        return cpu

    async def _slot(self, waiting: Iterator[Mapping[str, Any]], answers: list[Any]) -> None:
        for row in waiting:
            body = msgspec.json.encode(self._template.render({"row": row}))
            async with self._session.post(self._url, data=body, headers=HEADERS) as response:
                answers.append(msgspec.json.decode(await response.read()))

    async def close(self) -> None:
        await self._session.close()
