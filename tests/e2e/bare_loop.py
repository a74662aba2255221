"""An event loop that has nothing to do but to be probed, in the operator's own container: what the machine does.

It has the operator's interpreter, its share of the machine and its neighbours. What both loops show is the machine's;
what only the operator's shows is its own.
"""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from rowmill_operator.kube.metrics import LAG_SECONDS
from tests.e2e.install import Install
from tests.e2e.kubectl import PATIENCE_SECONDS

PROGRAM = f"""
import asyncio, json, sys, time, uvloop
from rowmill_operator.kube.metrics import lags
async def main():
    seen, over = [], asyncio.create_task(asyncio.to_thread(sys.stdin.read))
    print("up", flush=True)
    while not over.done():
        due = time.monotonic() + {LAG_SECONDS}
        await asyncio.sleep({LAG_SECONDS})
        seen.extend(lags(time.monotonic() - due))
    print(json.dumps(seen))
uvloop.run(main())
"""


@contextmanager
def bare_loop(install: Install) -> Iterator[list[float]]:
    """Probed for the length of the block; the list is filled at its end: how late each probe was, ascending."""
    name = install.operator()["metadata"]["name"]
    command = install.kubectl.command("exec", "-i", name, "--", "python", "-c", PROGRAM)
    lags: list[float] = []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=install.kubectl.full_environ
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield lags
            told, _ = process.communicate(timeout=PATIENCE_SECONDS)
            lags += sorted(json.loads(told))
        finally:
            process.kill()


def quantile(ascending: list[float], share: float) -> float:
    return ascending[math.ceil(share * len(ascending)) - 1]
