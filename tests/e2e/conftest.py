"""A cluster, the chart installed on it, and what its jobs talk to. `make e2e` brings the cluster up first.

The stores, the endpoint and the object store run on this machine, where tests can kill, wipe and read them; pods reach
them at the node's address. The operator and the workers run from the images that `hack/images build` made.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.e2e.forward import Forwards
from tests.e2e.install import Install
from tests.e2e.kubectl import Kubectl
from tests.e2e.lab import Lab, ObjectStore
from tests.support.endpoint import spawn
from tests.support.s3 import moto_process
from tests.support.servers import PrivateServers

ROOT = Path(__file__).parents[2]
TEST_SECONDS = 600
"""For any test here: more than any of its waits may take."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.fixture(scope="session")
def kubectl() -> Kubectl:
    """The cluster that `hack/cluster up` brought up."""
    told = subprocess.run([ROOT / "hack/cluster", "env"], capture_output=True, text=True)
    if told.returncode:
        pytest.exit(f"there is no cluster: run `make e2e`, or `hack/cluster up` first. {told.stderr.strip()}", 2)
    environ = dict(re.findall(r"^export (\w+)=(.*)$", told.stdout, re.MULTILINE))
    environ = {name: os.path.expandvars("".join(shlex.split(value))) for name, value in environ.items()}
    return Kubectl(environ)


@pytest.fixture(scope="session")
def node_address(kubectl: Kubectl) -> str:
    (node,) = (
        one for one in kubectl.list("nodes") if one["spec"].get("podCIDR") or not one["spec"].get("unschedulable")
    )
    return next(a["address"] for a in node["status"]["addresses"] if a["type"] == "InternalIP")


@pytest.fixture(scope="session")
def forwards(node_address: str) -> Iterator[Forwards]:
    with Forwards(node_address) as made:
        yield made


@pytest.fixture(scope="session")
def stores(
    tmp_path_factory: pytest.TempPathFactory, forwards: Forwards, initialised_postgres: Path
) -> Iterator[PrivateServers]:
    """A Redis and a Postgres that may be killed."""
    folder = tmp_path_factory.mktemp("stores")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)  # Postgres does not run as root
    servers = PrivateServers(folder, initialised=initialised_postgres)
    try:
        servers.start()
        for port in (servers.redis.port, servers.postgres.port):
            forwards.to(port)
        yield servers
    finally:
        servers.stop()


@pytest.fixture(scope="session")
def object_store(node_address: str) -> Iterator[ObjectStore]:
    with moto_process(node_address) as keys:
        yield ObjectStore(keys)


class Web:
    """Files of this machine over http."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder = folder
        handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
        self._server = ThreadingHTTPServer((address, 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def serve(self, file: Path) -> str:
        """The address of a copy of `file`."""
        name = f"{uuid.uuid4().hex[:8]}-{file.name}"
        shutil.copyfile(file, self.folder / name)
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}/{name}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


@pytest.fixture(scope="session")
def web(node_address: str, forwards: Forwards, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    made = Web(node_address, tmp_path_factory.mktemp("web"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def install(kubectl: Kubectl, stores: PrivateServers, forwards: Forwards) -> Iterator[Install]:
    """The chart, with the suite's own stores."""
    made = Install(kubectl, redis_url=forwards.there(stores.redis_url), dsn=forwards.there(stores.postgres_dsn))
    made.up()
    try:
        yield made
    finally:
        made.down()


@pytest.fixture
async def lab(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    kubectl: Kubectl,
    stores: PrivateServers,
    forwards: Forwards,
    install: Install,
) -> AsyncIterator[Lab]:
    """A namespace and an endpoint for one test."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    kubectl("create", "namespace", name)
    async with spawn(log=tmp_path / "calls.jsonl") as endpoint:
        forwards.to(endpoint.port)
        made = Lab(
            kubectl=kubectl.within(name),
            stores=stores,
            forwards=forwards,
            install=install,
            endpoint=endpoint,
            folder=tmp_path,
        )
        try:
            yield made
        except BaseException:
            raise
        finally:
            made.tell(request.node.name)
            kubectl("delete", "namespace", name, "--wait=false")
