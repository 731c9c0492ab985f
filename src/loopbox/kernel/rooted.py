"""Network namespaces for routers of a plain user: owned by a user namespace in which he is root.

Owns: making such a user namespace and networks in it, by a helper process that ends at once, and
the command prefix that starts a program inside.
Must never: be used by real root, who needs none of it; keep a process alive.

Why: a keeper's own user namespace maps the uid to itself, and FRR's ospfd refuses any uid but 0
(ospf_main.c: "need to be root"). A program in a nested namespace that maps the uid to 0 has rights
only over networks that belong to that one, so routers' networks must be made there. The keeper,
in the parent, has all rights over both (user_namespaces(7)).

Example::

    space = make_rooted_networks(3)
    subprocess.Popen([*space.prefix, "/usr/lib/frr/zebra", ...], pass_fds=[space.user])
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from loopbox.errors import HostError
from loopbox.kernel.syscalls import CLONE_NEWNET, CLONE_NEWUSER, unshare

_PER_MESSAGE = 250  # SCM_MAX_FD is 253 (unix(7))
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from loopbox.kernel.rooted import serve; serve(int(sys.argv[2]), int(sys.argv[3]))"
)


@dataclass(frozen=True, slots=True)
class RootedNetworks:
    """Descriptors of one user namespace and of networks it owns. The holder closes them."""

    user: int
    networks: tuple[int, ...]

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command line (with `pass_fds=[user]`) so that it runs as root there.

        The network is the caller's thread's: stand in it when starting the program.
        """
        return ("nsenter", "--preserve-credentials", f"--user=/proc/self/fd/{self.user}", "--")

    def close(self) -> None:
        """Let go: namespaces without a process end."""
        for fd in (self.user, *self.networks):
            os.close(fd)


def make_rooted_networks(count: int) -> RootedNetworks:
    """`count` networks (lo still down) in a new user namespace; blocks for some 20 ms.

    HostError with the helper's last words when the kernel refuses.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    package_root = str(Path(__file__).parents[2])
    with ours:
        with theirs:
            helper = subprocess.Popen(
                [
                    sys.executable,
                    "-I",
                    "-c",
                    _START,
                    package_root,
                    str(theirs.fileno()),
                    str(count),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        received: list[int] = []
        while len(received) < count + 1:
            data, fds, _, _ = socket.recv_fds(ours, 1, _PER_MESSAGE)
            received += fds
            if not data:
                break
    _, said = helper.communicate()
    if len(received) < count + 1:
        for fd in received:
            os.close(fd)
        words = said.decode("utf-8", "replace").strip().split("\n")[-1]
        raise HostError(
            f"cannot make networks for routers: {words}",
            hint="user namespaces may be limited: see /proc/sys/user/max_user_namespaces",
        )
    return RootedNetworks(received[0], tuple(received[1:]))


def serve(channel: int, count: int) -> None:
    """The helper's work: become root of a new user namespace, make networks, send descriptors."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        Path(f"/proc/self/{name}").write_text(text)
    made = [os.open("/proc/self/ns/user", os.O_RDONLY)]
    for _ in range(count):
        unshare(CLONE_NEWNET)
        made.append(os.open("/proc/self/ns/net", os.O_RDONLY))
    with socket.socket(fileno=channel) as out:
        for start in range(0, len(made), _PER_MESSAGE):
            socket.send_fds(out, [b"."], made[start : start + _PER_MESSAGE])
