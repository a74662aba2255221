"""What an operator may connect to for its tenants: judged by address, whatever form it takes and whoever names it."""

from __future__ import annotations

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rowmill.errors import InvalidInput
from rowmill.storage import AddressPolicy, AddressRefused

TENANTS = AddressPolicy.tenants()

LOOPBACK, LINK, METADATA = "loopback", "link-local", "metadata service"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("127.0.0.1", LOOPBACK),
        ("127.255.3.4", LOOPBACK),
        ("::1", LOOPBACK),
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "unspecified"),
        ("::", "unspecified"),
        ("169.254.1.1", LINK),
        ("fe80::1", LINK),
        ("fe80::1%eth0", LINK),
        ("febf::1", LINK),
        ("169.254.169.254", METADATA),
        ("169.254.170.2", METADATA),
        ("169.254.170.23", METADATA),
        ("100.100.100.200", METADATA),
        ("168.63.129.16", METADATA),
        ("192.0.0.192", METADATA),
        ("fd00:ec2::254", METADATA),
        ("fd20:ce::254", METADATA),
        ("224.0.0.1", "multicast"),
        ("ff02::1", "multicast"),
        ("240.0.0.1", "reserved"),
        ("255.255.255.255", "reserved"),
        ("fec0::1", "reserved"),
        ("::ffff:127.0.0.1", "stands for 127.0.0.1"),
        ("::ffff:a9fe:a9fe", "stands for 169.254.169.254"),
        ("::127.0.0.1", "stands for 127.0.0.1"),
        ("2002:7f00:1::", "stands for 127.0.0.1"),
        ("2002:a9fe:a9fe::1", "stands for 169.254.169.254"),
        ("64:ff9b::7f00:1", "stands for 127.0.0.1"),
        ("64:ff9b::a9fe:a9fe", "stands for 169.254.169.254"),
        ("64:ff9b:1::a9fe:a9fe", "stands for 169.254.169.254"),
        ("2001:0:7f00:1::", "stands for 127.0.0.1"),
        ("2001:0:808:808::80ff:fffe", "stands for 127.0.0.1"),
        ("fd12::5efe:7f00:1", "stands for 127.0.0.1"),
        ("fd12::200:5efe:a9fe:a9fe", "stands for 169.254.169.254"),
        ("no address", "is no address"),
    ],
)
def test_refused(address: str, reason: str) -> None:
    assert reason in (TENANTS.why_refused(address) or "")
    assert AddressPolicy.everything().why_refused(address) is None


@pytest.mark.parametrize(
    "address",
    [
        "10.96.0.1",
        "172.16.5.5",
        "192.168.1.1",
        "100.64.0.1",
        "8.8.8.8",
        "fd12:3456::1",
        "2606:4700::1111",
        "::ffff:10.0.0.1",
    ],
)
def test_allowed(address: str) -> None:
    assert TENANTS.why_refused(address) is None


@given(st.integers(0, 2**32 - 1))
def test_an_address_within_another_is_judged_like_itself(number: int) -> None:
    inner = ipaddress.IPv4Address(number)
    alone = TENANTS.why_refused(str(inner)) is None
    for form in (0xFFFF << 32 | number, 0x2002 << 112 | number << 80, 0x64FF9B << 96 | number):
        assert (TENANTS.why_refused(str(ipaddress.IPv6Address(form))) is None) == alone


def test_allow_overrides_by_network_in_every_form() -> None:
    policy = AddressPolicy.tenants(["127.0.0.1", " 169.254.10.0/24 ", "fe80::/64"])
    for allowed in ("127.0.0.1", "::ffff:127.0.0.1", "169.254.10.9", "fe80::1%eth0"):
        assert policy.why_refused(allowed) is None
    for refused in ("127.0.0.2", "169.254.169.254", "fe80:1::1"):
        assert policy.why_refused(refused) is not None


@pytest.mark.parametrize("text", ["10.0.0.1/8", "host.example", "", "10.0.0.0/33"])
def test_an_allow_list_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"sources.allowAddresses: .* write 10.1.2.3"):
        AddressPolicy.tenants([text])


def test_a_name_is_judged_by_every_address_that_it_has() -> None:
    def resolve(host: str, port: int) -> list[str]:
        assert (host, port) == ("tables.example", 443)
        return ["10.1.2.3", "169.254.169.254"]

    with pytest.raises(AddressRefused) as caught:
        TENANTS.checked("tables.example", 443, resolve=resolve)
    assert str(caught.value).startswith(
        "tables.example resolves to 169.254.169.254, which is a cloud's metadata service"
    )
    assert "ask the platform team to add it to sources.allowAddresses of the chart" in str(caught.value)
    assert AddressPolicy.everything().checked("tables.example", 443, resolve=resolve) == ["10.1.2.3", "169.254.169.254"]


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST.", "a.localhost", "ip6-localhost"])
def test_names_of_the_machine_itself_are_refused_whatever_they_resolve_to(host: str) -> None:
    with pytest.raises(AddressRefused, match="names the machine itself"):
        TENANTS.checked(host, 80, resolve=lambda *_: ["10.1.2.3"])
    allowed = AddressPolicy.tenants(["127.0.0.0/8"])
    assert allowed.checked(host, 80, resolve=lambda *_: ["127.0.0.1"]) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.0.0.1", "017700000001", "[::1]", "::ffff:127.0.0.1"])
def test_odd_ways_to_write_an_address_are_judged_as_the_system_reads_them(host: str) -> None:
    try:
        addresses = AddressPolicy.everything().checked(host, 80)
    except socket.gaierror:
        return  # a system that does not read it connects to nothing either
    assert addresses
    with pytest.raises(AddressRefused, match=r"127\.0\.0\.1|::1"):
        TENANTS.checked(host, 80)
