"""Workers as processes: started, told ready, replaced, drained, killed past their grace, and never left as zombies.

The workers here are small programs; what they do is said by their environment.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from rowmill_cli.local.fleet import MAX_RESPAWN_DELAY, ProcessFleet, end_left_behind, respawn_delay, worker_command
from rowmill_cli.local.processes import ProcessRecord
from rowmill_cli.local.servers import Endpoints

WORKER = r"""
import http.server, os, signal, sys
mode = os.environ["FAKE_WORKER"]
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if mode == "broken":
    print("starting")
    print("the model file is missing", file=sys.stderr)
    sys.exit(3)
if mode == "invalid":
    print('{"event": "secret missing", "error": "TOKEN is not set"}', file=sys.stderr)
    sys.exit(2)
if mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: (print("drained", arguments["--name"], flush=True), os._exit(0)))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ok = self.path == "/readyz" and mode != "unready"
        self.send_response(200 if ok else 503)
        self.end_headers()
    def log_message(self, *_):
        pass
print("up", arguments["--name"], os.environ["ROWMILL_REDIS_URL"], os.environ["ROWMILL_POSTGRES_DSN"], flush=True)
http.server.HTTPServer(("127.0.0.1", int(arguments["--http-port"])), Handler).serve_forever()
"""


class Clock:
    """Monotonic time that a test moves on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make(tmp_path: Path, clock: Clock) -> AsyncIterator[Callable[[str], ProcessFleet]]:
    fleets: list[ProcessFleet] = []
    program = tmp_path / "worker.py"
    program.write_text(WORKER)

    def build(mode: str) -> ProcessFleet:
        fleet = ProcessFleet(
            job_file=tmp_path / "job.yaml",
            base=tmp_path,
            installation="local",
            endpoints=Endpoints("redis://:secret-r@x/0", "postgresql://u:secret-p@x/d"),
            logs=tmp_path,
            records_file=tmp_path / "workers.json",
            environ=os.environ | {"FAKE_WORKER": mode},
            grace_seconds=30.0,
            command=[sys.executable, str(program)],
            clock=clock,
        )
        fleets.append(fleet)
        return fleet

    yield build
    hurry = asyncio.Event()
    hurry.set()
    for fleet in fleets:
        await fleet.close(hurry=hurry)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.02)


async def until_ready(fleet: ProcessFleet, count: int) -> None:
    async with asyncio.timeout(60):
        while await fleet.ready() != count:
            await asyncio.sleep(0.02)


def log(folder: Path, index: int = 0) -> str:
    return (folder / f"worker-{index}.log").read_text()


async def test_workers_come_and_go(make: Callable[[str], ProcessFleet], tmp_path: Path) -> None:
    fleet = make("good")
    await fleet.scale(2)
    await fleet.scale(2)
    assert len(fleet.pids()) == 2
    await until_ready(fleet, 2)
    assert await fleet.failure() is None
    await fleet.scale(1)
    await until(lambda: "drained w1-" in log(tmp_path, 1))
    await fleet.scale(0)
    await until(lambda: "drained w0-" in log(tmp_path, 0))
    pids = fleet.pids()
    await fleet.close(hurry=asyncio.Event())
    assert not any(psutil.pid_exists(pid) for pid in pids)  # no zombie either
    assert json.loads((tmp_path / "workers.json").read_text())["workers"] == []


async def test_secrets_travel_by_environment_and_never_as_arguments(
    make: Callable[[str], ProcessFleet], tmp_path: Path
) -> None:
    fleet = make("good")
    await fleet.scale(1)
    await until_ready(fleet, 1)
    assert "redis://:secret-r@x/0 postgresql://u:secret-p@x/d" in log(tmp_path)
    command = psutil.Process(fleet.pids()[0]).cmdline()
    assert "worker" in command
    assert str(tmp_path / "job.yaml") in command
    assert not any("secret-" in part for part in command)


async def test_a_worker_that_was_killed_is_replaced_by_another_incarnation(
    make: Callable[[str], ProcessFleet], tmp_path: Path
) -> None:
    fleet = make("good")
    await fleet.scale(1)
    await until_ready(fleet, 1)
    first = fleet.pids()[0]
    os.kill(first, signal.SIGKILL)
    async with asyncio.timeout(60):
        while fleet.pids() in ([], [first]):
            await fleet.scale(1)
            await asyncio.sleep(0.02)
    await until_ready(fleet, 1)
    names = [line.split()[1] for line in log(tmp_path).splitlines() if line.startswith("up")]
    assert len(set(names)) == 2
    assert all(name.startswith("w0-") for name in names)
    assert not psutil.pid_exists(first)
    assert await fleet.failure() is None


async def test_a_crash_loop_is_slowed_down_and_explained(
    make: Callable[[str], ProcessFleet], tmp_path: Path, clock: Clock
) -> None:
    fleet = make("broken")
    for ends in range(1, 5):
        await fleet.scale(1)
        await until(lambda ends=ends: log(tmp_path).count("missing") == ends)
        pid = fleet.pids()[0]
        await until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
        trouble = await fleet.failure()
        assert (trouble is None) == (ends < 4)
        assert fleet.pids() == []
        if ends > 1:
            await fleet.scale(1)
            assert fleet.pids() == [], "it spins"
        clock.ahead += respawn_delay(ends)
    assert trouble is not None
    assert not fleet.refused.is_set()
    assert "exited with code 3: the model file is missing" in trouble
    assert str(tmp_path / "worker-0.log") in trouble


async def test_a_worker_that_refuses_its_input_is_explained_at_once(make: Callable[[str], ProcessFleet]) -> None:
    fleet = make("invalid")
    await fleet.scale(1)
    async with asyncio.timeout(60):
        while (trouble := await fleet.failure()) is None:
            await asyncio.sleep(0.02)
    assert "exited with code 2: secret missing: TOKEN is not set" in trouble
    assert fleet.refused.is_set()


async def test_a_worker_that_lived_is_replaced_at_once_again(make: Callable[[str], ProcessFleet], clock: Clock) -> None:
    fleet = make("good")
    for _ in range(6):
        await fleet.scale(1)
        (pid,) = fleet.pids()
        clock.ahead += 10.0
        os.kill(pid, signal.SIGKILL)
        await until(lambda pid=pid: psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)


async def test_a_worker_that_is_not_ready_is_not_counted(make: Callable[[str], ProcessFleet], tmp_path: Path) -> None:
    fleet = make("unready")
    await fleet.scale(1)
    await until(lambda: "up" in log(tmp_path))
    assert await fleet.ready() == 0


async def test_draining_ends_by_force_when_its_time_is_over(
    make: Callable[[str], ProcessFleet], tmp_path: Path, clock: Clock
) -> None:
    fleet = make("stubborn")
    await fleet.scale(1)
    await until_ready(fleet, 1)
    (pid,) = fleet.pids()
    await fleet.scale(0)
    clock.ahead += 29.0
    await fleet.scale(0)
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    clock.ahead += 1.1
    async with asyncio.timeout(60):
        while fleet.pids():
            await fleet.scale(0)
            await asyncio.sleep(0.02)
    assert not psutil.pid_exists(pid)


async def test_hurry_ends_a_drain_at_once(make: Callable[[str], ProcessFleet]) -> None:
    fleet = make("stubborn")
    await fleet.scale(1)
    await until_ready(fleet, 1)
    hurry = asyncio.Event()
    closing = asyncio.create_task(fleet.close(hurry=hurry))
    done, _ = await asyncio.wait([closing], timeout=0.2)
    assert not done
    hurry.set()
    await asyncio.wait_for(closing, 25)  # the grace is thirty seconds


async def test_a_log_stays_bounded_while_its_worker_runs(
    make: Callable[[str], ProcessFleet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rowmill_cli.local import fleet as module
    from rowmill_cli.local.files import bound_log

    monkeypatch.setattr(module, "bound_log", lambda path: bound_log(path, 100))
    fleet = make("good")
    await fleet.scale(1)
    await until_ready(fleet, 1)
    with (tmp_path / "worker-0.log").open("ab") as file:
        file.write(b"x" * 1000 + b"\n")
    await fleet.scale(1)
    await fleet.scale(0)
    await until(lambda: log(tmp_path).startswith("drained"))
    assert (tmp_path / "worker-0.log.1").stat().st_size > 1000


def test_left_behind_workers_are_ended_and_strangers_left_alone(tmp_path: Path) -> None:
    def start(marker: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", marker])

    ours, reused = start("/s/job.yaml"), start("/s/job.yaml")
    stranger = start("/else")
    try:
        records = [
            ProcessRecord.of(ours.pid, "/s/job.yaml").to_json(),
            ProcessRecord.of(reused.pid, "/s/job.yaml").to_json() | {"created": time.time() - 86_400},
            ProcessRecord.of(stranger.pid, "/s/job.yaml").to_json(),
            {"pid": "damaged"},
        ]
        file = tmp_path / "workers.json"
        file.write_text(json.dumps({"graceSeconds": 10, "workers": records}))
        assert end_left_behind(file) == 1
        assert ours.wait(60) == -signal.SIGTERM
        assert reused.poll() is None, "another start time: the pid was used again"
        assert stranger.poll() is None, "another command line"
        assert not file.exists()
        assert end_left_behind(file) == 0
    finally:
        for process in (ours, reused, stranger):
            process.kill()
            process.wait()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"workers": 3}', '{"workers": [null], "graceSeconds": "x"}'])
def test_a_damaged_record_of_workers_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "workers.json").write_text(content)
    assert end_left_behind(tmp_path / "workers.json") == 0


def test_workers_end_with_a_command_that_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "worker.py"
    program.write_text(WORKER)
    parent = tmp_path / "parent.py"
    parent.write_text(f"""
import asyncio, os, sys
from pathlib import Path
from rowmill_cli.local.fleet import ProcessFleet
from rowmill_cli.local.servers import Endpoints
folder = Path({str(tmp_path)!r})
async def main():
    fleet = ProcessFleet(
        job_file=folder / "job.yaml", base=folder, installation="local", endpoints=Endpoints("r", "p"), logs=folder,
        records_file=folder / "workers.json", environ=os.environ | {{"FAKE_WORKER": "good"}}, grace_seconds=5,
        command=[sys.executable, {str(program)!r}],
    )
    await fleet.scale(2)
    while await fleet.ready() != 2:
        await asyncio.sleep(0.02)
    print(*fleet.pids(), flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
""")
    process = subprocess.Popen([sys.executable, str(parent)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 2
        process.kill()
        _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if lives(pid)], timeout=60)
        assert not any(lives(process.pid) for process in left)
        assert "drained" in log(tmp_path, 0)
    finally:
        process.kill()
        process.communicate()


def lives(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_the_delays_grow_to_a_bound() -> None:
    delays = [respawn_delay(ends) for ends in range(1, 40)]
    assert delays[0] == 0.0
    assert delays == sorted(delays)
    assert max(delays) == MAX_RESPAWN_DELAY


def test_ps_shows_rowmill_worker() -> None:
    command = " ".join([*worker_command(), "worker"])
    assert command.endswith("rowmill worker")
