"""The commands by which one loopback alias is added, undone, listed and kept, for any system.

Owns: filling the rows of rules/alias_systems with one address.

Must never: run anything.

Example::

    plan_alias(IPv4Address("10.9.9.9"), None, system="macos").add
    # ("sudo ifconfig lo0 alias 10.9.9.9 netmask 255.255.255.255",)
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network

from loopbox.errors import UsageError
from loopbox.rules.addressing import Address, is_loopback, text_of
from loopbox.rules.alias_systems import SYSTEMS, Persist, System


@dataclass(frozen=True, slots=True)
class AliasPlan:
    """The answer of `loopbox addr plan`."""

    system: str
    interface: str
    address: str
    prefix: int
    needed: bool | None
    reason: str
    add: tuple[str, ...]
    undo: tuple[str, ...]
    list: tuple[str, ...]
    persist: tuple[Persist, ...]
    trust: str
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        """One JSON object; `verified` is False where nobody here has seen the commands work."""
        return {
            "os": self.system,
            "interface": self.interface,
            "address": self.address,
            "prefix": self.prefix,
            "needed": self.needed,
            "reason": self.reason,
            "add": list(self.add),
            "undo": list(self.undo),
            "list": list(self.list),
            "persist": [
                {
                    "kind": way.kind,
                    "add": list(way.add),
                    "undo": list(way.undo),
                    "file": way.file,
                    "text": way.text4,
                    "trust": way.trust,
                }
                for way in self.persist
            ],
            "trust": self.trust,
            "verified": self.trust == "measured",
            "notes": list(self.notes),
        }


def plan_alias(
    address: Address, prefix: int | None, *, system: str, persist: str | None = None
) -> AliasPlan:
    """The commands of `system` for `address`/`prefix` (None: one address).

    Raises UsageError for a system or a persist kind that is not in the table.
    """
    row = SYSTEMS.get(system)
    if row is None:
        raise UsageError(
            f"cannot plan for {system!r}: unknown system", hint="one of " + ", ".join(SYSTEMS)
        )
    ways = tuple(way for way in row.persist if persist in (None, way.kind))
    if not ways:
        raise UsageError(
            f"cannot plan persistence {persist!r} on {system}: unknown kind",
            hint="one of " + ", ".join(way.kind for way in row.persist),
        )
    prefix = address.max_prefixlen if prefix is None else prefix
    words = _words(address, prefix)
    four = address.version == 4
    needed, reason, notes = _need(row, address)
    return AliasPlan(
        system=system,
        interface=row.interface,
        address=text_of(address),
        prefix=prefix,
        needed=needed,
        reason=reason,
        add=_filled(row.add4 if four else row.add6, words),
        undo=_filled(row.undo4 if four else row.undo6, words),
        list=row.list,
        persist=tuple(_way(way, words, four=four) for way in ways),
        trust=row.trust,
        notes=_filled(row.notes, words) + notes,
    )


def _need(row: System, address: Address) -> tuple[bool | None, str, tuple[str, ...]]:
    """Whether an alias is needed at all, why, and how sure that is."""
    if not is_loopback(address):
        return True, "no system knows this address before it is added", ()
    if text_of(address) in ("127.0.0.1", "::1"):
        return False, "every system has it from the start", ()
    unsure = ("whether 127.0.0.2 needs an alias here is unverified",)
    return row.needs_alias, row.reason, unsure if row.alias_trust == "unverified" else ()


def _words(address: Address, prefix: int) -> dict[str, str]:
    """What the templates may name."""
    text, four = text_of(address), address.version == 4
    mask = str(IPv4Network(f"0.0.0.0/{prefix}").netmask) if four else ""
    return {
        "a": text,
        "p": str(prefix),
        "mask": mask,
        "limit": mask if four else str(prefix),
        "slug": "lb" + text.replace(".", "x").replace(":", "x").replace("%", "x"),
        "inet": "inet" if four else "inet6",
        "ipv": "ipv4" if four else "ipv6",
        "alias": "alias4" if four else "alias6",
        "win": f"{text} {mask}" if four else f"{text}/{prefix}",
        "and4": f",{text}/{prefix}" if four else "",
        "and6": "" if four else f",{text}/{prefix}",
    }


def _filled(templates: tuple[str, ...], words: dict[str, str]) -> tuple[str, ...]:
    return tuple(template.format(**words) for template in templates)


def _way(way: Persist, words: dict[str, str], *, four: bool) -> Persist:
    """A persist row with everything filled in; `text4` then holds the text, whatever family."""
    file = None if way.file is None else way.file.format(**words)
    template = way.text4 if four or way.text6 is None else way.text6
    return Persist(
        kind=way.kind,
        add=_filled(way.add, {**words, "file": file or ""}),
        undo=_filled(way.undo, {**words, "file": file or ""}),
        file=file,
        text4=None if template is None else template.format(**words),
        trust=way.trust,
    )
