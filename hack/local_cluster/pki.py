"""Certificates, tokens and kubeconfigs of a local cluster. Everything is made anew for each cluster.

One certificate authority signs one certificate, which all servers show and by which the API server speaks to etcd and
the kubelet. Users come by token, each with the name that Kubernetes' own roles are bound to, so nobody but the
administrator has more than the role of its component.
"""

from __future__ import annotations

import base64
import json
import secrets
from pathlib import Path

from .settings import DNS_DOMAIN, NODE_NAME, Network
from .shell import run

ADMIN = "rowmill-admin"
# user → groups. CoreDNS' own account is the one that Kubernetes binds to `system:kube-dns`.
USERS: dict[str, tuple[str, ...]] = {
    ADMIN: ("system:masters",),
    "system:kube-controller-manager": (),
    "system:kube-scheduler": (),
    "system:kube-proxy": (),
    f"system:node:{NODE_NAME}": ("system:nodes",),
    "system:serviceaccount:kube-system:kube-dns": ("system:serviceaccounts",),
}
CONTROLLER_MANAGER, SCHEDULER, PROXY, KUBELET, DNS = list(USERS)[1:]
DAYS = "365"


def alternative_names(network: Network) -> str:
    """Every name and address by which a client reaches one of the servers, as openssl wants them."""
    service = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        f"kubernetes.default.svc.{DNS_DOMAIN}",
        "localhost",
        NODE_NAME,
    ]
    addresses = [network.node, network.kubernetes_service, "127.0.0.1"]
    return ",".join([*(f"DNS:{name}" for name in service), *(f"IP:{address}" for address in addresses)])


def make_certificates(folder: Path, network: Network) -> None:
    """ca.{crt,key}, node.{crt,key} and service-accounts.key in `folder`, which only root may enter."""
    folder.mkdir(mode=0o700, parents=True)
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    usage = "keyUsage=critical,keyCertSign,digitalSignature"
    authority: list[str | Path] = ["-addext", usage, "-keyout", folder / "ca.key", "-out", folder / "ca.crt"]
    run(["openssl", "req", "-x509", *key, "-days", DAYS, "-subj", "/CN=rowmill-cluster-ca", *authority])
    extensions = folder / "node.ext"
    extensions.write_text(
        f"subjectAltName={alternative_names(network)}\n"
        "basicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\n"
        "extendedKeyUsage=serverAuth,clientAuth\n"
    )
    request = folder / "node.csr"
    run(["openssl", "req", *key, "-subj", f"/CN={NODE_NAME}", "-keyout", folder / "node.key", "-out", request])
    signer: list[str | Path] = [
        "-CA",
        folder / "ca.crt",
        "-CAkey",
        folder / "ca.key",
        "-CAcreateserial",
        "-out",
        folder / "node.crt",
    ]
    run(["openssl", "x509", "-req", "-in", request, "-days", DAYS, "-extfile", extensions, *signer])
    run(["openssl", "genpkey", "-algorithm", "RSA", "-out", folder / "service-accounts.key"])


def make_tokens(file: Path) -> dict[str, str]:
    """A fresh token for each of USERS, written as the API server's token file; returns user → token."""
    tokens = {user: secrets.token_hex(24) for user in USERS}
    lines = [f'{tokens[user]},{user},{user},"{",".join(groups)}"' for user, groups in USERS.items()]
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return tokens


def kubeconfig(*, server: str, authority: bytes, user: str, token: str) -> str:
    """A kubeconfig for one user. JSON is YAML too, so nothing but the standard library is needed."""
    name = "rowmill"
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {
                    "name": name,
                    "cluster": {
                        "server": server,
                        "certificate-authority-data": base64.b64encode(authority).decode(),
                    },
                }
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": user, "namespace": "default"}}],
        },
        indent=1,
    )


def write_kubeconfigs(folder: Path, network: Network, tokens: dict[str, str]) -> None:
    """One kubeconfig for each user in `folder`/pki, named by `kubeconfig_of`; the administrator's lies in `folder`."""
    authority = (folder / "pki" / "ca.crt").read_bytes()
    for user, token in tokens.items():
        target = folder / "kubeconfig" if user == ADMIN else kubeconfig_of(folder, user)
        target.touch(mode=0o600)
        target.write_text(kubeconfig(server=network.api, authority=authority, user=user, token=token))


def kubeconfig_of(folder: Path, user: str) -> Path:
    """Where the kubeconfig of a component's user lies."""
    return folder / "pki" / f"{user.rpartition(':')[2]}.kubeconfig"
