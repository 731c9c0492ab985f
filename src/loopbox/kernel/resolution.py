"""The files and variables that decide what a name means, on every system that has them.

Owns: reading hosts, nsswitch.conf and the proxy variables for the doctor.

Must never: look a name up, judge.

Example::

    localhost_lines(read("/etc/hosts"))      # ("127.0.0.1", "::1")
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from loopbox.wire.systemfiles import parse_hosts

_PROXIES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")


def read(path: str) -> bytes | None:
    """A file's bytes; None when it is not there or not ours to read."""
    try:
        return Path(path).read_bytes()
    except OSError:
        return None


def localhost_lines(hosts: bytes | None) -> tuple[str, ...] | None:
    """Addresses of localhost in a hosts file; None when there is no file."""
    if hosts is None:
        return None
    return tuple(
        str(entry.address)
        for entry in parse_hosts(hosts)
        if "localhost" in {name.lower() for name in entry.names}
    )


def sources(data: bytes | None = None) -> tuple[str, ...]:
    """The hosts line of nsswitch.conf; glibc's default where there is none (nsswitch.conf(5))."""
    data = read("/etc/nsswitch.conf") if data is None else data
    for line in (data or b"").decode("utf-8", "replace").splitlines():
        content = line.partition("#")[0].strip()
        if content.startswith("hosts:"):
            words = content.removeprefix("hosts:").split()
            return tuple(word for word in words if not word.startswith("["))
    return ("files", "dns")


def unexcepted_proxies(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Proxy variables in force for requests to localhost."""
    excepted = f"{environment.get('no_proxy', '')},{environment.get('NO_PROXY', '')}"
    words = {word.strip().lstrip(".") for word in excepted.split(",")}
    if "*" in words or {"localhost", "127.0.0.1"} <= words:
        return ()
    return tuple(name for name in _PROXIES if environment.get(name))
