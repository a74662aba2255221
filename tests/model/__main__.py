"""Explore the model by hand: `python -m tests.model --rows 1 --faults 2 --without no-fence --kinds wipe,session`."""

from __future__ import annotations

import argparse
import sys
import time

from tests.model.explorer import Violation, explore
from tests.model.protocol import KINDS


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description="Explore the protocol's model.")
    parser.add_argument("--rows", type=int, choices=(1, 2), default=2)
    parser.add_argument("--faults", type=int, default=1)
    parser.add_argument("--without", nargs="*", default=[], help="guards to take out; see Mutants in protocol.py")
    parser.add_argument("--kinds", default=",".join(sorted(KINDS)), help="kinds of faults, by commas")
    options = parser.parse_args()
    started = time.monotonic()
    try:
        explored = explore(
            rows=options.rows,
            faults=options.faults,
            without=tuple(options.without),
            kinds=options.kinds.split(","),
        )
    except Violation as violation:
        print(f"{violation.promise}, by:", *violation.trace, sep="\n  ")
        return 1
    print(f"every promise holds in {explored.states:,} states, {time.monotonic() - started:.0f} s")
    return 0


sys.exit(main())
