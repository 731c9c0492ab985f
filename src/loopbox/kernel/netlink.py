"""Routing netlink: links, addresses, routes and rules of the calling thread's network namespace.

Owns: the socket, sending several requests at once with one round of answers, and asking the
kernel which route it would take. Errors keep the kernel's own words (extended acks) and name act
and object. The requests themselves are values of wire/rtnetlink.py, offered here under one roof.
Must never: decide what a box gets, enter a namespace (a socket stays with the namespace its
thread stood in when it was made).

Sources: netlink(7), rtnetlink(7).

Example::

    with RouteSocket() as route:
        route.apply(link_up(1), add_address(1, ip_interface("198.18.0.1/32")))
        route.route_to(IPv4Address("127.0.0.1")).type      # "local"
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from types import TracebackType

from loopbox.errors import HostError
from loopbox.wire.netlink import ACK, DONE, DUMP, REQUEST, Message, Request, parse_messages
from loopbox.wire.rtnetlink import (
    LOOPBACK_INDEX,
    TABLE_LOCAL,
    TABLE_MAIN,
    Address,
    AddressRecord,
    Interface,
    Link,
    Network,
    RouteAnswer,
    add_address,
    add_route,
    add_rule,
    ask_addresses,
    ask_links,
    ask_route,
    delete_address,
    delete_route,
    link_up,
    parse_address,
    parse_link,
    parse_route,
    route_type_of,
)

__all__ = [
    "LOOPBACK_INDEX",
    "TABLE_LOCAL",
    "TABLE_MAIN",
    "Address",
    "AddressRecord",
    "Interface",
    "KernelError",
    "Link",
    "Network",
    "Request",
    "RouteAnswer",
    "RouteSocket",
    "add_address",
    "add_route",
    "add_rule",
    "delete_address",
    "delete_route",
    "link_up",
    "open_netlink",
    "transact",
]


_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11  # linux/netlink.h
_sequences = itertools.count(1)

_NO_ROUTE = {
    errno.ENETUNREACH: "unreachable",
    errno.EHOSTUNREACH: "unreachable",
    errno.EACCES: "prohibit",
    errno.EINVAL: "blackhole",
}
"""How RTM_GETROUTE reports a missing or forbidding route: as an error, not as a type."""

_HINTS = {
    errno.EPERM: "this takes CAP_NET_ADMIN over the network namespace: run as root, or in a box",
    errno.ENOBUFS: "the kernel is short of memory for sockets; end some boxes and try again",
}


class KernelError(HostError):
    """The kernel refused a request. `number` is the errno, the message holds its own words."""

    def __init__(self, act: str, target: str, number: int, text: str = "") -> None:
        self.number = number
        self.target = target
        cause = text or os.strerror(number).lower()
        super().__init__(f"cannot {act} {target}: {cause}", hint=_HINTS.get(number))


def open_netlink(protocol: int) -> socket.socket:
    """A netlink socket in the calling thread's network namespace that reports in words."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    netlink.setsockopt(_SOL_NETLINK, _CAP_ACK, 1)
    netlink.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
    return netlink


def transact(netlink: socket.socket, requests: Sequence[Request]) -> None:
    """Send all requests in one datagram and wait for the kernel's verdict on each.

    The kernel works through them in order and does not stop at a failure: the first failure is
    raised as KernelError after all were tried. Nothing is undone.
    """
    if not requests:
        return
    by_sequence = {next(_sequences): request for request in requests}
    last = max(by_sequence)
    # Only the last asks for an ack: failures are reported anyway, and before it.
    netlink.send(
        b"".join(
            request.build(sequence, extra_flags=REQUEST | (ACK if sequence == last else 0))
            for sequence, request in by_sequence.items()
        )
    )
    failure: KernelError | None = None
    done = False
    while not done:
        for message in parse_messages(netlink.recv(65536)):
            request, verdict = by_sequence.get(message.sequence), message.error
            if request is None or verdict is None:
                continue
            number, text = verdict
            if number and failure is None:
                failure = KernelError(request.act, request.target, number, text)
            done = done or message.sequence == last
    if failure is not None:
        raise failure


class RouteSocket:
    """A NETLINK_ROUTE socket of the namespace in which it was made. Not for two threads at once.

    Every method blocks for the microseconds the kernel takes, and raises KernelError.
    """

    def __init__(self) -> None:
        self._netlink = open_netlink(socket.NETLINK_ROUTE)

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the socket."""
        self._netlink.close()

    def apply(self, *requests: Request) -> None:
        """Carry out requests in order, in one round trip. See `transact`."""
        transact(self._netlink, requests)

    def link_up(self, link: int | str) -> None:
        """Bring a link up, by index or by name."""
        self.apply(link_up(link))

    def add_address(
        self, index: int, interface: Interface, *, scope: str | None = None, nodad: bool = True
    ) -> None:
        """Give a link an address. See the request of this name."""
        self.apply(add_address(index, interface, scope=scope, nodad=nodad))

    def delete_address(self, index: int, interface: Interface) -> None:
        """Take an address from a link."""
        self.apply(delete_address(index, interface))

    def add_route(
        self,
        destination: Network,
        *,
        device: int | None = None,
        gateway: Address | None = None,
        source: Address | None = None,
        metric: int | None = None,
    ) -> None:
        """Add a unicast route to the main table. The request of this name can do more."""
        self.apply(
            add_route(destination, device=device, gateway=gateway, source=source, metric=metric)
        )

    def links(self) -> list[Link]:
        """Every interface, in the kernel's order."""
        return [parse_link(message.payload) for message in self._ask(ask_links())]

    def addresses(self) -> list[AddressRecord]:
        """Every address of every interface."""
        return [parse_address(message.payload) for message in self._ask(ask_addresses())]

    def route_to(self, address: Address) -> RouteAnswer:
        """Ask which route a packet from here to `address` would take; nothing is sent."""
        found = self._route(address)
        return RouteAnswer(found) if isinstance(found, str) else parse_route(found)

    def route_type(self, address: Address) -> str:
        """The type of that route alone: the quick half of `route_to`."""
        found = self._route(address)
        return found if isinstance(found, str) else route_type_of(found)

    def _route(self, address: Address) -> bytes | str:
        """The kernel's answer, or the type of route that it expresses by an errno."""
        try:
            return self._ask(ask_route(address))[0].payload
        except KernelError as error:
            if error.number not in _NO_ROUTE:
                raise
            return _NO_ROUTE[error.number]

    def has_default_route(self, version: int) -> bool:
        """Whether packets to the wide world leave by some link."""
        probe: Address = (
            IPv4Address("198.41.0.4") if version == 4 else IPv6Address("2001:503:ba3e::2:30")
        )  # a.root-servers.net: surely neither ours nor on our link
        return self.route_type(probe) == "unicast"

    def _ask(self, request: Request) -> list[Message]:
        """Answers to one request, a dump's or a single one; raises KernelError."""
        sequence = next(_sequences)
        self._netlink.send(request.build(sequence, extra_flags=REQUEST))
        answers: list[Message] = []
        while True:
            for message in parse_messages(self._netlink.recv(262144)):
                if message.sequence != sequence:
                    continue
                verdict = message.error
                if verdict is not None and verdict[0]:
                    raise KernelError(request.act, request.target, *verdict)
                if message.kind == DONE or verdict is not None:
                    return answers
                answers.append(message)
                if not request.flags & DUMP:
                    return answers
