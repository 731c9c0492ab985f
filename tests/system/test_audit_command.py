"""`loopbox audit` as people run it, in a host of its own."""

import contextlib
import json
import os
import socket
import sys

import pytest
from audit_world import Lan
from networld import Host, until

from loopbox.kernel.guard import raise_guard

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces: needs root")

COMMAND = [sys.executable, "-P", "-m", "loopbox", "audit", "--host"]
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture
def lan():
    """A host on a LAN."""
    with contextlib.ExitStack() as stack:
        yield Lan(stack)


def run(host, *words, before=()):
    """The command's outcome."""
    return host.run([*before, *COMMAND, *words], check=False)


def findings(host, *words, before=()):
    """The findings, and the exit status."""
    done = run(host, "--json", *words, before=before)
    return json.loads(done.stdout)["findings"], done.returncode


def serve(host, program, *arguments, port):
    """A real program that listens, ready."""
    process = host.spawn([*program, *arguments], stdout=-3, stderr=-3)

    def listens():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(lambda: host.do(listens), seconds=20)
    return process


def test_an_exposed_server_and_a_private_one(lan):
    """The server on every address is exposed with its fix, the one on loopback is not."""
    http = [sys.executable, "-m", "http.server"]
    serve(lan.host, http, "8001", port=8001)
    private = serve(lan.host, http, "--bind", "127.0.0.1", "8002", port=8002)

    found, status = findings(lan.host, "--check")

    assert [(8001, "lan", "high"), (8002, "loopback", "info")] == [
        (entry["listener"]["port"], entry["reach"], entry["severity"]) for entry in found
    ]
    assert status == 1
    assert found[0]["fix"] == "python -m http.server --bind 127.0.0.1"
    assert found[1]["listener"]["pid"] == private.pid


def test_check_passes_when_nothing_is_exposed(lan):
    """With loopback listeners only, --check exits 0."""
    lan.host.listen("127.0.0.1", 8080)
    lan.host.listen("::1", 8080)

    found, status = findings(lan.host, "--check")

    assert (["loopback", "loopback"], 0) == ([entry["reach"] for entry in found], status)


def test_one_record_per_socket_with_all_holders(lan):
    """A socket that two processes hold is one finding that names both."""
    sock = lan.host.listen("127.0.0.1", 8080)
    child = lan.host.spawn(["sleep", "60"], pass_fds=[sock.fileno()])

    def both():
        ((entry,), _) = findings(lan.host)
        return {holder["pid"] for holder in entry["holders"]} == {os.getpid(), child.pid}

    until(both)


def test_a_dual_stack_socket_is_told_from_v6only(lan):
    """Two wildcard IPv6 listeners differ in family, which /proc/net/tcp6 cannot tell."""
    lan.host.listen("::", 8001, v6only=0)
    lan.host.listen("::", 8002, v6only=1)

    found, _ = findings(lan.host)

    assert [("dual", 8001), ("ipv6", 8002)] == [
        (entry["listener"]["family"], entry["listener"]["port"]) for entry in found
    ]


def test_raw_sockets_are_listed(lan):
    """A raw ICMP socket is a listener too."""
    with lan.host.do(socket.socket, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP):
        found, _ = findings(lan.host)

        assert [("raw", 1, "lan")] == [
            (entry["listener"]["protocol"], entry["listener"]["port"], entry["reach"])
            for entry in found
        ]


HOSTILE = "evil\x1b[2J\x1b]0;pwned\x07\r\nfake  line\u202e"


def test_hostile_names_break_neither_terminal_nor_json(lan):
    """Escapes, newlines and bidi marks in a process's name are shown, not obeyed."""
    sock = lan.host.listen("0.0.0.0", 8080)
    child = lan.host.spawn(
        ["bash", "-c", f"exec -a '{HOSTILE}' sleep 60"], pass_fds=[sock.fileno()]
    )
    until(lambda: HOSTILE.encode() in read_command(child.pid))
    os.set_inheritable(sock.fileno(), False)

    person = run(lan.host, "-v")
    found, _ = findings(lan.host)

    assert person.returncode == 0
    assert all(letter.isprintable() or letter == "\n" for letter in person.stdout)
    assert HOSTILE in {holder["command"].removesuffix(" 60") for holder in found[0]["holders"]}


def read_command(pid):
    """A process's command line."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_without_privilege_everything_is_listed_and_the_gaps_are_said(lan):
    """A plain user sees every listener, hears what was not seen, and nothing is called blocked."""
    lan.host.listen("0.0.0.0", 8080)
    lan.host.nft(
        "table inet t {\n chain c {\n type filter hook input priority 0; policy drop;\n }\n}\n"
    )

    found, _ = findings(lan.host, before=NOBODY)
    talk = run(lan.host, before=NOBODY).stderr
    as_root, _ = findings(lan.host)

    assert (["lan"], ["blocked"]) == ([e["reach"] for e in found], [e["reach"] for e in as_root])
    assert "packet filter" in talk
    assert "not seen: the process of a listener: another user's" in talk
    assert any("was not read" in text for text in found[0]["evidence"])
    assert found[0]["listener"]["pid"] is None


def test_a_person_reads_the_verdict_first(lan):
    """The first line is the verdict, then a table sorted by danger, then fixes."""
    lan.host.listen("0.0.0.0", 8080)
    lan.host.listen("127.0.0.1", 8081)

    lines = run(lan.host).stdout.splitlines()

    assert lines[0] == "2 listeners, 1 reachable from outside"
    assert lines[1].split() == ["danger", "reach", "listener", "program", "where"]
    assert [line.split()[0] for line in lines[2:]] == ["medium", "info", "fix"]


def test_the_guard_does_not_hide_anything(lan):
    """With the guard on, the verdicts of ordinary listeners stay what they are."""
    lan.host.listen("0.0.0.0", 8080)
    lan.host.do(raise_guard)

    found, _ = findings(lan.host)

    assert ["lan"] == [entry["reach"] for entry in found]


def test_the_guard_closes_route_localnet(lan):
    """With route_localnet=1 a loopback listener is open to the link, and the guard shuts it."""
    lan.host.sysctl("ipv4/conf/all/route_localnet", 1)
    lan.host.listen("127.0.0.1", 8080)
    before, _ = findings(lan.host)
    lan.host.do(raise_guard)
    after, _ = findings(lan.host)

    assert ("exposed-route-localnet", "link") == (before[0]["code"], before[0]["reach"])
    assert after[0]["reach"] == "blocked"


def test_a_device_without_network():
    """A namespace with nothing but a loopback: nothing is exposed, nothing fails."""
    with Host() as host:
        host.listen("::", 8080, v6only=0)

        found, status = findings(host, "--check")

        assert (["loopback"], 0) == ([entry["reach"] for entry in found], status)
