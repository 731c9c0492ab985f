"""Configuration files that keep a loopback alias over a reboot: text in, text out.

Owns: one stanza for ifupdown, one file of our own for systemd-networkd and for NetworkManager.
`with_address` then `without_address` gives back the very same bytes, and a file that was not there
is gone again (None).

Must never: read or write files (the caller does, atomically), change a line that is not ours, drop
`iface lo inet loopback`.

Example::

    after = with_address("ifupdown", before, "10.9.9.9/32")
    assert without_address("ifupdown", after, "10.9.9.9/32") == before
"""

from __future__ import annotations

from loopbox.errors import ConfigError

PATHS = {
    "networkd": "/etc/systemd/network/10-loopbox-lo.network",
    "networkmanager": "/etc/NetworkManager/system-connections/loopbox-lo.nmconnection",
    "ifupdown": "/etc/network/interfaces",
}
MODES = {"networkd": 0o644, "networkmanager": 0o600, "ifupdown": 0o644}
"""Mode of a file we create. NetworkManager ignores a keyfile others may read."""
APPLY = {
    "networkd": "sudo networkctl reload",
    "networkmanager": "sudo nmcli con reload && sudo nmcli con up loopbox-lo",
    "ifupdown": "it takes effect at the next boot",
}

_MARK = "# Made by loopbox: loopback aliases. Remove one with: loopbox addr del ADDRESS --persist "


def with_address(kind: str, text: str | None, address: str) -> str:
    """`text` (None: no such file) with `address` (ADDRESS/PREFIX) kept; unchanged if it is there.

    Raises ConfigError when our own file was edited by hand.
    """
    if kind == "ifupdown":
        return _interfaces_with(text, address)
    kept = _addresses(kind, text)
    return text if text is not None and address in kept else _render(kind, [*kept, address])


def without_address(kind: str, text: str | None, address: str) -> str | None:
    """`text` without `address`; None when nothing is left and the file should go."""
    if kind == "ifupdown":
        return _interfaces_without(text, address)
    kept = _addresses(kind, text)
    if address not in kept:
        return text
    left = [entry for entry in kept if entry != address]
    return _render(kind, left) if left else None


# -- ifupdown: a fenced stanza in the user's file -------------------------------------------------

_NEW_FILE = " (new file)"
_NO_NEWLINE = " (the line before had no end)"


def _fence(address: str) -> str:
    return f"# loopbox alias {address}"


def _interfaces_with(text: str | None, address: str) -> str:
    before = "" if text is None else text
    if any(line.startswith(f"{_fence(address)} begin") for line in before.splitlines()):
        return before
    family = "inet6" if ":" in address else "inet"
    open_end = bool(before) and not before.endswith("\n")
    remark = _NEW_FILE if text is None else _NO_NEWLINE if open_end else ""
    return (
        before
        + ("\n" if open_end else "")
        + f"{_fence(address)} begin{remark}\n"
        + f"iface lo {family} static\n    address {address}\n"
        + f"{_fence(address)} end\n"
    )


def _interfaces_without(text: str | None, address: str) -> str | None:
    if text is None:
        return None
    lines = text.splitlines(keepends=True)
    begin = next((n for n, line in enumerate(lines) if _opens(line, address)), None)
    if begin is None:
        return text
    end = next(
        (n for n in range(begin, len(lines)) if lines[n].rstrip("\n") == f"{_fence(address)} end"),
        None,
    )
    if end is None:
        raise ConfigError(
            f"cannot remove {address} from {PATHS['ifupdown']}: the line "
            f"`{_fence(address)} end` is missing",
            hint="remove the stanza by hand",
        )
    head, tail = "".join(lines[:begin]), "".join(lines[end + 1 :])
    remark = lines[begin].rstrip("\n")
    if remark.endswith(_NO_NEWLINE) and not tail:
        head = head.removesuffix("\n")
    left = head + tail
    return None if not left and remark.endswith(_NEW_FILE) else left


def _opens(line: str, address: str) -> bool:
    return line.rstrip("\n") in {
        f"{_fence(address)} begin{remark}" for remark in ("", _NEW_FILE, _NO_NEWLINE)
    }


# -- networkd and NetworkManager: a whole file of our own ----------------------------------------


def _render(kind: str, addresses: list[str]) -> str:
    """Our file for `addresses`, in the order they were added."""
    if kind == "networkd":
        lines = "".join(f"Address={address}\n" for address in addresses)
        return f"{_MARK}networkd\n[Match]\nName=lo\n\n[Network]\n{lines}"
    sections = "".join(
        f"\n[{section}]\nmethod=manual\n"
        + "".join(
            f"address{number}={address}\n"
            for number, address in enumerate(
                [own, *(entry for entry in addresses if (":" in entry) == (section == "ipv6"))], 1
            )
        )
        for section, own in (("ipv4", "127.0.0.1/8"), ("ipv6", "::1/128"))
    )
    order = "".join(f"# {address}\n" for address in addresses)
    return (
        f"{_MARK}networkmanager\n{order}[connection]\nid=loopbox-lo\ntype=loopback\n"
        f"interface-name=lo\nautoconnect=true\n{sections}"
    )


def _addresses(kind: str, text: str | None) -> list[str]:
    """The addresses our file holds; ConfigError when it is not exactly what we would write."""
    if text is None:
        return []
    prefix = "Address=" if kind == "networkd" else "# "
    lines = text.splitlines()[1:]
    found = [line.removeprefix(prefix) for line in lines if line.startswith(prefix)]
    if text != _render(kind, found):
        raise ConfigError(
            f"cannot change {PATHS[kind]}: it was edited by hand",
            hint="move it away, or add the address there yourself",
        )
    return found
