"""XDP, tc and BPF programs beside the packet filter make verdicts unknown, never safe."""

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import bpf_world
import pytest
from audit_world import HOST4, Lan
from networld import until

from loopbox.kernel.facts import read_network
from loopbox.kernel.firewall import read_firewall
from loopbox.kernel.hooks import CgroupFilters, affected, parse_link, parse_tc, read_hooks
from loopbox.rules.audit.reach import Reachability, View

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

PORT = 8080
DROP_INPUT = (
    "table inet t { chain c { type filter hook input priority 0;"
    ' iifname "eth0" ip saddr != 192.168.7.77 drop; }; }'
)


@pytest.fixture
def lan():
    """A host and its neighbour."""
    with contextlib.ExitStack() as stack:
        yield Lan(stack)


def judge(lan, sock, **options):
    """The verdict with everything beside the packet filter in view."""
    firewall, hooks = lan.host.do(read_firewall), lan.host.do(read_hooks)
    view = View(
        lan.host.do(read_network), firewall.ruleset, firewall.is_complete, hooks=hooks.hooks
    )
    return Reachability(view).judge(lan.listener(sock), **options)


def xdp(answer):
    """An XDP program on eth0 with one answer to every packet (1 drops, 2 passes)."""

    def setup(lan):
        index = next(link.index for link in lan.host.do(read_network).links if link.name == "eth0")
        prog = bpf_world.program(bpf_world.XDP, answer)
        try:
            lan.host.do(bpf_world.attach_xdp, index, prog)
        finally:
            os.close(prog)

    return setup


def tc(way, action, *, device="eth0"):
    """A tc BPF filter (classic bytecode, direct action) that drops (2) or passes (0)."""

    def setup(lan):
        lan.host.run(f"tc qdisc add dev {device} clsact")
        words = ["tc", "filter", "add", "dev", device, way, "bpf", "da", "bytecode"]
        lan.host.run([*words, f"1,6 0 0 {action},"])

    return setup


def tc_u32(lan):
    """A tc classifier without a program."""
    lan.host.run("tc qdisc add dev eth0 clsact")
    lan.host.run(
        "tc filter add dev eth0 ingress protocol ip u32 match ip dport 1 0xffff flowid 1:1"
    )


def netdev(action):
    """An nftables netdev chain on eth0, which can be evaluated."""

    def setup(lan):
        lan.host.nft(
            "table netdev t { chain c { type filter hook ingress devices = { eth0 } priority 0;"
            f" tcp dport {PORT} {action}; }}; }}"
        )

    return setup


def netdev_elsewhere(lan):
    """A netdev chain on another interface protects nothing here."""
    lan.host.nft(
        "table netdev t { chain c { type filter hook ingress device lo priority 0; drop; }; }"
    )


def netdev_on_two(lan):
    """A netdev chain on two other interfaces."""
    lan.host.run("ip link add br0 type bridge")
    lan.host.nft(
        "table netdev t { chain c { type filter hook ingress devices = { lo, br0 } priority 0;"
        " drop; }; }"
    )


def both(*setups):
    """Several setups, in order."""
    return lambda lan: [setup(lan) for setup in setups]


def rules(text):
    """An nftables script."""
    return lambda lan: lan.host.nft(text)


CASES = {
    # name: (setup, address, level, does the neighbour get through, a word of the evidence)
    "xdp-drops": (xdp(1), "0.0.0.0", "unknown", False, "XDP program"),
    "xdp-passes": (xdp(2), "0.0.0.0", "unknown", True, "XDP program"),
    "xdp-before-a-drop": (
        both(xdp(2), rules(DROP_INPUT)), "0.0.0.0", "unknown", False, "XDP program",
    ),
    "xdp-and-loopback": (xdp(2), "127.0.0.1", "loopback", False, "refused from every wire"),
    "tc-drops": (tc("ingress", 2), "0.0.0.0", "unknown", False, "tc ingress filter (bpf) on eth0"),
    "tc-passes": (tc("ingress", 0), "0.0.0.0", "unknown", True, "tc ingress filter (bpf)"),
    "tc-may-steer-to-loopback": (
        tc("ingress", 0), "127.0.0.1", "unknown", False, "can hand packets to any socket",
    ),
    "tc-classifies": (tc_u32, "0.0.0.0", "unknown", True, "tc ingress filter (u32)"),
    "tc-classifies-and-loopback": (tc_u32, "127.0.0.1", "loopback", False, "every wire"),
    "tc-drops-answers": (tc("egress", 2), "0.0.0.0", "unknown", False, "tc egress filter"),
    "tc-egress-opens-nothing": (
        both(tc("egress", 0), rules(DROP_INPUT.replace("ip saddr != 192.168.7.77 ", ""))),
        "0.0.0.0", "blocked", False, "rule t c handle",
    ),
    "tc-on-lo": (
        tc("ingress", 2, device="lo"), "127.0.0.1", "unknown", False, "filter (bpf) on lo",
    ),
    "netdev-drops": (netdev("drop"), "0.0.0.0", "blocked", False, "rule t c handle"),
    "netdev-passes": (netdev("accept"), "0.0.0.0", "lan", True, HOST4),
    "netdev-elsewhere": (netdev_elsewhere, "0.0.0.0", "lan", True, HOST4),
    "netdev-on-two": (netdev_on_two, "0.0.0.0", "lan", True, HOST4),
    "answers-dropped": (
        rules(
            "table inet t { chain c { type filter hook postrouting priority 0;"
            f" tcp sport {PORT} drop; }}; }}"
        ),
        "0.0.0.0", "blocked", False, "rule t c handle",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_programs_beside_the_packet_filter(lan, name):
    """Unknown where the verdict hangs on one, and the neighbour confirms what is said for sure."""
    setup, address, level, gets_through, word = CASES[name]
    setup(lan)
    sock = lan.host.listen(address, PORT)

    verdict = judge(lan, sock)

    assert level == verdict.level
    assert any(word in text for text in verdict.evidence)
    assert gets_through == lan.answers(sock)


def test_a_plain_user_sees_xdp_and_tc_too(lan):
    """Both are told by rtnetlink to everybody; what is not is said."""
    both(xdp(2), tc("ingress", 0))(lan)

    def as_nobody():
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.setgid(65534)
            os.setuid(65534)
            seen = read_hooks()
            os.write(writer, "\n".join([*(h.text for h in seen.hooks), *seen.unseen]).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            text = pipe.read()
        os.waitpid(child, 0)
        return text

    found = lan.host.do(as_nobody).splitlines()

    assert ["an XDP program", "a tc ingress filter (bpf) on eth0", "BPF programs beside"] == [
        next((start for start in ("an XDP program", "a tc ingress filter (bpf) on eth0",
                                  "BPF programs beside") if text.startswith(start)), text)
        for text in found
    ]  # fmt: skip


def test_a_lookup_program_may_steer_to_any_socket(lan):
    """sk_lookup chooses the socket itself, so not even 127.0.0.1 can be called safe."""
    prog = bpf_world.program(bpf_world.SK_LOOKUP, 1, attach=36)
    link = lan.host.do(bpf_world.attach_lookup, prog)
    sock = lan.host.listen("127.0.0.1", PORT)
    try:
        verdict = judge(lan, sock)
    finally:
        os.close(link)
        os.close(prog)

    assert ("unknown", True) == (verdict.level, "sk_lookup" in verdict.evidence[-1])
    assert "loopback" == judge(lan, sock).level


def test_a_program_on_a_netfilter_hook(lan):
    """It may drop, and cannot open: what is open becomes unknown, what is shut stays shut."""
    prog = bpf_world.program(bpf_world.NETFILTER, 0, attach=45)  # 0: NF_DROP
    link = lan.host.do(bpf_world.attach_netfilter, prog)
    exposed, private = lan.host.listen("0.0.0.0", PORT), lan.host.listen("127.0.0.1", PORT + 1)
    try:
        gets_through = lan.answers(exposed)
        levels = [judge(lan, sock).level for sock in (exposed, private)]
        evidence = judge(lan, exposed).evidence[-1]
    finally:
        os.close(link)
        os.close(prog)

    assert (False, ["unknown", "loopback"]) == (gets_through, levels)
    assert "BPF program on the netfilter hook input of IPv4" in evidence
    assert "lan" == judge(lan, exposed).level


def test_rules_of_a_bridge(lan):
    """Chains of the bridge family see frames: what they let through to the bridge is unknown."""
    lan.host.run("ip link add br0 type bridge")
    lan.host.run("ip addr flush dev eth0")
    lan.host.run("ip link set eth0 master br0")
    lan.host.run(f"ip addr add {HOST4}/24 dev br0")
    lan.host.run("ip link set br0 up")
    sock = lan.host.listen("0.0.0.0", PORT)
    before = judge(lan, sock).level
    lan.host.nft(
        "table bridge t { chain c { type filter hook input priority 0; ip protocol tcp drop; }; }"
    )
    verdict = judge(lan, sock)

    assert ("lan", "unknown", False) == (before, verdict.level, lan.answers(sock))
    assert "bridge" in verdict.evidence[-1]


def test_a_filter_on_a_cgroup(lan):
    """What a cgroup's program drops cannot be told: its listeners are unknown, others are not."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((words[1] for words in mounts if words[2] == "cgroup2"), None)
    if root is None or not os.access(root, os.W_OK):
        pytest.skip("no cgroup2 tree to write to")
    group = f"{root}/loopbox-test-{os.getpid()}"
    os.mkdir(group)
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    try:
        with open(f"{group}/cgroup.procs", "w") as file:
            file.write(str(process.pid))
        prog = bpf_world.program(bpf_world.CGROUP_SKB, 1)
        bpf_world.attach_cgroup(group, prog, 0)
        os.close(prog)
        inside, outside = CgroupFilters().of(process.pid), CgroupFilters().of(os.getpid())
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        until(lambda: not Path(f"{group}/cgroup.procs").read_text())
        os.rmdir(group)
    exposed, private = lan.host.listen("0.0.0.0", PORT), lan.host.listen("127.0.0.1", PORT + 1)

    assert ((), 1, True) == (outside, len(inside), "ingress BPF program of cgroup" in inside[0])
    assert "lan" == judge(lan, exposed, filters=outside).level
    assert "unknown" == judge(lan, exposed, filters=inside).level
    assert "loopback" == judge(lan, private, filters=inside).level


def test_a_bridge_port_counts_for_its_bridge(lan):
    """A program on a port, or below a macvlan, sees the packets of what stands on it."""
    lan.host.run("ip link add br0 type bridge")
    lan.host.run("ip link set eth0 master br0")
    lan.host.run("ip link add link br0 name up0 type macvlan")
    xdp(2)(lan)
    names = {link.index: link.name for link in lan.host.do(read_network).links}
    (hook,) = lan.host.do(read_hooks).hooks

    assert {"eth0", "br0", "up0"} == {names[index] for index in hook.links}


@pytest.mark.parametrize("size", [0, 3, 15, 16, 19, 24])
def test_cut_messages_are_no_hooks(size):
    """Truncated netlink messages give nothing, or nothing attached."""
    link = parse_link(bytes(size))

    assert link is None or (0, frozenset({0})) == (link.xdp, affected(0, [link]))
    assert parse_tc(bytes(size)) in (None, (0, "", False))
