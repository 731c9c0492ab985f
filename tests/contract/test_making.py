"""One suite for both makers of boxes: the compiled one, and the steps in Python."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from loopbox.kernel import making, nft, syscalls
from loopbox.kernel.making import MadeBox, Wish
from loopbox.kernel.namespaces import (
    enter_new_user_namespace,
    inode_of,
    network_cookie,
    open_namespace,
)
from loopbox.kernel.syscalls import CLONE_NEWNET, unshare

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not syscalls.COMPILED, reason="the compiled core was not built"),
]

Maker = Callable[..., MadeBox]


def _in_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`work()` in a child, which may go where there is no way back from."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found: object = work()
        except BaseException as error:
            found = repr(error)
        os.write(writer, pickle.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        found = pickle.load(pipe)
    os.waitpid(child, 0)
    assert isinstance(found, dict), found
    return found


def _make_and_look(maker: Maker, *, sealed: bool, given: bool) -> dict[str, Any]:
    """What a box is like from inside."""
    if os.geteuid() != 0:
        enter_new_user_namespace()
    unshare(CLONE_NEWNET)
    parking = open_namespace("net")
    network = None
    if given:
        unshare(CLONE_NEWNET)
        network = open_namespace("net")
    made = maker(group=os.getegid(), ipv6=True, wish=Wish(sealed, network))
    settings = Path("/proc/sys/net/ipv4")
    return {
        "rules": nft._read_rules(),
        "way out": made.has_way_out,
        "world6": made.world6,
        "problem": made.problem,
        "lo": Path("/sys/class/net/lo").exists() and "lo" in Path("/proc/net/dev").read_text(),
        "loopback routes": "127.0.0.1" in Path("/proc/net/fib_trie").read_text(),
        "lowest port": (settings / "ip_unprivileged_port_start").read_text(),
        "who pings": (settings / "ping_group_range").read_text(),
        "here": made.namespaces.inode == inode_of(open_namespace("net")),
        "cookie": made.namespaces.cookie == network_cookie() > 0,
        "the given one": network is not None and inode_of(network) == made.namespaces.inode,
        "another": made.namespaces.inode != inode_of(parking),
    }


@pytest.mark.parametrize("given", [False, True], ids=["own network", "given network"])
@pytest.mark.parametrize("sealed", [False, True], ids=["way out", "sealed"])
def test_both_makers_make_the_same_box(sealed: bool, given: bool) -> None:
    """The compiled maker's box and that of the steps cannot be told apart."""
    by_steps, at_once = (
        _in_child(partial(_make_and_look, maker, sealed=sealed, given=given))
        for maker in (making._make_in_steps, making._make_at_once)
    )

    assert at_once == by_steps
    assert by_steps["way out"] is not sealed
    assert by_steps["the given one"] is given
    assert by_steps["rules"] and by_steps["here"] and by_steps["another"] and by_steps["cookie"]


def test_a_maker_that_fails_leaves_no_descriptor() -> None:
    """What was opened before the failure is closed again, whichever maker failed."""
    for maker in (making._make_at_once, making._make_in_steps):
        assert _in_child(partial(_fail_and_count, maker)) == {"left": 0}


def _fail_and_count(maker: Maker) -> dict[str, Any]:
    if os.geteuid() != 0:
        enter_new_user_namespace()
    no_network = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    before = len(os.listdir("/proc/self/fd"))
    try:
        maker(group=os.getegid(), ipv6=True, wish=Wish(sealed=True, network=no_network))
    except OSError:
        return {"left": len(os.listdir("/proc/self/fd")) - before}
    return {"left": "a box"}
