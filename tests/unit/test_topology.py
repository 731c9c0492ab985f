"""A lab file becomes a resolved lab, or one line that names file, line and remedy."""

from __future__ import annotations

import os
import time
from ipaddress import IPv4Address, ip_interface
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import ConfigError
from loopbox.lab import addressing
from loopbox.lab.positions import find_lines, nearest
from loopbox.lab.records import MAX_LINKS
from loopbox.lab.topology import MAX_BOXES, Lab, load, parse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "labs").glob("*.toml"))


def lab(text: str, **files: str) -> Lab:
    """Parse `text` as lab.toml beside the other `files` (name without .toml)."""
    return parse(text, path=Path("lab.toml"), read=lambda path: files[path.stem])


def complaint(text: str, **files: str) -> tuple[str, str | None]:
    """Message and hint of the error that `text` gives."""
    with pytest.raises(ConfigError) as caught:
        lab(text, **files)
    return caught.value.message, caught.value.hint


ROUTERS = "".join(
    f'[box.r{n}]\nloopback = ["10.255.0.{n}/32"]\nospf = true\nbgp = {{ as = 65000 }}\n'
    for n in (1, 2, 3)
)
CHAIN = ROUTERS + '[[link]]\nends = ["r1", "r2"]\n[[link]]\nends = ["r2", "r3"]\n'


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_parse_without_warnings(path: Path) -> None:
    """Every lab under examples/ is correct and complete."""
    found = load(path)

    assert (path.stem, ()) == (found.name, found.warnings)


def test_links_get_addresses_names_and_devices() -> None:
    """A link of two names gets a /31, a /127, a name of its ends and devices of its peers."""
    link = lab(CHAIN).link("r1-r2")

    assert [(end.box, end.interface) for end in link.ends] == [("r1", "r2"), ("r2", "r1")]
    assert [
        (ip_interface("10.254.0.0/31"), ip_interface("fd00:254::/127")),
        (ip_interface("10.254.0.1/31"), ip_interface("fd00:254::1/127")),
    ] == [end.addresses for end in link.ends]


def test_pools_keep_clear_of_what_is_written() -> None:
    """An address written by hand inside the pool is never drawn again."""
    text = ROUTERS + (
        '[[link]]\nends = ["r1", "r2"]\n'
        '[[link]]\nends = ["r2", "r3"]\naddresses = ["10.254.0.1/31", "10.254.0.0/31"]\n'
    )

    assert IPv4Address("10.254.0.2") == lab(text).link("r1-r2").end("r1").address(4)


def test_a_bridge_gets_one_subnet_and_its_own_name_as_device() -> None:
    """More than two ends share one subnet large enough for all."""
    text = ROUTERS + '[[link]]\nname = "lan"\nends = ["r1", "r2", "r3"]\n'
    link = lab(text).link("lan")

    assert [end.interface for end in link.ends] == ["lan", "lan", "lan"]
    assert [str(end.addresses[0]) for end in link.ends] == [
        "10.254.0.1/29",
        "10.254.0.2/29",
        "10.254.0.3/29",
    ]


def test_parallel_links_are_told_apart() -> None:
    """A second link between the same boxes has a name and devices of its own."""
    text = ROUTERS + '[[link]]\nends = ["r1", "r2"]\n' * 2

    assert [(link.name, link.end("r1").interface) for link in lab(text).links] == [
        ("r1-r2", "r2"),
        ("r1-r2-2", "r2-2"),
    ]


def test_unnumbered_ends_lend_the_loopback() -> None:
    """Under OSPF an unnumbered end has the /32 of its box's loopback."""
    text = ROUTERS + '[[link]]\nends = ["r1", "r2"]\nunnumbered = true\n'

    assert [(ip_interface("10.255.0.1/32"),), (ip_interface("10.255.0.2/32"),)] == [
        end.addresses for end in lab(text).link("r1-r2").ends
    ]


def test_internal_sessions_are_a_full_mesh_between_loopbacks() -> None:
    """Without `peers` each pair of routers of one AS gets one session."""
    assert [(session.name, session.source) for session in lab(CHAIN).sessions] == [
        ("r1-r2", "loopback"),
        ("r1-r3", "loopback"),
        ("r2-r3", "loopback"),
    ]


def test_reflectors_replace_the_mesh() -> None:
    """With a reflector, clients have a session with it and none among themselves."""
    text = CHAIN.replace("as = 65000 }", "as = 65000, reflector = true }", 1)

    assert [session.name for session in lab(text).sessions] == ["r1-r2", "r1-r3"]


def test_source_both_adds_a_session_on_each_shared_link() -> None:
    """`source = "both"` shows the difference: loopback and link sessions side by side."""
    text = CHAIN.replace("as = 65000 }", 'as = 65000, source = "both" }')

    assert [session.name for session in lab(text).sessions] == [
        "r1-r2",
        "r1-r2 on r1-r2",
        "r1-r3",
        "r2-r3",
        "r2-r3 on r2-r3",
    ]


def test_neighbours_of_another_as_use_the_link() -> None:
    """An external session lives on the link, and OSPF does not run between two ASes."""
    found = lab(CHAIN.replace("as = 65000", "as = 65001", 1))

    assert [(session.name, session.external) for session in found.sessions] == [
        ("r1-r2 on r1-r2", True),
        ("r2-r3", False),
    ]
    assert [link.ospf for link in found.links] == [False, True]


def test_router_id_is_the_highest_loopback_with_its_reason() -> None:
    """Cisco's and FRR's rule decides, and says so."""
    text = CHAIN.replace('"10.255.0.1/32"', '"9.9.9.9/32", "10.0.0.1/32"')
    choice = lab(text).box("r1").router_id

    assert choice is not None
    assert (IPv4Address("10.0.0.1"), "highest loopback address") == (choice.value, choice.reason)


def test_auto_router_id_is_known_but_not_written() -> None:
    """`router_id = "auto"` leaves the choice to the daemon; the lab still predicts it."""
    box = lab(CHAIN.replace("ospf = true", 'ospf = { router_id = "auto" }', 1)).box("r1")

    assert box.router_id is not None
    assert (IPv4Address("10.255.0.1"), False) == (box.router_id.value, box.router_id_written)


def test_extends_lays_a_file_over_another() -> None:
    """Tables merge, links add up, and an error in the base names the base and its line."""
    found = lab('extends = "base.toml"\n[box.r1]\nbfd = true\n', base=CHAIN)

    assert (found.box("r1").bfd, found.box("r1").ospf is not None) == (True, True)
    assert len(found.links) == 2
    assert (
        (complaint('extends = "base.toml"', base=CHAIN.replace('"r1", "r2"]', '"r1", "r4"]'))[0])
        == "cannot read `base.toml`: line 14: a link ends in box `r4`, which does not exist"
    )


def test_slow_igp_under_fast_bgp_is_warned_about() -> None:
    """Hold times that a silent failure outlasts are said before they surprise."""
    found = lab(CHAIN.replace("ospf = true", "ospf = { hello = 1, dead = 4 }"))

    assert found.warnings[0] == (
        "session r1-r2: OSPF notices a silent failure only after 4 s, too late for a hold time "
        "of 3 s: it will flap"
    )


def test_mismatched_neighbours_are_warned_about() -> None:
    """Two ends that will never be Full are named with the reason."""
    found = lab(CHAIN.replace("ospf = true", "ospf = { area = 1 }", 1))

    assert (found.warnings) == (
        "link `r1-r2`: r1 and r2 will not be neighbours: area differs: 1 and 0",
    )


BAD_FILES: dict[str, tuple[str, str, str]] = {
    "unknown box": (
        CHAIN + '[[link]]\nends = ["r1", "r33"]\n',
        "line 18: a link ends in box `r33`, which does not exist",
        "did you mean `r3`? or add [box.r33]",
    ),
    "duplicate address": (
        CHAIN.replace("10.255.0.3", "10.255.0.1"),
        (
            "line 10: duplicate address: `10.255.0.1/32` on lo of box `r3` is also "
            "`10.255.0.1/32` on lo of box `r1`"
        ),
        "give one of them another address, or write both as `anycast`",
    ),
    "overlapping prefix": (
        CHAIN + 'subnet = "10.255.0.0/24"\n',
        (
            "line 17: overlapping prefix: `10.255.0.0/24` of link `r2-r3` overlaps "
            "`10.255.0.1/32` on lo of box `r1`"
        ),
        "choose prefixes that share no address",
    ),
    "bad AS": (
        CHAIN.replace("as = 65000", "as = 0", 1),
        "line 4: bad AS number 0",
        "write as = 65000: a number from 1 to 4294967294, private ones start at 64512",
    ),
    "reserved AS": (
        CHAIN.replace("as = 65000", "as = 23456", 1),
        "line 4: bad AS number 23456: reserved (RFC 6793)",
        "write as = 65000",
    ),
    "AS missing": (
        CHAIN.replace("as = 65000", "reflector = true", 1),
        "line 4: `bgp` has no AS number",
        "write as = 65000: a number from 1 to 4294967294, private ones start at 64512",
    ),
    "unknown key": (
        CHAIN.replace("loopback", "loopbak", 1),
        "line 2: box `r1` has no key `loopbak`",
        "did you mean `loopback`?",
    ),
    "unknown profile": (
        'timers = "quick"\n' + CHAIN,
        "line 1: `timers` must be one of fast, classic, stock, not 'quick'",
        'write timers = "fast"',
    ),
    "not TOML": (
        '[box.r1]\nloopback = "10.0.0.1\n',
        "line 2: illegal character '\\n'",
        "a lab file is TOML: [tables], key = value, strings in quotes",
    ),
    "not an address": (
        CHAIN.replace("10.255.0.2/32", "10.255.0.2/33"),
        "line 6: '10.255.0.2/33' is not an IP address with prefix length",
        'write it as "10.255.0.1/32" or "2001:db8::1/128"',
    ),
    "host loopback": (
        CHAIN.replace("10.255.0.2/32", "127.0.0.5/8"),
        (
            "line 6: `127.0.0.5/8` is host loopback: every box has it already and no router may "
            "tell it"
        ),
        "give loopback an address that routers can forward, such as 10.255.0.1/32",
    ),
    "one end": (
        CHAIN + '[[link]]\nends = ["r1"]\n',
        "line 18: a link needs at least two ends",
        'write ends = ["r1", "r2"]',
    ),
    "end twice": (
        CHAIN + '[[link]]\nends = ["r1", "r1"]\n',
        "line 18: box `r1` is on both ends of a link",
        "a link joins different boxes",
    ),
    "two subnets": (
        CHAIN + 'addresses = ["10.9.0.1/30", "10.9.0.5/30"]\n',
        "line 17: the ends of a link are in different subnets: 10.9.0.0/30 and 10.9.0.4/30",
        "give all ends of a link the same subnet",
    ),
    "duplicate router ID": (
        CHAIN.replace("ospf = true", 'ospf = { router_id = "10.255.0.2" }', 1),
        "line 5: duplicate router ID 10.255.0.2: boxes `r1` and `r2` (highest loopback address)",
        "give each router its own loopback address, or write router_id",
    ),
    "peer without BGP": (
        CHAIN.replace("bgp = { as = 65000 }\n", "", 1).replace(
            "as = 65000", 'as = 65000, peers = ["r1"]', 1
        ),
        "line 7: box `r2` peers with `r1`, which has no BGP",
        "write bgp = { as = … } under [box.r1]",
    ),
    "no router ID": (
        "[box.r1]\nospf = true\n",
        "line 1: box `r1` has no address that could be its router ID",
        'write loopback = ["10.255.0.1/32"], or router_id = "10.255.0.1"',
    ),
    "hello too long": (
        CHAIN.replace("ospf = true", "ospf = { hello = 10, dead = 4 }", 1),
        "line 3: `hello` (10) must be shorter than `dead` (4)",
        "four hellos in a dead interval are usual",
    ),
    "route to nowhere": (
        CHAIN + '[box.r4]\nstatic = [{ to = "10.7.0.0/24", via = "r1" }]\n',
        "line 18: the route to 10.7.0.0/24 leads via `r1`, to which box `r4` has no link",
        "`via` is a box on a shared link, or an address in its subnet",
    ),
    "bad box name": (
        "[box.R1]\n",
        "line 1: 'R1' is not a box name",
        "use a-z, 0-9 and -, at most 63 characters, no dot",
    ),
    "box that is no table": (
        "[box]\na = false\n",
        "line 2: `box.a` must be a table, not False",
        "write [box.r1] on a line of its own",
    ),
    "BGP that is a number": (
        CHAIN.replace("{ as = 65000 }", "65000", 1),
        "line 4: `bgp` must be a table or true, not 65000",
        "write bgp = { as = 65000 }",
    ),
    "service for services": (
        CHAIN + '[box.r4.service.web]\nrun = "x"\n',
        "line 17: box `r4` has no key `service`",
        "did you mean `services`?",
    ),
    "table twice": (
        "[box.r1]\n[box.r1]\n",
        "line 2: `[box.r1]` stands here a second time",
        "a lab file is TOML: [tables], key = value, strings in quotes",
    ),
    "empty word": (
        CHAIN.replace("as = 65000", 'as = 65000, source = ""', 1),
        "line 4: `source` must be one of loopback, link, both, not ''",
        'write source = "loopback"',
    ),
    "multicast on lo": (
        CHAIN.replace("10.255.0.2/32", "224.0.0.5/32"),
        "line 6: `224.0.0.5/32` cannot be an address of a box: it is multicast",
        "give loopback a unicast address, such as 10.255.0.1/32 or 2001:db8::1/128",
    ),
    "subnet of the host's loopback": (
        CHAIN + 'subnet = "127.5.0.0/24"\n',
        (
            "line 17: `127.5.0.0/24` is host loopback: every box has it already and no router may "
            "tell it"
        ),
        "give subnet an address that routers can forward, such as 10.255.0.1/32",
    ),
    "two subnets of one kind": (
        CHAIN + 'subnet = ["10.1.0.0/24", "10.2.0.0/24"]\n',
        "line 17: a link has at most one subnet of IPv4 and one of IPv6",
        'write subnet = ["10.0.12.0/31", "2001:db8:12::/127"]',
    ),
    "one end without address": (
        CHAIN + 'addresses = { r2 = "10.1.0.1/24" }\n',
        "line 17: `addresses` has none for end `r3`",
        "write r3 = [] there if it shall have none",
    ),
    "too narrow for IPv6": (
        CHAIN + 'mtu = 600\nsubnet = "2001:db8:9::/64"\n',
        "line 17: `mtu` 600 is too small for IPv6, which needs 1280",
        "write mtu = 1280, or take the IPv6 addresses out",
    ),
    "no rate at all": (
        CHAIN + 'rate = "0mbit"\n',
        "line 17: '0mbit' is not a rate: from 1kbit to 1000gbit",
        'write rate = "10mbit"',
    ),
    "passive on no link": (
        CHAIN.replace("ospf = true", 'ospf = { passive = ["r2-r3"] }', 1),
        "line 3: `passive` names `r2-r3`, which is no link of box `r1`",
        "did you mean `r1-r2`?",
    ),
    "virtual and loopback": (
        CHAIN.replace("ospf = true", 'ospf = true\nvirtual = "10.255.0.1/32"', 1),
        "line 4: duplicate address: `10.255.0.1` of box `r1` is `virtual` and `loopback`",
        "take it out of one of them",
    ),
    "extends that is no path": (
        'extends = "a\\u0000b"\n' + CHAIN,
        "line 1: cannot extend 'a\\x00b': that is no path",
        'write extends = "base.toml"',
    ),
    "deep brackets": (
        "[box.r1]\nloopback = " + "[" * 3000 + "]" * 3000 + "\n",
        "line 2: brackets are nested too deeply",
        "a lab file is TOML: [tables], key = value, strings in quotes",
    ),
    "endless number": (
        "[box.r1]\nbgp = { as = " + "9" * 5000 + " }\n",
        "line 2: the number is too long",
        "a lab file is TOML: [tables], key = value, strings in quotes",
    ),
    "too many links": (
        ROUTERS + '[[link]]\nends = ["r1", "r2"]\n' * (MAX_LINKS + 1),
        f"line {13 + 2 * MAX_LINKS}: 16385 links are too many: a lab holds at most {MAX_LINKS}",
        "split the lab, or join boxes by links of many ends",
    ),
    "too many boxes": (
        "".join(f"[box.b{n}]\n" for n in range(10_000)),
        f"line {MAX_BOXES + 1}: 10000 boxes are too many: a lab holds at most {MAX_BOXES}",
        "split the lab, or export it to containerlab and spread it over a cluster",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_mistake_gives_one_line_with_place_and_remedy(name: str) -> None:
    """Each kind of mistake is told with file, line, cause and what to write instead."""
    text, cause, remedy = BAD_FILES[name]

    assert (f"cannot read `lab.toml`: {cause}", remedy) == complaint(text)


def test_a_cycle_in_extends_names_the_whole_chain() -> None:
    """Files that extend each other are refused with the chain."""
    message, hint = complaint('extends = "a.toml"\n', a='extends = "b.toml"', b='extends="a.toml"')

    assert (message, hint) == (
        (
            "cannot read `b.toml`: line 1: cycle in `extends`: `lab.toml` extends `a.toml` extends "
            "`b.toml` extends `a.toml`"
        ),
        "take one `extends` out",
    )


def test_a_missing_base_is_blamed_on_the_line_that_names_it(tmp_path: Path) -> None:
    """A file that cannot be read is an error of the file that asked for it."""
    path = tmp_path / "lab.toml"
    path.write_text('\nextends = "gone.toml"\n')

    with pytest.raises(ConfigError, match="line 2: cannot extend"):
        load(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "device", "binary"])
@pytest.mark.parametrize("key", ["extends", "config"])
def test_a_file_that_cannot_be_read_is_blamed_on_its_line(
    tmp_path: Path, key: str, kind: str
) -> None:
    """Whatever `extends` or `config` names, the line that names it is told, and nothing hangs."""
    named = tmp_path / "named"
    if kind == "folder":
        named.mkdir()
    elif kind == "fifo":
        os.mkfifo(named)
    elif kind == "device":
        named.symlink_to("/dev/zero")
    elif kind == "binary":
        named.write_bytes(b"\xff\xfe\x00")
    where = 'extends = "named"\n' if key == "extends" else ""
    lines = f"{where}[box.r1]\nloopback = 'auto'\n" + ('config = "named"\n' if not where else "")
    path = tmp_path / "lab.toml"
    path.write_text(lines)

    with pytest.raises(ConfigError) as caught:
        load(path)
    place = f"cannot read `{path}`: line {1 if where else 3}: "
    assert caught.value.message.startswith(place)
    assert caught.value.hint is not None


def test_many_links_between_two_boxes_are_named_quickly() -> None:
    """As many as a lab holds: names are counted on, not searched for from the start."""
    text = ROUTERS + '[[link]]\nends = ["r1", "r2"]\n' * 4000
    begun = time.process_time()
    last = lab(text).links[-1]

    assert (last.name, last.end("r1").interface) == ("r1-r2-4000", "r2-4000")
    assert time.process_time() - begun < 5


@given(st.text(max_size=200))
def test_no_text_makes_the_parser_fall_over(text: str) -> None:
    """Any text gives a lab or a ConfigError, never another exception."""
    try:
        lab(text)
    except ConfigError as err:
        assert err.message.startswith("cannot read `lab.toml`: line ")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["as", "area", "address", "to", "via", "box"]), inner)
    ),
    max_leaves=6,
)
KEYS = (
    "loopback",
    "ospf",
    "bgp",
    "static",
    "anycast",
    "services",
    "gateway",
    "router_id",
    "config",
)


def as_toml(value: object) -> str:
    """`value` as inline TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {as_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    if isinstance(value, str):
        return (
            '"'
            + "".join(char if char.isalnum() and char.isascii() else "." for char in value)
            + '"'
        )
    if isinstance(value, bool):
        return str(value).lower()
    return '""' if value is None else repr(value)


@given(st.sampled_from(KEYS), VALUES)
def test_no_value_of_a_wrong_type_gets_through(key: str, value: object) -> None:
    """Any value under any key of a box gives a lab or a ConfigError."""
    try:
        lab(f"[box.r1]\n{key} = {as_toml(value)}\n")
    except ConfigError as err:
        assert "lab.toml" in err.message


def test_lines_are_found_through_arrays_comments_and_strings() -> None:
    """Brackets in comments and strings do not lead the line count astray."""
    text = '# [box.no]\n[box.r1]\nloopback = [\n "a", # ]\n]\nt = """\n[box.x]\n"""\nb = {c = 1}\n'

    assert find_lines(text) == {
        ("box",): 2,
        ("box", "r1"): 2,
        ("box", "r1", "loopback"): 3,
        ("box", "r1", "t"): 6,
        ("box", "r1", "b"): 9,
        ("box", "r1", "b", "c"): 9,
    }
    assert nearest(find_lines(text), ("box", "r1", "loopback", 0)) == 3


@given(st.lists(st.text("abcdef-", min_size=1, max_size=40), min_size=1, max_size=30))
def test_device_names_fit_and_differ(peers: list[str]) -> None:
    """Whatever the peers are called, devices are distinct and at most 15 bytes."""
    names = addressing.interface_names(["l"] * len(peers), peers=peers)

    assert len(names) == len(set(names))
    assert max(map(len, names)) <= addressing.IFNAMSIZ
