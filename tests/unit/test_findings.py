"""Findings: severity, attacks, fixes, order; and the table of known programs."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.rules.audit.findings import (
    EXPOSED,
    Holder,
    by_danger,
    finding,
    is_exposed,
    summary,
)
from loopbox.rules.audit.ours import named
from loopbox.rules.audit.reach import Reachability, Verdict, View
from loopbox.rules.audit.tools import TOOLS, recognised
from loopbox.rules.network import InterfaceAddress, Link, ListeningSocket, Network, Route

LEVELS = (
    "loopback", "same-host", "link", "lan", "internet", "blocked", "unreachable", "unknown",
)  # fmt: skip


def listener(bind="0.0.0.0", port=8080, **fields):
    """A TCP listener."""
    family = "ipv6" if ":" in bind else "ipv4"
    plain = ListeningSocket("tcp", family, ip_address(bind), port, 0, 7, 1000)
    return replace(plain, **fields)


def found(level, command="/usr/bin/sleepd", *, cause="wildcard", bind="0.0.0.0", where="host"):
    """A finding for a program at a level."""
    holders = [Holder(5, command, 1000)] if command else []
    return finding(listener(bind), Verdict(level, cause, ("seen",)), holders, where=where)


@pytest.mark.parametrize(
    ("level", "ordinary", "obedient"),
    [
        ("loopback", "info", "info"),
        ("same-host", "low", "medium"),
        ("link", "medium", "high"),
        ("lan", "medium", "high"),
        ("internet", "high", "high"),
        ("blocked", "info", "low"),
        ("unreachable", "info", "info"),
        ("unknown", "unknown", "unknown"),
    ],
)
def test_severity_by_reach_and_program(level, ordinary, obedient):
    """A program that obeys whoever connects is rated higher; unknown stays unknown."""
    assert (ordinary, obedient) == (
        found(level).severity,
        found(level, "redis-server *:6379").severity,
    )


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("redis-server 127.0.0.1:6379", "Redis"),
        ("/usr/bin/node --inspect=0.0.0.0 app.js", "Node inspector"),
        ("/usr/bin/node server.js", "Node program"),
        ("node /app/node_modules/.bin/vite --host", "Vite"),
        ("node /app/node_modules/.bin/next dev", "Next.js"),
        ("python -m flask run", "Flask"),
        ("python manage.py runserver 0.0.0.0:8000", "Django"),
        ("uvicorn app:app", "uvicorn"),
        ("python3 -m http.server", "Python http.server"),
        ("nginx: master process nginx", "nginx"),
        ("/usr/sbin/apache2 -k start", "Apache"),
        ("/usr/lib/postgresql/15/bin/postgres -D x", "PostgreSQL"),
        ("jupyter-lab --no-browser", "Jupyter"),
        ("dockerd -H tcp://0.0.0.0:2375", "Docker API"),
        ("python -m debugpy --listen 5678 app.py", "debugpy"),
        ("java -agentlib:jdwp=transport=dt_socket,server=y app", "Java debugger"),
        ("php -S 0.0.0.0:8000", "PHP server"),
        ("/opt/elasticsearch/bin/java elasticsearch", "Elasticsearch"),
    ],
)
def test_known_programs(command, name):
    """Each development server is told by its command line, and its fix names an address."""
    assert name == recognised(command, 0).name


def test_an_unseen_process_is_known_by_its_port():
    """Without privilege the port alone tells; an unknown command does not fall back to it."""
    assert ("Redis", None, None) == (
        recognised(None, 6379).name,
        recognised("./mine", 6379),
        recognised(None, 8080),
    )


def test_every_tool_says_how_to_mend_it():
    """No row lacks a fix, and names are unique."""
    assert all(tool.fix for tool in TOOLS)
    assert len(TOOLS) == len({tool.name for tool in TOOLS})


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (found("link", cause="route-localnet", bind="127.0.0.1"), "CVE-2020-8558"),
        (found("lan", "python -m http.server"), "0.0.0.0-day"),
        (found("loopback", "flask run", bind="127.0.0.1"), "DNS rebinding"),
        (found("lan", "redis-server *:6379"), "run code"),
        (found("lan", cause="nat"), "translated"),
    ],
)
def test_published_attacks_are_named(entry, words):
    """The evidence names the attack a listener is open to."""
    assert any(words in text for text in entry.evidence)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        (found("lan", "python manage.py runserver"), "runserver 127.0.0.1:8000"),
        (found("lan"), "loopbox run -- COMMAND"),
        (found("lan", where="shop"), "bind it to 127.0.0.1"),
        (found("link", cause="route-localnet"), "route_localnet=0"),
        (found("loopback"), "nothing"),
        (found("unknown"), "rule"),
    ],
)
def test_fixes(entry, words):
    """Each finding says what to do, as a command where there is one."""
    assert words in entry.fix


def test_only_what_is_seen_as_safe_passes_the_check():
    """`--check` fails for every level that is, or may be, open to others."""
    assert set(EXPOSED) == {level for level in LEVELS if is_exposed(found(level))}
    assert "unknown" in EXPOSED


def test_most_dangerous_first():
    """High before medium before unknown before low before info."""
    some = [
        found("loopback"),
        found("unknown"),
        found("lan"),
        found("internet"),
        found("same-host"),
    ]

    assert ["high", "medium", "unknown", "low", "info"] == [
        entry.severity for entry in by_danger(some)
    ]


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([], "nothing listens"),
        ([found("loopback")], "1 listener, none reachable from outside"),
        (
            [found("lan", "redis-server"), found("unknown"), found("lan")],
            "3 listeners, 2 reachable from outside, 1 of them dangerous, 1 that cannot be judged",
        ),
    ],
)
def test_the_verdict_in_one_line(entries, text):
    """A person reads first whether anything is exposed."""
    assert text == summary(entries)


def test_the_contract_object():
    """A finding has the contract's keys and nothing that is not JSON."""
    document = found("lan", "redis-server *:6379").as_json()

    assert {
        "code", "severity", "title", "where", "listener", "reach", "evidence", "fix",
        "holders", "uid", "subnet", "ours",
    } == set(document)  # fmt: skip
    assert {
        "protocol", "family", "bind", "port", "pid", "command", "at", "url",
    } == set(document["listener"])  # fmt: skip


def test_unseen_holders_are_said():
    """A listener whose process is hidden from us says so."""
    entry = finding(listener(), Verdict("lan", "wildcard"), [], where="host", is_seen=False)

    assert any("could not be seen (uid 1000)" in text for text in entry.evidence)
    assert entry.as_json()["listener"]["pid"] is None


@given(st.text(max_size=600), st.integers(0, 65535), st.sampled_from(LEVELS))
def test_any_command_line_makes_a_finding(command, port, level):
    """Whatever a process calls itself, a finding comes out."""
    holders = [Holder(1, command)]
    entry = finding(listener(port=port), Verdict(level, "wildcard"), holders, where="host")

    assert entry.as_json()["reach"] == level


def test_a_listener_of_a_vrf_is_reached_by_its_members():
    """Bound to a VRF's device it takes what comes in by the interfaces of that VRF (ip-vrf(8))."""
    network = Network(
        links=(
            Link(1, "lo", 0x10049),
            Link(2, "eth0", 0x11043, master=3),
            Link(3, "blue", 0x10041, kind="vrf"),
        ),
        addresses=(InterfaceAddress(2, IPv4Address("192.168.7.1"), 24),),
        routes=(
            Route(IPv4Network("192.168.7.1/32"), 10, "local", 2),
            Route(IPv4Network("192.168.7.0/24"), 10, "unicast", 2),
        ),
    )
    sock = ListeningSocket("tcp", "ipv4", IPv4Address("0.0.0.0"), 8080, 3, 1, 0)

    assert "lan" == Reachability(View(network)).judge(sock).level


@pytest.mark.parametrize(
    ("command", "bind", "where", "expected"),
    [
        ("/v/bin/python3 -P -m loopbox.keeper --ready 2", "127.65.1.2", "host",
         "loopbox front door of shop"),
        ("/v/bin/python3 -P -m loopbox.keeper --ready 2", "127.65.9.9", "host",
         "loopbox front door"),
        ("/v/bin/python3 -P -m loopbox.keeper --ready 2", "127.0.0.1", "host",
         "loopbox shared door"),
        ("/v/bin/python3 -P -m loopbox.keeper --ready 2", "0.0.0.0", "host", "loopbox keeper"),
        ("/v/bin/python3 -P -m loopbox.keeper --ready 2", "::", "shop", "loopbox way out"),
        ("python3 loopbox.keeper -m http.server", "127.65.1.2", "host", None),
    ],
)  # fmt: skip
def test_what_is_our_own(command, bind, where, expected):
    """By its holder and its address; what merely looks like one by its address is not ours."""
    boxes = {"127.65.1.2": "shop"}

    assert expected == named(listener(bind), [Holder(7, command)], where=where, boxes=boxes)


def test_an_exposed_keeper_is_judged_like_anybody():
    """A name takes nothing off a verdict."""
    plain = finding(listener(), Verdict("lan", "wildcard"), [Holder(7, "x")], where="host")
    ours = finding(
        listener(), Verdict("lan", "wildcard"), [Holder(7, "x")], where="host", ours="loopbox door"
    )

    assert (plain.severity, plain.reach, True) == (ours.severity, ours.reach, is_exposed(ours))
