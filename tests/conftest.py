"""Fixtures that every test may use. Servers are real; see `tests/support/servers.py`."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from rowmill_cli.local.postgres_server import PostgresServer
from rowmill_cli.local.servers import POSTGRES_DSN_VARIABLE, REDIS_URL_VARIABLE, Endpoints, LocalServers
from tests.support.nursery import close_nursery
from tests.support.servers import PrivateServers, empty_redis, fresh_database, redis_is_empty, redis_of_worker

# How long an example takes to make says how busy the machine is, and nothing of the code.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure() -> None:
    """What a shell starts in the background, or nohup anywhere, ignores signals, and so would commands under test."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first: begun last, one of them would keep a single process busy while the others have ended."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="session", autouse=True)
def _processes_end_with_the_session() -> Iterator[None]:
    """Tests of one process share the nursery that their parts are born in."""
    yield
    close_nursery()


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[Endpoints]:
    """The Redis and the Postgres of the whole session: the suite's own, or those that the environment names."""
    environ = dict(os.environ)
    own_redis = environ.get(REDIS_URL_VARIABLE)
    if own_redis:
        own_redis = environ[REDIS_URL_VARIABLE] = redis_of_worker(own_redis, os.environ.get("PYTEST_XDIST_WORKER", ""))
    if own_redis and not redis_is_empty(own_redis):
        pytest.exit(f"{REDIS_URL_VARIABLE}: the tests empty that Redis database, and it holds keys: name another")
    with tempfile.TemporaryDirectory(prefix="rowmill-tests-") as folder:
        with LocalServers(Path(folder), environ=os.environ, durable_init=False) as endpoints:
            yield endpoints


@pytest.fixture(autouse=True)
def _own_servers_are_for_the_fixtures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands under test see the servers only where a test says so."""
    monkeypatch.delenv(REDIS_URL_VARIABLE, raising=False)
    monkeypatch.delenv(POSTGRES_DSN_VARIABLE, raising=False)


@pytest.fixture
def redis_url(shared_servers: Endpoints) -> Iterator[str]:
    """A Redis with nothing in it. Others' tests ran there before: for restarts and wipes use `private_servers`."""
    with empty_redis(shared_servers.redis_url) as url:
        yield url


@pytest.fixture
def postgres_dsn(shared_servers: Endpoints) -> Iterator[str]:
    """A database of the test's own, with nothing in it, in a Postgres that all tests share."""
    with fresh_database(shared_servers.postgres_dsn) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def initialised_postgres(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a Postgres that was started and stopped: `private_servers` begin with a copy."""
    server = PostgresServer(tmp_path_factory.mktemp("initialised"), durable_init=False)
    server.start()
    server.stop()
    return server.folder


@pytest.fixture
def private_servers(tmp_path: Path, initialised_postgres: Path) -> Iterator[PrivateServers]:
    """A Redis and a Postgres for this test alone, started; it may kill, wipe and restore them."""
    servers = PrivateServers(tmp_path, initialised=initialised_postgres)
    try:
        servers.start()
        yield servers
    finally:
        servers.stop()
