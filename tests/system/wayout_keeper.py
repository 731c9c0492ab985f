"""A keeper that has nothing but a way out: the program that test_wayout.py runs, as root or not.

Reads one JSON command a line on standard input and answers each with one line: see COMMANDS.
Not a test: the real parts, put together as keeper/daemon.py does, without boxes' lives.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import sys
from pathlib import Path

from loopbox.keeper.relay import make_relay
from loopbox.keeper.resolver import Resolver
from loopbox.keeper.roam import Roamer
from loopbox.keeper.upstream import Upstream
from loopbox.keeper.wayout import WayOut, open_way_out
from loopbox.kernel.namespaces import enter_new_user_namespace, open_namespace, raise_lo
from loopbox.kernel.sockets import open_diag
from loopbox.kernel.syscalls import CLONE_NEWNET, unshare


class Keeper:
    """Boxes by number, each a bare network namespace."""

    def __init__(self, files: Path, diag_fd: int) -> None:
        self.files = files
        self.diag_fd = diag_fd
        self.nets: dict[int, int] = {}

    async def serve(self) -> None:
        """Answer commands until the input ends."""
        loop = asyncio.get_running_loop()
        etc = self.files / "etc"
        self.roamer = Roamer(etc)
        await self.roamer.start()
        self.relay = make_relay(home_netns_fd=self.roamer.parking, diag_fd=self.diag_fd)
        self.relay.start()
        self.way_out = WayOut(relay=self.relay, roam=self.roamer)
        self.way_out.resolver = Resolver(
            upstream=Upstream(self.files / "resolv.conf"),
            has_ipv6=lambda: self.way_out.has_ipv6,
            hosts=self.files / "hosts",
        )
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            name, *arguments = json.loads(line)
            answer = await getattr(self, f"do_{name}")(*arguments)
            print(json.dumps(answer), flush=True)
        await self.way_out.aclose()
        self.relay.stop()
        await self.roamer.stop()

    async def do_make(self, group: int) -> str:
        """A box with its way out; gives the path of its network namespace."""

        def make() -> int:
            unshare(CLONE_NEWNET)
            raise_lo()
            return open_namespace("net")

        self.nets[group] = net = await self.roamer.inside(self.roamer.parking, make)
        await self.do_equip(group)
        return f"/proc/{os.getpid()}/fd/{net}"

    async def do_equip(self, group: int) -> None:
        """The way out alone, as for a box taken over from a keeper that died."""
        sockets = await self.roamer.inside(
            self.nets[group], lambda: open_way_out(ipv6=self.way_out.has_ipv6)
        )
        await self.way_out.open(group, self.nets[group], sockets)

    async def do_close(self, group: int) -> None:
        """The way out ends, the box stays."""
        self.way_out.close(group)
        self.relay.drop_group(group, self.nets[group])

    async def do_unmake(self, group: int) -> None:
        """The box ends."""
        await self.do_close(group)
        os.close(self.nets.pop(group))

    async def do_forwards(self, group: int, ports: list[int]) -> dict[str, str | None]:
        """Make exactly these ports lead to the host."""
        problems = await self.way_out.set_forwards(group, self.nets[group], ports)
        return {str(port): problem for port, problem in problems.items()}

    async def do_inodes(self, group: int) -> list[int]:
        """The keeper's own sockets in the box."""
        return sorted(self.way_out.own_inodes(group))

    async def do_names(self, group: int, names: dict[str, list[str]]) -> None:
        """The box's own names."""
        from ipaddress import ip_address  # noqa: PLC0415

        self.way_out.set_names(
            group, {name: [ip_address(one) for one in them] for name, them in names.items()}
        )

    async def do_policy(self, group: int, policy: str) -> None:
        """The box's policy."""
        self.way_out.set_policy(group, self.nets[group], policy)

    async def do_ipv6(self) -> bool:
        """Whether the host has IPv6; asking lets the boxes follow."""
        return self.way_out.has_ipv6

    async def do_connections(self, group: int) -> list[dict[str, object]]:
        """The ledger of one box."""
        return [
            {
                **{
                    key: getattr(one, key)
                    for key in ("protocol", "name", "outcome", "bytes_out", "bytes_in", "ms")
                },
                "to": f"{one.to.address}:{one.to.port}",
                **dataclasses.asdict(one.verdict),
            }
            for one in self.way_out.connections(group)
        ]

    async def do_descriptors(self) -> int:
        """How many descriptors this process has open."""
        return len(os.listdir("/proc/self/fd"))


def main() -> None:
    """Enter a user namespace unless root, then serve."""
    logging.basicConfig(level=logging.DEBUG, format="keeper: %(name)s: %(message)s")
    files = Path(sys.argv[1])
    diag = open_diag()
    if os.geteuid() != 0:
        enter_new_user_namespace()
    keeper = Keeper(files, diag.fileno())
    try:
        asyncio.run(keeper.serve())
    finally:
        diag.close()


if __name__ == "__main__":
    main()
