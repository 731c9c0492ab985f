"""A host on a LAN, its neighbour, and the two ways to ask who reaches a listener.

`verdict` asks the audit; `answers` really connects (or sends) from the neighbour to every address
the host could be reached at, and says whether any of them got through.
"""

import contextlib
import os
import select
import socket
import time

from networld import Host, join

from loopbox.kernel.facts import read_network
from loopbox.kernel.firewall import read_firewall
from loopbox.kernel.sockets import listening, open_diag
from loopbox.rules.audit.reach import Reachability, View

HOST4, HOST6 = "192.168.7.1", "fd07::1"
PEER4, PEER6 = "192.168.7.2", "fd07::2"
PUBLIC4 = "8.8.7.1"
WAIT = 0.25
"""Seconds without an answer after which a way counts as shut; the machines are one kernel apart."""


class Lan:
    """The host under audit and a neighbour that knows every trick to reach it."""

    def __init__(self, stack):
        self.host = stack.enter_context(Host())
        self.peer = stack.enter_context(Host())
        join(
            self.host,
            self.peer,
            one_has=[f"{HOST4}/24", f"{HOST6}/64"],
            other_has=[f"{PEER4}/24", f"{PEER6}/64"],
        )
        self.dials = [HOST4, HOST6]

    def add_address(self, address, *, device="lo"):
        """Give the host an alias, and the neighbour a route to it."""
        family = "-6" if ":" in address else "-4"
        width = 128 if ":" in address else 32
        nodad = " nodad" if ":" in address else ""
        self.host.run(f"ip {family} addr add {address}/{width} dev {device}{nodad}")
        self.learn(address)

    def learn(self, address):
        """The neighbour routes an address to the host and will dial it."""
        via = HOST6 if ":" in address else HOST4
        self.peer.run(f"ip route add {address} via {via} dev eth0")
        self.dials.append(address)

    def dial_loopback(self, *addresses):
        """The neighbour gives up its own loopback to send such packets to the host."""
        self.peer.run("ip link set lo down")
        self.peer.run("ip addr flush dev lo")
        for name in ("all", "eth0"):
            self.peer.sysctl(f"ipv4/conf/{name}/route_localnet", 1)
            self.peer.sysctl(f"ipv4/conf/{name}/rp_filter", 0)
        for address in addresses:
            self.peer.run(f"ip route add {address} via {HOST4} dev eth0 src {PEER4}")
            self.dials.append(address)

    def reachability(self):
        """The audit's eyes, from inside the host."""
        seen = self.host.do(read_firewall)
        return Reachability(View(self.host.do(read_network), seen.ruleset, seen.is_complete))

    def listener(self, sock, *, protocols=("tcp", "udp")):
        """The kernel's record of a socket of ours."""
        inode = inode_of(sock)
        with self.host.do(open_diag) as diag:
            return next(
                entry for entry in listening(diag, protocols=protocols) if entry.inode == inode
            )

    def verdict(self, sock):
        """What the audit says of it."""
        return self.reachability().judge(self.listener(sock))

    def answers(self, sock, *, port=None):
        """Whether the neighbour gets through to it on any address."""
        port = port or sock.getsockname()[1]
        if sock.type == socket.SOCK_DGRAM:
            return self.peer.do(any_datagram, self.dials, port, sock)
        return self.peer.do(any_connection, self.dials, port)


def inode_of(sock):
    """The inode the kernel gave a socket."""
    return os.fstat(sock.fileno()).st_ino


def any_connection(addresses, port):
    """Whether a TCP connection to any of the addresses is established in time."""
    with contextlib.ExitStack() as stack:
        waiting = select.poll()
        dialling = {}
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sock = stack.enter_context(socket.socket(family))
            sock.setblocking(False)
            try:
                sock.connect((address, port))
            except BlockingIOError:
                dialling[sock.fileno()] = sock
                waiting.register(sock, select.POLLOUT)
            except OSError:
                continue
        deadline = time.monotonic() + WAIT
        while dialling and (left := deadline - time.monotonic()) > 0:
            for fd, _event in waiting.poll(left * 1000):
                if dialling[fd].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    return True
                waiting.unregister(fd)
                del dialling[fd]
        return False


def any_datagram(addresses, port, receiver):
    """Whether a datagram to any of the addresses arrives at the receiver in time."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"audit", (address, port))
    ready, _, _ = select.select([receiver], [], [], WAIT)
    return bool(ready)
