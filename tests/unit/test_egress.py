"""Who may go where: the policies, row by row, and nothing but them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.rules.addressing import Address
from loopbox.rules.egress import NEVER, POLICIES, Facts, Verdict, addresses_judged, judge

ANY_ADDRESS = st.one_of(
    st.integers(0, 2**32 - 1).map(IPv4Address), st.integers(0, 2**128 - 1).map(IPv6Address)
)


def judged(
    text: str | Address, *kinds: str, policy: str = "open", port: int = 443, protocol: str = "tcp"
) -> Verdict:
    """The verdict where the kernel gives these route types (unicast for the rest)."""
    address = ip_address(text) if isinstance(text, str) else text
    wanted = len(addresses_judged(address))
    facts = Facts((*kinds, *["unicast"] * wanted)[:wanted])
    return judge(address, port=port, protocol=protocol, name=None, facts=facts, policy=policy)


@pytest.mark.parametrize(
    "address",
    [
        *("93.184.216.34", "8.8.8.8", "10.1.2.3", "192.168.1.1", "100.64.0.1", "198.18.5.5"),
        *("2606:2800::1", "fd12:3456::1", "2001:db8::1", "64:ff9b::808:808", "::ffff:8.8.8.8"),
    ],
)
def test_open_lets_the_world_be_reached(address: str) -> None:
    """Public and private networks, over both families and through NAT64."""
    verdict = judged(address)

    assert (verdict.allow, verdict.rule) == (True, "open")


@pytest.mark.parametrize(
    ("address", "rule"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("127.64.3.2", "loopback"),
        ("::1", "loopback"),
        ("::ffff:127.0.0.1", "loopback"),
        ("64:ff9b::7f00:1", "loopback"),
        ("2002:7f00:1::1", "loopback"),
        ("0.0.0.0", "unspecified"),
        ("::", "unspecified"),
        ("::ffff:0.0.0.0", "unspecified"),
        ("169.254.169.254", "metadata"),
        ("::ffff:169.254.169.254", "metadata"),
        ("64:ff9b::a9fe:a9fe", "metadata"),
        ("fd00:ec2::254", "metadata"),
        ("169.254.1.1", "link-local"),
        ("fe80::1", "link-local"),
        ("224.0.0.251", "multicast"),
        ("ff02::1", "multicast"),
        ("255.255.255.255", "broadcast"),
        ("0.1.2.3", "broadcast"),
        ("198.18.0.1", "inside"),
        ("198.18.0.53", "inside"),
        ("fd6c:6f6f:7062::1", "inside"),
    ],
)
def test_what_no_policy_allows(address: str, rule: str) -> None:
    """Loopback in every disguise, metadata, link-local, group addresses, what is inside boxes."""
    verdict = judged(address)

    assert (verdict.allow, verdict.rule) == (False, rule)


@pytest.mark.parametrize("address", ["192.168.1.20", "203.0.113.1", "2001:db8::1", "fd00::2"])
def test_the_hosts_own_addresses(address: str) -> None:
    """An address the kernel calls local is the host, whatever it looks like."""
    verdict = judged(address, "local")

    assert (verdict.allow, verdict.rule) == (False, "host")


def test_the_host_behind_an_embedded_address() -> None:
    """A 6to4 address that carries one of the host's own IPv4 addresses is the host too."""
    verdict = judged("2002:cb00:7101::1", "unicast", "local")

    assert (verdict.allow, verdict.rule) == (False, "host")


def test_a_broadcast_address_of_a_link() -> None:
    """The kernel knows which addresses are broadcast on the host's links."""
    assert judged("192.168.1.255", "broadcast").rule == "broadcast"


@pytest.mark.parametrize("policy", ["local", "none", "filter", "", "OPEN"])
def test_other_policies_let_nothing_out(policy: str) -> None:
    """Closed ones deny, and so does one that nobody knows."""
    assert judged("93.184.216.34", policy=policy).allow is False


@given(ANY_ADDRESS, st.sampled_from(["local", "broadcast", "multicast", "anycast"]))
def test_no_policy_reaches_what_the_kernel_calls_its_own(address: Address, kind: str) -> None:
    """Whatever the address, a route that is not unicast denies it under every policy."""
    assert not any(judged(address, kind, policy=policy).allow for policy in POLICIES)


@given(st.integers(0, 2**24 - 1), st.sampled_from(["", "::ffff:", "64:ff9b::"]))
def test_no_way_to_loopback(host: int, prefix: str) -> None:
    """All of 127/8 is denied, plain, mapped or through NAT64."""
    assert not judged(f"{prefix}{IPv4Address(127 << 24 | host)}").allow


@given(ANY_ADDRESS)
def test_an_answer_always_has_a_reason(address: Address) -> None:
    """Every verdict names its rule and says why."""
    verdict = judged(address)

    assert verdict.rule and verdict.reason


def test_facts_about_something_else_are_no_basis() -> None:
    """A missing fact is a mistake of the caller, not a reason to allow."""
    with pytest.raises(ValueError, match="2 addresses but 1 facts"):
        judge(
            ip_address("64:ff9b::808:808"),
            port=1,
            protocol="tcp",
            name=None,
            facts=Facts(("unicast",)),
        )


def test_every_rule_of_never_denies() -> None:
    """The common rules are in front of every policy that allows anything."""
    assert not any(rule.allow for rule in NEVER)
    for rules in POLICIES.values():
        assert not any(rule.allow for rule in rules) or rules[: len(NEVER)] == NEVER
