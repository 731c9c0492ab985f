"""Making the namespaces a box is made of, and looking into them.

Owns: the user namespace a rootless keeper stands in, the template mount namespace, and per box
one network and one mount namespace, held by nothing but descriptors.
Must never: decide which box is made; run on a thread that still needs the host's namespaces (a
rootless thread that left them can never come back: the host's belong to the initial user
namespace, see setns(2)).

Example, on the roaming thread::

    template = open_template(files)
    net, cookie = make_network()
    mnt = copy_template(template)
    # both are descriptors; closing them ends the box once no process is inside
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from loopbox.errors import HostError
from loopbox.kernel.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MNT_DETACH,
    MS_BIND,
    MS_REC,
    MS_SLAVE,
    mount,
    setns,
    umount2,
    unshare,
)

PRIVATE_FILES = ("hosts", "resolv.conf", "nsswitch.conf")
"""What every box has its own of, below /etc."""

_CACHE_SOCKETS = ("/run/nscd", "/var/run/nscd")
"""Where a name service cache of the host would answer in the box's stead (nscd(8))."""

_SIOCSIFFLAGS = 0x8914
_SO_NETNS_COOKIE = 71
_NS_GET_USERNS, _NS_GET_PARENT = 0xB701, 0xB702
_IFF_UP_LOOPBACK_RUNNING = 0x1 | 0x8 | 0x40
_LO_UP = struct.pack("16sh", b"lo", _IFF_UP_LOOPBACK_RUNNING)


@dataclass(frozen=True, slots=True)
class Namespaces:
    """The descriptors of one box. The holder closes them."""

    net: int
    mnt: int
    """-1 until the first program enters: until then nobody would see it."""
    inode: int
    """The network namespace's inode: what /proc/PID/ns/net of a member shows."""
    cookie: int
    """The network namespace's number, never given twice while the machine is up, where an inode
    is given to the next namespace at once; 0 before Linux 5.14."""

    @property
    def mounts(self) -> int:
        """The mount namespace's inode, 0 while there is none."""
        return 0 if self.mnt < 0 else inode_of(self.mnt)

    def close(self) -> None:
        """Let go. The kernel ends the namespaces when no process is left in them."""
        try:
            os.close(self.net)
        finally:
            if self.mnt >= 0:
                os.close(self.mnt)


def open_namespace(kind: str, pid: int | str = "thread-self") -> int:
    """A descriptor of a namespace of this thread or another process (`net`, `mnt`, `user`)."""
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)


def inode_of(descriptor: int) -> int:
    """The namespace's inode, equal for equal namespaces."""
    return os.fstat(descriptor).st_ino


def enter_new_user_namespace() -> None:
    """Put this (single-threaded) process into a user namespace of its own, identity mapped.

    uid and gid stay what they are, so files made inside belong to the user, and nothing the
    box runs keeps a capability across exec(2). Raises HostError with the remedy when this
    machine forbids it (user_namespaces(7)).
    """
    uid, gid = os.geteuid(), os.getegid()
    try:
        unshare(CLONE_NEWUSER)
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError as error:
        raise user_namespace_error(error) from error


def demand_capabilities() -> None:
    """Raise HostError where root is not the root that boxes need (in a container, say)."""
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    held = next((line for line in status.splitlines() if line.startswith("CapEff:")), "CapEff: 0")
    bits = int(held.split()[1], 16)
    lacking = [name for bit, name in _NEEDED_BY_ROOT if not bits >> bit & 1]
    if lacking:
        raise HostError(
            f"cannot make a box: this root lacks {' and '.join(lacking)} (capabilities(7))",
            hint="in a container, start it with "
            + " ".join(f"--cap-add {name.removeprefix('CAP_')}" for name in lacking)
            + "; else run loopbox as a plain user",
            code="no-capability",
        )


_NEEDED_BY_ROOT = ((21, "CAP_SYS_ADMIN"), (12, "CAP_NET_ADMIN"))
"""Number (linux/capability.h) and name. Rootless, the user namespace grants both."""


def user_namespace_error(error: OSError) -> HostError:
    """Why this machine lets this user make no user namespace, with the exact remedy."""
    cause, hint = "the kernel refuses it", "run as root, or ask whoever runs this machine"
    for path, forbidding, why, remedy in _FORBIDDING_KNOBS:
        try:
            value = Path(path).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            cause, hint = f"{path} is {value}{why}", remedy
            break
    else:
        if error.errno == 1 and Path("/.dockerenv").exists():
            cause = "this container's seccomp profile forbids unshare(2)"
            hint = "start it with --security-opt seccomp=unconfined, or run loopbox outside"
        elif error.errno == 28:
            cause, hint = (
                "too many user namespaces are nested or open",
                ("raise it: sudo sysctl user.max_user_namespaces=15000"),
            )
    return HostError(
        f"cannot make a box: user namespaces are not allowed for this user: {cause} "
        f"({error.strerror})",
        hint=hint,
        code="no-user-namespaces",
    )


_FORBIDDING_KNOBS = (
    (
        "/proc/sys/user/max_user_namespaces",
        "0",
        "",
        "sudo sysctl user.max_user_namespaces=15000",
    ),
    (
        "/proc/sys/kernel/unprivileged_userns_clone",
        "0",
        "",
        "sudo sysctl kernel.unprivileged_userns_clone=1",
    ),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        " (AppArmor, Ubuntu 23.10 and later)",
        (
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile "
            "with `userns,` for this Python"
        ),
    ),
)


def raise_lo() -> int:
    """Bring lo up; the kernel then adds 127.0.0.1/8 and ::1/128 itself (netdevice(7)).

    Gives the cookie of this thread's network namespace.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        fcntl.ioctl(probe, _SIOCSIFFLAGS, _LO_UP)
        return _cookie_by(probe)


def network_cookie() -> int:
    """The cookie of this thread's network namespace; 0 where the kernel has none (before 5.14)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return _cookie_by(probe)


def _cookie_by(probe: socket.socket) -> int:
    try:
        return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), "little")
    except OSError:
        return 0


def open_template(files: Path) -> int:
    """A mount namespace with `files`/{hosts,resolv.conf,nsswitch.conf} over /etc's.

    Moves this thread into it and returns its descriptor. Every box's mount namespace is a copy,
    which costs 60 us where mounting anew costs 200. Host mounts made later still appear in
    boxes (MS_SLAVE); nothing mounted in a box appears outside.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", None, MS_REC | MS_SLAVE, None)
    bind_private_files(files)
    empty = files / "empty"
    empty.mkdir(exist_ok=True)
    for covered in _CACHE_SOCKETS:
        if os.path.isdir(covered):
            mount(str(empty), covered, None, MS_BIND, None)
    return open_namespace("mnt")


def bind_private_files(files: Path) -> None:
    """Lay each private file that exists in `files` over /etc's, in this thread's mount namespace.

    A file that /etc itself lacks (or whose link dangles) cannot be covered without privilege
    over /etc and is left out.
    """
    for name in PRIVATE_FILES:
        private = files / name
        if private.exists() and os.path.exists(f"/etc/{name}"):
            mount(str(private), f"/etc/{name}", None, MS_BIND, None)


def rebind_private_files(mnt: int, files: Path) -> None:
    """Lay the private files anew in the mount namespace `mnt` (this thread moves there).

    Needed when the host has replaced one of its own by rename(2): the kernel then detaches every
    mount on the old one, in all namespaces, and the box would read the host's.
    """
    setns(mnt, CLONE_NEWNS)
    for name in PRIVATE_FILES:
        private = files / name
        if not (private.exists() and os.path.exists(f"/etc/{name}")):
            continue
        if not os.path.samefile(private, f"/etc/{name}"):
            mount(str(private), f"/etc/{name}", None, MS_BIND, None)


def make_network(network: int | None = None) -> tuple[int, int]:
    """A box's network namespace, lo up: its descriptor and its cookie.

    Moves this thread there. `network` is a fresh network namespace to take instead of making one
    (it stays the caller's). Raises OSError with what the kernel said; nothing is left behind then.
    """
    if network is None:
        unshare(CLONE_NEWNET)
    else:
        setns(network, CLONE_NEWNET)
    cookie = raise_lo()
    return open_namespace("net"), cookie


def copy_template(template: int) -> int:
    """A mount namespace as every box has its own; moves this thread there."""
    setns(template, CLONE_NEWNS)
    unshare(CLONE_NEWNS)
    return open_namespace("mnt")


def owner_of(namespace: int) -> int:
    """A descriptor of the user namespace that a namespace belongs to (ioctl_ns(2)).

    Not that of a process found inside: a browser's sandbox makes user namespaces of its own, and
    those have no power over the box. Raises OSError when it lies outside this thread's.
    """
    fd = fcntl.ioctl(namespace, _NS_GET_USERNS)
    os.set_inheritable(fd, False)
    return fd


def keeper_namespace_of(user: int) -> int:
    """The user namespace a keeper stands in, from one it made or one nested in that.

    Routers' networks belong to a nested one (kernel/rooted.py). Takes `user` over and gives a
    descriptor the caller closes. Must be asked from the namespace the keeper was started in.
    """
    own = os.stat("/proc/self/ns/user").st_ino
    while True:
        parent = fcntl.ioctl(user, _NS_GET_PARENT)
        os.set_inheritable(parent, False)
        if inode_of(parent) == own:
            os.close(parent)
            return user
        os.close(user)
        user = parent


def is_network_of(cookie: int, *, user: int, net: int) -> bool:
    """Whether `net`, entered by way of the user namespace `user`, has this cookie.

    Tried by a child, since there is no way back: this process must have one thread only.
    """
    child = os.fork()
    if child == 0:
        try:
            setns(user, CLONE_NEWUSER)
            setns(net, CLONE_NEWNET)
            os._exit(0 if network_cookie() == cookie else 1)
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def tune(group: int) -> None:
    """The network settings that programs in a box meet, in this thread's namespace.

    Ports below 1024 and ping are for everyone inside; `group` is the gid that may ping (icmp(7)).
    route_localnet is put back to 0 where a new namespace inherited another value from the host,
    for with 1 a neighbour on a link could reach the box's 127.0.0.1 (CVE-2020-8558).
    """
    # One walk to the directory: with 1,000 boxes it takes 0.4 ms, as long as making the network
    # namespace (all boxes' entries stand in one hash chain). Hence not done before it is needed.
    directory = os.open("/proc/sys/net/ipv4", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _write(directory, "ip_unprivileged_port_start", b"0")
        _write(directory, "ping_group_range", ping_range(group))
        for scope in ("all", "default", "lo"):
            if _read(directory, f"conf/{scope}/route_localnet") != b"0":
                _write(directory, f"conf/{scope}/route_localnet", b"0")
    finally:
        os.close(directory)


def ping_range(group: int) -> bytes:
    """Who may ping: as root everyone; rootless only one's own gid, for no other is mapped."""
    return b"0 2147483647" if group == 0 else b"%d %d" % (group, group)


def _write(directory: int, name: str, value: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.write(fd, value)
    finally:
        os.close(fd)


def _read(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        return os.read(fd, 32).strip()
    finally:
        os.close(fd)


def show_own_devices(files: Path) -> None:
    """Let /sys/class/net show this box's devices and not the host's.

    In this thread's network and mount namespace. sysfs shows the devices of the namespace it was
    mounted in; a whole new one would hide /sys/fs/cgroup, so only the two network directories
    are taken from it. Costs 0.8 ms, hence done when the first program enters.
    """
    fresh = str(files / "empty")
    mount("sysfs", fresh, "sysfs", 0, None)
    try:
        for part in ("class/net", "devices/virtual/net"):
            if os.path.isdir(f"{fresh}/{part}") and os.path.isdir(f"/sys/{part}"):
                mount(f"{fresh}/{part}", f"/sys/{part}", None, MS_BIND, None)
    finally:
        umount2(fresh, MNT_DETACH)


def open_counters() -> tuple[int, int]:
    """Descriptors of sockstat and sockstat6 of this thread's network namespace (proc(5)).

    They keep showing that namespace, and keep it alive, wherever the thread goes.
    """
    return (
        os.open("/proc/thread-self/net/sockstat", os.O_RDONLY | os.O_CLOEXEC),
        os.open("/proc/thread-self/net/sockstat6", os.O_RDONLY | os.O_CLOEXEC),
    )
