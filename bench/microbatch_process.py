"""A real embedding model, micro-batched and by itself, in turns; run by `bench.microbatch` where the model is.

    python -m bench.microbatch_process --texts 256 --rounds 5

The last line of its output is JSON: rows a second of each side in each round, and the CPU seconds that each took. Who
begins a round changes from one to the next: a machine that is getting busier favours neither.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import os
import random
import time
from collections.abc import Callable
from typing import Any

import psutil
import uvloop

from bench.model_env import VARIABLE
from rowmill.spec.executors import EmbeddingsExecutor as Spec
from rowmill_worker.executors.embeddings import EmbeddingsExecutor
from rowmill_worker.executors.protocol import Attempt

TEXT = """rows tables results workers streams ledgers every one of them is read claimed executed committed and unlocked
before it is acknowledged a crash between any two of these redelivers what the ledger knows already"""


def texts_of(count: int) -> list[str]:
    """Texts of 4 to 120 words, the same every time."""
    rng, words = random.Random(7), TEXT.split()
    return [" ".join(rng.choices(words, k=rng.choice((4, 8, 16, 30, 60, 120)))) for _ in range(count)]


async def through(executor: EmbeddingsExecutor, texts: list[str], slots: int) -> float:
    """Rows a second, so many at once."""
    waiting = iter(enumerate(texts, start=1))

    async def slot() -> None:
        for seq, text in waiting:
            await executor.execute(Attempt(seq, {"text": text}, None, 1, f"k{seq}", f"r{seq}", 600.0))

    began = time.perf_counter()
    await asyncio.gather(*(slot() for _ in range(slots)))
    return len(texts) / (time.perf_counter() - began)


def rate(texts: list[str], encode: Callable[[list[str]], Any]) -> float:
    began = time.perf_counter()
    encode(texts)
    return len(texts) / (time.perf_counter() - began)


def cpu_seconds() -> float:
    """Of this process and those that it has started."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


async def main(count: int, rounds: int) -> dict[str, list[float]]:
    model_name = os.environ[VARIABLE]
    library = importlib.import_module("sentence_transformers")
    model = library.SentenceTransformer(model_name)
    texts = texts_of(count)

    def own(some: list[str]) -> Any:
        return model.encode(some, normalize_embeddings=True, show_progress_bar=False)

    spec = Spec.model_validate({"model": model_name, "text": "{{ row.text }}"})  # everything else as it is by default
    slots = 2 * spec.batching.max_size  # as many as a worker has where the manifest says nothing
    executor = EmbeddingsExecutor(spec=spec, job={}, environ=os.environ)
    await executor.open()
    found: dict[str, list[float]] = {"own": [], "micro": [], "single": [], "own_cpu": [], "micro_cpu": []}
    try:
        own(texts[:32])
        await through(executor, texts[:64], slots)
        for number in range(rounds):
            for side in ("own", "micro") if number % 2 == 0 else ("micro", "own"):
                before = cpu_seconds()
                found[side].append(rate(texts, own) if side == "own" else await through(executor, texts, slots))
                found[f"{side}_cpu"].append(cpu_seconds() - before)
            found["single"].append(await through(executor, texts[: max(8, count // 16)], 1))
    finally:
        await executor.close()
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    options = parser.parse_args()
    print(json.dumps(uvloop.run(main(options.texts, options.rounds))))
