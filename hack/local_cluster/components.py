"""The configuration of every component of a local cluster: pure rendering from a plan to command lines and files.

Everything listens on the bridge's address or on loopback, with TLS wherever a client can tell the difference.
Kubernetes 1.20 is what Debian's source builds; of newer binaries (by environment variable) only flags that have
since been removed are left out.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from . import pki
from .settings import BRIDGE, DNS_DOMAIN, NODE_NAME, Network, Paths

PAUSE_IMAGE = "localhost/rowmill-pause:1"
CNI_BINARIES = Path("/usr/lib/cni")
# Those of one stage are started together, once those of the stage before are healthy. All end at once.
STAGES = (
    ("containerd", "etcd"),
    ("apiserver",),
    ("controller-manager", "scheduler", "kubelet", "kube-proxy", "dnsmasq"),
    ("dns-updater",),
)
ORDER = tuple(name for stage in STAGES for name in stage)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What the configuration depends on. `minor` is the Kubernetes minor version of `binaries`."""

    paths: Paths
    network: Network
    binaries: Path
    minor: int
    snapshotter: str
    may_raise_priority: bool  # CAP_SYS_RESOURCE: without it no container may get a lower OOM score
    python: str

    @property
    def state(self) -> Path:
        """The cluster's folder."""
        return self.paths.state


def files(plan: Plan) -> dict[str, str]:
    """Path within the state folder → contents."""
    return {
        "containerd/config.toml": containerd_config(plan),
        # No image is ever fetched: what is not loaded is refused by a closed port of this machine, at once.
        "containerd/hosts/_default/hosts.toml": 'server = "http://127.0.0.1:9"\n',
        "cni/10-rowmill.conflist": json.dumps(cni_config(plan), indent=1),
        "kubelet.json": json.dumps(kubelet_config(plan), indent=1),
        "kube-proxy.json": json.dumps(proxy_config(plan), indent=1),
        "resolv.conf": f"nameserver {plan.network.node}\n",
        "dns/hosts": "",
    }


def containerd_config(plan: Plan) -> str:
    """A containerd that shares nothing with one that the machine may run."""
    folder = plan.state / "containerd"
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    off = ["internal.v1.opt", "internal.v1.tracing", "tracing.processor.v1.otlp"]
    off += [f"snapshotter.v1.{name}" for name in ("aufs", "btrfs", "devmapper", "zfs")]
    quoted = ", ".join(f'"io.containerd.{name}"' for name in off)
    return f"""version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [{quoted}]
[grpc]
  address = "{plan.paths.containerd_socket}"
[{cri}]
  sandbox_image = "{PAUSE_IMAGE}"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = {str(not plan.may_raise_priority).lower()}
  stream_server_address = "127.0.0.1"
  disable_apparmor = true  # its profile would stay in the kernel
  [{cri}.cni]
    bin_dir = "{CNI_BINARIES}"
    conf_dir = "{plan.state}/cni"
  [{cri}.containerd]
    snapshotter = "{plan.snapshotter}"
    [{cri}.containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [{cri}.containerd.runtimes.runc.options]
        Root = "{folder}/runc"
  [{cri}.registry]
    config_path = "{folder}/hosts"
"""


def cni_config(plan: Plan) -> dict[str, Any]:
    """The bridge that exists already. Not `isGateway`: the plugin would switch on forwarding for the whole machine."""
    pods = plan.network.pods
    return {
        "cniVersion": "0.4.0",
        "name": "rowmill",
        "plugins": [
            {
                "type": "bridge",
                "bridge": BRIDGE,
                "hairpinMode": True,
                "ipMasq": False,
                "ipam": {
                    "type": "host-local",
                    "dataDir": f"{plan.state}/cni-addresses",
                    "ranges": [[{"subnet": pods, "gateway": plan.network.node}]],
                    "routes": [{"dst": "0.0.0.0/0", "gw": plan.network.node}],
                },
            }
        ],
    }


def kubelet_config(plan: Plan) -> dict[str, Any]:
    """A kubelet that starts pods quickly, never evicts for a full disk and never removes an image."""
    keys = plan.state / "pki"
    config: dict[str, Any] = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": plan.network.node,
        "port": plan.network.ports["kubelet"],
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": plan.network.ports["kubelet_health"],
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": f"{keys}/ca.crt"},
        },
        "authorization": {"mode": "AlwaysAllow"},
        "tlsCertFile": f"{keys}/node.crt",
        "tlsPrivateKeyFile": f"{keys}/node.key",
        "clusterDNS": [plan.network.node],
        "clusterDomain": DNS_DOMAIN,
        "resolvConf": f"{plan.state}/resolv.conf",
        "cgroupDriver": "cgroupfs",
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "maxPods": 250,
        "nodeStatusUpdateFrequency": "5s",
        "registryPullQPS": 0,
        "serializeImagePulls": False,
        "eventRecordQPS": 0,
        "kubeAPIQPS": 100,
        "kubeAPIBurst": 200,
        "volumePluginDir": f"{plan.state}/kubelet/volume-plugins",
    }
    if plan.minor >= 31:
        config["failCgroupV1"] = False
    return config


def proxy_config(plan: Plan) -> dict[str, Any]:
    """kube-proxy in iptables mode; the kernel's connection tracking limits are left alone."""
    ports = plan.network.ports
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "iptables",
        "clientConnection": {"kubeconfig": str(pki.kubeconfig_of(plan.state, pki.PROXY)), "qps": 100, "burst": 200},
        "clusterCIDR": plan.network.pods,
        "hostnameOverride": NODE_NAME,
        "bindAddress": plan.network.node,
        "healthzBindAddress": f"127.0.0.1:{ports['proxy_health']}",
        "metricsBindAddress": f"127.0.0.1:{ports['proxy_metrics']}",
        "nodePortAddresses": [f"{plan.network.node}/32"],
        "iptables": {"minSyncPeriod": "200ms", "syncPeriod": "30s"},
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    }


def command_lines(plan: Plan) -> dict[str, list[str]]:
    """Component → what starts it, in ORDER."""
    lines = {
        "containerd": ["containerd", "--config", f"{plan.state}/containerd/config.toml"],
        "etcd": _etcd(plan),
        "apiserver": _apiserver(plan),
        "controller-manager": _controller_manager(plan),
        "scheduler": _scheduler(plan),
        "kubelet": _kubelet(plan),
        "kube-proxy": [f"{plan.binaries}/kube-proxy", f"--config={plan.state}/kube-proxy.json"],
        "dnsmasq": _dnsmasq(plan),
        "dns-updater": [
            plan.python,
            "-I",
            f"{plan.state}/dns/updater.py",
            f"--kubeconfig={pki.kubeconfig_of(plan.state, pki.DNS)}",
            f"--hosts={plan.state}/dns/hosts",
            f"--pid-file={plan.state}/dns/dnsmasq.pid",
            f"--domain={DNS_DOMAIN}",
        ],
    }
    return {name: lines[name] for name in ORDER}


def _etcd(plan: Plan) -> list[str]:
    keys, ports = plan.state / "pki", plan.network.ports
    client, peer = f"https://127.0.0.1:{ports['etcd']}", f"https://127.0.0.1:{ports['etcd_peer']}"
    return [
        "etcd",
        "--name=rowmill",
        f"--data-dir={plan.state}/etcd",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=rowmill={peer}",
        f"--listen-metrics-urls=http://127.0.0.1:{ports['etcd_health']}",
        "--client-cert-auth",
        f"--trusted-ca-file={keys}/ca.crt",
        f"--cert-file={keys}/node.crt",
        f"--key-file={keys}/node.key",
        "--peer-client-cert-auth",
        f"--peer-trusted-ca-file={keys}/ca.crt",
        f"--peer-cert-file={keys}/node.crt",
        f"--peer-key-file={keys}/node.key",
        "--auto-compaction-mode=periodic",
        "--auto-compaction-retention=10m",
    ]


def _apiserver(plan: Plan) -> list[str]:
    keys, network = plan.state / "pki", plan.network
    return [
        f"{plan.binaries}/kube-apiserver",
        f"--advertise-address={network.node}",
        f"--bind-address={network.node}",
        f"--secure-port={network.ports['apiserver']}",
        f"--tls-cert-file={keys}/node.crt",
        f"--tls-private-key-file={keys}/node.key",
        f"--etcd-servers=https://127.0.0.1:{network.ports['etcd']}",
        f"--etcd-cafile={keys}/ca.crt",
        f"--etcd-certfile={keys}/node.crt",
        f"--etcd-keyfile={keys}/node.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        f"--kubelet-client-certificate={keys}/node.crt",
        f"--kubelet-client-key={keys}/node.key",
        # By name, `kubectl logs` would ask the machine's DNS for the node.
        "--kubelet-preferred-address-types=InternalIP",
        f"--token-auth-file={keys}/tokens.csv",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        f"--service-cluster-ip-range={network.services}",
        f"--service-account-issuer=https://kubernetes.default.svc.{DNS_DOMAIN}",
        f"--service-account-key-file={keys}/service-accounts.key",
        f"--service-account-signing-key-file={keys}/service-accounts.key",
        "--profiling=false",
    ]


def _controller_manager(plan: Plan) -> list[str]:
    keys = plan.state / "pki"
    return [
        f"{plan.binaries}/kube-controller-manager",
        f"--kubeconfig={pki.kubeconfig_of(plan.state, pki.CONTROLLER_MANAGER)}",
        *_local_https(plan, "controller_manager"),
        "--controllers=*,-nodeipam",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={keys}/service-accounts.key",
        f"--root-ca-file={keys}/ca.crt",
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def _scheduler(plan: Plan) -> list[str]:
    return [
        f"{plan.binaries}/kube-scheduler",
        f"--kubeconfig={pki.kubeconfig_of(plan.state, pki.SCHEDULER)}",
        *_local_https(plan, "scheduler"),
        "--leader-elect=false",
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ]


def _local_https(plan: Plan, name: str) -> list[str]:
    flags = [
        "--bind-address=127.0.0.1",
        f"--secure-port={plan.network.ports[name]}",
        f"--tls-cert-file={plan.state}/pki/node.crt",
        f"--tls-private-key-file={plan.state}/pki/node.key",
        "--profiling=false",
    ]
    return [*flags, "--port=0"] if plan.minor < 24 else flags


def _kubelet(plan: Plan) -> list[str]:
    line = [
        f"{plan.binaries}/kubelet",
        f"--config={plan.state}/kubelet.json",
        f"--kubeconfig={pki.kubeconfig_of(plan.state, pki.KUBELET)}",
        f"--root-dir={plan.state}/kubelet",
        f"--cert-dir={plan.state}/kubelet/pki",
        f"--hostname-override={NODE_NAME}",
        f"--node-ip={plan.network.node}",
        f"--container-runtime-endpoint=unix://{plan.paths.containerd_socket}",
    ]
    if plan.minor < 27:
        line += ["--container-runtime=remote"]
    if plan.minor < 35:
        line += [f"--pod-infra-container-image={PAUSE_IMAGE}"]
    return line


def _dnsmasq(plan: Plan) -> list[str]:
    """Answers from the hosts file alone: any other name does not exist, and nobody outside is asked."""
    return [
        "dnsmasq",
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        f"--listen-address={plan.network.node}",
        "--bind-interfaces",
        "--no-resolv",
        "--no-hosts",
        f"--addn-hosts={plan.state}/dns/hosts",
        "--local=/#/",
        f"--pid-file={plan.state}/dns/dnsmasq.pid",
        "--user=nobody",
        "--group=nogroup",
        "--log-facility=-",
        "--cache-size=0",
    ]
