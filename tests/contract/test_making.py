"""One suite for both makers of boxes: the compiled one, and the steps in Python."""

from __future__ import annotations

import os
import pickle
import resource
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
from loopbox.kernel.syscalls import CLONE_NEWNET, setns, unshare

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(not syscalls.COMPILED, reason="the compiled core was not built"),
]

Maker = Callable[..., MadeBox]


def _one_at_once(**wanted: Any) -> MadeBox:
    [made] = making._make_at_once(1, **wanted)
    return made


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
    """What a box is like from inside, once it is ready for programs."""
    if os.geteuid() != 0:
        enter_new_user_namespace()
    unshare(CLONE_NEWNET)
    parking = open_namespace("net")
    network = None
    if given:
        unshare(CLONE_NEWNET)
        network = open_namespace("net")
    group = os.getegid()
    made = maker(group=group, ipv6=True, wish=Wish(sealed, network))
    world6 = made.world6 if made.has_way_out else None
    ready = making.make_ready(group=group, sealed=sealed, world6=world6)
    settings = Path("/proc/sys/net/ipv4")
    return {
        "rules": nft._read_rules(),
        "way out": made.has_way_out,
        "world6": made.world6,
        "caught": ready.way_out is not None,
        "problem": made.problem or ready.problem,
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
        for maker in (making._make_in_steps, _one_at_once)
    )

    assert at_once == by_steps
    assert by_steps["way out"] is by_steps["caught"] is not sealed
    assert by_steps["lowest port"] == "0\n"
    assert by_steps["the given one"] is given
    assert by_steps["rules"] and by_steps["here"] and by_steps["another"] and by_steps["cookie"]


def test_a_maker_that_fails_leaves_no_descriptor() -> None:
    """What was opened before the failure is closed again, whichever maker failed."""
    for maker in (_one_at_once, making._make_in_steps):
        assert _in_child(partial(_fail_and_count, maker)) == {"left": 0}


def _fail_and_count(maker: Maker) -> dict[str, Any]:
    if os.geteuid() != 0:
        enter_new_user_namespace()
    before = len(os.listdir("/proc/self/fd"))
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 1, hard))  # one more: the network's
    try:
        maker(group=os.getegid(), ipv6=True, wish=Wish(sealed=True))
    except OSError:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return {"left": len(os.listdir("/proc/self/fd")) - before}
    return {"left": "a box"}


def _make_many(*, sealed: bool) -> dict[str, Any]:
    if os.geteuid() != 0:
        enter_new_user_namespace()
    unshare(CLONE_NEWNET)
    made = making.make_boxes(5, group=os.getegid(), ipv6=True, wish=Wish(sealed))
    seen = []
    for one in made:
        setns(one.namespaces.net, CLONE_NEWNET)
        lowest = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
        seen.append(
            (
                one.has_way_out,
                one.namespaces.cookie == network_cookie(),
                one.namespaces.inode == inode_of(open_namespace("net")),
                len(nft._read_rules()),
                "127.0.0.1" in Path("/proc/thread-self/net/fib_trie").read_text(),
                lowest.read_text(),
            )
        )
    return {"inodes": {one.namespaces.inode for one in made}, "seen": seen}


@pytest.mark.parametrize("sealed", [False, True], ids=["way out", "sealed"])
def test_boxes_made_in_one_go_are_whole_and_apart(sealed: bool) -> None:
    """Five boxes in one call are five boxes, each as one made alone."""
    found = _in_child(partial(_make_many, sealed=sealed))

    rules = len(nft.GUARD) + (0 if sealed else len(nft.WAY_OUT))
    lowest = "0\n" if sealed else "1024\n"  # the others are made ready by their first program
    assert found["seen"] == [(not sealed, True, True, rules, True, lowest)] * 5
    assert len(found["inodes"]) == 5
