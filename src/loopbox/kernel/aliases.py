"""Changing the addresses of the loopback interface, now and for good.

Owns: adding and deleting on whatever interface bears the LOOPBACK flag, in the calling thread's
network namespace; writing the files of rules/alias_files atomically, with their mode and owner.

Must never: judge (rules/aliases does), touch an interface that is not the loopback.

Example::

    change_alias("add", judged, network)
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from ipaddress import ip_interface
from pathlib import Path

from loopbox.errors import ConfigError, HostError
from loopbox.kernel import foreign
from loopbox.kernel.netlink import KernelError, RouteSocket
from loopbox.rules.alias_files import MODES, PATHS, with_address, without_address
from loopbox.rules.alias_plans import plan_alias
from loopbox.rules.aliases import Judgement
from loopbox.rules.network import Link, Network

WAY = {"add": "to", "delete": "from"}
_GONE = {"add": errno.EEXIST, "delete": errno.EADDRNOTAVAIL}
"""What the kernel says when somebody else was faster: then it is done too."""


def loopback_of(network: Network) -> Link:
    """The loopback interface; HostError when this namespace has none."""
    link = network.loopback
    if link is None:
        raise HostError("cannot find the loopback interface: no interface has the LOOPBACK flag")
    return link


def change_alias(act: str, judged: Judgement, network: Network) -> bool:
    """Carry out `add` or `delete`; False when somebody else did it meanwhile.

    Raises HostError, without privilege with the exact command to run instead.
    """
    link = loopback_of(network)
    system = foreign.system_name(sys.platform)
    if system is not None:
        return _change_elsewhere(act, judged, system)
    interface = ip_interface(judged.text)
    try:
        with RouteSocket() as route:
            if act == "add":
                route.add_address(link.index, interface, scope=judged.scope)
            else:
                route.delete_address(link.index, interface)
    except KernelError as error:
        if error.number == _GONE[act]:
            return False
        if error.number in (errno.EPERM, errno.EACCES):
            raise HostError(
                f"cannot {act} `{judged.text}` {WAY[act]} `{link.name}`: not permitted",
                hint=f"run: {equivalent(act, judged, link.name)}",
                code="not-permitted",
            ) from error
        raise
    return True


def _change_elsewhere(act: str, judged: Judgement, system: str) -> bool:
    """By the commands that `addr plan` prints for that system."""
    plan = plan_alias(judged.address, judged.prefix, system=system)
    for command in plan.add if act == "add" else plan.undo:
        done = subprocess.run(
            command.removeprefix("sudo "), shell=True, check=False, capture_output=True, text=True
        )
        if done.returncode != 0:
            said = done.stderr.strip().splitlines()
            raise HostError(
                f"cannot {act} `{judged.text}` {WAY[act]} `{plan.interface}`: "
                + (said[-1] if said else f"exit status {done.returncode}"),
                hint=f"run: {command}",
            )
    return True


def equivalent(act: str, judged: Judgement, name: str) -> str:
    """The command that does the same as root."""
    family = "-6 " if judged.address.version == 6 else ""
    scope = f" scope {judged.scope}" if act == "add" and judged.scope == "host" else ""
    return f"sudo ip {family}addr {act[:3]} {judged.text} dev {name}{scope}"


def persist_alias(act: str, kind: str, address: str, *, root: Path = Path("/")) -> str | None:
    """Keep `address` (ADDRESS/PREFIX) over a reboot, or no longer; the file changed, or None.

    `root` is prefixed to every path. Raises ConfigError for files that cannot be changed safely,
    HostError without privilege.
    """
    path = root / PATHS[kind].lstrip("/")
    if kind == "networkd" and act == "add":
        _refuse_second_network_file(path, root)
    try:
        before = path.read_text() if path.exists() else None
        change = with_address if act == "add" else without_address
        after = change(kind, before, address)
        if after == before:
            return None
        if after is None:
            path.unlink()
        else:
            _replace(path, after, mode=MODES[kind])
    except (PermissionError, UnicodeDecodeError) as error:
        raise HostError(
            f"cannot change `{path}`: {getattr(error, 'strerror', None) or 'it is not text'}",
            hint="run it with sudo",
        ) from error
    return str(path)


def _refuse_second_network_file(path: Path, root: Path) -> None:
    """systemd-networkd applies one .network file per interface: the first in name order."""
    for folder in ("etc/systemd/network", "run/systemd/network", "usr/lib/systemd/network"):
        for other in sorted((root / folder).glob("*.network")):
            if other == path:
                continue
            with contextlib.suppress(OSError, UnicodeDecodeError):
                names = [
                    line.partition("=")[2].split()
                    for line in other.read_text().splitlines()
                    if line.strip().startswith("Name=")
                ]
                if any("lo" in words for words in names):
                    raise ConfigError(
                        f"cannot keep the address by `{path}`: `{other}` configures lo already, "
                        "and systemd-networkd applies only one of them",
                        hint=f"add an Address= line to {other}",
                    )


def _replace(path: Path, text: str, *, mode: int) -> None:
    """Write whole or not at all, keeping mode and owner of a file that was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    real = path.resolve()  # a symlink stays one: its target is replaced
    with contextlib.suppress(FileNotFoundError):
        mode = real.stat().st_mode & 0o7777
    handle, name = tempfile.mkstemp(dir=real.parent, prefix=".loopbox-")
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        with contextlib.suppress(FileNotFoundError, PermissionError):
            owner = real.stat()
            os.chown(name, owner.st_uid, owner.st_gid)
        os.rename(name, real)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
