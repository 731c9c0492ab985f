"""Who holds which socket, on the systems that have no lsof: sockstat and fstat.

Owns: sockstat's table of FreeBSD and NetBSD (`ADDRESS:PORT` without brackets, `*:22`, NetBSD also
`*.22`), and fstat's list of OpenBSD and NetBSD (`internet6 stream tcp 0x0 [::1]:22`).

Must never: raise on a line; list what is connected.

Example::

    parse_sockstat("root sshd 854 4 tcp4 *:22 *:*")[0].pid      # 854
"""

from __future__ import annotations

import re

from loopbox.rules.foreign.unix import OpenFile

_SOCKSTAT = re.compile(r"^\S+\s+(\S.*?)\s+(\d{1,9})\s+\S+\s+(tcp|udp)(?:4|6|46)?\s+(\S+)\s+(\S+)")
_FSTAT = re.compile(
    r"^\S+\s+(\S.*?)\s+(\d{1,9})\s+\d+\*?\s+internet6?\s+(?:stream|dgram)\s+(tcp|udp)"
    r"(?:\s+(?:0x)?[0-9a-f]+)?\s+(\S+:\d+)\s*$"
)
_OPEN_PEERS = ("*:*", "*.*", "-")


def parse_sockstat(text: str) -> list[OpenFile]:
    """Sockets without a peer and their processes, from `sockstat -n`."""
    found = []
    for line in text.splitlines():
        match = _SOCKSTAT.match(line)
        if match is None or match[5] not in _OPEN_PEERS:
            continue
        host, _, port = re.sub(r"[.:](\d+)$", r" \1", match[4]).partition(" ")
        end = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        found.append(OpenFile(match[3], end, int(match[2]), match[1], None))
    return found


def parse_fstat(text: str) -> list[OpenFile]:
    """Internet sockets without a peer and their processes, from `fstat -n`."""
    found = []
    for line in text.splitlines():
        match = _FSTAT.match(line)
        if match is not None:
            end = "*" + match[4][4:] if match[4].startswith("[::]:") else match[4]
            found.append(OpenFile(match[3], end, int(match[2]), match[1], None))
    return found
