"""`microbatch`: rows/s of a real embedding model, gathered into batches row by row, over its own encode of the list.

The model's own `encode` sees all texts beforehand and sorts them by length; the worker sees rows one by one, 512 at
once, and hands each its vector. One row at a time is shown beside it.
"""

from __future__ import annotations

from collections.abc import Callable

from bench import model_env
from bench.children import ROOT, started
from bench.report import Figure, Missing, median
from rowmill_cli.local.servers import Endpoints

NAME = "microbatch"


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    if quick and not model_env.is_installed():
        return [
            Missing(NAME, "needs torch and a model, 1.5 GB: python -m bench microbatch, without --quick, gets them")
        ]
    texts, rounds = (32, 1) if quick else (512, 3)
    try:
        command = [str(model_env.python()), "-m", "bench.microbatch_process"]
        environ = model_env.environment()
    except model_env.NoModel as error:
        return [Missing(NAME, str(error))]
    command += ["--texts", str(texts), "--rounds", str(rounds)]
    with started("the model", command, environ=environ, cwd=ROOT) as child:
        found = child.result(within=1_800)
    ratios = [micro / own for micro, own in zip(found["micro"], found["own"], strict=True)]
    say(f"{median(found['micro']):.0f} rows/s in batches, {median(found['own']):.0f} by its own encode")
    parts = {
        "rows/s": {
            "micro-batched": median(found["micro"]),
            "its own encode": median(found["own"]),
            "one row at a time": median(found["single"]),
        },
        "texts": f"{rounds} rounds of {texts}, of 4 to 120 words",
    }
    what = "rows/s of a real embedding model, micro-batched, over its own encode on the whole list"
    return [Figure(NAME, what, median(ratios), (0.9,), True, ratios, parts)]
