"""How each operating system is told of one more loopback address: a table.

Owns: the commands of nine systems to add, undo, list and persist an alias on the loopback
interface, whether 127.0.0.2 needs one there, and how far anybody has verified that.

Must never: fill anything in (rules/alias_plans does), or claim as verified what was only read:
measured means run by us, read means found in the system's own scripts or manual, unverified means
common knowledge without a source.

Example::

    SYSTEMS["macos"].needs_alias      # True: 127.0.0.2 answers only after an alias was added
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Persist:
    """One way to keep an alias over a reboot. `{a}` and the like are filled in."""

    kind: str
    add: tuple[str, ...]
    undo: tuple[str, ...]
    file: str | None = None
    """The file that gets the lines of `text`."""
    text4: str | None = None
    text6: str | None = None
    trust: str = "read"


@dataclass(frozen=True, slots=True)
class System:
    """One operating system's row."""

    name: str
    interface: str
    needs_alias: bool | None
    """Whether 127.0.0.2 answers only after an alias was added; None: nobody here knows."""
    reason: str
    add4: tuple[str, ...]
    add6: tuple[str, ...]
    undo4: tuple[str, ...]
    undo6: tuple[str, ...]
    list: tuple[str, ...]
    persist: tuple[Persist, ...]
    trust: str
    """measured, read or unverified, of the commands."""
    alias_trust: str
    """The same of `needs_alias`."""
    notes: tuple[str, ...] = ()


_PLIST = """\
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" \
"http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>local.loopback.{slug}</string>
  <key>RunAtLoad</key><true/>
  <key>ProgramArguments</key>
  <array>
    <string>/sbin/ifconfig</string><string>lo0</string>{words}
  </array>
</dict>
</plist>
"""
_PLIST4 = _PLIST.replace("{words}", "<string>alias</string><string>{a}</string>")
_PLIST6 = _PLIST.replace(
    "{words}",
    "<string>inet6</string><string>{a}</string><string>prefixlen</string><string>{p}</string>"
    "<string>alias</string>",
)
_WINDOWS = '"Loopback Pseudo-Interface 1"'

SYSTEMS: dict[str, System] = {
    system.name: system
    for system in (
        System(
            "linux",
            "lo",
            needs_alias=False,
            reason="all of 127.0.0.0/8 is local at once",
            add4=("sudo ip addr add {a}/{p} dev lo",),
            add6=("sudo ip -6 addr add {a}/{p} dev lo",),
            undo4=("sudo ip addr del {a}/{p} dev lo",),
            undo6=("sudo ip -6 addr del {a}/{p} dev lo",),
            list=("ip -d addr show dev lo",),
            persist=(
                Persist(
                    "networkd",
                    ("sudo networkctl reload",),
                    ("sudo rm {file}", "sudo networkctl reload"),
                    file="/etc/systemd/network/10-loopbox-lo.network",
                    text4="[Match]\nName=lo\n\n[Network]\nAddress={a}/{p}\n",
                ),
                Persist(
                    "networkmanager",
                    (
                        (
                            "sudo nmcli con add type loopback ifname lo con-name loopbox-lo "
                            'ipv4.method manual ipv4.addresses "127.0.0.1/8{and4}" '
                            'ipv6.method manual ipv6.addresses "::1/128{and6}"'
                        ),
                        "sudo nmcli con up loopbox-lo",
                    ),
                    ("sudo nmcli con delete loopbox-lo",),
                ),
                Persist(
                    "ifupdown",
                    (),
                    ("remove the stanza again",),
                    file="/etc/network/interfaces",
                    text4="iface lo inet static\n    address {a}/{p}\n",
                    text6="iface lo inet6 static\n    address {a}/{p}\n",
                ),
            ),
            trust="measured",
            alias_trust="measured",
            notes=("NetworkManager manages lo from 1.42 on",),
        ),
        System(
            "macos",
            "lo0",
            needs_alias=True,
            reason="only 127.0.0.1 exists until an alias is added (EADDRNOTAVAIL)",
            add4=("sudo ifconfig lo0 alias {a} netmask {mask}",),
            add6=("sudo ifconfig lo0 inet6 {a} prefixlen {p} alias",),
            undo4=("sudo ifconfig lo0 -alias {a}",),
            undo6=("sudo ifconfig lo0 inet6 {a} -alias",),
            list=("ifconfig lo0",),
            persist=(
                Persist(
                    "launchd",
                    (
                        "sudo chown root:wheel {file}",
                        "sudo chmod 644 {file}",
                        "sudo launchctl bootstrap system {file}",
                    ),
                    ("sudo launchctl bootout system {file}", "sudo rm {file}"),
                    file="/Library/LaunchDaemons/local.loopback.{slug}.plist",
                    text4=_PLIST4,
                    text6=_PLIST6,
                ),
            ),
            trust="read",
            alias_trust="read",
        ),
        System(
            "freebsd",
            "lo0",
            needs_alias=True,
            reason="only the host route to 127.0.0.1 exists",
            add4=("ifconfig lo0 inet {a}/{p} alias",),
            add6=("ifconfig lo0 inet6 {a}/{p} alias",),
            undo4=("ifconfig lo0 inet {a} -alias",),
            undo6=("ifconfig lo0 inet6 {a} -alias",),
            list=("ifconfig lo0",),
            persist=(
                Persist(
                    "rc.conf",
                    ('sysrc ifconfig_lo0_alias0="{inet} {a}/{p}"',),
                    ("sysrc -x ifconfig_lo0_alias0",),
                ),
            ),
            trust="unverified",
            alias_trust="unverified",
            notes=("take the next free number if ifconfig_lo0_alias0 is in use",),
        ),
        System(
            "openbsd",
            "lo0",
            needs_alias=True,
            reason="netstart ends with a reject route for 127/8",
            add4=("ifconfig lo0 inet alias {a} {mask}",),
            add6=("ifconfig lo0 inet6 alias {a} {p}",),
            undo4=("ifconfig lo0 inet {a} delete",),
            undo6=("ifconfig lo0 inet6 {a} delete",),
            list=("ifconfig lo0",),
            persist=(
                Persist(
                    "hostname.if",
                    (),
                    ("remove the line again",),
                    file="/etc/hostname.lo0",
                    text4="inet alias {a} {mask}\n",
                    text6="inet6 alias {a} {p}\n",
                ),
            ),
            trust="read",
            alias_trust="read",
        ),
        System(
            "netbsd",
            "lo0",
            needs_alias=True,
            reason="rc.d/network sets a reject route for 127/8",
            add4=("ifconfig lo0 inet {a} netmask {mask} alias",),
            add6=("ifconfig lo0 inet6 {a} prefixlen {p} alias",),
            undo4=("ifconfig lo0 inet {a} -alias",),
            undo6=("ifconfig lo0 inet6 {a} -alias",),
            list=("ifconfig lo0",),
            persist=(
                Persist(
                    "ifconfig.if",
                    (),
                    ("remove the line again",),
                    file="/etc/ifconfig.lo0",
                    text4="inet {a} netmask {mask} alias\n",
                    text6="inet6 {a} prefixlen {p} alias\n",
                ),
            ),
            trust="read",
            alias_trust="read",
        ),
        System(
            "aix",
            "lo0",
            needs_alias=True,
            reason="only configured addresses answer",
            add4=("ifconfig lo0 alias {a} netmask {mask}",),
            add6=("ifconfig lo0 inet6 {a}/{p} alias",),
            undo4=("ifconfig lo0 delete {a}",),
            undo6=("ifconfig lo0 inet6 delete {a}",),
            list=("ifconfig lo0", "lsattr -El lo0"),
            persist=(
                Persist(
                    "chdev",
                    ("chdev -l lo0 -a {alias}={a},{limit}",),
                    ("chdev -l lo0 -a del{alias}={a},{limit}",),
                    trust="unverified",
                ),
            ),
            trust="read",
            alias_trust="unverified",
            notes=("chdev on lo0 is documented for en0 only: nobody here has tried it",),
        ),
        *(
            System(
                name,
                "lo0",
                needs_alias=True,
                reason="only configured addresses answer",
                add4=("ipadm create-addr -t -T static -a {a}/{p} lo0/{slug}",),
                add6=("ipadm create-addr -t -T static -a {a}/{p} lo0/{slug}",),
                undo4=("ipadm delete-addr lo0/{slug}",),
                undo6=("ipadm delete-addr lo0/{slug}",),
                list=("ipadm show-addr lo0/",),
                persist=(
                    Persist(
                        "ipadm",
                        ("ipadm create-addr -T static -a {a}/{p} lo0/{slug}",),
                        ("ipadm delete-addr lo0/{slug}",),
                    ),
                ),
                trust="read",
                alias_trust="unverified",
                notes=notes,
            )
            for name, notes in (
                ("solaris", ("Solaris 10 and older: ifconfig lo0 addif {a}/{p} up",)),
                ("illumos", ()),
            )
        ),
        System(
            "windows",
            "Loopback Pseudo-Interface 1",
            needs_alias=False,
            reason="all of 127.0.0.0/8 is local at once",
            add4=(f"netsh interface ipv4 add address {_WINDOWS} {{a}} {{mask}} store=active",),
            add6=(f"netsh interface ipv6 add address {_WINDOWS} {{a}}/{{p}} store=active",),
            undo4=(f"netsh interface ipv4 delete address {_WINDOWS} {{a}}",),
            undo6=(f"netsh interface ipv6 delete address {_WINDOWS} {{a}}",),
            list=(
                f"netsh interface ipv4 show addresses {_WINDOWS}",
                'Get-NetIPAddress -InterfaceAlias "Loopback Pseudo-Interface 1"',
            ),
            persist=(
                Persist(
                    "store",
                    (f"netsh interface {{ipv}} add address {_WINDOWS} {{win}} store=persistent",),
                    (f"netsh interface {{ipv}} delete address {_WINDOWS} {{a}}",),
                    trust="unverified",
                ),
                Persist(
                    "km-test",
                    (
                        r"devcon install %windir%\inf\netloop.inf *MSLOOP",
                        'netsh interface {ipv} add address "Ethernet 2" {win}',
                    ),
                    ("devcon remove *MSLOOP",),
                    trust="read",
                ),
            ),
            trust="unverified",
            alias_trust="read",
            notes=(
                (
                    "Loopback Pseudo-Interface 1 is built in and carries 127/8 and ::1; the "
                    "Microsoft KM-TEST Loopback Adapter is an optional virtual network card, "
                    "refuses 127.x addresses, and gets a name of its own (here Ethernet 2)"
                ),
            ),
        ),
    )
}
"""Sources: the systems' own network scripts and manuals; see docs/addresses.md."""
