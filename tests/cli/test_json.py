"""`--json` of every command about boxes and the keeper, held against the contract.

The shapes below are CONTRACT's, written once more by hand: a key that goes, changes its type, or
turns up misspelt is a broken promise to the scripts that read it. More keys may come.
"""

from __future__ import annotations

import datetime
import ipaddress
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness import Sandbox, until

pytestmark = pytest.mark.system

Check = Callable[[Any], bool]


def is_text(value: Any) -> bool:
    """A text that is not empty."""
    return isinstance(value, str) and value != ""


def is_number(value: Any) -> bool:
    """A whole number, and no bool."""
    return type(value) is int


def or_null(check: Check) -> Check:
    """That, or null."""
    return lambda value: value is None or check(value)


def one_of(*words: str) -> Check:
    """One of these words."""
    return lambda value: value in words


def list_of(check: Check) -> Check:
    """A list of such."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def table_of(shape: dict[str, Check]) -> Check:
    """An object that has at least these keys, each as it should be."""

    def check(value: Any) -> bool:
        wrong = {
            key: value.get(key, "is not there")
            for key, is_right in shape.items()
            if key not in value or not is_right(value[key])
        }
        assert wrong == {}, wrong
        return True

    return check


def is_box_address(value: Any) -> bool:
    """An address of 127.64.0.0/10."""
    return ipaddress.ip_address(value) in ipaddress.ip_network("127.64.0.0/10")


def is_at(value: Any) -> bool:
    """`127.x.y.z:port`."""
    address, _, port = value.rpartition(":")
    return is_box_address(address) and port.isdigit()


def is_moment(value: Any) -> bool:
    """ISO 8601 with zone."""
    return datetime.datetime.fromisoformat(value).tzinfo is not None


LISTENER = table_of(
    {
        "protocol": one_of("tcp", "udp"),
        "family": one_of("ipv4", "ipv6", "dual"),
        "bind": lambda value: bool(ipaddress.ip_address(value)),
        "port": is_number,
        "pid": or_null(is_number),
        "command": or_null(is_text),
        "at": or_null(is_at),
        "url": or_null(is_text),
    }
)
BOX = table_of(
    {
        "name": is_text,
        "state": one_of("up", "stopped"),
        "address": is_box_address,
        "directory": os.path.isabs,
        "created": is_moment,
        "loopback": list_of(lambda value: bool(ipaddress.ip_interface(value))),
        "names": list_of(table_of({"name": is_text, "target": or_null(is_text), "tls": bool})),
        "listeners": list_of(LISTENER),
        "processes": list_of(table_of({"pid": is_number, "command": is_text})),
        "forward": list_of(is_number),
        "egress": table_of(
            {"policy": one_of("open", "local", "none", "filter"), "rules": list_of(is_text)}
        ),
        "links": list_of(
            table_of({"name": is_text, "peer": is_text, "state": one_of("up", "cut")})
        ),
        "router": or_null(lambda value: isinstance(value, dict)),
    }
)
ERROR = table_of(
    {
        "error": table_of(
            {
                "code": lambda value: value.replace("-", "").isalpha() and value.islower(),
                "message": is_text,
                "hint": or_null(is_text),
            }
        )
    }
)

LISTEN = """
import signal, socket
made = []
for family, address, port in ((2, "127.0.0.1", 3000), (10, "::1", 3000), (10, "::", 8080),
                              (2, "0.0.0.0", 5432), (2, "127.0.0.9", 9999)):
    made.append(socket.create_server((address, port), family=family,
                                     dualstack_ipv6=address == "::"))
made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
made[-1].bind(("127.0.0.1", 5353))
signal.pause()
"""


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """A user without boxes, shared by what makes none."""
    made = Sandbox(tmp_path_factory.mktemp("idle"))
    yield made
    made.close()


@pytest.fixture
def shop(sandbox: Sandbox) -> Sandbox:
    """A box `shop` in which much listens."""
    sandbox.start("run", "--forward", "6390", "--", sys.executable, "-c", LISTEN)
    until(lambda: sandbox.box_names() == ["shop"])
    for port in (3000, 9999):
        sandbox.ok("wait", "shop", str(port))
    return sandbox


def documents(sandbox: Sandbox, *arguments: str, status: int = 0) -> Any:
    """The one document on stdout, with the flag after the command and before it."""
    found = []
    for words in ((*arguments, "--json"), ("--json", *arguments)):
        done = sandbox(*words)
        assert (status, 1) == (done.returncode, done.stdout.count("\n")), done
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
    return found[0]


def test_show_ls_and_no_command(shop: Sandbox) -> None:
    """The box is one BOX, the same to all who ask."""
    box = documents(shop, "show")

    assert BOX(box)
    assert box == documents(shop, "show", "shop") == documents(shop, "show", "shop.localhost")
    assert {"boxes": [box]} == documents(shop, "ls")
    assert box == documents(shop)
    assert ("shop", "up", str(shop.project)) == (box["name"], box["state"], box["directory"])
    assert (box["forward"], box["loopback"][:2]) == ([6390], ["127.0.0.1/8", "::1/128"])


def test_addresses_every_box_has_are_not_shown(shop: Sandbox) -> None:
    """They are in the document; a person is told of those that were added."""
    assert "198.18.0.1/32" in documents(shop, "show")["loopback"]
    assert "  lo: " not in shop.ok("show")


def test_listeners(shop: Sandbox) -> None:
    """Each listening socket is there once, with where the host finds it and whose it is."""
    box = documents(shop, "show")
    address = box["address"]
    [process] = box["processes"]

    assert sorted(
        (one["protocol"], one["family"], one["bind"], one["port"]) for one in box["listeners"]
    ) == [
        ("tcp", "dual", "::", 8080),
        ("tcp", "ipv4", "0.0.0.0", 5432),
        ("tcp", "ipv4", "127.0.0.1", 3000),
        ("tcp", "ipv4", "127.0.0.9", 9999),
        ("tcp", "ipv6", "::1", 3000),
        ("udp", "ipv4", "127.0.0.1", 5353),
    ]
    assert {one["pid"] for one in box["listeners"]} == {process["pid"]}
    assert {one["command"] for one in box["listeners"]} == {process["command"]}
    assert all(one["at"] == f"{address}:{one['port']}" for one in box["listeners"])
    assert {one["port"]: one["url"] for one in box["listeners"]} == {
        3000: "http://shop.localhost:3000",
        5353: None,
        5432: None,
        8080: "http://shop.localhost:8080",
        9999: "http://shop.localhost:9999",
    }


def test_url_and_address(shop: Sandbox) -> None:
    """Plain text, one per line, for scripts; the same as JSON."""
    urls = [f"http://shop.localhost:{port}" for port in (3000, 8080, 9999)]

    assert sorted(shop.ok("url").splitlines()) == urls
    assert sorted(documents(shop, "url", "shop")["urls"]) == urls
    assert shop.ok("url", "shop", "8080") == "http://shop.localhost:8080\n"
    assert documents(shop, "url", "8080") == {"urls": ["http://shop.localhost:8080"]}
    address = shop.ok("address", "shop").strip()
    assert [shop.ok("url", "shop", port).strip() for port in ("5432", "5353", "9092")] == [
        f"postgresql://{address}:5432",
        f"{address}:5353",
        f"{address}:9092",
    ]
    assert documents(shop, "address") == {"address": shop.ok("address", "shop").strip()}
    assert is_box_address(shop.ok("address").strip())


def test_wait(shop: Sandbox) -> None:
    """A document when it listens; an error when the time has passed, for a box up or not."""
    late = documents(shop, "wait", "shop", "4000", "--timeout", "0.1", status=1)
    nowhere = documents(shop, "wait", "nowhere", "80", "--timeout", "0.1", status=1)

    assert documents(shop, "wait", "shop", "3000")["listening"] is True
    assert (late["error"]["code"], ERROR(late)) == ("timeout", True)
    assert (nowhere["error"]["code"], ERROR(nowhere)) == ("no-box", True)


def test_down_and_prune(shop: Sandbox) -> None:
    """They name what they ended and forgot."""
    ended = json.loads(shop.ok("down", "--json"))
    pruned = json.loads(shop.ok("--json", "prune"))

    assert ended == {"down": ["shop"]}
    assert pruned == {"boxes": [], "names": ["shop"]}
    assert documents(shop, "down", "--all") == {"down": []}
    assert documents(shop, "down", "shop", status=1)["error"]["code"] == "no-box"


def test_keeper_and_uninstall(sandbox: Sandbox) -> None:
    """Status, stop and uninstall are documents whether a keeper runs or not."""
    absent = documents(sandbox, "keeper", "status")
    sandbox.ok("run", "--keep", "--", "true")
    there = documents(sandbox, "keeper", "status")
    stopped = json.loads(sandbox.ok("keeper", "stop", "--json"))
    removed = json.loads(sandbox.ok("uninstall", "--json"))

    assert (absent["running"], there["running"], there["boxes"]) == (False, True, 1)
    assert there["pid"] != os.getpid()
    assert documents(sandbox, "keeper", "stop") == {"stopped": False, "boxes": []}
    assert (stopped["stopped"], stopped["boxes"]) == (True, ["shop"])
    assert str(sandbox.runtime / "loopbox") in removed["removed"]
    assert not (sandbox.runtime / "loopbox").exists()
    assert documents(sandbox, "ls") == {"boxes": []}


def test_uninstall_leaves_what_is_not_ours(sandbox: Sandbox) -> None:
    """A variable that leads to a directory with other things in it costs none of them."""
    precious = sandbox.root / "state/loopbox/src/main.py"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    sandbox.ok("run", "--", "true")
    removed = json.loads(sandbox.ok("uninstall", "--json"))

    assert ["src"] == [path.name for path in (sandbox.root / "state/loopbox").iterdir()]
    assert "mine" == precious.read_text()
    assert [str(precious.parent)] == removed["left"]
    assert not (sandbox.runtime / "loopbox").exists()


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("show",), 1, "no-box"),
        (("show", "nowhere"), 1, "no-box"),
        (("show", "Bad_Name"), 2, "bad-name"),
        (("address", "nowhere"), 1, "no-box"),
        (("url", "nowhere"), 1, "no-box"),
        (("url", "shop", "70000"), 2, "usage"),
        (("down", "nowhere"), 1, "no-box"),
        (("curl", "localhost"), 1, "no-box"),
        (("browser", "nowhere"), 1, "no-box"),
        (("ls", "extra"), 2, "usage"),
        (("nope",), 2, "usage"),
        (("up",), 2, "bad-config"),
        (("run",), 2, "usage"),
        (("exec",), 2, "usage"),
        (("exec", "nowhere", "--", "true"), 125, "no-box"),
        (("run", "--", "no-such-program"), 127, "command-not-found"),
        (("run", "--", "/etc/passwd"), 126, "not-executable"),
        (("curl", "shp", "-sS", "localhost:3000"), 1, "no-box"),
        (("curl", "fix-ui.shp", "localhost:3000"), 1, "no-box"),
        (("curl", "--box", "nowhere", "localhost:3000"), 1, "no-box"),
        (("curl", "--box"), 2, "usage"),
        (("completion", "tcsh"), 2, "usage"),
        (("help", "nope"), 2, "usage"),
        (("wait", "shop", "x"), 2, "usage"),
    ],
)
def test_failures(idle: Sandbox, words: tuple[str, ...], status: int, code: str) -> None:
    """An error is a document too, with its code, and the exit status is the contract's."""
    done = idle("--json", *words)
    plain = idle(*words)

    assert (status, "") == (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    assert (ERROR(found), found["error"]["code"]) == (True, code)
    assert (status, "") == (plain.returncode, plain.stdout)
    assert plain.stderr.splitlines()[0] == f"loopbox: {found['error']['message']}"
    assert "Traceback" not in plain.stderr


def test_json_behind_the_dashes_is_the_programs(sandbox: Sandbox) -> None:
    """What follows `--` or the program's name is never loopbox's to read."""
    assert sandbox.ok("run", "--", "echo", "--json", "-q") == "--json -q\n"
    assert sandbox.ok("run", "echo", "--json", "--help") == "--json --help\n"
    assert sandbox.ok("--json", "run", "--keep", "--", "echo", "--no-color") == "--no-color\n"
    assert sandbox.ok("exec", "shop", "--", "printf", "%s", "--version") == "--version"


def test_quiet_says_nothing_but_errors(sandbox: Sandbox) -> None:
    """-q before or after the command silences hints; an error still comes."""
    said = sandbox("ls")
    quiet = [sandbox("ls", "-q"), sandbox("--quiet", "ls")]
    error = sandbox("-q", "show", "nowhere")

    assert "hint: " in said.stderr
    assert [("", "")] * 2 == [(done.stdout, done.stderr) for done in quiet]
    assert error.stderr.startswith("loopbox: cannot find box `nowhere`")


def test_hostile_command_lines_are_escaped(sandbox: Sandbox) -> None:
    """A process whose arguments hold escape sequences moves no cursor, and JSON stays JSON."""
    rude = "\x1b]0;owned\x07\x1b[2J\nline two\u202e"
    sandbox.start("run", "--", "sh", "-c", 'exec sleep 60 "$0"', rude)
    sandbox.start("run", "--", sys.executable, "-c",
                  "import socket, time; s = socket.create_server(('127.0.0.1', 3000)); "
                  "time.sleep(60)", rude)  # fmt: skip
    sandbox.ok("wait", "shop", "3000")
    texts = [sandbox.ok("show"), sandbox.ok("ls"), sandbox("show", rude).stderr]

    assert all(letter not in text for text in texts for letter in "\x1b\x07\u202e")
    box = documents(sandbox, "show")
    assert any(rude in process["command"] for process in box["processes"])
