"""The demo: a real table of 3,376 airports through a real service, on this machine. `make demo` calls it.

It starts the service (on the manifest's port, or a free one where that is taken), writes the manifest with that address
and a new run id into the state folder, runs `rowmill run` on it, and shows a few of the results. Whatever ends it,
Ctrl-C included, ends the service with it: the service follows our end of its standard input.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SERVICE = ROOT / "examples" / "textservice" / "service.py"
MANIFEST = HERE / "job.yaml"
SHOWN = 3
PATIENCE = 20.0  # seconds for the service to end


def usable_port(wanted: int) -> int:
    """`wanted`, or 0 (any) where it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            return 0
    return wanted


@contextmanager
def service(port: int) -> Iterator[str]:
    """The service's address, while the block runs. In a session of its own, so that Ctrl-C lets calls under way end."""
    process = subprocess.Popen(
        [sys.executable, str(SERVICE), "--port", str(port), "--follow-stdin"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        if not address:
            raise SystemExit(f"demo: the service did not start; run {SERVICE.relative_to(ROOT)} to see why")
        yield address
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def manifest_for(given: dict[str, Any], *, address: str, run_id: str) -> dict[str, Any]:
    """The manifest with the service's address, a run of its own, and its source by an absolute path."""
    job = copy.deepcopy(given)
    spec = job["spec"]
    http = spec["executor"]["http"]
    http["url"] = urlunsplit(urlsplit(http["url"])._replace(netloc=urlsplit(address).netloc))
    spec["source"]["uri"] = str((HERE / spec["source"]["uri"]).resolve())
    spec["runId"] = run_id
    return job


def run_job(arguments: Sequence[str]) -> int:
    """Run `rowmill` and wait for it. It hears Ctrl-C itself and ends in order; SIGTERM and SIGHUP are passed on."""
    process: subprocess.Popen[bytes] | None = None

    def passed_on(number: int, frame: object) -> None:
        if process is not None and number != signal.SIGINT:
            process.terminate()

    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, passed_on) for number in handled}
    try:
        process = subprocess.Popen([sys.executable, "-m", "rowmill_cli", *arguments])
        return process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def show(results: Path) -> None:
    """The first rows that succeeded and that failed."""
    for state in ("Succeeded", "Failed"):
        with results.open(encoding="utf-8") as file:
            wanted = (line for line in map(json.loads, file) if line["state"] == state)
            for line in islice(wanted, SHOWN):
                name = line["columns"]["name"]
                end = (
                    json.dumps(line["result"])
                    if state == "Succeeded"
                    else line["error"]["message"].rpartition("its answer began: ")[2]
                )
                print(f"  row {line['seq']:>4}  {state:<9}  {name}  ->  {end}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="demo", description="Run the demo on this machine.")
    parser.add_argument("--state", type=Path, default=ROOT / ".rowmill" / "demo", help="where the run is remembered")
    parser.add_argument("--limit", type=int, help="only the first rows")
    options = parser.parse_args(arguments)
    state: Path = options.state.resolve()
    state.mkdir(parents=True, exist_ok=True)
    job, results = state / "job.yaml", state / "airport-names.jsonl"
    given = yaml.safe_load(MANIFEST.read_text("utf-8"))
    port = urlsplit(given["spec"]["executor"]["http"]["url"]).port or 0
    with service(usable_port(port)) as address:
        print(f"demo: the name service listens on {address}", flush=True)
        run_id = time.strftime("%Y%m%d-%H%M%S")
        manifest = manifest_for(given, address=address, run_id=run_id)
        job.write_text(yaml.safe_dump(manifest, sort_keys=False), "utf-8")
        limit = ["--limit", str(options.limit)] if options.limit else []
        code = run_job(["run", str(job), "--state", str(state), "--output", str(results), *limit])
    if code == 0:
        print("\nthe first results, and rows that the service refused:")
        show(results)
        print(f"\nall of them: {results}")
        print(f"the service has ended; to run rows again, start it: python {SERVICE.relative_to(ROOT)}")
    return code


if __name__ == "__main__":
    sys.exit(main())
