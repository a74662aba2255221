"""`executor_overhead`: the worker's CPU a row with each executor that speaks HTTP, over that with the executor `http`.

All in one process by turns, on uvloop, 32 rows at a time, against one service in another process that answers what is
ready in the shape of each. Everything else of the row's way is the same for all, and is counted for all: what the ratio
shows is what an executor adds to a call (a larger body to render, a larger answer to read, to judge and to count).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

from bench.children import module, started
from bench.report import Figure, Missing, median
from bench.whole_worker import CONCURRENCY, port_of, working
from rowmill_cli.local.servers import Endpoints

NAME = "executor_overhead"
BASE = "http"
AIM = 1.5
SEVERAL_CALLS = frozenset({"comfyui"})
"""Executors whose row is several calls; there is no aim for them."""
KEY = {"env": "BENCH_KEY"}


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    rounds, turns, rows = (1, 1, 100) if quick else (7, 10, 320)
    gc.collect()
    gc.freeze()  # as the worker's own process does
    cpu: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        child = stack.enter_context(started("the endpoint", module("endpoint"), stdin=True))
        address = f"http://127.0.0.1:{port_of(child)}"
        backlog = rows * (turns * rounds + 1)
        workers = {
            kind: await stack.enter_async_context(
                working(stores, NAME, executor, backlog, environ={KEY["env"]: "key-of-the-bench"})
            )
            for kind, executor in executors(address).items()
        }
        for worker in workers.values():
            await worker.turn(rows)
        for number in range(1, rounds + 1):
            spent = dict.fromkeys(workers, 0.0)
            for _ in range(turns):
                for kind, worker in workers.items():
                    spent[kind] += await worker.turn(rows)
            for kind, seconds in spent.items():
                cpu.setdefault(kind, []).append(seconds / (turns * rows) * 1e6)
            told = ", ".join(f"{kind} {values[-1]:.0f}" for kind, values in cpu.items())
            say(f"round {number}: µs of CPU a row: {told}")
    return [_figure(kind, cpu, f"{rounds} rounds of {turns} turns of {rows} each") for kind in cpu if kind != BASE]


def executors(address: str) -> Mapping[str, Mapping[str, Any]]:
    """By its name in the figure, each executor as a manifest has it; the first is what the others are held against."""
    dify = {
        "baseUrl": f"{address}/v1",
        "apiKey": KEY,
        "app": "Workflow",
        "inputs": {"text": "{{ row.text }}", "id": "{{ row.id }}"},
    }
    return {
        BASE: {
            "http": {
                "url": f"{address}/",
                "method": "POST",
                "headers": [{"name": "Authorization", "valueFrom": KEY}],
                "body": {"text": "{{ row.text }}", "id": "{{ row.id }}"},
            }
        },
        "openai": {
            "openai": {
                "baseUrl": f"{address}/v1",
                "apiKey": KEY,
                "model": "tiny",
                "messages": [
                    {"role": "system", "content": "You triage tickets."},
                    {"role": "user", "content": "Ticket {{ row.id }}: {{ row.text }}"},
                ],
                "parameters": {"temperature": 0, "max_tokens": 16},
            }
        },
        "dify_blocking": {"dify": {**dify, "responseMode": "Blocking"}},
        "dify_streaming": {"dify": {**dify, "responseMode": "Streaming"}},
        "comfyui": {
            "comfyui": {
                "url": f"{address}/comfyui",
                "workflow": {
                    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "{{ row.text }}", "clip": ["4", 1]}},
                    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "{{ row.id }}", "images": ["8", 0]}},
                },
            }
        },
    }


def _figure(kind: str, cpu: Mapping[str, list[float]], rows: str) -> Figure:
    ratios = [mine / base for mine, base in zip(cpu[kind], cpu[BASE], strict=True)]
    return Figure(
        f"{NAME}_{kind}",
        f"worker CPU a row over that with the executor {BASE}, concurrency {CONCURRENCY}",
        median(ratios),
        () if kind in SEVERAL_CALLS else (AIM,),
        False,
        ratios,
        {"CPU in µs a row": {kind: median(cpu[kind]), BASE: median(cpu[BASE])}, "rows": rows},
    )
