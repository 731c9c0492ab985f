"""Router IDs by the rules of five makers, neighbours, and what failures do to sessions."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.rules.routing import (
    PROFILES,
    RULES,
    OspfInterface,
    choose_router_id,
    outage,
    session_outcome,
    why_ineligible,
    why_not_neighbours,
)

ADDRESSES = st.lists(st.ip_addresses(v=4), max_size=6)


def chosen(rule: str, lo: str, wires: str) -> str:
    """The router ID that `rule` picks from two lists of addresses, as text."""
    choice = choose_router_id(
        rule,
        loopbacks=[IPv4Address(item) for item in lo.split()],
        physical=[IPv4Address(item) for item in wires.split()],
    )
    return str(choice.value)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("cisco", "10.255.0.9"),
        ("ios", "10.255.0.9"),
        ("frr", "10.255.0.9"),
        ("junos", "10.255.0.1"),
        ("bird", "1.1.1.1"),
        ("aruba", "10.255.0.1"),
        ("aruba-cx", "10.255.0.9"),
        ("comware", "10.255.0.9"),
    ],
)
def test_each_maker_picks_by_its_own_rule(rule: str, expected: str) -> None:
    """The same router is known by different addresses under different makers."""
    assert expected == chosen(rule, "10.255.0.1 10.255.0.9 10.255.0.5", "192.168.0.1 1.1.1.1")


@pytest.mark.parametrize(
    ("lo", "wires", "expected"),
    [
        ("9.255.255.255 10.0.0.1", "", "10.0.0.1"),
        ("1.1.1.1", "192.168.13.1", "1.1.1.1"),
        ("127.0.0.1 127.9.9.9", "192.168.12.1 192.168.13.1", "192.168.13.1"),
        ("169.254.1.1 10.0.0.1 224.0.0.5 240.0.0.1", "", "10.0.0.1"),
        ("127.0.0.1", "", "None"),
    ],
)
def test_frr_cases_that_were_measured(lo: str, wires: str, expected: str) -> None:
    """The table of cases observed on FRR 8.4.4."""
    assert expected == chosen("frr", lo, wires)


def test_an_explicit_id_wins_and_says_so() -> None:
    """What is configured is taken, whatever the addresses are."""
    choice = choose_router_id(
        "frr", loopbacks=[IPv4Address("10.0.0.1")], physical=[], explicit=IPv4Address("9.9.9.9")
    )

    assert (IPv4Address("9.9.9.9"), "configured explicitly") == (choice.value, choice.reason)


@given(st.sampled_from(sorted(RULES)), ADDRESSES, ADDRESSES)
def test_a_choice_is_one_of_the_eligible_addresses(
    rule: str, lo: list[IPv4Address], wires: list[IPv4Address]
) -> None:
    """No rule invents an address or takes 127/8; it gives up only when nothing is eligible."""
    eligible = [item for item in [*lo, *wires] if why_ineligible(item) is None]
    choice = choose_router_id(rule, loopbacks=lo, physical=wires)

    assert (choice.value in eligible) if eligible else (choice.value is None)


@given(ADDRESSES, ADDRESSES)
def test_a_loopback_beats_any_physical_address(
    lo: list[IPv4Address], wires: list[IPv4Address]
) -> None:
    """Under Cisco's rule an eligible loopback always wins."""
    eligible = [item for item in lo if why_ineligible(item) is None]
    choice = choose_router_id("cisco", loopbacks=lo, physical=wires)

    assert not eligible or choice.value == max(eligible)


HELLO = OspfInterface("0", 0.2, 1, 1500)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (HELLO, None),
        (replace(HELLO, hello=0.5), None),
        (replace(HELLO, area="1"), "area differs: 0 and 1"),
        (replace(HELLO, dead=4), "dead interval differs: 1 and 4"),
        (replace(HELLO, mtu=9000), "MTU differs: 1500 and 9000"),
    ],
)
def test_neighbours_must_agree(other: OspfInterface, expected: str | None) -> None:
    """Area, hello, dead and MTU must match; sub-second hellos are not compared."""
    assert expected == why_not_neighbours(HELLO, other)


@pytest.mark.parametrize(
    ("igp", "bgp", "kind", "expected"),
    [
        ("fast", "fast", "carrier", "held"),
        ("fast", "fast", "silent", "held"),
        ("classic", "classic", "silent", "held"),
        ("stock", "stock", "carrier", "held"),
        ("stock", "stock", "silent", "held"),
        ("classic", "fast", "silent", "flaps"),
        ("stock", "fast", "carrier", "flaps"),
    ],
)
def test_a_session_outlives_a_failure_that_the_igp_mends_in_time(
    igp: str, bgp: str, kind: str, expected: str
) -> None:
    """The rule agrees with what was measured for pairs of timer profiles."""
    slow, hold = PROFILES[igp], PROFILES[bgp]
    dark = outage(kind, timers=slow, dead=slow.dead, bfd=False)  # type: ignore[arg-type]
    outcome = session_outcome(
        path_remains=True, path_hit=True, outage=dark, hold=hold.hold, keepalive=hold.keepalive
    )

    assert expected == outcome


def test_a_session_without_a_path_is_lost_and_one_off_the_path_is_held() -> None:
    """No path: lost. A path that never used what failed: held, however slow the IGP is."""
    never, slow = 0.0, 1000.0

    assert (
        session_outcome(path_remains=False, path_hit=True, outage=never, hold=180, keepalive=60)
        == "lost"
    )
    assert (
        session_outcome(path_remains=True, path_hit=False, outage=slow, hold=3, keepalive=1)
        == "held"
    )
