"""The service that `row_overhead` calls: reads a JSON body, answers a small JSON object. In a process of its own.

    python -m bench.endpoint

The first line of its output is its port; it ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import sys

import uvloop
from aiohttp import web

ANSWER = b'{"label": "billing", "confidence": 0.93, "tokens": {"prompt": 41, "completion": 3}}'


async def _answer(request: web.BaseRequest) -> web.Response:
    await request.read()
    return web.Response(body=ANSWER, content_type="application/json")


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = web.Server(_answer, access_log=None)
    listener = await loop.create_server(server, "127.0.0.1", 0, backlog=1024)
    print(listener.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    listener.close()
    await server.shutdown(1.0)


if __name__ == "__main__":
    uvloop.run(_serve())
