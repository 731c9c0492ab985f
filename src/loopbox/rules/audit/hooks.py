"""Programs that see packets outside of the packet filter: XDP, tc and BPF, as doubts.

Owns: which of them a verdict depends on. What such a program does cannot be read off it, so a
verdict that hangs on one is `unknown`: it may drop what the rules let in, rewrite what they would
drop, and, where it `steers`, hand a packet to any socket, whatever that is bound to.

Must never: call a verdict safe because a program is probably harmless.

Example::

    doubt(hooks, link, "ingress")      # "an XDP program (id 7) on eth0 sees its packets first"
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from loopbox.rules.network import Link


@dataclass(frozen=True, slots=True)
class Hook:
    """One place where programs sit."""

    direction: str
    """ingress, egress, or filter: on netfilter's own hooks, where it can only drop."""
    text: str
    """What it is, and where, for evidence."""
    links: frozenset[int] = frozenset()
    """Indexes of the interfaces whose packets it sees; empty for every packet of the namespace."""
    steers: bool = False
    """It can hand a packet to a socket of its choice: bpf_sk_assign of tc (bpf-helpers(7)), and
    sk_lookup. XDP can only rewrite packets, which Linux still refuses to 127/8 from a wire."""


def doubt(hooks: Iterable[Hook], link: Link, direction: str) -> str | None:
    """Why nobody can tell what becomes of packets on `link`; None when nothing sits there."""
    for hook in hooks:
        if hook.direction == direction and (not hook.links or link.index in hook.links):
            return f"cannot evaluate {hook.text}"
    return None


def steering(hooks: Iterable[Hook], outside: Iterable[Link]) -> str | None:
    """Why a socket may be reached that no address leads to; None when nothing can steer."""
    indexes = {link.index for link in outside}
    for hook in hooks:
        if hook.steers and (indexes & hook.links or (indexes and not hook.links)):
            return f"cannot evaluate {hook.text}: it can hand packets to any socket"
    return None
