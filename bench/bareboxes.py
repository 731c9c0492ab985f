"""The floor for making boxes: `python bareboxes.py COUNT` prints the seconds it took.

COUNT times: unshare a network namespace, raise its loopback by one ioctl, keep a descriptor. One
process, one thread, nothing else. Must never import anything of this project.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
import time

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def main() -> None:
    """Print the seconds for making all of them."""
    libc = ctypes.CDLL(None, use_errno=True)
    kept = []
    start = time.perf_counter()
    for _ in range(int(sys.argv[1])):
        if libc.unshare(CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", IFF_UP))
        kept.append(os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC))
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
