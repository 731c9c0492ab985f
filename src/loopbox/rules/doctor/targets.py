"""Whom the doctor contacts beyond the gateway.

Owns: the addresses tried when the user names none (docs/doctor.md and the README list them), and
reading the user's own.

Must never: connect; add an address without telling it in the documentation.

Example::

    parse_remote("example.com:8443").port      # 8443
"""

from __future__ import annotations

from dataclasses import dataclass

from loopbox.errors import UsageError
from loopbox.rules.addressing import parse_address
from loopbox.rules.network import Network

TARGETS = (("1.1.1.1", 443), ("8.8.8.8", 443), ("9.9.9.9", 443))
TARGETS6 = (("2606:4700:4700::1111", 443),)
"""Public resolvers, which listen on 443 and are up whenever the Internet is."""


@dataclass(frozen=True, slots=True)
class Remote:
    """The target the user chose."""

    host: str
    port: int = 443

    @property
    def is_literal(self) -> bool:
        """An address, not a name."""
        return ":" in self.host or self.host.replace(".", "").isdigit()


def parse_remote(text: str) -> Remote:
    """HOST, HOST:PORT, IPv6 or [IPv6]:PORT; raises UsageError."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if port and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UsageError(f"cannot read remote {text!r}: invalid port", hint="HOST or HOST:PORT")
    if not host or any(not letter.isprintable() or letter.isspace() for letter in host):
        raise UsageError(f"cannot read remote {text!r}: no host", hint="HOST or HOST:PORT")
    if ":" in host or host.replace(".", "").isdigit():
        parse_address(host)
    return Remote(host, int(port) if port else 443)


def usual_targets(network: Network, *, has_ipv6: bool = True) -> list[tuple[str, int]]:
    """What is tried when the user names nothing: by the families that have a default route."""
    six = any(route.type == "unicast" for route in network.default_routes(6))
    four = any(route.type == "unicast" for route in network.default_routes(4))
    return [*(TARGETS if four or not six else ()), *(TARGETS6 if six and has_ipv6 else ())]
