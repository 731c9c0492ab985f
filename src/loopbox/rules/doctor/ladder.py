"""The rungs in order, each judged with the ones below it in mind.

Owns: the ladder (a table), the words of the system at hand, marking consequences: a rung
whose probes could not work because a lower one failed is `skip` and says which one.

Must never: judge a rung (inward.py, outward.py, naming.py do).

Example::

    [rung.id for rung in climb(observed) if rung.state == "fail"]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from loopbox.rules.doctor import inward, naming, outward
from loopbox.rules.doctor.observed import Observed
from loopbox.rules.doctor.rung import Rung, skipped
from loopbox.rules.foreign.remedies import reworded

Judge = Callable[[Observed], Rung]

LADDER: tuple[tuple[Judge, tuple[str, ...]], ...] = (
    (inward.loopback_interface, ()),
    (inward.loopback_ipv4, ("loopback-interface",)),
    (inward.loopback_ipv6, ("loopback-interface",)),
    (inward.localhost_name, ()),
    (outward.own_address, ("loopback-interface", "loopback-ipv4", "link")),
    (outward.link, ()),
    (outward.gateway, ("link", "own-address")),
    (outward.remote, ("link", "own-address", "gateway")),
    (naming.dns, ()),
    (naming.boxes, ()),
)
"""Judge, and the rungs whose failure explains a failure of this one. A rung that passes in spite of
a failed one it stands on is shown as what it is."""


def climb(seen: Observed) -> tuple[Rung, ...]:
    """All rungs of the contract, in its order."""
    judged = {rung.id: (rung, below) for rung, below in ((judge(seen), b) for judge, b in LADDER)}
    dns, _ = judged["dns"]
    closed = outward.no_way_out(seen)
    if closed is not None and judged["remote"][0].state == "skip" and dns.state != "pass":
        dns = skipped("dns", [closed, *dns.evidence])
    judged["dns"] = (dns, _below_dns(seen))

    def origin(name: str) -> str | None:
        """The failed rung at the bottom of a row of consequences; None if it stands alone."""
        rung, below = judged[name]
        reason = next((lower for lower in below if judged[lower][0].state == "fail"), None)
        if rung.state != "fail" or reason is None:
            return None
        return origin(reason) or reason

    rungs: list[Rung] = []
    for name, (rung, _below) in judged.items():
        bottom, shown = origin(name), rung
        if bottom is not None:
            cause, fix = f"consequence of {bottom}", f"mend {bottom} first"
            shown = replace(rung, state="skip", cause=cause, fix=fix)
        shown = replace(
            shown, cause=reworded(shown.cause, seen.system), fix=reworded(shown.fix, seen.system)
        )
        rungs.append(replace(shown, ms=round(seen.ms.get(name, 0.0), 1)))
    return tuple(rungs)


def _below_dns(seen: Observed) -> tuple[str, ...]:
    """What explains a failure of DNS: a wrong answer stands alone, silence may be explained."""
    if seen.names.leaks:
        return ("loopback-interface", "loopback-ipv4", "loopback-ipv6")
    answered = any(server.outcome == "ok" for server in seen.names.servers)
    silent = any(server.outcome != "refused" for server in seen.names.servers)
    return () if answered or not silent else ("link", "own-address", "gateway", "remote")


def has_passed(rungs: tuple[Rung, ...]) -> bool:
    """No rung failed; warnings and skipped rungs do not count."""
    return all(rung.state != "fail" for rung in rungs)
