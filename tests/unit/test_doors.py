"""Which box a Host means, which port of it, and the words when there is none."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopbox.rules import doors, refusals
from loopbox.rules.refusals import Refusal

KNOWN = {"shop": "up", "fix-ui.shop": "up", "old": "stopped", "old.shop": "stopped"}


@dataclass(frozen=True, slots=True)
class Bound:
    """A listener as far as doors care."""

    address: IPv4Address | IPv6Address
    family: str = "ipv4"
    interface: int = 0


def bound(text: str, *, family: str = "", interface: int = 0) -> Bound:
    """A listener bound to an address."""
    address = ip_address(text)
    return Bound(address, family or f"ipv{address.version}", interface)


@pytest.mark.parametrize(
    ("uid", "inode", "owner", "expected"),
    [
        (1000, 7, 1000, True),
        (1000, 0, 1000, True),
        (1001, 7, 1000, False),
        (0, 7, 1000, False),
        (0, 0, 1000, False),
        (0, 7, 0, True),
        (0, 0, 0, False),
        (65534, 7, 0, False),
        (1001, 7, None, True),
        (0, 0, None, True),
    ],
)
def test_only_the_owner_is_admitted(
    uid: int, inode: int, owner: int | None, expected: bool
) -> None:
    """Others are refused, and an orphan that reads as root proves nothing to root either."""
    assert expected == doors.is_admitted(uid, inode, owner=owner)


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("shop.localhost", "shop"),
        ("SHOP.LocalHost.", "shop"),
        ("api.shop.localhost", "shop"),
        ("a.b.shop.localhost", "shop"),
        ("fix-ui.shop.localhost", "fix-ui.shop"),
        ("api.fix-ui.shop.localhost", "fix-ui.shop"),
        ("old.localhost", "old"),
        ("api.old.shop.localhost", "old.shop"),
        ("localhost", None),
        (".localhost", None),
        ("xshop.localhost", None),
        ("shop", None),
        ("shop.localhost.example.com", None),
        ("shoplocalhost", None),
        ("127.0.0.1", None),
        ("::1", None),
        ("", None),
    ],
)
def test_the_longest_known_name_is_meant(host: str, name: str | None) -> None:
    """Subdomains reach their box, the most specific name wins, nothing is guessed."""
    assert name == doors.find_name(host, KNOWN)


@pytest.mark.parametrize(
    ("host", "name", "status"),
    [
        ("shop.localhost", "shop", None),
        ("old.localhost", "old", 503),
        ("x.old.shop.localhost", "old.shop", 503),
        ("till.localhost", None, 404),
        ("localhost", None, 404),
        ("127.0.0.1", None, 404),
    ],
)
def test_routes(host: str, name: str | None, status: int | None) -> None:
    """Up: let through. Stopped: 503 with its name. Unknown: 404."""
    found = doors.route(host, KNOWN)

    assert (name, status) == (found.name, found.refusal.status if found.refusal else None)


def test_a_stopped_box_is_never_another_box() -> None:
    """The stopped box's subdomain is not handed to the box one label up."""
    found = doors.route("old.shop.localhost", KNOWN)

    assert found.refusal is not None
    assert (found.name, found.refusal.title) == ("old.shop", "box old.shop is stopped")


def test_unknown_names_are_told_what_there_is() -> None:
    """The answer lists every known name and links the boxes that are up, on this port."""
    found = doors.route("till.localhost", KNOWN, port=3000).refusal

    expected = Refusal(
        404,
        "there is no such box",
        (
            "`till.localhost` names no box.",
            "Boxes that are up: fix-ui.shop, shop.",
            "Boxes that are known and stopped: old, old.shop.",
        ),
        ("http://fix-ui.shop.localhost:3000", "http://shop.localhost:3000"),
    )
    assert expected == found


def test_a_request_in_a_circle_is_ended() -> None:
    """Too many proxies on the way are a loop."""
    found = doors.route("shop.localhost", KNOWN, hops=doors.HOP_LIMIT + 1).refusal

    assert found is not None
    assert found.status == 508
    assert doors.route("shop.localhost", KNOWN, hops=doors.HOP_LIMIT).refusal is None


@given(st.text(), st.dictionaries(st.text(min_size=1), st.sampled_from(["up", "stopped"])))
def test_routing_never_fails_and_never_guesses(host: str, known: dict[str, str]) -> None:
    """Whatever the host says, the answer is a refusal or a name that it really ends with."""
    found = doors.route(host, known)

    if found.name is None:
        assert found.refusal is not None
    else:
        asked = host.lower().removesuffix(".")
        assert f".{asked}".endswith(f".{found.name}.localhost")


@pytest.mark.parametrize(
    ("binds", "expected"),
    [
        ([bound("0.0.0.0")], ["127.0.0.1", "::1"]),
        ([bound("::", family="dual")], ["127.0.0.1", "::1"]),
        ([bound("::")], ["::1", "127.0.0.1"]),
        ([bound("::1")], ["::1", "127.0.0.1"]),
        ([bound("127.0.0.1")], ["127.0.0.1", "::1"]),
        ([bound("127.0.0.2")], ["127.0.0.2", "127.0.0.1", "::1"]),
        ([bound("127.0.0.2"), bound("127.0.0.1")], ["127.0.0.1", "127.0.0.2", "::1"]),
        ([bound("10.9.0.1"), bound("127.0.0.2")], ["127.0.0.2", "10.9.0.1", "127.0.0.1", "::1"]),
        ([bound("10.9.0.1", interface=1)], ["10.9.0.1", "127.0.0.1", "::1"]),
        ([bound("10.9.0.1", interface=7)], []),
        ([bound("fe80::1", interface=0)], []),
        ([bound("::ffff:127.0.0.3", family="ipv4")], ["127.0.0.3", "127.0.0.1", "::1"]),
        ([bound("::ffff:0.0.0.0", family="ipv4")], ["127.0.0.1", "::1"]),
        ([], []),
    ],
)
def test_dial_order(binds: list[Bound], expected: list[str]) -> None:
    """Dialled is what a client in the box would find at localhost, then what is bound besides."""
    assert [(text, 80) for text in expected] == doors.dial_targets(80, binds)


def test_dial_targets_are_bounded() -> None:
    """A server bound to very many addresses does not make a very long list."""
    binds = [bound(f"127.0.1.{n}") for n in range(1, 200)]

    assert len(doors.dial_targets(80, binds)) == doors.TARGET_LIMIT


@pytest.mark.parametrize(
    ("door", "ports", "expected"),
    [
        (80, [80, 3000], 80),
        (80, [5432, 3000, 8000], 3000),
        (80, [5432, 8000, 9999], 8000),
        (80, [5432, 6379], None),
        (80, [5432, 9999, 9500], 9500),
        (80, [8443], None),
        (443, [443, 8443], 443),
        (443, [3000, 8443], 8443),
        (443, [3000], None),
        (3000, [3000], 3000),
        (3000, [8000], None),
    ],
)
def test_port_behind_the_shared_door(door: int, ports: list[int], expected: int | None) -> None:
    """The same number, else for 80 and 443 the port that most likely speaks it."""
    assert expected == doors.port_behind(door, ports)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (80, "http://shop.localhost"),
        (3000, "http://shop.localhost:3000"),
        (443, "https://shop.localhost"),
        (8443, "https://shop.localhost:8443"),
        (5432, None),
        (9229, None),
    ],
)
def test_urls(port: int, expected: str | None) -> None:
    """A URL where HTTP is likely, none where it is not."""
    assert expected == doors.url_for("shop", port)


@pytest.mark.parametrize(
    ("port", "expected"),
    [
        (3000, "http://shop.localhost:3000"),
        (443, "https://shop.localhost"),
        (6379, "redis://127.64.0.9:6379"),
        (5432, "postgresql://127.64.0.9:5432"),
        (26379, "127.64.0.9:26379"),
        (25, "127.64.0.9:25"),
    ],
)
def test_place_of_a_port(port: int, expected: str) -> None:
    """By name only what is told apart by name; where clients take no URL, where it is."""
    assert expected == doors.place_for("shop", port, address=IPv4Address("127.64.0.9"))


def test_plain_answer() -> None:
    """A program gets a head that closes the connection, and plain lines."""
    answer = refusals.render(doors.nothing_listens("shop", 3000, ports=[8000, 5432]))

    expected = (
        b"HTTP/1.1 503 Service Unavailable\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 153\r\n"
        b"Cache-Control: no-store\r\n"
        b"X-Content-Type-Options: nosniff\r\n"
        b"Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n"
        b"Connection: close\r\n"
        b"Retry-After: 1\r\n"
        b"\r\n"
        b"loopbox: nothing listens on port 3000 in box shop\n"
        b"The box `shop` is up, but nothing in it listens on port 3000.\n"
        b"It listens on: 5432, 8000.\n"
        b"  http://shop.localhost:8000\n"
    )
    length = len(expected.partition(b"\r\n\r\n")[2])
    assert expected.replace(b"153", str(length).encode()) == answer


def test_browsers_get_a_page_with_links() -> None:
    """A browser gets HTML in which the boxes can be clicked."""
    refusal = doors.route("localhost", KNOWN, port=3000).refusal
    assert refusal is not None

    page = refusals.render(refusal, accept="text/html,*/*")

    assert b"text/html" in page.partition(b"\r\n\r\n")[0]
    assert b'<a href="http://shop.localhost:3000">' in page


def test_head_requests_get_no_body() -> None:
    """HEAD is answered by the head alone, with the length a GET would have (RFC 9110, 9.3.2)."""
    refusal = refusals.no_answer("shop", 80)

    head = refusals.render(refusal, method="HEAD")

    assert refusals.render(refusal).partition(b"\r\n\r\n")[0] + b"\r\n\r\n" == head


@given(st.text(), st.text(), st.sampled_from(["text/html", "text/plain"]))
def test_hostile_names_are_escaped(host: str, name: str, accept: str) -> None:
    """No quoted name adds a header, a tag or a control character; the length is right."""
    refusal = doors.route(f"<b>{host}", {name: "up"}).refusal
    assert refusal is not None

    head, _, body = refusals.render(refusal, accept=accept).partition(b"\r\n\r\n")

    assert head.count(b"\r\n") == 6
    assert f"Content-Length: {len(body)}".encode() in head
    assert not [c for c in body.decode() if not c.isprintable() and c != "\n"]
    if accept == "text/html":
        assert b"<b>" not in body


@pytest.mark.parametrize(
    ("refusal", "alert"),
    [
        (doors.route("x.localhost", {}).refusal, 112),
        (doors.route("old.localhost", KNOWN).refusal, 80),
        (doors.nothing_listens("shop", 443), 80),
        (refusals.bad_head(400, "x"), 50),
    ],
)
def test_tls_refusals_are_fatal_alerts(refusal: Refusal, alert: int) -> None:
    """An unknown name is `unrecognized_name`, a known one that does not answer is not."""
    assert bytes([21, 3, 3, 0, 2, 2, alert]) == refusals.render_tls(refusal)


@dataclass(frozen=True, slots=True)
class Held:
    """A listener that is in the way."""

    address: IPv4Address | IPv6Address
    port: int
    uid: int


@pytest.mark.parametrize(
    ("number", "at", "port", "holders", "expected"),
    [
        (errno.EADDRINUSE, "127.64.1.2", 80, [], "127.64.1.2:80 is in use on the host"),
        (
            errno.EADDRINUSE,
            "::1",
            80,
            [Held(IPv6Address("::"), 80, 33)],
            "[::1]:80 is in use on the host: a program of user 33 listens on [::]:80",
        ),
        (
            errno.EACCES,
            "127.0.0.1",
            443,
            [],
            (
                "127.0.0.1:443 may not be opened by this user; allow it once with "
                "`sudo sysctl net.ipv4.ip_unprivileged_port_start=80`"
            ),
        ),
        (
            errno.EACCES,
            "127.64.1.2",
            22,
            [],
            (
                "127.64.1.2:22 may not be opened by this user; allow it once with "
                "`sudo sysctl net.ipv4.ip_unprivileged_port_start=22`"
            ),
        ),
        (
            errno.EMFILE,
            "127.64.1.2",
            22,
            [],
            "127.64.1.2:22 cannot be opened: too many open files; raise `ulimit -n`",
        ),
        (errno.ENOBUFS, "127.64.1.2", 22, [], "127.64.1.2:22 cannot be opened: no room"),
    ],
)
def test_ports_that_cannot_be_opened_are_explained(
    number: int, at: str, port: int, holders: list[Held], expected: str
) -> None:
    """Cause and remedy in one line; who holds the port where that is known."""
    error = OSError(number, "no room")

    assert expected == refusals.bind_problem(error, at=at, port=port, holders=holders)
