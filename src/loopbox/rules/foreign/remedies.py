"""The doctor's advice in the words of macOS, the BSDs and Windows.

Owns: the table that turns a Linux command of a cause or fix into that system's own. Nobody here
has run these commands: they are written after the systems' manuals.

Must never: judge, or leave a command that the system does not have.

Example::

    reworded("sudo ip link set lo0 up", "macos")      # "sudo ifconfig lo0 up"
"""

from __future__ import annotations

import re
from collections.abc import Mapping

_FILTER = {
    "macos": "sudo pfctl -sr",
    "freebsd": "sudo pfctl -sr, or: sudo ipfw list",
    "openbsd": "doas pfctl -sr",
    "netbsd": "sudo npfctl show",
    "solaris": "ipfstat -io, or: pfctl -sr",
    "aix": "lsfilt -a",
    "windows": "Get-NetFirewallRule -Enabled True -Action Block",
}
_LEASE = {
    "macos": r"sudo ipconfig set \1 DHCP",
    "freebsd": r"sudo dhclient \1",
    "openbsd": r"doas ifconfig \1 inet autoconf",
    "netbsd": r"sudo dhcpcd \1",
    "solaris": r"ipadm create-addr -T dhcp \1/v4",
    "aix": r"smitty dhcp",
    "windows": "ipconfig /renew",
}
_SERVERS = {
    "macos": "networksetup -setdnsservers SERVICE ADDRESS",
    "windows": "Set-DnsClientServerAddress -InterfaceAlias NAME -ServerAddresses ADDRESS",
}
_ASK = {
    "macos": "dscacheutil -q host -a name one.one.one.one",
    "windows": "Resolve-DnsName one.one.one.one",
}
_WINDOWS_HOSTS = r"%SystemRoot%\\System32\\drivers\\etc\\hosts"

Table = tuple[tuple[str, Mapping[str, str]], ...]

_EVERY = "*"
_TABLE: Table = (
    # pattern in the Linux text: replacement by system, `*` for those not named
    (
        r"sudo ip link set (\S+) down && sudo ip link set \1 up",
        {
            _EVERY: r"sudo ifconfig \1 down && sudo ifconfig \1 up",
            "windows": r"Restart-NetAdapter '\1'",
        },
    ),
    (
        r"sudo ip link set (\S+) up",
        {_EVERY: r"sudo ifconfig \1 up", "windows": r"Enable-NetAdapter '\1'"},
    ),
    (
        r"sudo ip addr add 127\.0\.0\.1/8 dev (\S+)",
        {
            _EVERY: r"sudo ifconfig \1 inet 127.0.0.1 netmask 255.0.0.0 alias",
            "windows": "restart Windows: the system itself makes this address",
        },
    ),
    (
        r"sudo ip -6 addr add ::1/128 dev (\S+)",
        {
            _EVERY: r"sudo ifconfig \1 inet6 ::1 prefixlen 128 alias",
            "windows": "restart Windows: the system itself makes this address",
        },
    ),
    (
        r"sudo ip addr add ADDRESS/PREFIX dev (\S+)",
        {
            _EVERY: r"sudo ifconfig \1 inet ADDRESS netmask MASK",
            "windows": r"New-NetIPAddress -InterfaceAlias '\1' -IPAddress ADDRESS -PrefixLength N",
        },
    ),
    (
        r"sudo ip route add default via GATEWAY",
        {
            _EVERY: "sudo route add default GATEWAY",
            "windows": "New-NetRoute -DestinationPrefix 0.0.0.0/0 -NextHop GATEWAY",
        },
    ),
    (
        r"sudo ip route del \S+ default",
        {
            _EVERY: "sudo route delete default",
            "windows": "Remove-NetRoute -DestinationPrefix 0.0.0.0/0",
        },
    ),
    (r"sudo dhclient ([^\s,]+)", _LEASE),
    (r"sudo dhclient(?=,)", {name: how.replace(r"\1", "IF") for name, how in _LEASE.items()}),
    (r'sudo nft list ruleset(?:, and let iif "[^"]*" pass(?: first)?)?', _FILTER),
    (
        r"ip -6 addr show tentative",
        {_EVERY: "ifconfig -a", "windows": "Get-NetIPAddress -AddressState Tentative"},
    ),
    (
        r"ip route get (\S+)",
        {_EVERY: r"route -n get \1", "windows": r"Find-NetRoute -RemoteIPAddress \1"},
    ),
    (
        r"write a working `nameserver ADDRESS` line into /etc/resolv\.conf",
        {_EVERY: r"\g<0>", **_SERVERS},
    ),
    (
        r"take it out of /etc/resolv\.conf",
        {_EVERY: r"\g<0>", **{name: f"take it out: {how}" for name, how in _SERVERS.items()}},
    ),
    (
        r"no name server in /etc/resolv\.conf|no /etc/resolv\.conf",
        {_EVERY: r"\g<0>", **dict.fromkeys(_SERVERS, "no name server is configured")},
    ),
    (r"getent ahosts one\.one\.one\.one", {_EVERY: "getent hosts one.one.one.one", **_ASK}),
    (
        r"printf '127\.0\.0\.1 localhost.*",
        {_EVERY: r"\g<0>", "windows": f"write `127.0.0.1 localhost` into {_WINDOWS_HOSTS}"},
    ),
    (r"/etc/hosts", {_EVERY: r"\g<0>", "windows": _WINDOWS_HOSTS}),
    (
        r"restart this network namespace",
        {_EVERY: "restart the machine: the system itself makes this interface"},
    ),
    (
        r"export NO_PROXY=(\S+)",
        {_EVERY: r"\g<0>", "windows": r"$env:NO_PROXY = '\1'"},
    ),
    (r"\bsudo ", {_EVERY: "sudo ", "openbsd": "doas "}),
)


def reworded(text: str | None, system: str) -> str | None:
    """A cause or a fix for `system` (a name of rules/alias_systems); Linux keeps its own."""
    if text is None or system == "linux":
        return text
    for pattern, by_system in _TABLE:
        replacement = by_system.get(system, by_system.get(_EVERY))
        if replacement is not None:
            text = re.sub(pattern, replacement, text)
    return text
