"""`curl` and `browser`: a client inside the box, so that `localhost` means the box's.

Owns: finding the program, a browser's fresh profile and its removal.
Must never: touch the user's own profile (a running browser would take the page over, outside).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from typing import Any

import click

from loopbox.cli import asking, hot
from loopbox.cli.output import current_output
from loopbox.errors import BoxError, HostError, UsageError
from loopbox.rules.doors import web_port

_BROWSERS = {
    "chromium": ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"),
    "firefox": ("firefox", "firefox-esr"),
}
_PACKAGES = {"chromium": "chromium", "firefox": "firefox-esr"}

_CHROMIUM_FLAGS = (
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    # A proxy of the host's desktop settings would take the page out of the box.
    "--no-proxy-server",
)
_FIREFOX_SETTINGS = """\
user_pref("browser.shell.checkDefaultBrowser", false);
user_pref("browser.aboutwelcome.enabled", false);
user_pref("datareporting.policy.dataSubmissionEnabled", false);
user_pref("network.proxy.type", 0);
user_pref("toolkit.telemetry.reportingpolicy.firstRun", false);
"""


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    options_metavar="",
)
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[NAME | --box NAME] ARGS...")
def curl(words: tuple[str, ...]) -> None:
    """Run curl inside a box: this directory's, or the one named first.

    A first word without a dot, slash or colon is a box's name, and so is one with dots when a
    word that is no option follows; a name that is not up is an error and never another box. Write
    a URL as one (http://intranet/), or name the box with --box, and there is no doubt.

    \b
    loopbox curl localhost:3000/health
    loopbox curl fix-ui.shop -sS -d '{}' localhost:3000/orders
    loopbox curl --box shop -sS http://intranet/
    """
    if words in ((), ("--help",), ("-h",)):
        click.echo(click.get_current_context().get_help())
        return
    named, rest = split_box(words, up={found["name"] for found in asking.boxes()})
    program = shutil.which("curl")
    if program is None:
        raise HostError("cannot run curl: it is not installed", hint="sudo apt-get install curl")
    try:
        name = asking.box(named)["name"]
    except BoxError as error:
        if named is None or words[0] != named:
            raise
        error.hint = f"{error.hint}; if it is a URL: http://{named}/"
        raise
    hot.enter_and_become(name, [program, *rest])


def split_box(words: tuple[str, ...], *, up: Collection[str]) -> tuple[str | None, tuple[str, ...]]:
    """Which box `loopbox curl WORDS` means (None: this directory's), and what is curl's."""
    first, rest = words[0], words[1:]
    if first == "--box":
        if not rest:
            raise UsageError("cannot read option `--box`: it needs a value")
        return rest[0], rest[1:]
    if first.startswith("--box="):
        return first.removeprefix("--box="), rest
    if asking.box_name(first) in up:
        return first, rest
    if first.startswith("-") or not rest or not _is_like_a_box(first):
        return None, words
    # What may be a misspelt name must not be fetched from another box.
    is_meant = "." not in first or not rest[0].startswith("-")
    return (first, rest) if is_meant else (None, words)


def _is_like_a_box(word: str) -> bool:
    """Whether it has a box's name's form, and is no `localhost` and no address."""
    labels = word.split(".")
    return (
        all(label.replace("-", "").replace("_", "").isalnum() for label in labels)
        and labels[-1].lower() != "localhost"
        and not labels[-1].isdigit()
    )


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("name", required=False, shell_complete=asking.complete_box)
@click.option("--url", help="The page to open; otherwise the box's first web port.")
@click.option(
    "--with",
    "kind",
    type=click.Choice(list(_BROWSERS)),
    help="Which browser, if not the first found.",
)
@click.option("--headless", is_flag=True, help="Without a window, for tests.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- BROWSER ARGS...]")
def browser(
    name: str | None, url: str | None, kind: str | None, headless: bool, arguments: tuple[str, ...]
) -> int:
    """Open a browser with a fresh profile inside a box.

    There `http://localhost:8000` in a page's code reaches this copy, not another's. The profile
    is deleted when the browser ends.

    \b
    loopbox browser
    loopbox browser fix-ui.shop --with firefox --url http://localhost:3000/cart
    """
    box = asking.box(name)
    found_kind, program = _find(kind)
    if not headless and not any(os.environ.get(one) for one in ("DISPLAY", "WAYLAND_DISPLAY")):
        raise HostError(
            "cannot open a browser: there is no display here",
            hint="without a window: loopbox browser --headless -- --dump-dom",
            code="no-display",
        )
    page = url or _first_page(box)
    profile = tempfile.mkdtemp(prefix="loopbox-browser-")
    try:
        command = [
            program,
            *_flags(found_kind, profile, headless=headless),
            *arguments,
            *([page] if page else []),
        ]
        inside = [sys.executable, "-P", "-m", "loopbox", "exec", box["name"], "--", *command]
        current_output().say(f"{found_kind} inside {box['name']}{f': {page}' if page else ''}")
        try:
            status = subprocess.run(inside, check=False).returncode
        except KeyboardInterrupt:
            status = 130
        return status if status >= 0 else 128 - status
    finally:
        shutil.rmtree(profile, ignore_errors=True)


def _find(kind: str | None) -> tuple[str, str]:
    kinds = [kind] if kind else list(_BROWSERS)
    for wanted in kinds:
        for candidate in _BROWSERS[wanted]:
            program = shutil.which(candidate)
            if program is not None:
                return wanted, program
    package = _PACKAGES[kind or "chromium"]
    raise HostError(
        f"cannot open a browser: {kind or 'neither chromium nor firefox'} is "
        f"{'not ' if kind else ''}installed",
        hint=f"sudo apt-get install {package}",
        code="no-browser",
    )


def _flags(kind: str, profile: str, *, headless: bool) -> list[str]:
    if kind == "firefox":
        with open(f"{profile}/user.js", "w", encoding="utf-8") as file:
            file.write(_FIREFOX_SETTINGS)
        return ["--no-remote", "--profile", profile, *(["--headless"] if headless else [])]
    flags = [f"--user-data-dir={profile}", *_CHROMIUM_FLAGS]
    if headless:
        flags += ["--headless=new", "--disable-gpu"]
    if os.geteuid() == 0:
        flags.append("--no-sandbox")  # Chromium refuses to run as root with it
    return flags


def _first_page(box: dict[str, Any]) -> str | None:
    """`http://localhost:PORT` of the box's web port: inside the box, names do not change."""
    port = web_port(found["port"] for found in box["listeners"] if found["protocol"] == "tcp")
    return None if port is None else f"http://localhost:{port}"
