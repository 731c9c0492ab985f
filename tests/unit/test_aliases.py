"""Loopback aliases: judgement, plans for nine systems, files."""

import os
from ipaddress import IPv4Address, IPv6Address, ip_interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.cli.address_commands import plan_text
from loopbox.errors import ConfigError, UsageError
from loopbox.rules.addressing import parse_interface
from loopbox.rules.alias_files import with_address, without_address
from loopbox.rules.alias_plans import plan_alias
from loopbox.rules.alias_systems import SYSTEMS
from loopbox.rules.aliases import judge_addition, judge_deletion
from loopbox.rules.network import IFF_LOOPBACK, IFF_UP, InterfaceAddress, Link, Network


def device(*on_lo, on_eth=("192.168.1.5/24",), knobs=None, secondary=()):
    """A device with a (renamed) loopback and one NIC that is up."""
    entries = []
    for index, texts in ((1, ("127.0.0.1/8", "::1/128", *on_lo)), (2, on_eth)):
        for text in texts:
            interface = ip_interface(text)
            scope = "host" if interface.ip.is_loopback else "global"
            entries.append(
                InterfaceAddress(
                    index, interface.ip, interface.network.prefixlen, scope, text in secondary
                )
            )
    links = (Link(1, "lo9", IFF_UP | IFF_LOOPBACK), Link(2, "eth0", IFF_UP))
    return Network(links=links, addresses=tuple(entries), knobs=knobs or {})


def addition(text, network=None, **options):
    """Judge adding ADDRESS[/PREFIX]."""
    return judge_addition(*parse_interface(text), network or device(), **options)


def deletion(text, network=None):
    """Judge deleting ADDRESS[/PREFIX]."""
    return judge_deletion(*parse_interface(text), network or device())


@pytest.mark.parametrize(
    ("text", "expected"), [("10.9.9.9", "10.9.9.9/32"), ("2001:db8::9", "2001:db8::9/128")]
)
def test_one_address_is_the_default(text, expected):
    """Without a prefix length exactly one address becomes local."""
    assert expected == addition(text).text


def test_adding_what_is_there_is_done():
    """The same address and prefix again: nothing to do, no refusal."""
    judged = addition("10.9.9.9", device("10.9.9.9/32"))

    assert (True, None) == (judged.done, judged.refusal)


@pytest.mark.parametrize(
    ("text", "count"), [("10.9.9.9/24", "256"), ("198.18.0.0/15", "131072"), ("127.0.0.5/8", "")]
)
def test_a_short_prefix_is_refused_with_the_count(text, count):
    """An IPv4 prefix that makes more than one address local needs --force."""
    judged = addition(text)

    assert judged.refusal is not None
    assert count in judged.refusal
    assert judged.forcible


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "::ffff:1.2.3.4"]
)
def test_impossible_addresses_are_refused(text):
    """What no interface can carry is refused, --force or not."""
    judged = addition(text)

    assert (False, True) == (judged.forcible, judged.refusal is not None)


@pytest.mark.parametrize(
    ("text", "network", "words"),
    [
        ("12.42.38.125", device(), "belongs to somebody"),
        ("10.9.9.9", device(), "answers ARP"),
        ("10.9.9.9", device(knobs={"ipv4/conf/all/arp_ignore": "1"}), "weak host model"),
        ("2001:db8::9", device(), "weak host model"),
        ("2001:db8::9/64", device(), "unreachable"),
        ("10.9.9.9", device(on_eth=()), "--scope host"),
        ("127.0.0.2", device(), "nothing needs this alias"),
    ],
)
def test_warnings(text, network, words):
    """Each trap of an alias is warned of where it applies."""
    assert any(words in warning for warning in addition(text, network).warnings)


def test_no_warning_of_becoming_a_source_where_it_cannot():
    """A numbered NIC, or scope host, keeps the alias from becoming a source address."""
    said = [
        *addition("10.9.9.9").warnings,
        *addition("10.9.9.9", device(on_eth=()), scope="host").warnings,
    ]

    assert [] == [warning for warning in said if "--scope host" in warning]


@pytest.mark.parametrize("text", ["127.0.0.1", "127.0.0.1/8", "::1", "::1/128"])
def test_loopback_itself_is_never_deleted(text):
    """127.0.0.1/8 and ::1/128 stay, whatever was asked."""
    judged = deletion(text)

    assert (False, True) == (judged.forcible, judged.refusal is not None)


def test_an_extra_prefix_of_127_0_0_1_may_go():
    """127.0.0.1/32 beside /8 is an ordinary alias."""
    judged = deletion("127.0.0.1/32", device("127.0.0.1/32"))

    assert (None, False) == (judged.refusal, judged.done)


def test_deleting_what_is_not_there_is_done():
    """Nothing to delete is no failure."""
    assert deletion("10.9.9.9").done


def test_a_primary_with_secondaries_is_kept():
    """Deleting a primary address deletes its secondaries, so it is refused and they are named."""
    network = device("10.0.0.1/8", "10.0.0.2/8", secondary=("10.0.0.2/8",))

    assert "10.0.0.2/8" in (deletion("10.0.0.1/8", network).refusal or "")


def test_promoted_secondaries_survive():
    """With promote_secondaries the kernel keeps them, so nothing is refused."""
    network = device(
        "10.0.0.1/8",
        "10.0.0.2/8",
        secondary=("10.0.0.2/8",),
        knobs={"ipv4/conf/lo9/promote_secondaries": "1"},
    )

    assert deletion("10.0.0.1/8", network).refusal is None


def test_an_ambiguous_deletion_asks_for_the_prefix():
    """An address there with two prefixes is not guessed."""
    network = device("10.9.9.9/32", "10.9.9.9/24")

    assert deletion("10.9.9.9", network).hint == "name the prefix length"
    assert deletion("10.9.9.9/24", network).refusal is None


def test_every_system_has_a_plan_for_both_families():
    """Nine systems, each with add, undo and list commands that name the address."""
    found = {
        (name, address.version): plan_alias(address, None, system=name)
        for name in SYSTEMS
        for address in (IPv4Address("10.9.9.9"), IPv6Address("2001:db8::9"))
    }

    assert 18 == len(found)
    for plan in found.values():
        assert all(plan.address in command for command in plan.add)
        assert plan.undo
        assert plan.list
        assert plan.persist
        assert "{" not in str([plan.add, plan.undo, [way.add for way in plan.persist]])


@pytest.mark.parametrize(
    ("system", "needed"),
    [("linux", False), ("windows", False), ("macos", True), ("freebsd", True), ("openbsd", True)],
)
def test_whether_127_0_0_2_needs_an_alias(system, needed):
    """Linux and Windows have the whole of 127/8, the others only 127.0.0.1."""
    assert needed == plan_alias(IPv4Address("127.0.0.2"), None, system=system).needed
    assert plan_alias(IPv4Address("127.0.0.1"), None, system=system).needed is False
    assert plan_alias(IPv4Address("10.0.0.1"), None, system=system).needed is True


def test_macos_commands():
    """The macOS plan is the one its manual gives."""
    plan = plan_alias(IPv4Address("127.0.0.2"), None, system="macos")

    assert (
        ("sudo ifconfig lo0 alias 127.0.0.2 netmask 255.255.255.255",),
        ("sudo ifconfig lo0 -alias 127.0.0.2",),
        "read",
    ) == (plan.add, plan.undo, plan.trust)


GOLDEN = Path(__file__).parents[1] / "golden" / "addr-plans.txt"


def test_the_plans_as_people_read_them():
    """All nine plans, word for word; LOOPBOX_UPDATE_GOLDEN=1 writes them anew."""
    text = "\n\n".join(
        plan_text(plan_alias(address, None, system=system))
        for system in SYSTEMS
        for address in (IPv4Address("127.0.0.2"), IPv6Address("2001:db8::9"))
    )
    if os.environ.get("LOOPBOX_UPDATE_GOLDEN"):
        GOLDEN.write_text(text + "\n")

    assert GOLDEN.read_text() == text + "\n"


@pytest.mark.parametrize(("system", "persist"), [("beos", None), ("linux", "launchd")])
def test_unknown_plans_are_refused_with_the_choices(system, persist):
    """An unknown system or persist kind lists what there is."""
    with pytest.raises(UsageError) as failure:
        plan_alias(IPv4Address("10.9.9.9"), None, system=system, persist=persist)

    assert "one of" in (failure.value.hint or "")


DEBIAN = """\
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback
"""


@pytest.mark.parametrize("kind", ["networkd", "networkmanager", "ifupdown"])
@pytest.mark.parametrize("before", [None, DEBIAN, DEBIAN.rstrip("\n"), ""])
def test_undo_restores_every_byte(kind, before):
    """Adding two addresses and removing them gives back the file, or its absence."""
    if kind != "ifupdown" and before is not None:
        before = None
    one, two = "10.9.9.9/32", "2001:db8::9/128"

    added = with_address(kind, with_address(kind, before, one), two)

    assert added == with_address(kind, added, one)
    assert before == without_address(kind, without_address(kind, added, two), one)
    assert (before or "") in added


def test_ifupdown_stanzas():
    """The loopback stanza stays whole and each family gets a stanza of its own."""
    text = with_address("ifupdown", with_address("ifupdown", DEBIAN, "10.9.9.9/32"), "fd00::9/128")

    assert [
        "iface lo inet loopback",
        "iface lo inet static",
        "iface lo inet6 static",
    ] == [line for line in text.splitlines() if line.startswith("iface")]


def test_networkmanager_keeps_loopback_itself():
    """The keyfile names 127.0.0.1/8 and ::1/128 beside the alias."""
    text = with_address("networkmanager", None, "10.9.9.9/32")

    assert ["address1=127.0.0.1/8", "address2=10.9.9.9/32", "address1=::1/128"] == [
        line for line in text.splitlines() if line.startswith("address")
    ]


@pytest.mark.parametrize("kind", ["networkd", "networkmanager"])
def test_a_file_edited_by_hand_is_left_alone(kind):
    """Our own file with a foreign line is refused, not rewritten."""
    text = with_address(kind, None, "10.9.9.9/32") + "# mine\nMTU=1\n"

    with pytest.raises(ConfigError, match="edited by hand"):
        with_address(kind, text, "10.8.8.8/32")


def test_a_broken_fence_is_refused():
    """A stanza whose end mark is gone is not guessed at."""
    text = with_address("ifupdown", DEBIAN, "10.9.9.9/32").replace("10.9.9.9/32 end", "")

    with pytest.raises(ConfigError, match="missing"):
        without_address("ifupdown", text, "10.9.9.9/32")


addresses = st.one_of(
    st.integers(1, 2**32 - 1).map(lambda n: f"{IPv4Address(n)}/32"),
    st.integers(2, 2**128 - 1).map(lambda n: f"{IPv6Address(n)}/128"),
)


@given(
    st.one_of(st.none(), st.text(alphabet="ab \t#\n\r", max_size=60)),
    st.lists(addresses, unique=True, min_size=1, max_size=4),
    st.sampled_from(["networkd", "networkmanager", "ifupdown"]),
)
def test_adding_and_removing_is_an_identity(before, wanted, kind):
    """For any file and any addresses, undoing in reverse order restores the bytes."""
    before = before if kind == "ifupdown" else None
    text = before
    for address in wanted:
        text = with_address(kind, text, address)
    for address in reversed(wanted):
        text = without_address(kind, text, address)

    assert before == text
