"""`python -m bench [FIGURE…] [--quick] [--output FILE]`: measure, show a table, write a JSON file."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import uvloop

from bench import adaptive, executor_overhead, feed, limits, memory, microbatch, noop_rows, outcomes, row_overhead
from bench.children import ROOT, ChildFailed
from bench.report import Figure, Missing, save, table
from bench.stores import circumstances, running_stores

FIGURES = {
    module.NAME: module
    for module in (noop_rows, row_overhead, executor_overhead, feed, outcomes, memory, adaptive, limits, microbatch)
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure Rowmill against peers and limits.")
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"any of {', '.join(FIGURES)}; all when none")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works, measures nothing")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache" / "bench" / "figures.json", help="JSON file")
    options = parser.parse_args()
    unknown = [name for name in options.figures if name not in FIGURES]
    if unknown:
        parser.error(f"there is no figure {unknown[0]}; there are {', '.join(FIGURES)}")
    return uvloop.run(_measure(options.figures or list(FIGURES), quick=options.quick, output=options.output))


async def _measure(names: list[str], *, quick: bool, output: Path) -> int:
    began = time.monotonic()
    results: list[Figure | Missing] = []
    failed = False
    with running_stores() as stores:
        settings = await circumstances(stores)
        settings["quick"] = quick
        for name in names:

            def say(text: str, name: str = name) -> None:
                print(f"[{time.monotonic() - began:5.0f} s] {name}: {text}", file=sys.stderr, flush=True)

            say("begins")
            try:
                results += await FIGURES[name].measure(stores, quick=quick, say=say)
            except ChildFailed as error:
                failed = True
                results.append(Missing(name, f"failed: {error}"))
        settings["seconds"] = round(time.monotonic() - began, 1)
    print(_shown(settings))
    print(table(results))
    save(output, results, settings)
    print(f"\nwritten to {output}")
    return 1 if failed else 0


def _shown(settings: dict[str, object]) -> str:
    lines = [f"{name}: {value}" for name, value in settings.items()]
    if settings["quick"]:
        lines.append("--quick: these numbers say nothing about speed")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())
