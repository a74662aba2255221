"""`microbatch`: rows/s of a real embedding model, gathered into batches row by row, over its own encode of the list.

The model's own `encode` sees all texts beforehand and sorts them by length; the worker sees rows one by one, as many at
once as it has slots, gathers them by the default batching and hands each its vector. One row at a time is shown beside
it, and the CPU that each side took: on a busy machine that says more than the clock.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import model_env
from bench.children import ROOT, started
from bench.report import Figure, Missing, median
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.executors.embeddings import WAITING

NAME = "microbatch"


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    if quick and not model_env.is_installed():
        return [
            Missing(NAME, "needs torch and a model, 1.5 GB: python -m bench microbatch, without --quick, gets them")
        ]
    texts, rounds = (32, 1) if quick else (256, 5)
    try:
        command = [str(model_env.python()), "-m", "bench.microbatch_process"]
        # As in the worker's process: threads that spin for each other lose so much on a busy machine that it would
        # flatter us by a factor of two.
        environ = model_env.environment() | WAITING
    except model_env.NoModel as error:
        return [Missing(NAME, str(error))]
    command += ["--texts", str(texts), "--rounds", str(rounds)]
    with started("the model", command, environ=environ, cwd=ROOT) as child:
        found = child.result(within=1_800)
    ratios = [micro / own for micro, own in zip(found["micro"], found["own"], strict=True)]
    cpu = [own / micro for micro, own in zip(found["micro_cpu"], found["own_cpu"], strict=True)]
    say(
        f"{median(found['micro']):.0f} rows/s in batches, {median(found['own']):.0f} by its own encode; "
        f"by CPU {median(cpu):.2f}"
    )
    parts = {
        "rows/s": {
            "micro-batched": median(found["micro"]),
            "its own encode": median(found["own"]),
            "one row at a time": median(found["single"]),
        },
        "rows a second of CPU, over its own encode": {"median": median(cpu), "worst": min(cpu), "best": max(cpu)},
        "texts": f"{rounds} rounds of {texts}, of 4 to 120 words",
    }
    what = "rows/s of a real embedding model, micro-batched, over its own encode on the whole list"
    return [Figure(NAME, what, median(ratios), (0.9,), True, ratios, parts)]
