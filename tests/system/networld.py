"""Hosts for tests: network namespaces of this process, joined by veth, gone with their descriptors.

A `Host` is a namespace without a name and without a process. `do` runs a function inside (in a
thread of its own), `run` a program. Needs root.
"""

import contextlib
import itertools
import os
import socket
import subprocess
import threading
import time

from harness import in_thread
from loopbox.kernel.syscalls import CLONE_NEWNET, setns, unshare

_numbers = itertools.count(1)


class Host:
    """One device with a loopback of its own."""

    def __init__(self, *, lo_up=True):
        self.fd = in_thread(self._make)
        self.path = f"/proc/{os.getpid()}/fd/{self.fd}"
        self._stack = contextlib.ExitStack()
        self._stack.callback(os.close, self.fd)
        if lo_up:
            self.run("ip link set lo up")

    @staticmethod
    def _make():
        unshare(CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self._stack.close()

    def do(self, function, *arguments, **options):
        """`function(*arguments)` in a thread inside this host; its result or its exception."""

        def inside():
            setns(self.fd, CLONE_NEWNET)
            return function(*arguments, **options)

        return in_thread(inside)

    def run(self, command, *, check=True, text=None):
        """A program (words split at blanks, or a list) inside this host."""
        argv = command.split() if isinstance(command, str) else command
        return self.do(
            subprocess.run, argv, check=check, input=text, capture_output=True, text=True
        )

    def spawn(self, argv, **options):
        """A program that goes on; it is killed when the host is left."""
        process = self.do(subprocess.Popen, argv, **options)

        def end():
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()

        self._stack.callback(end)
        return process

    def sysctl(self, path, value):
        """Write a setting below /proc/sys/net."""

        def write():
            with open(f"/proc/sys/net/{path}", "w") as file:
                file.write(str(value))

        self.do(write)

    def nft(self, text):
        """Load an nftables script."""
        self.run(["nft", "-f", "-"], text=text)

    def listen(self, address, port=0, *, kind=socket.SOCK_STREAM, **options):
        """A listener inside, closed with the host. See `open_listener`."""
        return self._stack.enter_context(
            self.do(open_listener, address, port, kind=kind, **options)
        )

    def keep(self, resource):
        """Close something when the host is left."""
        return self._stack.enter_context(resource)


def open_listener(
    address, port=0, *, kind=socket.SOCK_STREAM, v6only=None, device=None, free=False
):
    """A TCP listener or UDP socket with the options exposure depends on."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        if free:
            sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.bind((address, port))
        if kind == socket.SOCK_STREAM:
            sock.listen()
    except BaseException:
        sock.close()
        raise
    return sock


def join(one, other, *, here="eth0", there="eth0", one_has=(), other_has=()):
    """A veth between two hosts, up, with the addresses given, usable at once.

    Each end already knows the other's Ethernet address, so no test waits for ARP or ND.
    """
    number = next(_numbers)
    ends = [f"02:00:00:{number >> 8 & 255:02x}:{number & 255:02x}:{end:02x}" for end in (1, 2)]
    one.run(
        f"ip link add {here} address {ends[0]} type veth"
        f" peer name {there} address {ends[1]} netns {other.path}"
    )
    # The far end first: the near one then finds its carrier when it comes up, and needs no event.
    for host, name, addresses in ((other, there, other_has), (one, here, one_has)):
        host.sysctl(f"ipv6/conf/{name}/accept_dad", 0)
        host.run(
            ["ip", "-batch", "-"],
            text="".join(
                f"addr add {address} dev {name}{' nodad' if ':' in address else ''}\n"
                for address in addresses
            )
            + f"link set {name} up\n",
        )
    for host, name, peer, addresses in (
        (one, here, ends[1], other_has),
        (other, there, ends[0], one_has),
    ):
        host.run(
            ["ip", "-batch", "-"],
            text="".join(
                f"neigh replace {address.split('/')[0]} lladdr {peer} dev {name} nud permanent\n"
                for address in addresses
            ),
        )
        until(lambda host=host, name=name: is_ready(host, name))


def is_ready(host, name):
    """Whether an interface carries packets: its queue is set up once the carrier was noticed."""
    words = host.run(["ip", "-br", "link", "show", "dev", name]).stdout.split()
    return words[1] == "UP" and "NO-CARRIER" not in words[-1]


def until(condition, *, seconds=5.0):
    """Ask again until `condition()` is true, and return that; AssertionError at the deadline."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition!r}")
        pause.wait(0.005)
