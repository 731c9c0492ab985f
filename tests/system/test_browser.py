"""Chromium at both copies: from the host by name, and inside a box where `localhost` is the box's.

The page that both copies serve at /page calls `http://localhost:8000/who` from its script, as the
code of a web app does, and talks over a WebSocket to the host it came from.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from frontworld import Copies, curl, need, two_copies

from harness import Sandbox, own_files, until

pytestmark = pytest.mark.system

FLAGS = (
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
    # /dev/shm of a build machine is often too small.
    "--disable-dev-shm-usage",
    *(["--no-sandbox"] if os.geteuid() == 0 else []),
)


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copies]:
    """Both boxes, for all tests of this module."""
    need("chromium")
    with two_copies(tmp_path_factory.mktemp("browser")) as made:
        yield made


def texts(page: str) -> dict[str, str]:
    """The paragraphs of a page by their ids."""
    return dict(re.findall(r'<p id="(\w+)">([^<]*)</p>', page))


def on_the_host(sandbox: Sandbox, url: str, profile: Path) -> dict[str, str]:
    """What Chromium shows that a user starts on the host, with a fresh profile."""
    done = subprocess.run(
        [need("chromium"), *FLAGS, f"--user-data-dir={profile}", "--dump-dom", url],
        env=sandbox.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return texts(done.stdout)


def test_both_copies_by_name_from_the_host(copies: Copies, tmp_path: Path) -> None:
    """Each name shows its own copy; the page's WebSocket stays with the copy it came from.

    On the host `localhost` names no box: what the script calls there is refused, not some copy.
    """
    for name in copies.names:
        found = on_the_host(copies.sandbox, f"http://{name}.localhost:8000/page", tmp_path / name)
        expected = {
            "where": f"served by {name}",
            "called": "refused",
            "socket": f"heard {name} page",
        }

        assert expected == found


@pytest.mark.parametrize("name", Copies.names)
def test_inside_a_box_localhost_is_the_boxs(copies: Copies, name: str) -> None:
    """`loopbox browser` shows the page, and code that calls localhost reaches this very copy."""
    page = copies.sandbox.ok(
        *("browser", name, "--headless", "--with", "chromium"),
        *("--url", "http://localhost:8000/page", "--", "--dump-dom", "--disable-dev-shm-usage"),
    )

    expected = {
        "where": f"served by {name}",
        "called": f"called {name}",
        "socket": f"heard {name} page",
    }
    assert expected == texts(page)


def test_firefox_inside_a_box(copies: Copies, tmp_path: Path) -> None:
    """The other browser: the same page, with the same right copy behind `localhost`."""
    need("firefox-esr")
    before = json.loads(curl("http://fix-ui.shop.localhost:8000/shown"))
    copies.sandbox.ok(
        *("browser", "fix-ui.shop", "--headless", "--with", "firefox"),
        *("--url", "http://localhost:8000/page", "--", "--screenshot", str(tmp_path / "page.png")),
    )
    after = json.loads(curl("http://fix-ui.shop.localhost:8000/shown"))

    assert [["served by fix-ui.shop", "called fix-ui.shop", "heard fix-ui.shop page"]] == after[
        len(before) :
    ]
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")


def test_browser_without_a_url_opens_the_first_web_port(copies: Copies) -> None:
    """It says on stderr where it goes, prints only the page, and leaves no profile behind."""
    before = own_files(f"{tempfile.gettempdir()}/loopbox-browser-*")
    done = copies.sandbox(
        "browser", "shop", "--headless", "--", "--dump-dom", "--disable-dev-shm-usage"
    )

    assert done.returncode == 0
    assert "shop" in done.stdout
    assert "chromium inside shop: http://localhost:8000" in done.stderr
    assert before == own_files(f"{tempfile.gettempdir()}/loopbox-browser-*")


def test_a_missing_browser_names_the_package(copies: Copies, tmp_path: Path) -> None:
    """Exit 1 and the one command to run, as text and as JSON."""
    empty = {"PATH": str(tmp_path)}
    plain = copies.sandbox("browser", "shop", env=empty)
    named = copies.sandbox("browser", "shop", "--with", "firefox", "--json", env=empty)

    assert (plain.returncode, plain.stdout) == (1, "")
    assert "hint: sudo apt-get install chromium" in plain.stderr
    assert (named.returncode, named.stderr) == (1, "")
    assert '"hint": "sudo apt-get install firefox-esr"' in named.stdout


def test_a_browser_goes_with_its_box(sandbox: Sandbox) -> None:
    """`down` ends a browser that is open in the box, with all its helpers."""
    need("chromium")
    sandbox.ok("run", "--name", "shop", "--keep", "--", "true")
    browser = sandbox.start(
        *("browser", "shop", "--headless", "--url", "about:blank"),
        *("--", "--remote-debugging-port=9222", "--disable-dev-shm-usage"),
    )
    sandbox.ok("wait", "shop", "9222", "--timeout", "30")
    helpers = [process["pid"] for process in sandbox.json("show", "shop")["processes"]]
    sandbox.ok("down", "shop", "--grace", "3")
    browser.wait(20)

    assert len(helpers) > 2
    until(
        lambda: not any(os.path.exists(f"/proc/{pid}") for pid in helpers),
        what="the end of all of the browser's processes",
    )
