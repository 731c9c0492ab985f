"""Reading what changes a packet: nft's dnat, redirect, tproxy and assignments to its fields.

Owns: where they may send it, also when that is looked up in a map. What cannot be listed is open:
it may go anywhere.

Must never: take a result for certain that depends on a map's key or on chance.

Example::

    translation("redirect", {"port": 80}, "redirect", lambda told: None).port    # Range(80, 80)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from loopbox.rules.firewall.model import Action, Range
from loopbox.rules.firewall.values import address, number

Elements = Callable[[Any], list[Any] | None]
"""The members of a set or map, named or not; None where they cannot be read."""

AT_WILL = frozenset(
    {("ip", "ttl"), ("ip", "dscp"), ("ip", "ecn"), ("ip", "id"), ("ip6", "hoplimit")}
    | {("ip6", "dscp"), ("ip6", "ecn"), ("ip6", "flowlabel"), ("tcp", "window")}
)
"""Fields of a packet that its sender sets as it likes."""


def changed(detail: dict[str, Any], text: str) -> Action:
    """A mark, or a field of the packet itself: translation without memory."""
    target = detail.get("key")
    if target == {"meta": {"key": "mark"}}:
        return Action("mark", text=text)
    payload = target.get("payload") if isinstance(target, dict) else None
    if not isinstance(payload, dict):
        return Action("continue", text=text)
    field = (str(payload.get("protocol")), str(payload.get("field")))
    if field in AT_WILL:
        return Action("continue", text=text)
    fixed = address(detail.get("value")) if field[1] == "daddr" else None
    port = number(detail.get("value")) if field[1] == "dport" else None
    return Action(
        "rewrite", address=fixed, port=port, is_open=fixed is None and port is None, text=text
    )


def translation(kind: str, detail: Any, text: str, elements: Elements) -> Action:
    """dnat, redirect and tproxy: to a constant, to a result of a map, or to who knows what."""
    fields = detail if isinstance(detail, dict) else {}
    wanted, told = fields.get("addr"), fields.get("port")
    fixed, port = address(wanted), number(told)
    is_known = set(fields) <= {"addr", "port", "family", "flags"}
    if is_known and (wanted is None) == (fixed is None) and (told is None) == (port is None):
        return Action(kind, address=fixed, port=port, text=text)
    looked = wanted if fixed is None and wanted is not None else told
    found = _results(looked, elements)
    choices = tuple(
        (one if looked is wanted else fixed, other or port) for one, other in found or ()
    )
    if not is_known or not choices or (looked is wanted and told is not None and port is None):
        return Action(kind, is_open=True, named=_looked_up(looked, elements), text=text)
    return Action(kind, choices=choices, named=_looked_up(looked, elements), text=text)


def _results(looked: Any, elements: Elements) -> list[tuple[Any, Range | None]] | None:
    """(address, port) of every result of a map; None when they cannot be listed."""
    body = looked.get("map") if isinstance(looked, dict) else None
    members = elements(body.get("data")) if isinstance(body, dict) else None
    if members is None:
        return None
    found: list[tuple[Any, Range | None]] = []
    for entry in members:
        value = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        parts = value.get("concat") if isinstance(value, dict) else [value]
        parts = parts if isinstance(parts, list) else [None]
        one, other = address(parts[0]), number(parts[-1])
        if one is None and other is None:
            return None
        found.append((one, other))
    return found


def _looked_up(looked: Any, elements: Elements) -> tuple[Range, ...]:
    """The numbers a map is looked up by: ports, if it is by port."""
    body = looked.get("map") if isinstance(looked, dict) else None
    members = elements(body.get("data")) if isinstance(body, dict) else None
    found = []
    for entry in members or []:
        value = entry[0] if isinstance(entry, list) and entry else None
        parts = value.get("concat") if isinstance(value, dict) else [value]
        found += [number(part) for part in parts] if isinstance(parts, list) else []
    return tuple(one for one in found if one is not None)
