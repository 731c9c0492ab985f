"""Plain boxes on a bridge by Mininet, for bench/labs.py: up, a line, down once a line comes in.

Run by the Python that has Mininet (Debian's own). The switch is the kernel's bridge, as it is for
all the others: Open vSwitch would be a program more.

Usage: python3 mininet_boxes.py COUNT
"""

from __future__ import annotations

import sys

from mininet.net import Mininet  # type: ignore[import-not-found]
from mininet.nodelib import LinuxBridge  # type: ignore[import-not-found]


def main(count: int) -> None:
    """One run."""
    net = Mininet(switch=LinuxBridge, controller=None)
    bridge = net.addSwitch("s1")
    for number in range(count):
        net.addLink(net.addHost(f"h{number}"), bridge)
    net.start()
    print("up", flush=True)
    sys.stdin.readline()
    net.stop()


if __name__ == "__main__":
    main(int(sys.argv[1]))
