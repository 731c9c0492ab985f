"""The firewall model: both readers, and what the evaluator makes of packets."""

import json
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.kernel.firewall import device_names
from loopbox.rules.audit.samples import sources_for
from loopbox.rules.firewall.evaluate import outcomes
from loopbox.rules.firewall.iptables import parse_saved
from loopbox.rules.firewall.model import Packet
from loopbox.rules.firewall.nftables import parse_ruleset

LOCALS = {"10.0.0.1", "127.0.0.1"}


def kind_of(address):
    """Which addresses this host has."""
    return "local" if str(address) in LOCALS else "unicast"


def packet(**fields):
    """A SYN from a neighbour to port 22, with whatever is different."""
    plain = {
        "version": 4, "protocol": 6, "source": ip_address("10.0.0.2"),
        "target": ip_address("10.0.0.1"), "sport": 40000, "dport": 22, "iif": "eth0",
    }  # fmt: skip
    return Packet(**{**plain, **fields})


def fate(ruleset, hook="input", **fields):
    """accept, drop, reject, or `unsure` when it cannot be told; several joined by `|`."""
    found = outcomes(ruleset, hook, packet(**fields), kind_of)
    return "|".join(sorted({o.verdict if o.sure else f"{o.verdict}?" for o in found}))


def saved(*lines, table="filter", policy="ACCEPT", version=4):
    """An iptables ruleset with one chain of rules."""
    chain = {"filter": "INPUT"}.get(table, "PREROUTING")
    text = [f"*{table}", f":{chain} {policy} [0:0]", ":other - [0:0]"]
    return parse_saved("\n".join([*text, *lines, "COMMIT"]), version=version)


@pytest.mark.parametrize(
    ("line", "fields", "expected"),
    [
        ("-A INPUT -p tcp -m tcp --dport 22 -j DROP", {}, "drop"),
        ("-A INPUT -p tcp -m tcp --dport 22 -j DROP", {"dport": 23}, "accept"),
        ("-A INPUT -p tcp -m tcp --dport 20:22 -j DROP", {}, "drop"),
        ("-A INPUT -p tcp -m multiport --dports 80,20:25 -j DROP", {}, "drop"),
        ("-A INPUT -p tcp -m multiport ! --dports 80,20:25 -j DROP", {}, "accept"),
        ("-A INPUT -p udp -j DROP", {}, "accept"),
        ("-A INPUT -i eth+ -j DROP", {}, "drop"),
        ("-A INPUT -i lo -j DROP", {}, "accept"),
        ("-A INPUT ! -i lo -j DROP", {}, "drop"),
        ("-A INPUT -s 10.0.0.0/8 -j REJECT --reject-with tcp-reset", {}, "reject"),
        ("-A INPUT ! -s 10.0.0.0/8 -j DROP", {}, "accept"),
        ("-A INPUT -d 10.0.0.9/32 -j DROP", {}, "accept"),
        ("-A INPUT -m iprange --src-range 10.0.0.1-10.0.0.9 -j DROP", {}, "drop"),
        ("-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j DROP", {}, "accept"),
        ("-A INPUT -m state --state NEW -j DROP", {}, "drop"),
        ("-A INPUT -m conntrack --ctstate NEW,DNAT -j DROP", {}, "accept?|drop?"),
        ("-A INPUT -m addrtype --dst-type LOCAL -j DROP", {}, "drop"),
        ("-A INPUT -m mark --mark 0x1/0xff -j DROP", {}, "accept"),
        ("-A INPUT -p tcp --tcp-flags FIN,SYN,RST,ACK SYN -j DROP", {}, "drop"),
        ("-A INPUT -j LOG --log-prefix \"a b\"", {}, "accept"),
        ("-A INPUT -m comment --comment \"x -j DROP\" -j ACCEPT", {}, "accept"),
        ("-A INPUT -m set --match-set bad src -j DROP", {}, "accept?|drop?"),
        ("-A INPUT -m bpf --bytecode 1 -j DROP", {}, "accept?|drop?"),
        ("-A INPUT -j NFQUEUE --queue-num 1", {}, "accept?|drop?"),
        ("-A INPUT -m limit --limit 1/s -j DROP", {}, "accept|drop"),
        ("-A INPUT -j missing", {}, "accept?|drop?"),
        ("-A INPUT -j other\n-A other -j DROP", {}, "drop"),
        ("-A INPUT -j other\n-A other -j RETURN\n-A INPUT -j DROP", {}, "drop"),
        ("-A INPUT -g other\n-A other -p udp -j DROP\n-A INPUT -j DROP", {}, "accept"),
    ],
)  # fmt: skip
def test_iptables_rules(line, fields, expected):
    """Each option and target decides as iptables does; what is unknown is unsure."""
    assert expected == fate(saved(line), **fields)


def test_policy_and_reason():
    """A policy of DROP decides at the end and is named."""
    found = outcomes(saved(policy="DROP"), "input", packet(), kind_of)

    assert [("drop", "policy drop of chain filter INPUT")] == [
        (o.verdict, o.because) for o in found
    ]


@pytest.mark.parametrize(
    ("line", "target", "port"),
    [
        (
            "-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 172.17.0.2:80",
            "172.17.0.2",
            80,
        ),
        ("-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination 172.17.0.2", "172.17.0.2", 22),
        ("-A PREROUTING -p tcp --dport 22 -j REDIRECT --to-ports 80", "10.0.0.1", 80),
        ("-A PREROUTING -p tcp --dport 22 -j DNAT --to-destination :81-90", "10.0.0.1", 81),
    ],
)
def test_iptables_translations(line, target, port):
    """DNAT and REDIRECT change where the packet goes."""
    (found,) = outcomes(saved(line, table="nat"), "prerouting", packet(), kind_of)

    assert (target, port, True) == (
        str(found.packet.target),
        found.packet.dport,
        found.packet.natted,
    )


def test_ipv6_rules_do_not_see_ipv4():
    """A DROP in ip6tables is nothing to an IPv4 packet."""
    ruleset = saved("-A INPUT -j DROP", version=6)

    assert ("accept", "drop") == (
        fate(ruleset),
        fate(ruleset, version=6, source=ip_address("fd00::2"), target=ip_address("fd00::1")),
    )


def nft(*expressions, sets=(), policy="accept", family="inet", other=()):
    """A ruleset in nft's JSON with one input chain."""
    place = {"family": family, "table": "t"}
    entries = [
        {"table": {"family": family, "name": "t"}},
        {
            "chain": {
                **place,
                "name": "c",
                "type": "filter",
                "hook": "input",
                "prio": 0,
                "policy": policy,
            }
        },
        {"chain": {**place, "name": "other"}},
        *({kind: {**place, **body}} for kind, body in sets),
        *({"rule": {**place, "chain": "c", "handle": 5, "expr": expr}} for expr in expressions),
        *({"rule": {**place, "chain": "other", "handle": 6, "expr": expr}} for expr in other),
    ]
    return parse_ruleset(json.dumps({"nftables": [{"metainfo": {}}, *entries]}))


DPORT = {"payload": {"protocol": "tcp", "field": "dport"}}
SADDR = {"payload": {"protocol": "ip", "field": "saddr"}}
STATE = {"ct": {"key": "state"}}
DROP = {"drop": None}


ICMP = {"payload": {"protocol": "icmp", "field": "type"}}
FLAGS = {"&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack"]]}
MARK = {"mangle": {"key": {"meta": {"key": "mark"}}, "value": 1}}
PAIRS = ({"concat": [SADDR, DPORT]}, {"set": [{"concat": ["10.0.0.2", 22]}]})


def vmap(key, *ways):
    """A verdict map over an anonymous set."""
    return {"vmap": {"key": key, "data": {"set": [list(way) for way in ways]}}}


def when(left, right, *, op="=="):
    """A match statement."""
    return {"match": {"op": op, "left": left, "right": right}}


@pytest.mark.parametrize(
    ("expression", "fields", "expected"),
    [
        ([when(DPORT, 22), DROP], {}, "drop"),
        ([when(DPORT, 22), DROP], {"protocol": 17}, "accept"),
        ([when(DPORT, 22, op="!="), DROP], {}, "accept"),
        ([when(DPORT, {"set": [80, {"range": [20, 25]}]}), DROP], {}, "drop"),
        ([when(DPORT, {"range": [1, 9]}), DROP], {}, "accept"),
        ([when(DPORT, 21, op=">"), DROP], {}, "drop"),
        ([when(DPORT, 22, op="<"), DROP], {}, "accept"),
        ([when(DPORT, "@named"), DROP], {}, "drop"),
        ([when(DPORT, "@missing"), DROP], {}, "accept?|drop?"),
        ([when(SADDR, {"prefix": {"addr": "10.0.0.0", "len": 8}}), DROP], {}, "drop"),
        ([when(SADDR, {"range": ["10.0.0.3", "10.0.0.9"]}), DROP], {}, "accept"),
        ([when(STATE, ["established", "related"], op="in"), DROP], {}, "accept"),
        ([when(STATE, "new"), DROP], {}, "drop"),
        ([when({"meta": {"key": "iifname"}}, {"set": ["lo", "eth*"]}), DROP], {}, "drop"),
        ([when({"meta": {"key": "iif"}}, "lo", op="!="), DROP], {}, "drop"),
        ([when({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}), DROP], {}, "drop"),
        ([when({"meta": {"key": "nfproto"}}, "ipv6"), DROP], {}, "accept"),
        ([when({"&": [{"meta": {"key": "mark"}}, 255]}, 1), DROP], {}, "accept"),
        ([when({"fib": {"result": "type", "flags": ["daddr"]}}, "local"), DROP], {}, "drop"),
        ([when(ICMP, "echo-request"), DROP], {}, "accept"),
        ([when(FLAGS, "syn"), DROP], {}, "drop"),
        ([when({"socket": {"key": "transparent"}}, 1), DROP], {}, "accept?|drop?"),
        ([when(*PAIRS), DROP], {}, "accept?|drop?"),
        ([{"limit": {"rate": 5, "per": "second"}}, DROP], {}, "accept|drop"),
        ([{"xt": {"type": "match", "name": "bpf"}}, DROP], {}, "accept?|drop?"),
        ([{"queue": {"num": 0}}], {}, "accept?|drop?"),
        ([{"counter": {"packets": 1, "bytes": 2}}, {"log": None}, {"accept": None}], {}, "accept"),
        ([{"reject": {"type": "tcp reset"}}], {}, "reject"),
        ([{"reject": {"type": "icmpv6", "expr": "port-unreachable"}}], {}, "accept"),
        ([{"dnat": {"family": "ip6", "addr": "fd00::9", "port": 1}}, DROP], {}, "accept"),
        ([{"jump": {"target": "other"}}], {}, "drop"),
        ([vmap(STATE, ("new", DROP), ("established", {"accept": None}))], {}, "drop"),
        ([{"vmap": {"key": DPORT, "data": "@choices"}}], {}, "drop"),
        ([{"vmap": {"key": DPORT, "data": "@choices"}}], {"protocol": 17}, "accept"),
        ([vmap(DPORT, (22, {"jump": {"target": "other"}}))], {"dport": 23}, "accept"),
        ([MARK, {"accept": None}], {}, "accept"),
    ],
)  # fmt: skip
def test_nft_rules(expression, fields, expected):
    """Each match and statement decides as nftables does; what is unknown is unsure."""
    ruleset = nft(
        expression,
        sets=[
            ("set", {"name": "named", "elem": [22, {"range": [80, 90]}]}),
            ("map", {"name": "choices", "elem": [[22, DROP], [80, {"accept": None}]]}),
        ],
        other=[[DROP]],
    )

    assert expected == fate(ruleset, **fields)


def test_a_mark_that_was_set_is_not_guessed():
    """After `meta mark set`, a match on the mark cannot be told."""
    ruleset = nft(
        [MARK],
        [when({"meta": {"key": "mark"}}, 1), DROP],
    )

    assert "accept?|drop?" == fate(ruleset)


def test_one_drop_among_many_tables_decides():
    """Accept ends only its own chain; a drop elsewhere still drops."""
    ruleset = nft([{"accept": None}]).joined(saved("-A INPUT -j DROP"))

    assert fate(ruleset) == "drop"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nftables": 3}', "not json"])
def test_what_is_no_ruleset_is_a_value_error(text):
    """Output that is not nft's JSON is refused, not read as an empty firewall."""
    with pytest.raises(ValueError, match=r".*"):
        parse_ruleset(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70000) | st.sampled_from(["lo", "22", "@x"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["match", "left", "right", "op", "set", "range", "prefix", "payload", "protocol",
             "field", "meta", "key", "vmap", "data", "drop", "accept", "jump", "target", "elem",
             "val", "addr", "len", "dnat", "port", "limit", "&", "ct", "fib", "xt"]
        ),
        inner, max_size=3,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.lists(json_values, max_size=4))
def test_odd_json_never_breaks_the_reader(expressions):
    """Any rule body is read and evaluated without an exception."""
    outcomes(nft(expressions), "input", packet(), kind_of)


@given(
    st.lists(
        st.sampled_from(
            ["-p", "tcp", "!", "-s", "10.0.0.0/8", "--dport", "22", "-j", "DROP", "-m", "-g", "x y",
             "other", '"', "--mark", "0x1/0xf", "DNAT", "--to-destination", "1.2.3.4:80", "[::1]:5"]
        ),
        max_size=9,
    ).map(" ".join)
)  # fmt: skip
def test_odd_lines_never_break_the_reader(words):
    """Any -A line is read and evaluated without an exception."""
    outcomes(saved(f"-A INPUT {words}"), "input", packet(), kind_of)


def ingress(**told):
    """A netdev chain that drops everything, as nft's JSON may tell of its interfaces."""
    place = {"family": "netdev", "table": "t", "chain": "c"}
    chain = {"family": "netdev", "table": "t", "name": "c", "hook": "ingress", **told}
    drop = {**place, "handle": 3, "expr": [{"drop": None}]}
    return parse_ruleset(json.dumps({"nftables": [{"chain": chain}, {"rule": drop}]}))


@pytest.mark.parametrize(
    ("ruleset", "expected"),
    [
        (ingress(dev="eth0"), {("drop", True)}),
        (ingress(dev="eth1"), {("accept", True)}),
        (ingress(dev=["eth1", "eth0"]), {("drop", True)}),
        (ingress(dev=["eth1", "eth2"]), {("accept", True)}),
        (ingress(), {("drop", False), ("accept", False)}),
        (ingress().hung_on({("netdev", "t", "c"): ("eth1",)}), {("accept", True)}),
        (ingress().hung_on({("netdev", "t", "c"): ("eth1", "eth*")}), {("drop", True)}),
    ],
)
def test_ingress_chains_hang_on_interfaces(ruleset, expected):
    """A chain decides for its own interfaces only; when those are not told, nothing is sure."""
    packet = Packet(4, 6, ip_address("10.0.0.2"), ip_address("10.0.0.1"), 40000, 80, iif="eth0")

    assert expected == {
        (end.verdict, end.sure) for end in outcomes(ruleset, "ingress", packet, lambda _: "local")
    }


def test_translations_do_not_touch_answers():
    """A nat chain sees the first packet of a connection only."""
    ruleset = parse_saved(
        "*nat\n:OUTPUT ACCEPT\n-A OUTPUT -p tcp -j DNAT --to-destination 10.0.0.9\n", version=4
    )
    answer = Packet(
        4, 6, ip_address("10.0.0.1"), ip_address("10.0.0.2"), 80, 40000, state="established"
    )

    assert {answer} == {
        end.packet for end in outcomes(ruleset, "output", answer, lambda _: "unicast")
    }


@given(st.binary(max_size=64))
def test_odd_attributes_are_no_interfaces(data):
    """Whatever the kernel sent, names or nothing come out."""
    assert all(isinstance(name, bytes) for name in device_names(data))


def test_interfaces_of_a_hook():
    """Several names, and a prefix of names (NFTA_DEVICE_PREFIX)."""
    nested = b"\x09\x00\x01\x00eth0\0\0\0\0" + b"\x09\x00\x02\x00veth\0\0\0\0"

    assert [b"eth0\0", b"veth*"] == device_names(nested)


@pytest.mark.parametrize(
    ("states", "state", "natted", "expected"),
    [
        ("! --ctstate RELATED,ESTABLISHED,DNAT", "new", False, {"drop"}),
        ("! --ctstate RELATED,ESTABLISHED,DNAT", "new", True, {"accept"}),
        ("! --ctstate RELATED,ESTABLISHED,DNAT", "established", False, {"accept"}),
        ("--ctstate DNAT", "new", True, {"drop"}),
        ("--ctstate DNAT", "new", False, {"accept"}),
        ("--ctstate NEW,DNAT", "new", True, {"accept", "drop"}),
    ],
)
def test_dnat_is_a_status_beside_the_state(states, state, natted, expected):
    """conntrack's DNAT word asks for a translation, whatever the state."""
    text = f"*filter\n:FORWARD ACCEPT\n-A FORWARD -m conntrack {states} -j DROP\n"
    packet = Packet(
        4, 6, ip_address("10.0.0.2"), ip_address("10.0.0.1"), 1, 80, state=state, natted=natted
    )

    ends = outcomes(parse_saved(text, version=4), "forward", packet, lambda _: "unicast")

    assert expected == {end.verdict for end in ends}


def test_only_rules_about_the_port_name_its_sources():
    """Hundreds of rules about other ports cost a listener nothing."""
    lines = [f"-A INPUT -s 10.1.{n}.0/24 -p tcp --dport {1000 + n} -j ACCEPT" for n in range(200)]
    ruleset = saved(*lines, "-A INPUT -s 10.9.9.9/32 -j ACCEPT", policy="DROP")
    sources = {str(address) for address in sources_for(ruleset, 4, 6, 1007)}

    assert {"10.1.7.0", "10.1.7.255", "10.9.9.9"} <= sources
    assert not sources & {"10.1.9.1", "10.1.100.0"}
    assert "accept" == fate(ruleset, source=ip_address("10.1.7.5"), dport=1007)
    assert "drop" == fate(ruleset, source=ip_address("10.1.7.5"), dport=1008)
