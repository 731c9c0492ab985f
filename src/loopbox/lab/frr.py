"""The configuration of FRR for a box of a lab, as text, and the kernel settings it needs.

Owns: which daemons a box runs, one configuration per daemon, the joined `frr.conf`, sysctls.

Must never: start anything, write a file. Loopbacks are told to OSPF by `network` statements with
/32, never by `ip ospf area` on lo, so that 127.0.0.1/8 and virtual addresses stay at home (and FRR
refuses a mixture of both forms).

Example::

    files = render(lab, lab.box("r1"))
    files["ospfd"]      # "hostname r1\\n!\\ninterface r2\\n ip ospf network point-to-point\\n…"
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Interface, ip_network

from loopbox.lab.records import Bgp, End, Lab, LabBox, Link, Session, SessionEnd, StaticRoute
from loopbox.rules.routing import Timers

DAEMONS = ("zebra", "staticd", "bfdd", "ospfd", "bgpd")
"""In the order in which they must start: zebra serves the others."""

HEADER = "frr defaults traditional\nhostname {name}\n"

NO_NEXTHOP_OBJECTS = "!\nno zebra nexthop kernel enable\n"
"""The kernel drops the nexthop objects of a link that goes down, and zebra (8.4 to 10) goes on
believing in a group that held one: after each of two parallel links has been cut and mended, routes
over both are rejected ("Nexthop id does not exist") and never tried again (frr#12239)."""

ROUTER_SYSCTLS: tuple[tuple[str, str], ...] = (
    ("net.ipv4.ip_forward", "1"),
    ("net.ipv6.conf.all.forwarding", "1"),
    # Packets may come back another way than they left: that is what a lab is for.
    ("net.ipv4.conf.all.rp_filter", "0"),
    ("net.ipv4.conf.default.rp_filter", "0"),
    ("net.ipv4.conf.all.send_redirects", "0"),
    ("net.ipv4.conf.default.send_redirects", "0"),
    # Spread over equal paths by ports too, so that one TCP connection keeps one path.
    ("net.ipv4.fib_multipath_hash_policy", "1"),
    # OSPF joins two groups per link: at the default of 20 the 21st link stays silent (frr#12994).
    ("net.ipv4.igmp_max_memberships", "1000"),
)
EVERY_BOX_SYSCTLS: tuple[tuple[str, str], ...] = (
    # A carrier that is gone takes its routes out of use, as on a router.
    ("net.ipv4.conf.all.ignore_routes_with_linkdown", "1"),
    ("net.ipv4.conf.default.ignore_routes_with_linkdown", "1"),
    # Nobody else is on the wire: duplicate address detection would cost a second a link.
    ("net.ipv6.conf.all.accept_dad", "0"),
    ("net.ipv6.conf.default.accept_dad", "0"),
    # A cut link keeps its IPv6 addresses as it keeps its IPv4 ones.
    ("net.ipv6.conf.all.keep_addr_on_down", "1"),
    ("net.ipv6.conf.default.keep_addr_on_down", "1"),
)
QUIET_ARP_SYSCTLS: tuple[tuple[str, str], ...] = (
    # LVS direct routing: answer ARP only for addresses of the device asked, and never name the
    # virtual address as the source of a question.
    ("net.ipv4.conf.all.arp_ignore", "1"),
    ("net.ipv4.conf.all.arp_announce", "2"),
)


def sysctls(box: LabBox) -> tuple[tuple[str, str], ...]:
    """Kernel settings of a box, to be written before its links and daemons are made.

    A box with static routes or several links forwards nothing unless it is a router.
    """
    return (
        *EVERY_BOX_SYSCTLS,
        *(ROUTER_SYSCTLS if box.is_router else ()),
        *(QUIET_ARP_SYSCTLS if box.quiet_arp else ()),
    )


def daemons(lab: Lab, box: LabBox) -> tuple[str, ...]:
    """The daemons `box` runs, in starting order; none when it is no router."""
    if box.config is not None:
        return DAEMONS
    wanted = {
        "zebra": box.is_router,
        "staticd": box.is_router and bool(box.static),
        "bfdd": box.is_router and box.bfd,
        "ospfd": box.ospf is not None,
        "bgpd": box.bgp is not None,
    }
    return tuple(name for name in DAEMONS if wanted[name])


def render(lab: Lab, box: LabBox) -> dict[str, str]:
    """One configuration per daemon of `box`; empty for a box that is no router.

    A box with a `config` of its own is not rendered: its file goes to vtysh as it is.
    """
    if box.config is not None:
        return {}
    sections = _sections(lab, box)
    header = HEADER.format(name=box.name)
    return {name: header + "".join(sections.get(name, ())) for name in daemons(lab, box)}


def render_frr_conf(lab: Lab, box: LabBox) -> str:
    """The joined `frr.conf` of `box`, as `vtysh -b` and FRR's container image read it."""
    sections = _sections(lab, box)
    body = "".join("".join(sections.get(name, ())) for name in daemons(lab, box))
    header = HEADER.format(name=box.name)
    return f"{header}service integrated-vtysh-config\n{body}!\nend\n"


def _sections(lab: Lab, box: LabBox) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {"zebra": [_zebra(lab, box)]}
    if box.static:
        found["staticd"] = [_block(None, (_static(route) for route in box.static))]
    if box.bfd:
        found["bfdd"] = ["!\nbfd\nexit\n"]
    if box.ospf is not None:
        found["ospfd"] = [*_ospf_interfaces(lab, box), _ospf(lab, box)]
    if box.bgp is not None:
        found["bgpd"] = [_bgp(lab, box, box.bgp)]
    return found


def _block(head: str | None, lines: Iterator[str] | list[str]) -> str:
    """`head` with its lines indented; bare lines when there is no head."""
    if head is None:
        return "!\n" + "".join(f"{line}\n" for line in lines)
    return f"!\n{head}\n" + "".join(f" {line}\n" for line in lines) + "exit\n"


def _zebra(lab: Lab, box: LabBox) -> str:
    blocks = [NO_NEXTHOP_OBJECTS]
    for link in lab.links_of(box.name):
        others = ", ".join(end.box for end in link.ends if end.box != box.name)
        lines = [f"description link {link.name} to {others}"]
        blocks.append(_block(f"interface {link.end(box.name).interface}", lines))
    return "".join(blocks)


def _static(route: StaticRoute) -> str:
    verb = "ip route" if route.to.version == 4 else "ipv6 route"
    if not route.via:
        return f"{verb} {route.to} blackhole"
    return "\n".join(
        " ".join(
            str(part) for part in (verb, route.to, hop.address, hop.interface) if part is not None
        )
        for hop in route.via
    )


def _ospf_interfaces(lab: Lab, box: LabBox) -> Iterator[str]:
    for link in lab.links_of(box.name):
        if lab.ospf_area(link, box) is not None:
            end = link.end(box.name)
            yield _block(f"interface {end.interface}", _ospf_interface(lab, box, link, end))


def _ospf_interface(lab: Lab, box: LabBox, link: Link, end: End) -> Iterator[str]:
    timers, ospf = lab.timers, box.ospf
    assert ospf is not None
    if not link.is_bridge and (timers.point_to_point or link.unnumbered):
        yield "ip ospf network point-to-point"
    yield f"ip ospf cost {end.cost}"
    if timers.tuned or (ospf.hello, ospf.dead) != (timers.hello, timers.dead):
        if ospf.hello < 1:
            # RFC 2328 has whole seconds only; FRR sends N hellos in a dead interval of one.
            yield f"ip ospf dead-interval minimal hello-multiplier {round(1 / ospf.hello)}"
        else:
            yield f"ip ospf hello-interval {ospf.hello:g}"
            yield f"ip ospf dead-interval {ospf.dead:g}"
    if timers.tuned:
        # A lost first database packet costs one of these.
        yield f"ip ospf retransmit-interval {timers.retransmit}"
    if box.bfd:
        yield "ip ospf bfd"


def _ospf(lab: Lab, box: LabBox) -> str:
    ospf = box.ospf
    assert ospf is not None
    lines = []
    if box.router_id_written and box.router_id is not None:
        lines.append(f"ospf router-id {box.router_id.value}")
    lines += _ospf_timers(lab.timers)
    lines += [
        f"passive-interface {link.end(box.name).interface}"
        for link in lab.links_of(box.name)
        if link.name in ospf.passive
    ]
    networks: dict[str, str] = {}
    addresses = [*box.loopback, *(item.address for item in box.anycast)]
    for item in addresses:
        if isinstance(item, IPv4Interface):
            networks[str(ip_network(item.network))] = ospf.area
    for link in lab.links_of(box.name):
        area = lab.ospf_area(link, box)
        if area is None or link.unnumbered:
            continue  # an unnumbered end has the loopback's address, which is in already
        for item in link.end(box.name).addresses:
            if isinstance(item, IPv4Interface):
                networks[str(item.network)] = area
    lines += [f"network {network} area {area}" for network, area in networks.items()]
    return _block("router ospf", lines)


def _ospf_timers(timers: Timers) -> list[str]:
    if not timers.tuned or timers.spf is None:
        return []
    delay, hold, longest = timers.spf
    return [
        f"timers throttle spf {delay} {hold} {longest}",
        f"timers throttle lsa all {round(timers.lsa_throttle * 1000)}",
        "timers lsa min-arrival 0",
    ]


def _bgp(lab: Lab, box: LabBox, bgp: Bgp) -> str:
    sessions = lab.sessions_of(box.name)
    has_external = any(session.external for session in sessions)
    lines = []
    if box.router_id_written and box.router_id is not None:
        lines.append(f"bgp router-id {box.router_id.value}")
    # RFC 8212 would keep external sessions without a policy silent: a lab wants to see routes.
    lines += ["no bgp ebgp-requires-policy", "bgp network import-check"]
    if has_external:
        lines.append("bgp bestpath as-path multipath-relax")
    if (bgp.keepalive, bgp.hold) != (60, 180):
        lines.append(f"timers bgp {bgp.keepalive} {bgp.hold}")
    families: dict[str, list[str]] = {
        "ipv4 unicast": [f"network {item}" for item in bgp.advertise if item.version == 4],
        "ipv6 unicast": [],
    }
    for session in sessions:
        own, peer = session.ends()[0 if session.left.box == box.name else 1]
        for line in _neighbour(lab, box, session, own, peer):
            lines.append(line)
        name = _neighbour_name(own, peer)
        families["ipv4 unicast"] += _policy(lab, box, session, peer, name, external=has_external)
        if peer.address is None:
            families["ipv6 unicast"] += [
                f"neighbor {name} activate",
                *_policy(lab, box, session, peer, name, external=has_external),
            ]
    if families["ipv6 unicast"]:
        networks = [f"network {item}" for item in bgp.advertise if item.version == 6]
        families["ipv6 unicast"] = [*networks, *families["ipv6 unicast"]]
    for family, inner in families.items():
        if inner:
            lines += ["!", f"address-family {family}", *(f" {line}" for line in inner)]
            lines.append("exit-address-family")
    return _block(f"router bgp {bgp.asn}", lines)


def _neighbour_name(own: SessionEnd, peer: SessionEnd) -> str:
    return str(peer.address) if peer.address is not None else str(own.interface)


def _neighbour(
    lab: Lab, box: LabBox, session: Session, own: SessionEnd, peer: SessionEnd
) -> Iterator[str]:
    """What is said once per neighbour, outside the address families."""
    other = lab.box(peer.box).bgp
    assert other is not None
    name = _neighbour_name(own, peer)
    if peer.address is None:
        yield f"neighbor {name} interface remote-as {other.asn}"
    else:
        yield f"neighbor {name} remote-as {other.asn}"
    yield f"neighbor {name} description {session.name}"
    if session.source == "loopback":
        # The peer knows this router by its loopback, so packets must come from there.
        yield f"neighbor {name} update-source {own.address}"
    if session.multihop is not None:
        yield f"neighbor {name} ebgp-multihop {session.multihop}"
    if box.bfd and session.link is not None:
        # Not between loopbacks: BFD would end in 0.9 s what the IGP is about to reroute.
        yield f"neighbor {name} bfd"
    if lab.timers.tuned:
        yield f"neighbor {name} timers connect {lab.timers.connect}"


def _policy(
    lab: Lab, box: LabBox, session: Session, peer: SessionEnd, name: str, *, external: bool
) -> list[str]:
    """What is said per neighbour inside an address family."""
    mine, other = box.bgp, lab.box(peer.box).bgp
    assert mine is not None and other is not None
    lines = []
    if mine.reflector and not session.external and not other.reflector:
        lines.append(f"neighbor {name} route-reflector-client")
    if external and mine.next_hop_self and not session.external:
        lines.append(f"neighbor {name} next-hop-self")
    return lines
