"""Finding XDP, tc and BPF programs that see packets outside of the packet filter.

Owns: the XDP attribute of links, filters of clsact and ingress (both by rtnetlink, open to every
user), and bpf(2): BPF_PROG_QUERY for tcx, sk_lookup and cgroups (CAP_NET_ADMIN of the machine), the
list of links for programs on netfilter's own hooks (CAP_SYS_ADMIN).

Must never: load, attach or detach anything; judge (rules/audit/hooks does).

Example::

    seen = read_hooks()
    seen.hooks[0].text      # "an XDP program (id 7) on eth0"

Formats: linux/if_link.h, linux/rtnetlink.h, linux/pkt_sched.h, linux/bpf.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass

from loopbox.kernel.facts import dump
from loopbox.kernel.netlink import open_netlink
from loopbox.rules.audit.hooks import Hook
from loopbox.wire.netlink import parse_attributes, text_of

_GETLINK, _GETQDISC, _GETTFILTER = 18, 38, 46
_TCM = struct.Struct("=BxxxiIII")
_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
"""TC_H_CLSACT with TC_H_MIN_INGRESS and TC_H_MIN_EGRESS."""
_PROG_QUERY, _EFFECTIVE = 16, 1
_OBJ_GET_INFO, _LINK_GET_FD, _LINK_GET_NEXT = 15, 30, 31
_LINK_NETFILTER = 10
_PLACES = ("prerouting", "input", "forward", "output", "postrouting")
_VERSIONS = {int(socket.AF_INET): " of IPv4", int(socket.AF_INET6): " of IPv6"}
_MOST_LINKS = 4096
_CGROUP_SKB = {"ingress": 0, "egress": 1}
_TCX = {"ingress": 46, "egress": 47}
_SK_LOOKUP = 36
_BPF_NUMBERS = {
    "x86_64": 321, "aarch64": 280, "riscv64": 280, "loongarch64": 280, "s390x": 351,
    "ppc64le": 361, "armv7l": 386, "i686": 357,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class LinkHooks:
    """What a link's message says of XDP, and which links carry its packets on."""

    index: int
    name: str
    xdp: int = 0
    """Program id; 0 for none, -1 where several modes have one."""
    upper: int = 0
    """The bridge or bond it belongs to."""
    lower: int = 0
    """Of a VLAN or the like: the link below, in this namespace."""


@dataclass(frozen=True, slots=True)
class SeenHooks:
    """What was found."""

    hooks: tuple[Hook, ...] = ()
    unseen: tuple[str, ...] = ()
    """What this user may not ask, in words."""


class CgroupFilters:
    """BPF programs that filter the packets of a process, asked once per cgroup."""

    def __init__(self) -> None:
        self._root = _cgroup_root()
        self._known: dict[str, tuple[str, ...]] = {}

    def of(self, pid: int) -> tuple[str, ...]:
        """Doubts about packets of process `pid`; none without the privilege to ask."""
        group = None if self._root is None or os.geteuid() != 0 else _cgroup_of(pid)
        if group is None:
            return ()
        if group not in self._known:
            self._known[group] = self._ask(group)
        return self._known[group]

    def _ask(self, group: str) -> tuple[str, ...]:
        try:
            place = os.open(f"{self._root}{group}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return ()
        try:
            found = [way for way, kind in _CGROUP_SKB.items() if _programs(place, kind, _EFFECTIVE)]
        finally:
            os.close(place)
        return tuple(f"cannot evaluate the {way} BPF program of cgroup {group}" for way in found)


def read_hooks(*, is_box: bool = False) -> SeenHooks:
    """Everything that sits beside the packet filter of the calling thread's namespace."""
    with open_netlink(socket.NETLINK_ROUTE) as netlink:
        links = dump(netlink, _GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0), parse_link)
        qdiscs = dump(netlink, _GETQDISC, _TCM.pack(0, 0, 0, 0, 0), parse_tc)
        clsact = {index for index, kind, _ in qdiscs if kind in ("clsact", "ingress")}
        hooks = []
        for link in links:
            reach = affected(link.index, links)
            if link.xdp:
                which = f" (id {link.xdp})" if link.xdp > 0 else ""
                hooks.append(Hook("ingress", f"an XDP program{which} on {link.name}", reach))
            for way, parent in _PARENTS.items() if link.index in clsact else ():
                asked = _TCM.pack(0, link.index, 0, parent, 0)
                found = dump(netlink, _GETTFILTER, asked, parse_tc)
                if found:
                    kinds = ", ".join(sorted({kind for _, kind, _ in found}))
                    text = f"a tc {way} filter ({kinds}) on {link.name}"
                    steers = way == "ingress" and any(is_bpf for _, _, is_bpf in found)
                    hooks.append(Hook(way, text, reach, steers))
    asked_bpf = _bpf_hooks(links)
    if asked_bpf is None:
        unseen = () if is_box else ("BPF programs beside the packet filter: asking takes root",)
        return SeenHooks(tuple(hooks), unseen)
    return SeenHooks((*hooks, *asked_bpf))


def affected(index: int, links: Collection[LinkHooks]) -> frozenset[int]:
    """The interfaces whose packets pass through `index`: itself, its bridge, VLANs above it."""
    found: set[int] = set()
    queue = [index]
    while queue:
        one = queue.pop()
        if one in found:
            continue
        found.add(one)
        queue += [link.upper for link in links if link.index == one and link.upper]
        queue += [link.index for link in links if link.lower == one]
    return frozenset(found)


def parse_link(payload: bytes) -> LinkHooks | None:
    """RTM_NEWLINK; None when it is cut short."""
    if len(payload) < 16:
        return None
    index = struct.unpack_from("=i", payload, 4)[0]
    found = parse_attributes(payload[16:])
    below = 0 if 37 in found else _number(found.get(5, b""))  # IFLA_LINK_NETNSID: not ours
    xdp = parse_attributes(found.get(43, b""))
    attached = xdp.get(2, b"\0")[:1] not in (b"\0", b"")
    return LinkHooks(
        index=index,
        name=text_of(found.get(3, b"")),
        xdp=(_number(xdp.get(4, b"")) or -1) if attached else 0,
        upper=_number(found.get(10, b"")),
        lower=below if below != index else 0,
    )


def parse_tc(payload: bytes) -> tuple[int, str, bool] | None:
    """(interface, kind, runs BPF) of a qdisc or a filter."""
    if len(payload) < _TCM.size:
        return None
    found = parse_attributes(payload[_TCM.size :])
    kind = text_of(found.get(1, b""))
    # Other classifiers may run BPF as their action: its kind stands somewhere in the options.
    return _TCM.unpack_from(payload)[1], kind, kind == "bpf" or b"bpf\0" in found.get(2, b"")


def _number(value: bytes) -> int:
    return int(struct.unpack("=I", value[:4])[0]) if len(value) >= 4 else 0


# -- bpf(2) ---------------------------------------------------------------------------------------


def _bpf_hooks(links: Collection[LinkHooks]) -> list[Hook] | None:
    """Programs of tcx and sk_lookup; None when we may not ask."""
    if os.geteuid() != 0:
        return None
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        lookups = _programs(here, _SK_LOOKUP)
    finally:
        os.close(here)
    if lookups is None:
        return None
    found = []
    if lookups:
        found.append(Hook("ingress", "an sk_lookup BPF program of this namespace", steers=True))
    for link in links:
        for way, kind in _TCX.items():
            if _programs(link.index, kind):
                text = f"a tcx {way} program on {link.name}"
                steers = way == "ingress"
                found.append(Hook(way, text, affected(link.index, links), steers))
    return found + [Hook("filter", text) for text in _netfilter_programs()]


def _netfilter_programs() -> list[str]:
    """BPF programs that sit among nftables' chains, in words.

    A link does not say in which network namespace it lives, so it is a doubt in all of them. Such
    programs let packets pass or drop them, and no more.
    """
    found: dict[str, None] = {}
    link = 0
    for _ in range(_MOST_LINKS):
        answer = _bpf(_LINK_GET_NEXT, struct.pack("=III", link, 0, 0))
        if answer is None:
            break
        link = struct.unpack_from("=I", answer[1], 4)[0]
        opened = _bpf(_LINK_GET_FD, struct.pack("=I", link))
        if opened is None:
            continue
        try:
            kind, family, place = _link_info(opened[0])
        finally:
            os.close(opened[0])
        if kind == _LINK_NETFILTER:
            where = _PLACES[place] if place < len(_PLACES) else str(place)
            version = _VERSIONS.get(family, "")
            found[f"a BPF program on the netfilter hook {where}{version}"] = None
    return list(found)


def _link_info(descriptor: int) -> tuple[int, int, int]:
    """(type, protocol family, hook number) of a BPF link; the latter two of netfilter's only."""
    import ctypes  # noqa: PLC0415

    info = ctypes.create_string_buffer(256)
    asked = struct.pack("=IIQ", descriptor, len(info), ctypes.addressof(info))
    if _bpf(_OBJ_GET_INFO, asked) is None:
        return 0, 0, 0
    kind, _number, _program, _, family, place = struct.unpack_from("=6I", info.raw)
    return kind, family, place


def _programs(target: int, kind: int, flags: int = 0) -> int | None:
    """How many programs are attached (BPF_PROG_QUERY); None when we may not ask.

    `target` is an interface index for tcx, else a descriptor. A kernel without the attach type has
    no such programs.
    """
    answer = _bpf(_PROG_QUERY, struct.pack("=IIIIQII", target, kind, flags, 0, 0, 0, 0))
    if answer is not None:
        return int(struct.unpack_from("=I", answer[1], 24)[0])
    return None if _refusal() in (errno.EPERM, errno.ENOSYS) else 0


def _bpf(command: int, asked: bytes) -> tuple[int, bytes] | None:
    """(result, attributes afterwards) of bpf(2); None when it failed, see `_refusal`."""
    import ctypes  # noqa: PLC0415  (6 ms, which only root's audit pays)

    number = _BPF_NUMBERS.get(os.uname().machine)
    if number is None:
        ctypes.set_errno(errno.ENOSYS)
        return None
    attributes = ctypes.create_string_buffer(asked.ljust(64, b"\0"), 64)
    result = ctypes.CDLL(None, use_errno=True).syscall(number, command, attributes, 64)
    return None if result < 0 else (result, attributes.raw)


def _refusal() -> int:
    import ctypes  # noqa: PLC0415

    return ctypes.get_errno()


def _cgroup_root() -> str | None:
    """Where the cgroup2 tree is mounted."""
    try:
        with open("/proc/self/mounts") as file:
            fields = [line.split() for line in file]
    except OSError:
        return None
    return next((words[1] for words in fields if len(words) > 2 and words[2] == "cgroup2"), None)


def _cgroup_of(pid: int) -> str | None:
    """A process's path in that tree; None when it is gone or outside of ours."""
    try:
        with open(f"/proc/{pid}/cgroup") as file:
            lines = file.read().splitlines()
    except OSError:
        return None
    paths = [line.removeprefix("0::") for line in lines if line.startswith("0::/")]
    return paths[0] if paths and ".." not in paths[0].split("/") else None
