"""Tiny BPF programs for tests: return one number, and attach to XDP, a cgroup or sk_lookup.

Everything here vanishes with its descriptors or its interface. Needs root.
"""

import ctypes
import os
import platform
import struct

import pytest

from loopbox.kernel.netlink import Request, open_netlink, transact
from loopbox.wire.netlink import ACK, REQUEST, build_attribute, build_nested

XDP, CGROUP_SKB, SK_LOOKUP, NETFILTER = 6, 8, 30, 32
"""enum bpf_prog_type."""
_PROG_LOAD, _PROG_ATTACH, _LINK_CREATE = 5, 8, 28
_NUMBERS = {"x86_64": 321, "aarch64": 280}
_libc = ctypes.CDLL(None, use_errno=True)


def bpf(command, attributes):
    """bpf(2), or a skipped test where the kernel has it not."""
    data = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    number = _NUMBERS.get(platform.machine())
    if number is None:
        pytest.skip("no bpf(2) number for this machine")
    result = _libc.syscall(number, command, data, 128)
    if result < 0:
        pytest.skip(f"bpf(2): {os.strerror(ctypes.get_errno())}")
    return result


def program(kind, answer, *, attach=0):
    """A program that answers every packet with one number; the caller closes it."""
    code = struct.pack("=BBhi", 0xB7, 0, 0, answer) + struct.pack("=BBhi", 0x95, 0, 0, 0)
    text, licence = ctypes.create_string_buffer(code), ctypes.create_string_buffer(b"GPL")
    places = (ctypes.addressof(text), ctypes.addressof(licence))
    head = struct.pack("=IIQQIIQII", kind, 2, *places, 0, 0, 0, 0, 0)
    return bpf(_PROG_LOAD, head.ljust(68, b"\0") + struct.pack("=I", attach))


def attach_xdp(index, prog):
    """Generic XDP on an interface of the calling thread's namespace (RTM_SETLINK)."""
    nested = build_nested(
        43,
        build_attribute(1, struct.pack("=i", prog)),
        build_attribute(3, struct.pack("=I", 2)),
    )
    payload = struct.pack("=BxHiII", 0, 0, index, 0, 0) + nested
    with open_netlink(0) as netlink:
        transact(netlink, [Request("attach XDP to", "link", 19, REQUEST | ACK, payload)])


def attach_cgroup(directory, prog, direction):
    """A filter on every packet of a cgroup's sockets."""
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        bpf(_PROG_ATTACH, struct.pack("=IIII", place, prog, direction, 0))
    finally:
        os.close(place)


def attach_lookup(prog):
    """A socket look-up program of the calling thread's namespace; the link's descriptor."""
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        return bpf(_LINK_CREATE, struct.pack("=III", prog, here, 36))
    finally:
        os.close(here)


def attach_netfilter(prog, *, place=1):
    """A program among the packet filter's chains (1: input) of this thread's namespace; the link.

    attach_type is BPF_NETFILTER, the family IPv4, the priority 0.
    """
    return bpf(_LINK_CREATE, struct.pack("=IIIIIIiI", prog, 0, 45, 0, 2, place, 0, 0))
