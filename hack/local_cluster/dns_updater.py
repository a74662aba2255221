"""Keeps a hosts file for dnsmasq in step with a cluster's Services: `name.namespace.svc.DOMAIN` → address.

Runs on its own, copied beside the cluster's state. Two threads watch Services and Endpoints; whenever what they know
changes, the file is replaced and dnsmasq gets a SIGHUP. A headless Service has the addresses of its ready endpoints,
and each named pod of a StatefulSet one of its own. After any failed watch everything is listed again.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import signal
import ssl
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Key = tuple[str, str]  # namespace, name
WATCH_S = 300


def render(services: Mapping[Key, Any], endpoints: Mapping[Key, Any], domain: str) -> str:
    """The hosts file: one line for each address and name, sorted."""
    lines = set()
    for (namespace, name), service in services.items():
        full = f"{name}.{namespace}.svc.{domain}"
        address = service["spec"].get("clusterIP", "")
        if address and address != "None":
            lines.add(f"{address} {full} {name}.{namespace}.svc")
            continue
        for subset in endpoints.get((namespace, name), {}).get("subsets") or []:
            ready = subset.get("addresses") or []
            waiting = subset.get("notReadyAddresses") or []
            for entry in ready + (waiting if service["spec"].get("publishNotReadyAddresses") else []):
                lines.add(f"{entry['ip']} {full}")
                if entry.get("hostname"):
                    lines.add(f"{entry['ip']} {entry['hostname']}.{full}")
    return "\n".join(sorted(lines)) + "\n"


class Watcher(threading.Thread):
    """Knows all objects of one kind; sets `changed` whenever that may have changed."""

    def __init__(self, *, url: str, token: str, tls: ssl.SSLContext, changed: threading.Event) -> None:
        super().__init__(daemon=True)
        self.objects: dict[Key, Any] = {}
        self._url, self._token, self._tls, self._changed = url, token, tls, changed

    def _open(self, query: str) -> Any:
        request = urllib.request.Request(self._url + query, headers={"Authorization": f"Bearer {self._token}"})
        return urllib.request.urlopen(request, context=self._tls, timeout=WATCH_S + 30)

    def run(self) -> None:
        """List, watch, and again, until the process ends."""
        while True:
            try:
                with self._open("") as answer:
                    listed = json.load(answer)
                self.objects = {_key(item): item for item in listed["items"]}
                self._changed.set()
                version = listed["metadata"]["resourceVersion"]
                with self._open(f"?watch=1&resourceVersion={version}&timeoutSeconds={WATCH_S}") as stream:
                    for line in stream:
                        self._apply(json.loads(line))
            except (OSError, ValueError, KeyError) as error:
                print(f"{self._url}: {error}; trying again", file=sys.stderr, flush=True)
                time.sleep(0.5)

    def _apply(self, event: dict[str, Any]) -> None:
        if event["type"] == "ERROR":
            raise ValueError(event["object"].get("message", "the watch ended"))
        known = dict(self.objects)  # replaced, never changed: the main thread reads it meanwhile
        if event["type"] == "DELETED":
            known.pop(_key(event["object"]), None)
        else:
            known[_key(event["object"])] = event["object"]
        self.objects = known
        self._changed.set()


def _key(item: dict[str, Any]) -> Key:
    return item["metadata"]["namespace"], item["metadata"]["name"]


def main() -> None:
    """Run until ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    for option in ("--kubeconfig", "--hosts", "--pid-file", "--domain"):
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    config = json.loads(Path(options.kubeconfig).read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    tls = ssl.create_default_context(cadata=base64.b64decode(cluster["certificate-authority-data"]).decode())
    changed = threading.Event()
    services, endpoints = (
        Watcher(url=f"{cluster['server']}/api/v1/{kind}", token=user["token"], tls=tls, changed=changed)
        for kind in ("services", "endpoints")
    )
    services.start()
    endpoints.start()
    hosts = Path(options.hosts)
    while changed.wait():
        changed.clear()
        text = render(services.objects, endpoints.objects, options.domain)
        if text != hosts.read_text():
            fresh = hosts.with_suffix(".new")
            fresh.write_text(text)
            fresh.chmod(0o644)
            os.replace(fresh, hosts)
            try:
                os.kill(int(Path(options.pid_file).read_text()), signal.SIGHUP)
            except (OSError, ValueError):
                continue  # dnsmasq is down: it reads the file when it starts


if __name__ == "__main__":
    main()
