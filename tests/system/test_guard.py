"""The guard: nothing of 127/8 or ::1 crosses a wire, seen by a capture on the far end."""

import contextlib
import os
import socket
import struct
from ipaddress import IPv4Address, IPv6Address

import pytest
from networld import Host, join

from loopbox.errors import HostError
from loopbox.kernel.guard import guard_state, lower_guard, raise_guard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

MARKER = b"loopbox-guard-test-end"
ETHERNET = 14


class Wire:
    """Everything that arrives on an interface of a host, as (source, destination)."""

    def __init__(self, host):
        self.host = host
        self.tap = host.keep(
            host.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        )
        self.tap.bind(("eth0", 3))
        self.tap.settimeout(5)

    def until_marker(self, sender, target):
        """Loopback pairs seen before a marker datagram that `sender` sends afterwards."""
        seen = []
        with sender.do(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as mark:
            mark.sendto(MARKER, (target, 9))
        while True:
            frame = self.tap.recv(65536)
            if MARKER in frame:
                return seen
            pair = ends_of(frame)
            if pair and any(address.is_loopback for address in pair):
                seen.append(tuple(str(address) for address in pair))


def ends_of(frame):
    """Source and destination of an IP packet in an Ethernet frame."""
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
    if kind == b"\x86\xdd":
        return IPv6Address(frame[22:38]), IPv6Address(frame[38:54])
    return None


@pytest.fixture
def pair():
    """A machine and its gateway, joined by a cable, each with routes to the other."""
    with Host() as here, Host() as there:
        join(
            here,
            there,
            one_has=["10.1.0.1/24", "fd00::1/64"],
            other_has=["10.1.0.2/24", "fd00::2/64"],
        )
        here.run("ip route add default via 10.1.0.2")
        here.run("ip -6 route add default via fd00::2")
        yield here, there


def send(host, target, *, device=None, source=None):
    """One UDP datagram; what the kernel says against it is of no matter here."""
    family = socket.AF_INET6 if ":" in target else socket.AF_INET
    with contextlib.suppress(OSError), host.do(socket.socket, family, socket.SOCK_DGRAM) as sock:
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device)
        if source:
            sock.bind((source, 0))
        sock.sendto(b"leak", (target, 7))


def leak_lo_down(host):
    """lo is taken down."""
    host.run("ip link set lo down")
    send(host, "127.0.0.1")
    send(host, "::1")


def leak_address_gone(host):
    """127.0.0.1/8 is deleted."""
    host.run("ip addr del 127.0.0.1/8 dev lo")
    send(host, "127.0.0.1")


def leak_bound_to_device(host):
    """The socket is bound to the other interface, as ping -I does."""
    send(host, "127.0.0.1", device=b"eth0")


def leak_source_one(host):
    """A datagram with source ::1 to a neighbour."""
    send(host, "fd00::2", source="::1")


def leak_route_localnet(host):
    """With route_localnet=1 even a source of 127.0.0.1 may leave."""
    host.sysctl("ipv4/conf/all/route_localnet", 1)
    host.sysctl("ipv4/conf/eth0/route_localnet", 1)
    send(host, "10.1.0.2", source="127.0.0.1")


LEAKS = [
    leak_lo_down,
    leak_address_gone,
    leak_bound_to_device,
    leak_source_one,
    leak_route_localnet,
]


@pytest.mark.parametrize("leak", LEAKS)
def test_every_leak_is_real_and_the_guard_stops_it(pair, leak):
    """Without the guard the far end sees the packet, with it nothing of 127/8 or ::1."""
    here, there = pair
    wire = Wire(there)
    leak(here)
    without = wire.until_marker(here, "10.1.0.2")
    assert here.do(raise_guard)
    leak_again = leak if leak is not leak_address_gone else lambda host: send(host, "127.0.0.1")
    leak_again(here)

    guarded = wire.until_marker(here, "10.1.0.2")

    assert without
    assert guarded == []


def udp4(source, target, port, load=b"fake"):
    """An IPv4 UDP packet without a checksum."""
    body = struct.pack("!HHHH", 4444, port, 12, 0) + load
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0)
    return b"\x08\x00", checked(head + source.packed + target.packed) + body


def checked(head):
    """An IPv4 header with its checksum filled in."""
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]


def udp6(source, target, port, load=b"fake"):
    """An IPv6 UDP packet with its checksum, which IPv6 demands."""
    body = struct.pack("!HHHH", 4444, port, 12, 0) + load
    pseudo = source.packed + target.packed + struct.pack("!II", len(body), 17) + body
    total = sum(struct.unpack(f"!{len(pseudo) // 2}H", pseudo))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    body = body[:6] + struct.pack("!H", (~total & 0xFFFF) or 0xFFFF) + body[8:]
    return b"\x86\xdd", struct.pack(
        "!IHBB", 6 << 28, len(body), 17, 64
    ) + source.packed + target.packed + body


def inject(sender, receiver, packet):
    """Put a packet on the wire towards the receiver's Ethernet address."""

    def address_of(host):
        return bytes.fromhex(
            host.run(["ip", "-br", "link", "show", "dev", "eth0"])
            .stdout.split()[2]
            .replace(":", "")
        )

    kind, body = packet
    with sender.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        raw.send(address_of(receiver) + address_of(sender) + kind + body)


ME4, THEM4, ONE4 = (IPv4Address(text) for text in ("10.1.0.1", "10.1.0.2", "127.0.0.1"))
ME6, THEM6, ONE6 = (IPv6Address(text) for text in ("fd00::1", "fd00::2", "::1"))
FORGED = {
    "to-127": (udp4, THEM4, ONE4),
    "from-127": (udp4, ONE4, ME4),
    "to-one": (udp6, THEM6, ONE6),
    "from-one": (udp6, ONE6, ME6),
    "from-mapped": (udp6, IPv6Address("::ffff:127.0.0.1"), ME6),
}
GETS_IN = {"to-127", "from-127", "from-mapped"}
"""What this kernel delivers when route_localnet and accept_local are on; ::1 never."""


@pytest.mark.parametrize("forged", FORGED)
def test_forged_packets_from_the_wire(pair, forged):
    """Spoofed loopback packets reach a socket without the guard where the kernel lets them in."""
    here, there = pair
    build, source, target = FORGED[forged]
    for knob in ("route_localnet", "accept_local"):
        for where in ("all", "eth0"):
            here.sysctl(f"ipv4/conf/{where}/{knob}", 1)
    sock = here.listen("0.0.0.0" if build is udp4 else "::", kind=socket.SOCK_DGRAM)
    sock.settimeout(5)
    port = sock.getsockname()[1]
    honest = (THEM4, ME4) if build is udp4 else (THEM6, ME6)

    def delivered():
        inject(there, here, build(source, target, port))
        inject(there, here, build(*honest, port, b"true"))
        return list(iter(lambda: sock.recv(99), b"true"))

    without = delivered()
    here.do(raise_guard)
    guarded = delivered()

    assert (forged in GETS_IN) == bool(without)
    assert guarded == []


def test_loopback_itself_works_under_the_guard(pair):
    """127.0.0.1, ::1 and the machine's own addresses answer as before."""
    here, _there = pair
    here.do(raise_guard)
    for address in ("127.0.0.1", "127.3.2.1", "::1", "10.1.0.1", "fd00::1"):
        server = here.listen(address)

        with here.do(socket.create_connection, server.getsockname()[:2], 5):
            accepted, _ = server.accept()
            accepted.close()


def test_off_leaves_everything_else_as_it_was(pair):
    """Other tables keep every byte through on and off; both are idempotent."""
    here, _there = pair
    here.nft(
        "table ip mine {\n chain c {\n type filter hook input priority 0;\n"
        " tcp dport 5 drop\n }\n}\n"
    )
    before = here.run("nft -a list ruleset").stdout

    steps = [here.do(raise_guard), here.do(raise_guard), here.do(lower_guard), here.do(lower_guard)]

    assert steps == [True, False, True, False]
    assert before == here.run("nft -a list ruleset").stdout


def test_a_damaged_guard_is_mended(pair):
    """When somebody flushes a chain of it, the state says partial and `on` puts it right."""
    here, _there = pair
    here.do(raise_guard)
    here.run("nft flush chain inet loopbox postrouting")
    damaged = here.do(guard_state).state

    mended = (here.do(raise_guard), here.do(guard_state).state)

    assert (damaged, mended) == ("partial", (True, "on"))


def test_a_foreign_table_of_our_name_is_not_touched(pair):
    """A table `loopbox` without our mark is refused, on and off, and stays."""
    here, _there = pair
    here.nft("table inet loopbox {\n chain theirs {\n }\n}\n")
    for act in (raise_guard, lower_guard):
        with pytest.raises(HostError, match="not made by loopbox"):
            here.do(act)

    assert "theirs" in here.run("nft list ruleset").stdout
