"""Whether each component answers: probes that take milliseconds and never raise."""

from __future__ import annotations

import base64
import json
import socket
import ssl
import struct
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from .errors import ClusterError
from .settings import DNS_DOMAIN, NODE_NAME, Network, Paths
from .shell import run

HEALTHY = ""


class Api:
    """The little of the Kubernetes API that bringing a cluster up needs, as its administrator."""

    def __init__(self, kubeconfig: Path) -> None:
        config = json.loads(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._server: str = cluster["server"]
        self._token: str = config["users"][0]["user"]["token"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self._tls = ssl.create_default_context(cadata=authority)
        # The environment's proxy is for other machines.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )

    def get(self, path: str, *, timeout: float = 5.0) -> bytes:
        """The body at `path`. Raises OSError (urllib's HTTPError is one) when it is not a 200."""
        request = urllib.request.Request(self._server + path, headers={"Authorization": f"Bearer {self._token}"})
        with self._opener.open(request, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body

    def object(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`."""
        parsed: dict[str, Any] = json.loads(self.get(path))
        return parsed


def probe(name: str, paths: Paths, network: Network) -> str:
    """HEALTHY, or what is wrong with the component `name` in a few words."""
    ports = network.ports
    local = {
        "etcd": f"http://127.0.0.1:{ports['etcd_health']}/health",
        "controller-manager": f"https://127.0.0.1:{ports['controller_manager']}/healthz",
        "scheduler": f"https://127.0.0.1:{ports['scheduler']}/healthz",
        "kubelet": f"http://127.0.0.1:{ports['kubelet_health']}/healthz",
        "kube-proxy": f"http://127.0.0.1:{ports['proxy_health']}/healthz",
    }
    try:
        if name == "containerd":
            return _container_runtime_problem(paths.containerd_socket)
        if name == "apiserver":
            Api(paths.kubeconfig).get("/readyz")
        elif name == "dnsmasq":
            resolve(network.node, "rowmill.invalid")
        elif name == "dns-updater":
            asked = f"kubernetes.default.svc.{DNS_DOMAIN}"
            if resolve(network.node, asked) != network.kubernetes_service:
                return f"{asked} does not resolve yet"
        else:
            handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
            if local[name].startswith("https:"):
                tls = ssl.create_default_context(cafile=str(paths.state / "pki" / "ca.crt"))
                handlers.append(urllib.request.HTTPSHandler(context=tls))
            with urllib.request.build_opener(*handlers).open(local[name], timeout=5.0):
                pass
    except (ClusterError, OSError, ValueError) as error:
        return str(getattr(error, "reason", error)) or type(error).__name__
    return HEALTHY


def _container_runtime_problem(address: Path) -> str:
    """containerd goes on without a plugin that failed: the kubelet needs the one called `cri`."""
    for line in run(["ctr", "--address", address, "--timeout", "5s", "plugins", "ls"]).splitlines():
        words = line.split()
        if words[:2] == ["io.containerd.grpc.v1", "cri"]:
            return HEALTHY if words[-1] == "ok" else f"its plugin cri has the status {words[-1]}"
    return "it has no plugin cri"


def node_problem(api: Api) -> str:
    """HEALTHY when the node is Ready, else what it says."""
    try:
        conditions = api.object(f"/api/v1/nodes/{NODE_NAME}")["status"].get("conditions", [])
    except urllib.error.HTTPError as error:
        return "it has not registered yet" if error.code == 404 else str(error)
    except (OSError, ValueError, KeyError) as error:
        return str(error)
    ready = next((each for each in conditions if each["type"] == "Ready"), None)
    if ready is None or ready["status"] != "True":
        return ready["message"] if ready else "it has not reported yet"
    return HEALTHY


def exists(api: Api, path: str) -> str:
    """HEALTHY when the object at `path` is there."""
    try:
        api.get(path)
    except OSError as error:
        return f"{path}: {error}"
    return HEALTHY


def resolve(server: str, name: str, *, timeout: float = 2.0) -> str | None:
    """Ask the DNS server for the address of `name`; None when there is none. Raises OSError when nobody answers."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"
    query = struct.pack(">HHHHHH", 0x5277, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">HH", 1, 1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout)
        client.connect((server, 53))
        client.send(query)
        answer = client.recv(512)
    answers = struct.unpack(">H", answer[6:8])[0]
    return socket.inet_ntoa(answer[-4:]) if answers else None
