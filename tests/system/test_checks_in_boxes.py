"""audit, doctor, addr and guard aimed at boxes, through the keeper, as root and as a plain user."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from harness import Sandbox, until

SERVER = [sys.executable, "-m", "http.server", "8000"]


@pytest.fixture
def shop(sandbox: Sandbox) -> Sandbox:
    """A box `shop` in which a web server listens on every address."""
    sandbox.start("run", "--", *SERVER)
    until(lambda: listens(sandbox), what="the server in the box")
    return sandbox


def listens(sandbox: Sandbox) -> bool:
    """Whether the box's server is up."""
    done = sandbox("ls", "--json")
    boxes = json.loads(done.stdout)["boxes"] if done.returncode == 0 else []
    return any(entry["port"] == 8000 for box in boxes for entry in box["listeners"])


def findings(sandbox: Sandbox, *words: str) -> list[dict[str, Any]]:
    """What `audit --json` finds."""
    found = json.loads(sandbox.ok("audit", "--json", *words))["findings"]
    assert isinstance(found, list)
    return found


def test_a_wildcard_in_a_box_is_loopback_only(shop: Sandbox) -> None:
    """What would be exposed on the host is reached inside the box only, and the audit says so."""
    found = [
        entry for entry in findings(shop, "--box", "shop") if entry["listener"]["port"] == 8000
    ]

    assert [("shop", "loopback", "info")] == [
        (entry["where"], entry["reach"], entry["severity"]) for entry in found
    ]
    assert "http.server" in found[0]["listener"]["command"]


def test_our_own_doors_are_named(shop: Sandbox) -> None:
    """The keeper's listeners say what they are and where they lead, and are judged all the same."""
    address = shop.ok("address", "shop").strip()

    def named() -> dict[str, list[Any]]:
        told: dict[str, list[Any]] = {}
        for entry in findings(shop):
            if entry["ours"]:
                told.setdefault(entry["ours"], []).append(entry)
        return told if "loopbox front door of shop" in told else {}

    found = until(named, what="the front door")
    door = found["loopbox front door of shop"][0]

    assert {"loopback"} == {entry["reach"] for told in found.values() for entry in told}
    assert (f"{address}:8000", "host") == (door["listener"]["at"], door["where"])
    assert "leads into box shop, through its keeper" in door["evidence"]
    assert {"shop"} == {entry["where"] for entry in found["loopbox way out"]}
    assert "loopbox front door of shop  host" in shop.ok("audit", "--host")


def test_all_is_the_host_and_every_box(shop: Sandbox) -> None:
    """Without a choice, host and boxes are in one list; --host leaves the boxes out."""
    everything = {entry["where"] for entry in findings(shop)}
    host_only = {entry["where"] for entry in findings(shop, "--host")}

    assert {"host", "shop"} == everything
    assert {"host"} == host_only


def test_doctor_in_a_box(shop: Sandbox) -> None:
    """The loopback rungs pass against the box's own loopback; cable and gateway have no meaning."""
    done = shop("doctor", "--box", "shop", "--json")
    states = {rung["id"]: rung["state"] for rung in json.loads(done.stdout)["rungs"]}

    assert {"pass"} == {
        states[name]
        for name in ("loopback-interface", "loopback-ipv4", "loopback-ipv6", "localhost-name")
    }
    assert {"skip"} == {states[name] for name in ("own-address", "link", "gateway", "boxes")}


def test_doctor_in_a_box_that_is_shut_on_purpose(sandbox: Sandbox) -> None:
    """A box without a way out is healthy; asked for a host, it says whose will it is."""
    sandbox.ok("run", "--name", "shut", "--keep", "--egress", "none", "--", "true")
    plain = sandbox("doctor", "--box", "shut")
    asked = sandbox("doctor", "--box", "shut", "--remote", "1.1.1.1:80")

    assert (0, 1) == (plain.returncode, asked.returncode)
    assert "its egress policy is `none`" in plain.stdout
    assert "FAIL  remote              this box has no way out: its egress policy" in asked.stdout


def test_addresses_of_a_box(shop: Sandbox) -> None:
    """An alias is added to the box's loopback without root, and the host's stays as it is."""
    before = shop.ok("addr", "ls", "--host", "--json")
    shop.ok("addr", "add", "10.9.9.9", "--box", "shop")
    inside = json.loads(shop.ok("addr", "ls", "--box", "shop", "--json"))["addresses"]

    assert "10.9.9.9" in {entry["address"] for entry in inside}
    assert before == shop.ok("addr", "ls", "--host", "--json")


def test_the_guard_of_a_box_is_on_from_birth(shop: Sandbox) -> None:
    """A box's guard stands, and is not taken away from under its way out."""
    status = json.loads(shop.ok("guard", "status", "--box", "shop", "--json"))
    off = shop("guard", "off", "--box", "shop")

    assert ("on", 1) == (status["state"], off.returncode)


def test_a_box_that_is_not_up(sandbox: Sandbox) -> None:
    """Asking about a box that is not there fails with the way to start it."""
    done = sandbox("audit", "--box", "nowhere")

    assert (1, True) == (done.returncode, "hint:" in done.stderr)
