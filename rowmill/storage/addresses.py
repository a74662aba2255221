"""Which addresses may be connected to on behalf of somebody else.

An operator fetches what its tenants name, from where it stands in the network. So it must not be a way to what only it
can reach: itself, the machine that it runs on, the cloud's metadata service. A policy judges *resolved* addresses, and
whoever connects connects to the very address that was judged: a name that resolves to something else a moment later
gains nothing. Addresses that carry another one inside (IPv4 mapped into IPv6, 6to4, NAT64, …) are judged by both.

Private ranges are allowed: services of the cluster live there, and tenants reach them from their own pods anyway.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rowmill.errors import InvalidInput, RowmillError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Resolve = Callable[[str, int], Sequence[str]]

ALLOW_OPTION = "sources.allowAddresses"
"""The chart's value that `AddressPolicy.allow` comes from."""


class AddressRefused(RowmillError):
    """A host is, or resolves to, an address that must not be connected to. The text names both and says what to do."""


def _networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(text) for text in texts)


# The first that fits gives the reason, so the particular ones come first.
_DENIED: tuple[tuple[str, tuple[Network, ...]], ...] = (
    (
        "is a cloud's metadata service",
        _networks(
            "169.254.169.254/32",
            "169.254.170.0/24",
            "100.100.100.200/32",
            "168.63.129.16/32",
            "192.0.0.192/32",
            "fd00:ec2::/32",
            "fd20:ce::254/128",
        ),
    ),
    ("is a loopback address: the operator itself", _networks("127.0.0.0/8", "::1/128")),
    ("is a link-local address: the machine that the operator runs on", _networks("169.254.0.0/16", "fe80::/10")),
    ("is the unspecified address: the operator itself", _networks("0.0.0.0/8", "::/128")),
    ("is a multicast address", _networks("224.0.0.0/4", "ff00::/8")),
    (
        "is a reserved address",
        _networks("192.0.0.0/24", "240.0.0.0/4", "fec0::/10", "100::/64", "2001:db8::/32", "3fff::/20", "5f00::/16"),
    ),
)

_NAT64 = _networks("64:ff9b::/96", "64:ff9b:1::/48")
_COMPATIBLE = ipaddress.ip_network("::/96")
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


def resolved(host: str, port: int) -> list[str]:
    """The addresses of a host, as the system resolves it. Raises socket.gaierror."""
    found: list[Any] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


@dataclass(frozen=True, slots=True)
class AddressPolicy:
    """What may be connected to, and whether files of this machine may be read.

    `restricted` denies everything of the list above; `allow` names networks that are allowed nevertheless.
    """

    restricted: bool
    allow: tuple[Network, ...] = ()

    @classmethod
    def everything(cls) -> AddressPolicy:
        """For somebody's own machine: whatever the person can reach, files included."""
        return cls(restricted=False)

    @classmethod
    def tenants(cls, allow: Iterable[str] = ()) -> AddressPolicy:
        """For an operator that fetches for others. `allow` holds addresses and CIDRs. Raises InvalidInput."""
        networks: list[Network] = []
        for text in allow:
            try:
                networks.append(ipaddress.ip_network(text.strip()))
            except ValueError:
                raise InvalidInput.one(
                    ALLOW_OPTION,
                    "",
                    f"{text.strip()!r} is no address and no network; write 10.1.2.3, 10.1.0.0/16 or fd00:1::/64, "
                    "without bits behind the prefix",
                ) from None
        return cls(restricted=True, allow=tuple(networks))

    def why_refused(self, address: str) -> str | None:
        """Why this IP address must not be connected to (`is a loopback address…`), or None."""
        if not self.restricted:
            return None
        try:
            judged = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return "is no address"
        for form in (judged, *_inside(judged)):
            if any(form in network for network in self.allow if network.version == form.version):
                return None
        for form in (judged, *_inside(judged)):
            for reason, networks in _DENIED:
                if any(form in network for network in networks if network.version == form.version):
                    return reason if form == judged else f"stands for {form}, which {reason}"
        return None

    def checked(self, host: str, port: int, *, resolve: Resolve = resolved) -> list[str]:
        """The addresses to connect to for `host`: those that it resolves to now, every one of them allowed.

        Blocks while it resolves. Raises AddressRefused, and socket.gaierror where the name does not resolve.
        """
        bare = host.strip("[]").rstrip(".").lower()
        addresses = list(resolve(host.strip("[]"), port))
        if not self.restricted:
            return addresses
        for address in addresses:
            reason = self.why_refused(address)
            if reason is not None:
                shown = host if bare == address.lower() else f"{host} resolves to {address}, which"
                raise AddressRefused(
                    f"{shown} {reason}; it is not connected to on behalf of a job. Use an address that your own pods "
                    f"can reach, or ask the platform team to add it to {ALLOW_OPTION} of the chart"
                )
        if (bare in _LOCAL_NAMES or bare.endswith(".localhost")) and not self._all_allowed(addresses):
            raise AddressRefused(
                f"{host} names the machine itself, which here is the operator's; use the name of a service"
            )
        return addresses

    def _all_allowed(self, addresses: Iterable[str]) -> bool:
        judged = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
        return all(any(j in network for network in self.allow if network.version == j.version) for j in judged)


def _inside(address: Address) -> list[Address]:
    """The IPv4 addresses that an IPv6 address carries, by every scheme that routers or systems unpack."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    found: list[Address] = []
    low = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if address in _COMPATIBLE and int(address) > 0xFFFF:
        found.append(low)
    if any(address in network for network in _NAT64):
        found.append(low)
    if (int(address) >> 32) & 0xFDFFFFFF == 0x00005EFE:  # ISATAP, whose IPv4 address is universal or local
        found.append(low)
    return found
