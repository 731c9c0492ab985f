"""The doctor's judgement on values: consequences, families, and the words of the outcome."""

import errno
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.errors import UsageError
from loopbox.kernel.probes import outcome_of
from loopbox.rules.doctor.ladder import LADDER, climb, has_passed
from loopbox.rules.doctor.naming import KNOWN, NOWHERE
from loopbox.rules.doctor.observed import (
    Attempt,
    BoxesSeen,
    GatewaySeen,
    LocalhostSeen,
    LoopbackSeen,
    NamesSeen,
    Observed,
    RemoteSeen,
    ServerSeen,
)
from loopbox.rules.doctor.rung import TITLES
from loopbox.rules.doctor.targets import Remote, parse_remote
from loopbox.rules.network import (
    IFF_LOOPBACK,
    IFF_UP,
    InterfaceAddress,
    Link,
    Network,
    Route,
)

OK, SILENT = Attempt("ok", 1.0), Attempt("timeout", 700.0)
TRUTH = {name: tuple(sorted(addresses)) for name, addresses in KNOWN.items()}
GATEWAY = IPv4Address("192.168.7.2")


def network(**changes):
    """A device with a loopback and one NIC with a default route."""
    entries = []
    for index, text in ((1, "127.0.0.1/8"), (1, "::1/128"), (2, "192.168.7.1/24")):
        interface = ip_interface(text)
        entries.append(InterfaceAddress(index, interface.ip, interface.network.prefixlen))
    plain = Network(
        links=(Link(1, "lo", IFF_UP | IFF_LOOPBACK), Link(2, "eth0", IFF_UP)),
        addresses=tuple(entries),
        routes=(Route(IPv4Network("0.0.0.0/0"), 254, "unicast", 2, GATEWAY),),
        knobs={"ipv6/conf/lo/disable_ipv6": "0"},
    )
    return replace(plain, **changes)


def healthy(**changes):
    """Everything works."""
    whole = LoopbackSeen(True, "local route on lo", OK, OK, OK)
    plain = Observed(
        network=network(),
        loopback4=whole,
        loopback6=whole,
        localhost=LocalhostSeen(("::1", "127.0.0.1"), hosts=("127.0.0.1", "::1")),
        own=(("192.168.7.1", "eth0", OK),),
        gateways=(GatewaySeen(GATEWAY, "eth0", "reachable", SILENT),),
        remote=(RemoteSeen("1.1.1.1:443", "unicast route on eth0", OK),),
        names=NamesSeen(True, (server(),), "ok"),
        boxes=BoxesSeen(),
    )
    return replace(plain, **changes)


def server(outcome="ok", **answers):
    """A name server that tells the truth, or something else."""
    told = {**TRUTH, **{key.replace("_", "."): value for key, value in answers.items()}}
    return ServerSeen("192.168.7.2", outcome, told if outcome == "ok" else {})


def states(seen):
    """Rung id to (state, cause)."""
    return {rung.id: (rung.state, rung.cause) for rung in climb(seen)}


def test_a_healthy_machine_passes_every_rung():
    """Ten green rungs in the ladder's order."""
    rungs = climb(healthy())

    assert list(TITLES) == [rung.id for rung in rungs]
    assert {"pass"} == {rung.state for rung in rungs}
    assert has_passed(rungs)


def test_everything_broken_names_the_lowest_fault():
    """With lo down and the cable out, each consequence names the rung it hangs on."""
    links = (Link(1, "lo", IFF_LOOPBACK), Link(2, "eth0", IFF_UP, carrier=False))
    dead = LoopbackSeen(False, "unicast route on eth0")
    seen = healthy(
        network=network(links=links),
        loopback4=dead,
        loopback6=dead,
        own=(("192.168.7.1", "eth0", SILENT),),
        gateways=(GatewaySeen(GATEWAY, "eth0", "failed", SILENT),),
        remote=(RemoteSeen("1.1.1.1:443", "", SILENT),),
        names=NamesSeen(True, (server("timeout"),), "timeout"),
    )

    found = states(seen)

    assert ["loopback-interface", "link"] == [
        name for name, (state, _) in found.items() if state == "fail"
    ]
    assert ("skip", "consequence of loopback-interface") == found["loopback-ipv4"]
    assert ("skip", "consequence of link") == found["dns"]


def test_a_lying_resolver_is_no_consequence():
    """Answers that are wrong are a fault of their own, even when nothing beyond answers."""
    seen = healthy(
        remote=(RemoteSeen("1.1.1.1:443", "", SILENT),),
        names=NamesSeen(True, (server(dns_google=("10.0.0.1",)),)),
    )

    assert ("fail", "fail") == (states(seen)["remote"][0], states(seen)["dns"][0])


def test_a_name_that_cannot_exist_unmasks_a_portal():
    """An answer for a name below .invalid is a captive portal."""
    lying = ServerSeen("10.0.0.1", "ok", {**TRUTH, NOWHERE: ("10.0.0.1",)})
    state, cause = states(healthy(names=NamesSeen(True, (lying,), "ok")))["dns"]

    assert ("fail", True) == (state, "captive portal" in cause)


def test_a_box_has_no_cable():
    """Inside a box, rungs without meaning are skipped and nothing is red for it."""
    seen = healthy(
        network=network(links=(Link(1, "lo", IFF_UP | IFF_LOOPBACK),), routes=()),
        own=(),
        gateways=(),
        boxes=None,
        is_box=True,
    )
    found = states(seen)

    assert {"own-address", "link", "gateway", "boxes"} == {
        name for name, (state, _) in found.items() if state == "skip"
    }
    assert has_passed(climb(seen))


@pytest.mark.parametrize(
    ("boxes", "state", "words"),
    [
        (
            BoxesSeen(problem="user namespaces are not allowed", fix="sudo sysctl"),
            "fail",
            "allowed",
        ),
        (BoxesSeen(lacks=("no nftables: no guard",), fix="modprobe"), "warn", "no guard"),
        (BoxesSeen(is_wsl=True), "pass", ""),
    ],
)
def test_boxes_with_the_fix(boxes, state, words):
    """What forbids boxes is told with its remedy; WSL2 is recognised."""
    rung = next(rung for rung in climb(healthy(boxes=boxes)) if rung.id == "boxes")

    assert (state, boxes.fix) == (rung.state, rung.fix)
    assert words in (rung.cause or "")
    assert ("WSL2" in str(rung.evidence)) == boxes.is_wsl


def test_a_refusal_counts_only_when_the_user_chose_the_target():
    """The usual targets never refuse, so a refusal is somebody in between."""
    refused = (RemoteSeen("9.9.9.9:443", "", Attempt("refused")),)

    assert ("fail", "pass") == (
        states(healthy(remote=refused))["remote"][0],
        states(healthy(remote=refused, chosen=True))["remote"][0],
    )


def test_the_kernels_own_unreachable_ipv6_default_is_no_default_route():
    """Linux keeps `unreachable default metric 4294967295`: it forbids nothing."""
    from ipaddress import IPv6Network  # noqa: PLC0415

    null = Route(IPv6Network("::/0"), 254, "unreachable", 1, metric=0xFFFFFFFF)
    seen = healthy(network=network(routes=(*network().routes, null)))

    assert has_passed(climb(seen))


@pytest.mark.parametrize(
    ("number", "word"),
    [
        (errno.ECONNREFUSED, "refused"),
        (errno.ENETUNREACH, "unreachable"),
        (errno.EHOSTUNREACH, "no-host"),
        (errno.EPERM, "filtered"),
        (errno.EACCES, "prohibited"),
        (errno.EINVAL, "invalid"),
        (errno.EADDRNOTAVAIL, "no-address"),
        (errno.ENOBUFS, "enobufs"),
    ],
)
def test_errno_to_word(number, word):
    """Each way to fail has its word, as measured."""
    assert word == outcome_of(OSError(number, ""))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("example.com", Remote("example.com")),
        ("example.com:80", Remote("example.com", 80)),
        ("9.9.9.9:53", Remote("9.9.9.9", 53)),
        ("2620:fe::fe", Remote("2620:fe::fe")),
        ("[2620:fe::fe]:53", Remote("2620:fe::fe", 53)),
    ],
)
def test_remote_targets(text, expected):
    """HOST and HOST:PORT, with brackets for IPv6."""
    assert expected == parse_remote(text)


@pytest.mark.parametrize("text", ["", ":80", "a:0", "a:99999", "a:x", "a b", "1.2.3", "\x1b[2J"])
def test_bad_remote_targets(text):
    """What is no target is refused with the form."""
    with pytest.raises(UsageError):
        parse_remote(text)


@given(st.text(max_size=40))
def test_any_remote_text_is_read_or_refused(text):
    """No text does anything but answer or raise UsageError."""
    try:
        remote = parse_remote(text)
    except UsageError:
        return
    assert 0 < remote.port < 65536
    assert remote.host


attempts = st.sampled_from(
    ["ok", "refused", "timeout", "unreachable", "no-host", "filtered", "not-tried", "enobufs"]
).map(Attempt)
families = st.builds(LoopbackSeen, st.booleans(), st.text(max_size=9), attempts, attempts, attempts)


@given(
    families,
    families,
    st.lists(attempts, max_size=3),
    st.sampled_from(["reachable", "stale", "failed", "none", "incomplete"]),
    st.booleans(),
    st.booleans(),
)
def test_any_observation_has_a_ladder(four, six, outer, state, up, carrier):  # noqa: PLR0917
    """Ten rungs whatever was seen; a consequence always names a rung that failed."""
    links = (
        Link(1, "lo", IFF_LOOPBACK | (IFF_UP if up else 0)),
        Link(2, "eth0", IFF_UP, carrier=carrier),
    )
    seen = healthy(
        network=network(links=links),
        loopback4=four,
        loopback6=six,
        gateways=(GatewaySeen(GATEWAY, "eth0", state, SILENT),),
        remote=tuple(RemoteSeen("1.1.1.1:443", "", attempt) for attempt in outer),
    )

    rungs = {rung.id: rung for rung in climb(seen)}

    assert len(LADDER) == len(rungs)
    for rung in rungs.values():
        assert (rung.cause is None) == (rung.state == "pass") or rung.state == "skip"
        if rung.state == "skip":
            origin = rungs[rung.cause.removeprefix("consequence of ")]
            assert origin.state == "fail"


LO_DEFAULT = Route(IPv4Network("0.0.0.0/0"), 27746, "local", 1)
RESET = (RemoteSeen("1.1.1.1:80", "local route on lo", Attempt("reset", 1.0)),)


@pytest.mark.parametrize(
    ("routes", "egress", "chosen", "expected"),
    [
        ((LO_DEFAULT,), "none", False, ("skip", "healthy")),
        ((LO_DEFAULT,), "local", False, ("skip", "healthy")),
        ((LO_DEFAULT,), "filter", False, ("skip", "healthy")),
        ((), "open", False, ("skip", "healthy")),
        ((LO_DEFAULT,), "open", False, ("fail", "remote")),
        ((LO_DEFAULT,), "none", True, ("fail", "remote")),
    ],
)
def test_a_box_that_is_meant_to_be_shut_is_healthy(routes, egress, chosen, expected):
    """A policy that lets nothing out is no fault, unless the user asks for a host by name."""
    bare = network(links=(Link(1, "lo", IFF_UP | IFF_LOOPBACK),), routes=routes)
    deaf = NamesSeen(True, (server("timeout"),), "Name or service not known")
    seen = healthy(
        network=bare, own=(), gateways=(), remote=RESET, names=deaf, boxes=None,
        is_box=True, egress=egress, chosen=chosen,
    )  # fmt: skip
    rungs = {rung.id: rung for rung in climb(seen)}
    failed = next((rung.id for rung in rungs.values() if rung.state == "fail"), "healthy")

    assert expected == (rungs["remote"].state, failed)
    assert "skip" == rungs["dns"].state


def test_a_box_of_a_lab_has_cables():
    """The rungs about addresses and carriers are climbed where there are links."""
    rungs = {rung.id: rung for rung in climb(healthy(is_box=True, boxes=None))}
    cut = Link(2, "b", IFF_UP, operstate="down", carrier=False)
    links = (Link(1, "lo", IFF_UP | IFF_LOOPBACK), cut)
    broken = climb(healthy(is_box=True, boxes=None, network=network(links=links)))

    assert {"pass"} == {rungs[name].state for name in ("own-address", "link")}
    assert ("fail", "loopbox link ls, loopbox link mend") == next(
        (rung.state, rung.fix) for rung in broken if rung.id == "link"
    )


def test_offline_asks_nobody_and_blames_nobody():
    """What was not asked is skipped with the reason, and is no fault."""
    rungs = {r.id: r for r in climb(healthy(remote=(), names=NamesSeen(), offline=True))}

    assert {"not asked: --offline"} == {rungs[name].evidence[0] for name in ("remote", "dns")}
    assert has_passed(tuple(rungs.values()))
