"""`adaptive`: rows finished over a cold-start run with concurrency that tunes itself, over the best fixed setting.

The worker's own controller on simulated endpoints and a simulated clock (`bench/knee.py`): knees at 4, 16 and 64, and
one that moves from 64 to 16 to 48; calls of about a second whose logarithms vary by a half; from three slots. The best
fixed setting is taken for what none can pass: the endpoint busy with as many rows as it bears, from the first second.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

from bench.knee import Queue, run
from bench.report import Figure, Missing, median
from rowmill_cli.local.servers import Endpoints
from rowmill_worker.adaptive import Adaptive

NAME = "adaptive"
SECONDS = 400.0
STARTS = 3
SIGMA = 0.5
MOVES = ((0.0, 64), (200.0, 16), (500.0, 48), (800.0, 0))
"""When the moving knee comes to where."""


async def measure(stores: Endpoints, *, quick: bool, say: Callable[[str], None]) -> list[Figure | Missing]:
    seeds = range(1 if quick else 9)
    shares = {f"knee {knee}": [_fixed(knee, seed) for seed in seeds] for knee in (4, 16, 64)}
    shares["moving"] = [_moving(seed) for seed in seeds]
    for name, found in shares.items():
        say(f"{name}: {median(found):.2f} of the best fixed setting, {min(found):.2f} at worst")
    worst = min(shares, key=lambda name: median(shares[name]))
    return [
        Figure(
            NAME,
            f"rows finished from a cold start over those of the best fixed setting, at the hardest endpoint ({worst})",
            median(shares[worst]),
            (0.8,),
            True,
            shares[worst],
            {"medians": {name: round(median(found), 3) for name, found in shares.items()}},
        )
    ]


def _control(seed: int) -> Adaptive:
    return Adaptive(minimum=1, maximum=128, start=STARTS, now=0.0, wall=1e6 + seed * 17.3)


def _fixed(knee: int, seed: int) -> float:
    endpoint = Queue(lambda now: knee, rng=random.Random(seed), sigma=SIGMA)
    return run(endpoint, [_control(seed)], SECONDS).rows / (knee * SECONDS)


def _moving(seed: int) -> float:
    def knee(now: float) -> int:
        return max((at, k) for at, k in MOVES[:-1] if now >= at)[1]

    told = run(Queue(knee, rng=random.Random(seed), sigma=SIGMA), [_control(seed)], MOVES[-1][0])
    return told.rows / sum(k * (end - at) for (at, k), (end, _) in pairwise(MOVES))
