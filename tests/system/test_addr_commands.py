"""`loopbox classify`, `addr` and `guard` as people run them, in a host of its own."""

import json
import os
import sys

import pytest
from networld import Host, join

from loopbox.errors import ConfigError
from loopbox.kernel.aliases import persist_alias

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

COMMAND = [sys.executable, "-P", "-m", "loopbox"]
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture
def host():
    """A device with nothing but its loopback."""
    with Host() as made:
        yield made


def loopbox(host, words, *, before=()):
    """One command's outcome: status, the JSON document, what was said."""
    done = host.run([*before, *COMMAND, *words.split(), "--json"], check=False)
    return done.returncode, json.loads(done.stdout or "null"), done.stderr


def addresses(host):
    """What is configured on the loopback, as the kernel's own tool says."""
    output = host.run("ip -br addr show dev lo", check=False).stdout.split()
    return set(output[2:])


def test_classify_json(host):
    """The contract's object for each address, in order."""
    status, document, _ = loopbox(host, "classify 127.0.0.1 ::ffff:0.0.0.0")

    assert (0, ["loopback", "unspecified"]) == (
        status,
        [entry["class"] for entry in document["addresses"]],
    )


def test_classify_refuses_shorthand(host):
    """Bad input exits 2 with the error object."""
    status, document, _ = loopbox(host, "classify 127.1")

    assert (2, "usage") == (status, document["error"]["code"])


def test_add_list_delete(host):
    """An alias comes as /32, twice is once, and goes again; nothing else changes."""
    before = addresses(host)

    outcomes = [
        loopbox(host, f"addr {act} 10.9.9.9")[1]["changed"] for act in ("add", "add", "del", "del")
    ]

    assert [True, False, True, False] == outcomes
    assert before == addresses(host)


def test_ls_by_flag_not_by_name(host):
    """A renamed loopback is found, and its addresses are listed."""
    host.run("ip link set lo name lo9")
    loopbox(host, "addr add 2001:db8::9")

    _, document, _ = loopbox(host, "addr ls")

    assert ("lo9", {("127.0.0.1", 8), ("::1", 128), ("2001:db8::9", 128)}) == (
        document["interface"],
        {(entry["address"], entry["prefix"]) for entry in document["addresses"]},
    )


@pytest.mark.parametrize(
    "words", ["del 127.0.0.1", "del 127.0.0.1/8 --force", "del ::1", "add 10.1.0.0/24", "add ::"]
)
def test_refusals_change_nothing(host, words):
    """What would break the device is refused with exit 1."""
    before = addresses(host)

    status, document, _ = loopbox(host, f"addr {words}")

    assert (1, "refused", before) == (status, document["error"]["code"], addresses(host))


def test_force_makes_a_network_local(host):
    """--force adds a short prefix, with the warning left standing."""
    status, _, _ = loopbox(host, "addr add 10.1.0.1/24 --force")

    assert (0, True) == (status, "10.1.0.1/24" in addresses(host))


def test_public_space_is_warned_of(host):
    """The classic example of a tutorial is somebody's address."""
    _, document, said = loopbox(host, "addr add 12.42.38.125")

    assert "belongs to somebody" in said
    assert document["warnings"]


def test_an_unnumbered_host_is_warned_of():
    """With an interface that is up and has no address, the alias may become the source."""
    with Host() as host, Host() as peer:
        join(host, peer)

        _, _, said = loopbox(host, "addr add 10.9.9.9")
        source = host.run("ip -4 addr show dev lo scope global").stdout

        assert "--scope host" in said
        assert "10.9.9.9" in source


def test_without_privilege_the_command_is_printed(host):
    """A plain user gets the exact command to run, and it works."""
    status, document, _ = loopbox(host, "addr add 10.9.9.9", before=NOBODY)
    command = document["error"]["hint"].removeprefix("run: sudo ")
    host.run(command)

    assert (1, True) == (status, "10.9.9.9/32" in addresses(host))


@pytest.mark.parametrize("system", ["linux", "macos", "freebsd", "openbsd", "netbsd", "aix",
                                    "solaris", "illumos", "windows"])  # fmt: skip
def test_plans(host, system):
    """Every system has a plan as JSON and as text."""
    status, document, _ = loopbox(host, f"addr plan 127.0.0.2 --os {system}")
    text = host.run([*COMMAND, "addr", "plan", "127.0.0.2", "--os", system]).stdout

    assert (0, system) == (status, document["os"])
    assert all(command in text for command in document["add"])


def test_the_linux_plan_works(host):
    """The commands printed for Linux add and remove the address."""
    _, plan, _ = loopbox(host, "addr plan 10.9.9.9 --os linux")
    seen = []
    for command in (*plan["add"], *plan["undo"]):
        host.run(command.removeprefix("sudo "))
        seen.append("10.9.9.9/32" in addresses(host))

    assert [True, False] == seen


def test_persisting_writes_one_stanza_and_undo_restores_the_file(tmp_path):
    """ifupdown's file gets one stanza, keeps mode and content, and comes back byte for byte."""
    path = tmp_path / "etc/network/interfaces"
    path.parent.mkdir(parents=True)
    before = b"auto lo\niface lo inet loopback\n"
    path.write_bytes(before)
    path.chmod(0o640)

    changed = persist_alias("add", "ifupdown", "10.9.9.9/32", root=tmp_path)
    added = path.read_text()
    persist_alias("delete", "ifupdown", "10.9.9.9/32", root=tmp_path)

    assert (str(path), 1, before, 0o640) == (
        changed,
        added.count("iface lo inet static"),
        path.read_bytes(),
        path.stat().st_mode & 0o777,
    )


@pytest.mark.parametrize("kind", ["networkd", "networkmanager"])
def test_a_file_of_our_own_is_gone_after_undo(tmp_path, kind):
    """networkd and NetworkManager get one file, which leaves with its last address."""
    added = persist_alias("add", kind, "10.9.9.9/32", root=tmp_path)
    again = persist_alias("add", kind, "10.9.9.9/32", root=tmp_path)
    persist_alias("delete", kind, "10.9.9.9/32", root=tmp_path)

    assert (True, None, []) == (
        added is not None,
        again,
        [path for path in tmp_path.rglob("*") if path.is_file()],
    )


def test_a_second_networkd_file_for_lo_is_refused(tmp_path):
    """systemd-networkd applies only one file per interface, so another one is named."""
    other = tmp_path / "etc/systemd/network/05-lo.network"
    other.parent.mkdir(parents=True)
    other.write_text("[Match]\nName=lo\n[Network]\nAddress=10.1.1.1/32\n")

    with pytest.raises(ConfigError, match=r"05-lo\.network"):
        persist_alias("add", "networkd", "10.9.9.9/32", root=tmp_path)


def test_guard_on_status_off(host):
    """The guard comes, says so, and leaves the ruleset empty as it was."""
    before = host.run("nft list ruleset").stdout
    states = [loopbox(host, f"guard {word}")[1]["state"] for word in ("status", "on", "status")]
    changed = loopbox(host, "guard on")[1]["changed"]
    loopbox(host, "guard off --host")

    assert (["off", "on", "on"], False, before) == (
        states,
        changed,
        host.run("nft list ruleset").stdout,
    )


def test_guard_without_privilege(host):
    """A plain user is told what it takes."""
    status, document, _ = loopbox(host, "guard on", before=NOBODY)

    assert (1, "not-permitted") == (status, document["error"]["code"])
