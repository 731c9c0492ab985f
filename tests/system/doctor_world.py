"""A healthy network for the doctor: a host, its gateway, hosts beyond it, a truthful DNS server.

Everything is two namespaces: the gateway bears the addresses of the hosts beyond it. `examine`
runs the real command there, with an /etc of its own.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from dnslib import QTYPE, RCODE, RR, A, DNSRecord
from networld import Host, join

from loopbox.rules.doctor.naming import KNOWN
from loopbox.rules.doctor.targets import TARGETS, TARGETS6

HOST4, GATEWAY4 = "192.168.7.1", "192.168.7.2"
HOST6, GATEWAY6 = "fd07::1", "fd07::2"
ETC = {
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "resolv.conf": f"nameserver {GATEWAY4}\n",
    "nsswitch.conf": "hosts: files dns\n",
}


class Resolver(threading.Thread):
    """A DNS server whose honesty is a function: name to addresses, None (NXDOMAIN) or a code."""

    def __init__(self, sock, answer):
        super().__init__(daemon=True)
        self._sock = sock
        self._answer = answer

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                data, peer = self._sock.recvfrom(4096)
                query = DNSRecord.parse(data)
                name = str(query.q.qname).rstrip(".")
                found = self._answer(name)
                reply = query.reply()
                if isinstance(found, str):
                    reply.header.rcode = getattr(RCODE, found)
                elif query.q.qtype == QTYPE.A:
                    for address in found:
                        reply.add_answer(RR(query.q.qname, QTYPE.A, rdata=A(address), ttl=1))
                self._sock.sendto(reply.pack(), peer)


def truth(name):
    """What an honest resolver says."""
    return sorted(KNOWN[name]) if name in KNOWN else "NXDOMAIN"


class Clinic:
    """One patient."""

    def __init__(self, stack, etc):
        self.host = stack.enter_context(Host())
        self.gateway = stack.enter_context(Host())
        self.etc = etc
        self.environment = {}
        self.before = []
        self.words = []
        join(
            self.host,
            self.gateway,
            one_has=[f"{HOST4}/24", f"{HOST6}/64"],
            other_has=[f"{GATEWAY4}/24", f"{GATEWAY6}/64"],
        )
        self.host.run(f"ip route add default via {GATEWAY4}")
        self.host.run(f"ip -6 route add default via {GATEWAY6}")
        for address, _port in TARGETS:
            self.gateway.run(f"ip addr add {address}/32 dev lo")
        for address, _port in TARGETS6:
            self.gateway.run(f"ip -6 addr add {address}/128 dev lo nodad")
        self.gateway.listen("::", 443, v6only=0)
        for name, text in ETC.items():
            (etc / name).write_text(text)
        for name in ("passwd", "group", "ld.so.cache"):
            (etc / name).write_bytes(Path("/etc", name).read_bytes())

    def watch_the_wire(self):
        """From now on keep every frame that arrives at the gateway."""
        tap = self.gateway.do(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self.tap = self.gateway.keep(tap)
        self.tap.bind(("eth0", 3))
        self.tap.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.tap.setblocking(False)

    def loopback_on_the_wire(self):
        """(source, destination) of every frame since then that bears a loopback address."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.tap.recv(65536)
                kind, body = frame[12:14], frame[14:]
                ends = ()
                if kind == b"\x08\x00":
                    ends = IPv4Address(body[12:16]), IPv4Address(body[16:20])
                elif kind == b"\x86\xdd":
                    ends = IPv6Address(body[8:24]), IPv6Address(body[24:40])
                if any(address.is_loopback for address in ends):
                    found.append(tuple(map(str, ends)))
        return found

    def destinations(self):
        """Unicast addresses beyond the link that frames since then went to; DNS as ADDRESS#53."""
        found = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                frame = self.tap.recv(65536)
                kind, body = frame[12:14], frame[14:]
                if kind == b"\x08\x00":
                    address, protocol, rest = IPv4Address(body[16:20]), body[9], body[20:]
                elif kind == b"\x86\xdd":
                    address, protocol, rest = IPv6Address(body[24:40]), body[6], body[40:]
                else:
                    continue
                if address.is_multicast or address.is_link_local:
                    continue
                asks = protocol in (6, 17) and rest[2:4] == b"\0\x35"
                found.add(f"{address}#53" if asks else str(address))
        return found

    def serve_dns(self, answer=truth, *, address=GATEWAY4):
        """A resolver on the gateway."""
        sock = self.gateway.listen(address, 53, kind=socket.SOCK_DGRAM)
        Resolver(sock, answer).start()

    def forget_neighbours(self):
        """The host no longer knows its neighbours' Ethernet addresses and must ask."""
        self.host.run("ip neigh flush all nud permanent")
        for address in (GATEWAY4, GATEWAY6):
            self.host.run(f"ip neigh del {address} dev eth0", check=False)

    def write(self, name, text):
        """A file of /etc; None takes it away."""
        if text is None:
            (self.etc / name).unlink()
        else:
            (self.etc / name).write_text(text)

    def examine(self):
        """(exit status, the document) of `loopbox doctor --json`."""
        script = 'mount --make-rprivate / && mount --bind "$0" /etc && shift 0 && exec "$@"'
        command = [sys.executable, "-P", "-m", "loopbox", "doctor", "--json", *self.words]
        environment = {
            key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")
        }
        done = self.host.do(
            subprocess.run,
            ["unshare", "-m", "sh", "-c", script, str(self.etc), *self.before, *command],
            check=False,
            capture_output=True,
            text=True,
            timeout=30,
            env={**environment, **self.environment},
        )
        assert done.stdout, done.stderr
        return done.returncode, json.loads(done.stdout)
